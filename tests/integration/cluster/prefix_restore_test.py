"""A prompt whose prefix left the workers' memory comes back from the store over UCX: same tokens, only the rest
prefilled. Real processes: mpirun, two tensor-parallel workers, one store."""

import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "support"))
from cluster import Cluster  # noqa: E402

PROMPT_TOKENS = 640
PAGE_TOKENS = 32


def complete(cluster, prompt, max_tokens=24):
    return cluster.post("/v1/completions", {
        "model": "demo-model", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True,
        "logprobs": 1})


def prompt_tokens(seed):
    # Tokens of the demo model's vocabulary (4,096 entries, the first 4 special), the same every time.
    return [4 + (seed * 7919 + i * 104729) % 4000 for i in range(PROMPT_TOKENS)]


class PrefixRestore(unittest.TestCase):
    def check(self, recipe, dtype):
        # 4 MiB hold two such sequences or so: a dozen others push the first one's pages out.
        with Cluster(workers=2, arguments=["--dtype", dtype, "--kv-bytes", "6MiB", "--host-bytes", "256MiB",
                                           *(["--recipe", recipe] if recipe else [])]) as cluster:
            first = complete(cluster, prompt_tokens(1))
            self.assertEqual(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0)
            cluster.wait_for(lambda: cluster.metric("lowkey_kv_spill_pages_total", outcome="stored")
                             >= 2 * (PROMPT_TOKENS // PAGE_TOKENS), "pages spilled")
            for seed in range(2, 14):
                complete(cluster, prompt_tokens(seed), max_tokens=4)
            restored_before = cluster.metric("lowkey_kv_restore_pages_total", outcome="restored")
            computed_before = cluster.metric("lowkey_prompt_tokens_total", source="computed")
            again = complete(cluster, prompt_tokens(1))
            self.assertEqual(again["choices"][0]["text"], first["choices"][0]["text"])
            self.assertEqual(again["choices"][0]["logprobs"]["tokens"], first["choices"][0]["logprobs"]["tokens"])
            cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
            self.assertGreaterEqual(cached, PROMPT_TOKENS - PAGE_TOKENS)
            self.assertGreater(cluster.metric("lowkey_kv_restore_pages_total", outcome="restored"), restored_before)
            computed = cluster.metric("lowkey_prompt_tokens_total", source="computed") - computed_before
            self.assertEqual(computed, PROMPT_TOKENS - cached)

    def test_exact_fp32(self):
        self.check(None, "fp32")

    def test_q8_bf16(self):
        self.check(str(pathlib.Path(__file__).resolve().parents[3] / "recipes/q8.yaml"), "bf16")


if __name__ == "__main__":
    unittest.main(verbosity=2)
