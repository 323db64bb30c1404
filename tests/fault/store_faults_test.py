"""A store that is killed, stopped, slow, lying or full costs time, never an answer. Real processes, faults from outside
(tests/support/store_case.py)."""

import pathlib
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from support import faults  # noqa: E402
from support.cluster import wait_until  # noqa: E402
from support.series import total  # noqa: E402
from support.store_case import POOL, STORE, StoreCase  # noqa: E402


class StoreFaults(StoreCase):
    def disturb(self, cluster, fault, seconds=3):
        """Runs `fault(store's pid)`, a context or a call, in the middle of a load."""
        load, texts = self.prepare(cluster)
        with load:
            wait_until(lambda: load.count() >= 4, "answers under load")
            fault(cluster.processes()[STORE])
            seen = load.count()
            deadline = time.monotonic() + seconds
            wait_until(lambda: load.count() >= seen + 8 and time.monotonic() > deadline, "answers after the fault")
        self.check(load, texts)
        cluster.wait_replicas(1)

    def test_killed(self):
        with self.cluster() as cluster:
            self.disturb(cluster, faults.kill)
            wait_until(lambda: not self.store_is_up(cluster), "lowkey_rank_up to tell")

    def test_stopped_and_going_on(self):
        with self.cluster() as cluster:
            self.disturb(cluster, faults.stop, seconds=5)
            wait_until(lambda: not self.store_is_up(cluster), "lowkey_rank_up to tell")
            faults.go_on(cluster.processes()[STORE])
            # It finds its connections closed, dials, and what it holds is found again.
            wait_until(lambda: self.store_is_up(cluster), "the store to be adopted")
            before = self.restored(cluster)
            load = self.load(cluster)
            wait_until(lambda: load.undisturbed() and self.restored(cluster) > before, "pages from the store")

    def test_slow(self):
        with self.cluster() as cluster:
            load, texts = self.prepare(cluster)
            with faults.Stutter(cluster.processes()[STORE], off=0.4, on=0.1), load:
                wait_until(lambda: load.count() >= 16, "answers")
            self.check(load, texts)
            wait_until(lambda: self.store_is_up(cluster), "the store, out of breath")

    def test_connections_reset(self):
        # Those of control: on one host pages travel through shared memory. link_cut_test.py cuts what carries pages.
        with self.cluster() as cluster:
            load, texts = self.prepare(cluster)
            cuts = 0
            with load:
                for _ in range(4):
                    seen = load.count()
                    processes = cluster.processes()
                    links = faults.cut_links(processes[STORE], processes.values())
                    if links is None:
                        self.skipTest("connections cannot be cut here (needs root, and INET_DIAG_DESTROY)")
                    cuts += links
                    wait_until(lambda: load.count() >= seen + 4 and self.store_is_up(cluster), "the store again")
            self.check(load, texts)
            self.assertGreater(cuts, 0)
            before = self.restored(cluster)
            wait_until(lambda: load.undisturbed() == texts and self.restored(cluster) > before,
                       "pages from the store over the connections made anew")

    def test_lying(self):
        with self.cluster() as cluster:
            load, texts = self.prepare(cluster)
            pid = cluster.processes()[STORE]
            faults.stop(pid)  # nothing changes under our hands
            flipped = faults.flip_bits_of_pool(pid, POOL)
            faults.go_on(pid)
            self.assertGreater(flipped, 1000)
            with load:
                wait_until(lambda: load.count() >= 16 and self.restored(cluster, outcome="corrupt") > 0,
                           "answers, and somebody who has looked at what lies")
            self.check(load, texts)

    def test_full(self):
        with self.cluster(host_bytes=1 << 20) as cluster:
            load, texts = self.prepare(cluster)
            with load:
                wait_until(lambda: load.count() >= 16, "answers")
            self.check(load, texts)
            metrics = cluster.all_metrics()
            crowded = (total(metrics, "lowkey_kv_spill_pages_total", outcome="dropped_store_full")
                       + total(metrics, "lowkey_store_evicted_pages_total"))
            self.assertGreater(crowded, 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
