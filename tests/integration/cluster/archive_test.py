"""Recipes that keep a prompt exact until it is complete, on real clusters in fp32: MiniKV gives the same tokens on one
rank, on two and in chunks, alone, in a rotated basis and where layers share banks; keeping every token in full width gives
those of `exact`; the metrics tell what is held."""

import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from integration.cluster.recipes_test import write_profile  # noqa: E402
from support.cluster import DEMO_MODEL, PATIENCE, ROOT, Cluster, binary, http, wait_until  # noqa: E402
from support.series import total  # noqa: E402

PROMPTS = ["The old man walked to the window and said nothing for a while. " * 12, "abc", "In the year 1843 " * 20]


MINIKV = ROOT / "recipes" / "minikv.yaml"


class Archive(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def recipe(self, text):
        path = self.folder / "recipe.yaml"
        path.write_text(f"name: test\n{text}\nstream: {{prefill: exact}}\n")
        return path

    def answers(self, workers, *flags, model=DEMO_MODEL):
        with Cluster(model=model, workers=workers, flags=["--dtype", "fp32", *flags]) as cluster:
            found = {}

            def ask(prompt):
                status, answer = http(cluster.url + "/v1/completions",
                                      {"model": model.name, "prompt": prompt, "max_tokens": 150, "temperature": 0,
                                       "ignore_eos": True, "logprobs": 1})
                found[prompt] = answer["choices"][0]["logprobs"]["tokens"] if status == 200 else answer

            threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in PROMPTS]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(timeout=PATIENCE)
            wait_until(lambda: total(cluster.all_metrics(), "lowkey_kv_bytes", tier="device", state="used") == 0,
                       "all memory returned")
            self.metrics = cluster.all_metrics()
            return [found[prompt] for prompt in PROMPTS]

    def test_minikv_has_the_same_tokens_on_one_rank_and_on_two(self):
        for recipe in ("minikv", "minikv-pyramid"):
            flags = ["--recipe", ROOT / "recipes" / f"{recipe}.yaml"]
            one = self.answers(1, *flags)
            self.assertEqual([len(tokens) for tokens in one], [150] * 3)
            self.assertGreater(total(self.metrics, "lowkey_kv_compression_ratio"), 7)
            self.assertEqual(self.answers(2, *flags, "--step-tokens", "33"), one)

    def test_keeping_everything_in_full_width_is_exact(self):
        recipe = self.recipe("tokens: {score: h2o, budget: {heavy: 0.5, recent: 0.5}}\nhot: {flush: 64}")
        self.assertEqual(self.answers(1, "--recipe", recipe), self.answers(1))

    def test_in_a_rotated_basis(self):
        inspected = subprocess.run([binary(), "inspect", DEMO_MODEL], capture_output=True, text=True, timeout=60)
        profile = self.folder / "random.safetensors"
        write_profile(profile, re.search(r"fingerprint (\w{32})", inspected.stdout).group(1), "trained", 1)
        whole = self.recipe("features: {basis: trained}\ntokens: {score: h2o, budget: {heavy: 0.5, recent: 0.5}}")
        self.assertEqual(self.answers(1, "--recipe", whole, "--profile", profile), self.answers(1))
        cut = self.recipe("features: {basis: trained, keep: 0.75}\ntokens: {score: h2o}\nhot: {flush: 128}\n"
                          "bits: {quantizer: affine, width: 4, group: 16, key: {axis: channel}, value: {axis: token}}")
        flags = ["--recipe", cut, "--profile", profile]
        self.assertEqual(self.answers(2, *flags, "--step-tokens", "50"), self.answers(1, *flags))

    def test_where_layers_share_banks(self):
        model = self.folder / "pairs"
        subprocess.run([binary(), "inspect", "--random", "tiny,layers=6,kv_heads=2,share=2", "--out", model], check=True,
                       timeout=60, stdout=subprocess.DEVNULL)
        one = self.answers(1, "--recipe", MINIKV, model=model)
        self.assertEqual(self.answers(2, "--recipe", MINIKV, "--step-tokens", "33", model=model), one)


if __name__ == "__main__":
    unittest.main(verbosity=2)
