"""The official openai package, unchanged, against a real cluster: plain, streaming, usage, logprobs, errors as its own
exception types, models. Starts a cluster, or uses the one at LOWKEY_URL (with LOWKEY_KEY, when it wants a key)."""

import os
import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "support"))
from cluster import Cluster, skip, wait_until  # noqa: E402
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

    def test_errors_are_the_clients_own(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.complete(temperature=3)
        self.assertEqual(caught.exception.param, "temperature")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.complete(max_tokens=10**6)
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.complete(n=2)
        self.assertEqual(caught.exception.param, "n")
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

        wait_until(left, 30, "a client's leaving to be noticed")
        for name in ("lowkey_num_requests_running", "lowkey_queued_requests"):
            wait_until(lambda name=name: total(self.cluster.metrics(), name) == 0, 10, f"{name} to be 0")

    def test_too_many_requests(self):
        if os.environ.get("LOWKEY_URL"):
            self.skipTest("others may be using the cluster")
        ended = lambda: total(self.cluster.metrics(), "lowkey_request_success_total")  # noqa: E731

        def refused():
            """Opens streams until one is refused; how many were, or None where some of them had ended by then."""
            for name in ("lowkey_num_requests_running", "lowkey_queued_requests"):
                wait_until(lambda name=name: total(self.cluster.metrics(), name) == 0, 30, f"{name} to be 0")
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

        self.assertEqual(wait_until(refused, 60, "answers that last longer than opening them"), 8)  # --max-queued


if __name__ == "__main__":
    unittest.main(verbosity=2)
