"""A prefix of several levels comes back from the store level by level: who demands all levels gets the tokens of the
first run, who does not may read the first ones, and the explanation says so. Real processes: mpirun, two
tensor-parallel workers, one store."""

import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from support.cluster import Cluster, http, wait_until  # noqa: E402
from support.series import total  # noqa: E402

WORKERS = 2
PROMPT_TOKENS = 640
PAGE_TOKENS = 32
OTHERS = 16
RECIPE = """name: three-levels
hot: {sink: 4}
bits: {quantizer: embedded, width: 8}
stream: {levels: [0.25, 0.5, 1.0]}
"""


def complete(cluster, seed, max_tokens, **more):
    prompt = [4 + (seed * 7919 + i * 104729) % 4000 for i in range(PROMPT_TOKENS)]
    status, answer = http(cluster.url + "/v1/completions",
                          {"model": "demo-model", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0,
                           "ignore_eos": True, "logprobs": 1, **more})
    assert status == 200, answer
    return answer


def read_coarse(cluster):
    return total(cluster.metrics(), "lowkey_coarse_tokens_total")


class ProgressiveRestore(unittest.TestCase):
    def test_levels(self):
        with tempfile.TemporaryDirectory() as folder:
            recipe = pathlib.Path(folder) / "levels.yaml"
            recipe.write_text(RECIPE)
            flags = ["--dtype", "fp32", "--recipe", str(recipe), "--kv-bytes", "4MiB", "--host-bytes", "128MiB",
                     "--pressure", "preempt"]
            with Cluster(workers=WORKERS, flags=flags) as cluster:
                self.check(cluster)

    def check(self, cluster):
        first = complete(cluster, 1, max_tokens=24)
        pages = WORKERS * (PROMPT_TOKENS // PAGE_TOKENS)
        wait_until(lambda: total(cluster.metrics(), "lowkey_kv_spill_pages_total", outcome="stored") >= pages, 20,
                   "pages in the store")

        def push_out():
            for seed in range(2, 2 + OTHERS):
                complete(cluster, seed, max_tokens=2)

        push_out()
        coarse = complete(cluster, 1, max_tokens=24)
        cached = coarse["usage"]["prompt_tokens_details"]["cached_tokens"]
        self.assertGreaterEqual(cached, PROMPT_TOKENS - PAGE_TOKENS)
        status, why = http(cluster.url + "/v1/kv/explain?request=" + coarse["id"])
        self.assertEqual(status, 200, why)
        decided = sum(total(cluster.metrics(), "lowkey_prefix_decisions_total", decision=decision)
                      for decision in ("restore", "progressive"))
        self.assertGreater(decided, 0, why)
        before = read_coarse(cluster)
        for again in range(2):
            push_out()
            before = read_coarse(cluster)
            whole = complete(cluster, 1, max_tokens=24, min_levels=3)
            for what in ("tokens", "token_logprobs"):
                self.assertEqual(whole["choices"][0]["logprobs"][what], first["choices"][0]["logprobs"][what], again)
            self.assertEqual(read_coarse(cluster), before)
            cached = whole["usage"]["prompt_tokens_details"]["cached_tokens"]
            self.assertGreaterEqual(cached, PROMPT_TOKENS - PAGE_TOKENS)


if __name__ == "__main__":
    unittest.main(verbosity=2)
