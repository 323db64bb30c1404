"""A store joins a cluster that serves, takes its share of the pages, and leaves again while requests run: `lowkey store
--join`, SIGTERM. Real processes."""

import itertools
import os
import pathlib
import signal
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from support.cluster import Cluster, wait_until  # noqa: E402
from support.prefixes import OTHERS, PAGES, Growth, complete, restored, said, wait_stored  # noqa: E402
from support.series import total  # noqa: E402

FLAGS = ["--dtype", "fp32", "--kv-bytes", "8MiB", "--host-bytes", "128MiB"]


def pages_of(cluster, rank):
    return total(cluster.metrics(), "lowkey_kv_pages", tier="host", role="store", rank=str(rank))


def wait_stores(cluster, count):
    """Until the coordinator counts so many, and the worker can use them."""
    wait_until(lambda: total(cluster.metrics(), "lowkey_rank_up", peer_role="store") == count, f"{count} store(s)")


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
            job.wait_log("joined as rank 3")
            # It may take a moment until the worker has dialled it: whatever is computed from then on is shared.
            seed = itertools.count(1000)
            wait_until(lambda: complete(cluster, next(seed), max_tokens=1) and pages_of(cluster, 3) > 0, "pages there")
            grown = Growth(cluster)
            second = complete(cluster, 200, max_tokens=24)
            wait_until(lambda: grown.read()("lowkey_kv_spill_pages_total", outcome="stored") >= PAGES, "pages in both stores")
            again, _ = restored(cluster, 200, max_tokens=24)
            self.assertEqual(said(again), said(second))
            self.assertEqual(said(complete(cluster, 1, max_tokens=24)), said(first))

            # It leaves while the worker spills and restores: nothing fails, and what it had is computed again.
            os.kill(job.processes()[0], signal.SIGTERM)
            for seed in OTHERS:
                complete(cluster, seed, max_tokens=2)
            self.assertEqual(job.wait(), 0, job.log())
            job.wait_gone()
            self.assertNotIn(" E [", job.log())
            wait_stores(cluster, 1)
            self.assertEqual(said(complete(cluster, 200, max_tokens=24)), said(second))
            self.assertNotIn("lost store", cluster.log())

            # Another one takes its place, and the cluster's end is its end.
            job = self.joins(cluster)
            job.wait_log("joined as rank 3")
            self.assertEqual(cluster.stop(), 0)
            self.assertEqual(job.wait(), 0, job.log())
            cluster.wait_gone()

    def test_refused_without_the_secret(self):
        with Cluster(workers=1, flags=FLAGS, open_port=True) as cluster:
            secret, cluster.SECRET = cluster.SECRET, "not the secret of anybody"
            job = cluster.join_store(FLAGS)
            cluster.SECRET = secret
            job.wait()
            self.assertIn("wrong cluster secret", job.log())
            wait_stores(cluster, 1)


if __name__ == "__main__":
    unittest.main(verbosity=2)
