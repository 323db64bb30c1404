"""The official openai package, unchanged, against a real cluster: plain, streaming, usage, logprobs, errors as its own
exception types, models. Starts a cluster, or uses the one at LOWKEY_URL (with LOWKEY_KEY, when it wants a key)."""

import json
import os
import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "support"))
from cluster import Cluster, http, skip, wait_until  # noqa: E402
from series import total  # noqa: E402

try:
    import openai
except ImportError:
    skip("the Python package openai is not installed")

PROMPT = "Once upon a time there was"
MESSAGES = [{"role": "system", "content": "You tell stories."}, {"role": "user", "content": "Begin."}]


class OpenAiClient(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.key = os.environ.get("LOWKEY_KEY", "sk-test")
        cls.url = os.environ.get("LOWKEY_URL")
        if not cls.url:
            cls.cluster = Cluster(flags=["--api-key", cls.key, "--max-queued", "8"]).start()
            cls.addClassCleanup(cls.cluster.kill)
            cls.url = cls.cluster.url
        cls.client = cls.make_client(cls.key)
        cls.model = cls.client.models.list().data[0].id

    @classmethod
    def make_client(cls, key):
        return openai.OpenAI(base_url=cls.url + "/v1", api_key=key, max_retries=0, timeout=120)

    def complete(self, **fields):
        return self.client.completions.create(**{"model": self.model, "prompt": PROMPT, "max_tokens": 12,
                                                 "temperature": 0, **fields})

    def chat(self, **fields):
        return self.client.chat.completions.create(**{"model": self.model, "messages": MESSAGES, "max_tokens": 12,
                                                      "temperature": 0, **fields})

    def test_models(self):
        model = self.client.models.retrieve(self.model)
        self.assertEqual((model.id, model.object, model.owned_by), (self.model, "model", "lowkey"))
        with self.assertRaises(openai.NotFoundError):
            self.client.models.retrieve("gpt-4")

    def test_completion(self):
        answer = self.complete()
        self.assertEqual(answer.object, "text_completion")
        self.assertTrue(answer.choices[0].text)
        self.assertEqual(answer.choices[0].finish_reason, "length")
        self.assertEqual(answer.usage.completion_tokens, 12)
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + 12)
        self.assertTrue(answer._request_id.startswith("cmpl-"))
        self.assertEqual(self.complete().choices[0].text, answer.choices[0].text)  # greedy

    def test_streamed_completion_is_the_plain_one(self):
        chunks = list(self.complete(stream=True))
        self.assertEqual("".join(chunk.choices[0].text for chunk in chunks), self.complete().choices[0].text)
        self.assertEqual([chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason],
                         ["length"])
        self.assertTrue(all(chunk.usage is None for chunk in chunks))

    def test_streamed_chat_with_usage(self):
        plain = self.chat()
        self.assertEqual(plain.choices[0].message.role, "assistant")
        chunks = list(self.chat(stream=True, stream_options={"include_usage": True}))
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        self.assertEqual(text, plain.choices[0].message.content)
        self.assertEqual(chunks[-1].choices, [])
        self.assertEqual(chunks[-1].usage.completion_tokens, plain.usage.completion_tokens)
        self.assertTrue(all(chunk.usage is None for chunk in chunks[:-1]))

    def test_prompt_as_token_ids(self):
        tokens = self.client.post("/../tokenize", body={"prompt": PROMPT}, cast_to=object)["tokens"]
        self.assertEqual(self.complete(prompt=tokens).choices[0].text, self.complete().choices[0].text)

    def test_seed_and_stop(self):
        sampled = [self.complete(temperature=1, seed=7).choices[0].text for _ in range(2)]
        self.assertEqual(sampled[0], sampled[1])
        whole = self.complete(max_tokens=40).choices[0].text
        stop = whole[10:14]
        cut = self.complete(max_tokens=40, stop=[stop])
        self.assertEqual(cut.choices[0].text, whole[:whole.index(stop)])
        self.assertEqual(cut.choices[0].finish_reason, "stop")

    def test_logprobs(self):
        logprobs = self.complete(logprobs=3, max_tokens=4).choices[0].logprobs
        self.assertEqual(len(logprobs.tokens), 4)
        for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
            self.assertAlmostEqual(max(top.values()), logprob, places=5)  # greedy takes the best
            self.assertEqual(top[token], logprob)
        content = self.chat(logprobs=True, top_logprobs=5, max_tokens=4).choices[0].logprobs.content
        self.assertEqual(len(content), 4)
        for entry in content:
            self.assertEqual(len(entry.top_logprobs), 5)
            self.assertLessEqual(entry.logprob, 0)
            self.assertEqual(bytes(entry.bytes).decode(errors="replace"), entry.token)
        streamed = [c for chunk in self.chat(logprobs=True, max_tokens=4, stream=True)
                    if chunk.choices[0].logprobs for c in chunk.choices[0].logprobs.content]
        self.assertEqual([c.token for c in streamed], [c.token for c in content])

    def test_choices_are_the_answers_to_the_seeds_in_a_row(self):
        answer = self.complete(n=3, temperature=1, seed=7)
        self.assertEqual([choice.index for choice in answer.choices], [0, 1, 2])
        for i, choice in enumerate(answer.choices):
            self.assertEqual(choice.text, self.complete(temperature=1, seed=7 + i).choices[0].text)
        self.assertEqual(answer.usage.completion_tokens, 36)
        texts = {}
        for chunk in self.chat(n=2, temperature=1, seed=3, stream=True):
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
        plain = self.chat(n=2, temperature=1, seed=3)
        self.assertEqual(texts, {choice.index: choice.message.content for choice in plain.choices})

    def test_choices_share_the_pages_of_their_prompt(self):
        answer = self.complete(prompt=(PROMPT + ", ") * 20, n=2, extra_body={"cache_salt": str(os.getpid())})
        status, story = http(f"{self.url}/v1/kv/explain?request={answer.id}-1",
                             headers={"Authorization": f"Bearer {self.key}"})
        self.assertEqual(status, 200, story)
        self.assertGreater(story["cache"]["device_tokens"], answer.usage.prompt_tokens / 2)

    def test_several_prompts(self):
        prompts = [PROMPT, "One day a girl"]
        answer = self.complete(prompt=prompts, n=2)
        self.assertEqual([choice.index for choice in answer.choices], [0, 1, 2, 3])
        for i, prompt in enumerate(prompts):
            single = self.complete(prompt=prompt).choices[0].text
            self.assertEqual([answer.choices[2 * i].text, answer.choices[2 * i + 1].text], [single, single])

    def test_echo_scores_the_prompt(self):
        answer = self.complete(logprobs=2, max_tokens=6).choices[0]
        echoed = self.complete(prompt=PROMPT + answer.text, echo=True, logprobs=2, max_tokens=0).choices[0]
        self.assertEqual(echoed.text, PROMPT + answer.text)
        self.assertIsNone(echoed.logprobs.token_logprobs[0])
        if echoed.logprobs.tokens[-6:] == answer.logprobs.tokens:  # the same tokens again
            for scored, sampled in zip(echoed.logprobs.token_logprobs[-6:], answer.logprobs.token_logprobs):
                self.assertAlmostEqual(scored, sampled, delta=0.05)
        self.assertEqual(self.complete(echo=True).choices[0].text, PROMPT + self.complete().choices[0].text)

    def test_bias_and_penalties(self):
        first = self.complete(max_tokens=1, logprobs=2).choices[0].logprobs
        ids = {}
        for text in first.top_logprobs[0]:
            tokens = self.client.post("/../tokenize", body={"prompt": text, "add_special_tokens": False},
                                      cast_to=object)["tokens"]
            ids[text] = tokens[0] if len(tokens) == 1 else None
        best = first.tokens[0]
        if ids[best] is not None:
            other = self.complete(max_tokens=1, logit_bias={str(ids[best]): -100}).choices[0].text
            self.assertNotEqual(other, best)
            self.assertEqual(self.complete(max_tokens=4, logit_bias={str(ids[best]): 100}).choices[0].text, best * 4)

        def distinct(**fields):
            logprobs = self.complete(max_tokens=40, logprobs=0, extra_body={"ignore_eos": True}, **fields).choices[0].logprobs
            return len(set(logprobs.tokens))

        self.assertGreater(distinct(frequency_penalty=2, presence_penalty=2), distinct())

    def test_lengths_and_stop_tokens(self):
        whole = self.complete(max_tokens=8, logprobs=0).choices[0]
        tokens = self.client.post("/../tokenize", body={"prompt": whole.logprobs.tokens[3], "add_special_tokens": False},
                                  cast_to=object)["tokens"]
        if len(tokens) == 1:
            cut = self.complete(max_tokens=8, extra_body={"stop_token_ids": tokens})
            self.assertEqual(cut.choices[0].finish_reason, "stop")
            self.assertLessEqual(cut.usage.completion_tokens, 4)
            longer = self.complete(max_tokens=8, extra_body={"stop_token_ids": tokens, "min_tokens": 8})
            self.assertEqual(longer.usage.completion_tokens, 8)

    def test_answers_that_are_json(self):
        schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12},
                                                   "age": {"type": "integer", "minimum": 0, "maximum": 99}},
                  "required": ["name", "age"], "additionalProperties": False}
        form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
        fields = {"temperature": 1, "seed": 5, "max_tokens": 200}
        for text in (self.chat(response_format=form, **fields).choices[0].message.content,
                     self.complete(extra_body={"response_format": form}, **fields).choices[0].text):
            value = json.loads(text)
            self.assertEqual(set(value), {"name", "age"})
            self.assertLessEqual(len(value["name"]), 12)
            self.assertIn(value["age"], range(100))
        plain = self.chat(response_format={"type": "json_object"}, **{**fields, "max_tokens": 40})
        if plain.choices[0].finish_reason == "stop":
            self.assertIsInstance(json.loads(plain.choices[0].message.content), dict)
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}})
        self.assertIn("'not'", caught.exception.message)

    def test_errors_are_the_clients_own(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.complete(temperature=3)
        self.assertEqual(caught.exception.param, "temperature")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.complete(max_tokens=10**6)
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.complete(best_of=2)
        self.assertEqual(caught.exception.param, "best_of")
        with self.assertRaises(openai.NotFoundError) as caught:
            self.complete(model="gpt-4")
        self.assertEqual(caught.exception.code, "model_not_found")
        if not os.environ.get("LOWKEY_URL"):
            with self.assertRaises(openai.AuthenticationError):
                self.make_client("sk-wrong").models.list()

    def test_leaving_a_stream_frees_the_engine(self):
        if os.environ.get("LOWKEY_URL"):
            self.skipTest("others may be using the cluster")
        self.cluster.headers = {"Authorization": f"Bearer {self.key}"}

        def left():
            """Opens a stream and leaves it; the server may have been quicker with all of it."""
            stream = self.complete(max_tokens=900, stream=True, extra_body={"ignore_eos": True})
            next(iter(stream))
            stream.close()
            return total(self.cluster.metrics(), "lowkey_client_disconnects_total") > 0

        wait_until(left, "a client's leaving to be noticed")
        for name in ("lowkey_num_requests_running", "lowkey_queued_requests"):
            wait_until(lambda name=name: total(self.cluster.all_metrics(), name) == 0, f"{name} to be 0")

    def test_too_many_requests(self):
        if os.environ.get("LOWKEY_URL"):
            self.skipTest("others may be using the cluster")
        self.cluster.headers = {"Authorization": f"Bearer {self.key}"}
        ended = lambda: total(self.cluster.metrics(), "lowkey_request_success_total")  # noqa: E731

        def refused():
            """Opens streams until one is refused; how many were, or None where some of them had ended by then."""
            for name in ("lowkey_num_requests_running", "lowkey_queued_requests"):
                wait_until(lambda name=name: total(self.cluster.all_metrics(), name) == 0, f"{name} to be 0")
            streams, before = [], ended()
            try:
                while True:
                    streams.append(self.complete(max_tokens=900, stream=True, extra_body={"ignore_eos": True}))
            except openai.RateLimitError as error:
                outlasted = ended() == before
                self.assertGreaterEqual(int(error.response.headers["retry-after"]), 1)
            finally:
                for stream in streams:
                    stream.close()
            return len(streams) if outlasted else None

        self.assertEqual(wait_until(refused, "answers that last longer than opening them"), 8)  # --max-queued


if __name__ == "__main__":
    unittest.main(verbosity=2)
