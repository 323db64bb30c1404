"""Recipes that keep a prompt exact until it is complete, on real clusters in fp32: MiniKV gives the same tokens on one
rank, on two and in chunks; keeping every token in full width gives those of `exact`; the metrics tell what is held."""

import pathlib
import sys
import tempfile
import threading
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from support.cluster import DEMO_MODEL, ROOT, Cluster, http  # noqa: E402
from support.series import total  # noqa: E402

PROMPTS = ["The old man walked to the window and said nothing for a while. " * 12, "abc", "In the year 1843 " * 20]


class Archive(unittest.TestCase):
    def answers(self, workers, *flags):
        with Cluster(workers=workers, flags=["--dtype", "fp32", *flags]) as cluster:
            found = {}

            def ask(prompt):
                status, answer = http(cluster.url + "/v1/completions",
                                      {"model": DEMO_MODEL.name, "prompt": prompt, "max_tokens": 150, "temperature": 0,
                                       "ignore_eos": True, "logprobs": 1})
                found[prompt] = answer["choices"][0]["logprobs"]["tokens"] if status == 200 else answer

            threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in PROMPTS]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(timeout=120)
            self.metrics = cluster.metrics()
            return [found[prompt] for prompt in PROMPTS]

    def test_minikv_has_the_same_tokens_on_one_rank_and_on_two(self):
        for recipe in ("minikv", "minikv-pyramid"):
            flags = ["--recipe", ROOT / "recipes" / f"{recipe}.yaml"]
            one = self.answers(1, *flags)
            self.assertEqual([len(tokens) for tokens in one], [150] * 3)
            self.assertGreater(total(self.metrics, "lowkey_kv_compression_ratio"), 7)
            self.assertEqual(total(self.metrics, "lowkey_kv_bytes", tier="device", state="used"), 0)
            self.assertEqual(self.answers(2, *flags, "--step-tokens", "33"), one)

    def test_keeping_everything_in_full_width_is_exact(self):
        with tempfile.TemporaryDirectory() as folder:
            recipe = pathlib.Path(folder) / "whole.yaml"
            recipe.write_text("name: whole\ntokens: {score: h2o, budget: {heavy: 0.5, recent: 0.5}}\n"
                              "hot: {flush: 64}\nstream: {prefill: exact}\n")
            self.assertEqual(self.answers(1, "--recipe", recipe), self.answers(1))


if __name__ == "__main__":
    unittest.main(verbosity=2)
