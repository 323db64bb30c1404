"""Greedy text of real clusters in fp32 against an independent float64 forward pass: 1, 2 and 4 tensor-parallel ranks
over MPI, alone and all at once, whole and in chunks of 7 tokens. Skips where the reference data is absent."""

import json
import pathlib
import sys
import threading
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from support.cluster import PATIENCE, ROOT, Cluster, http, skip  # noqa: E402

MODELS = ROOT.parent / "shared/data/models"
MODEL = MODELS / "stories260K-hf"
REFERENCE = MODELS / "stories260K/greedy_reference.json"
SPECIAL = (1, 2)  # begin and end of text: not part of any text


def cases():
    for case in json.loads(REFERENCE.read_text())["cases"]:
        tokens = case["tokens_after_bos"][len(case["prompt_ids"]) - 1:]
        end = next((i for i, token in enumerate(tokens) if token in SPECIAL), len(tokens))
        yield case["prompt_ids"], tokens[:end]


class GreedyReference(unittest.TestCase):
    def ask(self, cluster, prompt, expected):
        status, answer = http(cluster.url + "/v1/completions",
                              {"model": MODEL.name, "prompt": prompt, "max_tokens": len(expected), "temperature": 0})
        self.assertEqual(status, 200, answer)
        _, whole = http(cluster.url + "/detokenize", {"model": MODEL.name, "tokens": prompt + expected})
        self.assertEqual(answer["usage"]["completion_tokens"], len(expected))
        text = answer["choices"][0]["text"]
        self.assertTrue(len(text) > 100 and whole["prompt"].endswith(text.lstrip(" ")), (text, whole["prompt"]))

    def check(self, workers, *flags):
        with Cluster(model=MODEL, workers=workers, flags=["--dtype", "fp32", *flags]) as cluster:
            for prompt, expected in cases():
                self.ask(cluster, prompt, expected)
            failures = []

            def ask(prompt, expected):
                try:
                    self.ask(cluster, prompt, expected)
                except Exception as error:
                    failures.append(error)

            threads = [threading.Thread(target=ask, args=case) for case in list(cases()) * 4]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(timeout=PATIENCE)
            self.assertEqual(failures, [])

    def test_one_rank(self):
        self.check(1)

    def test_two_ranks_in_chunks(self):
        self.check(2, "--step-tokens", "7")

    def test_four_ranks(self):
        self.check(4)


if __name__ == "__main__":
    if not REFERENCE.exists():
        skip(f"{REFERENCE.name} is absent")
    unittest.main(verbosity=2)
