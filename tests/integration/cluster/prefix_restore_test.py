"""A prompt whose prefix left the workers' memory comes back from the store over UCX: same tokens, only the rest
prefilled. Real processes: mpirun, two tensor-parallel workers, one store."""

import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from support.cluster import ROOT, Cluster, http, wait_until  # noqa: E402
from support.series import total  # noqa: E402

WORKERS = 2
PROMPT_TOKENS = 640
PAGE_TOKENS = 32
OTHERS = 16


def complete(cluster, seed, max_tokens):
    # Tokens of the demo model's vocabulary (4,096 entries, the first 4 special), the same every time.
    prompt = [4 + (seed * 7919 + i * 104729) % 4000 for i in range(PROMPT_TOKENS)]
    status, answer = http(cluster.url + "/v1/completions",
                          {"model": "demo-model", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0,
                           "ignore_eos": True, "logprobs": 1})
    assert status == 200, answer
    return answer


class PrefixRestore(unittest.TestCase):
    def check(self, flags):
        # 4 MiB hold a few such sequences (1,536 bytes per token in exact bf16): the others push the first one out.
        with Cluster(workers=WORKERS, flags=["--kv-bytes", "8MiB", "--host-bytes", "128MiB", *flags]) as cluster:
            first = complete(cluster, 1, max_tokens=24)
            self.assertEqual(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0)
            pages = WORKERS * (PROMPT_TOKENS // PAGE_TOKENS)
            wait_until(lambda: total(cluster.metrics(), "lowkey_kv_spill_pages_total", outcome="stored") >= pages, 20,
                       "pages in the store")
            for seed in range(2, 2 + OTHERS):
                complete(cluster, seed, max_tokens=2)
            before = cluster.metrics()
            again = complete(cluster, 1, max_tokens=24)
            after = cluster.metrics()
            for what in ("tokens", "token_logprobs"):
                self.assertEqual(again["choices"][0]["logprobs"][what], first["choices"][0]["logprobs"][what])
            cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
            self.assertGreaterEqual(cached, PROMPT_TOKENS - PAGE_TOKENS)

            def grown(name, **labels):
                return total(after, name, **labels) - total(before, name, **labels)

            self.assertEqual(grown("lowkey_prompt_tokens_total", source="computed"), PROMPT_TOKENS - cached)
            self.assertEqual(grown("lowkey_prompt_tokens_total", source="host"), cached)
            self.assertEqual(grown("lowkey_kv_restore_pages_total", outcome="restored"),
                             WORKERS * cached // PAGE_TOKENS)
            self.assertGreater(grown("lowkey_transfer_bytes_total", direction="get"), 0)

    def test_exact_while_hot_4x_smaller_when_spilled(self):
        with Cluster(workers=WORKERS, flags=["--kv-bytes", "8MiB", "--host-bytes", "128MiB", "--recipe",
                                             str(ROOT / "recipes/exact-spill-4x.yaml")]) as cluster:
            first = complete(cluster, 1, max_tokens=8)
            pages = WORKERS * (PROMPT_TOKENS // PAGE_TOKENS)
            wait_until(lambda: total(cluster.metrics(), "lowkey_kv_spill_pages_total", outcome="stored") >= pages, 20,
                       "pages in the store")
            for seed in range(2, 2 + OTHERS):
                complete(cluster, seed, max_tokens=2)
            before = cluster.metrics()
            again = complete(cluster, 1, max_tokens=8)
            after = cluster.metrics()

            def grown(name, **labels):
                return total(after, name, **labels) - total(before, name, **labels)

            restored = grown("lowkey_kv_restore_pages_total", outcome="restored")
            self.assertGreaterEqual(restored, WORKERS * (PROMPT_TOKENS // PAGE_TOKENS - 1))
            exact = PAGE_TOKENS * total(after, "lowkey_kv_bytes_per_token") / WORKERS
            moved = grown("lowkey_transfer_bytes_total", direction="get") / restored
            self.assertLess(moved, exact / 3.5, "bytes of a page on its way")
            self.assertEqual(again["choices"][0]["logprobs"]["tokens"][0], first["choices"][0]["logprobs"]["tokens"][0])

    def test_exact_fp32(self):
        self.check(["--dtype", "fp32"])

    def test_q8_bf16(self):
        self.check(["--recipe", str(ROOT / "recipes/q8.yaml"), "--kv-bytes", "4MiB"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
