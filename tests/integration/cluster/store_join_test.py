"""A store joins a cluster that serves, takes its share of the pages, and leaves again while requests run: `lowkey store
--join`, SIGTERM. Real processes."""

import os
import pathlib
import signal
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from support.cluster import Cluster, wait_until  # noqa: E402
from support.prefixes import OTHERS, PAGE_TOKENS, PAGES, PROMPT_TOKENS, cached, complete, push_out, said, stored, wait_stored  # noqa: E402
from support.series import total  # noqa: E402

FLAGS = ["--dtype", "fp32", "--kv-bytes", "8MiB", "--host-bytes", "128MiB"]


def pages_of(cluster, rank):
    return total(cluster.metrics(), "lowkey_kv_pages", tier="host", role="store", rank=str(rank))


def wait_stores(cluster, count):
    """Until the coordinator counts so many, and the worker can use them."""
    wait_until(lambda: total(cluster.metrics(), "lowkey_rank_up", peer_role="store") == count, 20, f"{count} store(s)")


class StoreJoin(unittest.TestCase):
    def joins(self, cluster):
        """A job whose store the worker uses: it has pages."""
        job = cluster.join_store(FLAGS)
        wait_stores(cluster, 2)
        return job

    def test_joins_shares_and_leaves(self):
        with Cluster(workers=1, flags=FLAGS, open_port=True) as cluster:
            first = complete(cluster, 1, max_tokens=24)
            wait_stored(cluster, PAGES)
            job = self.joins(cluster)
            self.assertIn("joined as rank 3", job.log())
            # It may take a moment until the worker has dialled it: whatever is computed from then on is shared.
            seed = iter(range(100, 130))
            wait_until(lambda: complete(cluster, next(seed), max_tokens=1) and pages_of(cluster, 3) > 0, 60, "pages there")
            before = stored(cluster)
            second = complete(cluster, 200, max_tokens=24)
            wait_stored(cluster, before + PAGES)
            push_out(cluster)
            again = complete(cluster, 200, max_tokens=24)
            self.assertEqual(said(again), said(second))
            self.assertGreaterEqual(cached(again), PROMPT_TOKENS - PAGE_TOKENS, "pages of both stores")
            self.assertEqual(said(complete(cluster, 1, max_tokens=24)), said(first))

            # It leaves while the worker spills and restores: nothing fails, and what it had is computed again.
            os.kill(job.processes()[0], signal.SIGTERM)
            for seed in OTHERS:
                complete(cluster, seed, max_tokens=2)
            self.assertEqual(job.wait(30), 0, job.log())
            self.assertEqual(job.all_pids(), [])
            self.assertNotIn(" E [", job.log())
            wait_stores(cluster, 1)
            self.assertEqual(said(complete(cluster, 200, max_tokens=24)), said(second))
            self.assertNotIn("lost store", cluster.log())

            # Another one takes its place, and the cluster's end is its end.
            job = self.joins(cluster)
            self.assertIn("joined as rank 3", job.log())
            self.assertEqual(cluster.stop(seconds=40), 0)
            self.assertEqual(job.wait(20), 0, job.log())
            self.assertEqual(cluster.everything(), [])

    def test_refused_without_the_secret(self):
        with Cluster(workers=1, flags=FLAGS, open_port=True) as cluster:
            secret, cluster.SECRET = cluster.SECRET, "not the secret of anybody"
            job = cluster.join_store(FLAGS)
            cluster.SECRET = secret
            job.wait(60)
            self.assertIn("wrong cluster secret", job.log())
            self.assertEqual(total(cluster.metrics(), "lowkey_rank_up", peer_role="store"), 1)


if __name__ == "__main__":
    unittest.main(verbosity=2)
