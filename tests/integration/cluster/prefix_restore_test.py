"""A prompt whose prefix left the workers' memory comes back from the store over UCX: same tokens, only the rest
prefilled. Real processes: mpirun, two tensor-parallel workers, one store."""

import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from support.cluster import ROOT, Cluster  # noqa: E402
from support.prefixes import PAGE_TOKENS, PAGES, PROMPT_TOKENS, cached, complete, restored, said, wait_stored  # noqa: E402
from support.series import total  # noqa: E402

WORKERS = 2


class PrefixRestore(unittest.TestCase):
    def again(self, cluster, max_tokens):
        """(first answer, the answer after its pages were pushed out, what that took)."""
        first = complete(cluster, 1, max_tokens)
        self.assertEqual(cached(first), 0)
        wait_stored(cluster, WORKERS * PAGES)
        return first, *restored(cluster, 1, max_tokens)

    def check(self, flags):
        # 4 MiB hold a few such sequences (1,536 bytes per token in exact bf16): the others push the first one out.
        with Cluster(workers=WORKERS, flags=["--kv-bytes", "8MiB", "--host-bytes", "128MiB", *flags]) as cluster:
            first, again, grown = self.again(cluster, max_tokens=24)
            self.assertEqual(said(again), said(first))
            self.assertEqual(grown("lowkey_prompt_tokens_total", source="computed"), PROMPT_TOKENS - cached(again))
            self.assertEqual(grown("lowkey_prompt_tokens_total", source="host"), cached(again))
            self.assertEqual(grown("lowkey_kv_restore_pages_total", outcome="restored"),
                             WORKERS * cached(again) // PAGE_TOKENS)
            self.assertGreater(grown("lowkey_transfer_bytes_total", direction="get"), 0)

    def test_exact_while_hot_4x_smaller_when_spilled(self):
        with Cluster(workers=WORKERS, flags=["--kv-bytes", "8MiB", "--host-bytes", "128MiB", "--recipe",
                                             str(ROOT / "recipes/exact-spill-4x.yaml")]) as cluster:
            first, again, grown = self.again(cluster, max_tokens=8)
            pages = grown("lowkey_kv_restore_pages_total", outcome="restored")
            self.assertGreaterEqual(pages, WORKERS * (PAGES - 1))
            exact = PAGE_TOKENS * total(grown.after, "lowkey_kv_bytes_per_token") / WORKERS
            moved = grown("lowkey_transfer_bytes_total", direction="get") / pages
            self.assertLess(moved, exact / 3.5, "bytes of a page on its way")
            self.assertEqual(said(again)[0][0], said(first)[0][0])

    def test_exact_fp32(self):
        self.check(["--dtype", "fp32"])

    def test_q8_bf16(self):
        self.check(["--recipe", str(ROOT / "recipes/q8.yaml"), "--kv-bytes", "4MiB"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
