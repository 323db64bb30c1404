"""A store that is killed, stopped, slow, lying or full costs time, never an answer: every request is answered with the
tokens of the undisturbed run, within 5 s of what the same load takes without the fault. Real processes, faults from
outside."""

import pathlib
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from support import faults  # noqa: E402
from support.cluster import Cluster, wait_until  # noqa: E402
from support.series import total  # noqa: E402

STORE = 3
POOL = 64 << 20
SEEDS = range(12)
GRACE_SECONDS = 5.0   # of a request beyond its budget: what the slowest one took before the fault,
LEAST_BUDGET = 1.0    # but a second


class StoreFaults(unittest.TestCase):
    def cluster(self, *flags, host_bytes=POOL, **options):
        # 4 MiB per worker hold a few of these sequences: the others come back from the store.
        return Cluster(workers=2, flags=["--dtype", "fp32", "--kv-bytes", "8MiB", "--host-bytes", host_bytes, *flags],
                       open_port=True, **options)

    def load(self, cluster, **options):
        return faults.Load(cluster.url, SEEDS, threads=4, tokens=512, max_tokens=8, **options)

    def prepare(self, cluster):
        """Undisturbed answers, their pages in the store, and what the load takes while nothing is wrong."""
        texts = self.load(cluster).undisturbed()
        wait_until(lambda: total(cluster.metrics(), "lowkey_kv_spill_pages_total", outcome="stored") > 0, 20,
                   "pages in the store")
        calm = self.load(cluster)
        with calm:
            wait_until(lambda: calm.count() >= 2 * len(SEEDS), 120, "answers without a fault")
        self.budget = max(LEAST_BUDGET, *(answer.seconds for answer in calm.answers))
        return self.load(cluster), texts

    def check(self, load, texts):
        self.assertGreater(len(load.answers), 0)
        for answer in load.answers:
            self.assertEqual(answer.outcome, "ok", answer.detail)
            self.assertEqual(answer.text, texts[answer.key], f"prompt {answer.key}")
            self.assertLess(answer.seconds, self.budget + GRACE_SECONDS)
        print(f"{self.id().rpartition('.')[2]}: {len(load.answers)} answers, slowest "
              f"{max(a.seconds for a in load.answers):.2f} s, of a budget of {self.budget:.2f} s", flush=True)

    def disturb(self, cluster, fault, seconds=3):
        """Runs `fault(store's pid)`, a context or a call, in the middle of a load."""
        load, texts = self.prepare(cluster)
        with load:
            wait_until(lambda: load.count() >= 4, 60, "answers under load")
            fault(cluster.processes()[STORE])
            seen = load.count()
            deadline = time.monotonic() + seconds
            wait_until(lambda: load.count() >= seen + 8 and time.monotonic() > deadline, 90, "answers after the fault")
        self.check(load, texts)
        self.assertEqual(cluster.ready_replicas(), 1)

    def store_is_up(self, cluster):
        return total(cluster.metrics(), "lowkey_rank_up", peer_role="store") == 1

    def restored(self, cluster):
        return total(cluster.metrics(), "lowkey_kv_restore_pages_total", outcome="restored")

    def test_killed(self):
        with self.cluster() as cluster:
            self.disturb(cluster, faults.kill)
            wait_until(lambda: not self.store_is_up(cluster), 10, "lowkey_rank_up to tell")

    def test_stopped_and_going_on(self):
        with self.cluster() as cluster:
            self.disturb(cluster, faults.stop, seconds=5)
            wait_until(lambda: not self.store_is_up(cluster), 10, "lowkey_rank_up to tell")
            faults.go_on(cluster.processes()[STORE])
            # It finds its connections closed, dials, and what it holds is found again.
            wait_until(lambda: self.store_is_up(cluster), 20, "the store to be adopted")
            before = self.restored(cluster)
            load = self.load(cluster)
            wait_until(lambda: load.undisturbed() and self.restored(cluster) > before, 60, "pages from the store")

    def test_slow(self):
        with self.cluster() as cluster:
            load, texts = self.prepare(cluster)
            with faults.Stutter(cluster.processes()[STORE], off=0.4, on=0.1), load:
                wait_until(lambda: load.count() >= 16, 120, "answers")
            self.check(load, texts)
            self.assertTrue(self.store_is_up(cluster))

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
                    wait_until(lambda: load.count() >= seen + 4 and self.store_is_up(cluster), 60, "the store again")
            self.check(load, texts)
            self.assertGreater(cuts, 0)
            before = self.restored(cluster)
            wait_until(lambda: load.undisturbed() == texts and self.restored(cluster) > before, 60,
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
                wait_until(lambda: load.count() >= 16, 120, "answers")
            self.check(load, texts)
            self.assertGreater(total(cluster.metrics(), "lowkey_kv_restore_pages_total", outcome="corrupt"), 0)

    def test_lying_disk(self):
        with tempfile.TemporaryDirectory() as folder:
            flags = ["--disk", folder, "--disk-bytes", "256MiB"]
            with self.cluster(*flags) as cluster:
                load, texts = self.prepare(cluster)
                wait_until(lambda: sum(path.stat().st_size for path in pathlib.Path(folder).rglob("*")
                                       if path.is_file()) > 4 << 20, 60, "pages on the disk")
                self.assertEqual(cluster.stop(60), 0)
            self.assertGreater(faults.flip_bits_of_files(folder), 1000)
            with self.cluster(*flags) as cluster:  # finds the segments of the first one, and not one right page
                load = self.load(cluster)
                with load:
                    wait_until(lambda: load.count() >= 16, 120, "answers")
                self.check(load, texts)

    def test_full_disk(self):
        with tempfile.TemporaryDirectory() as folder, faults.small_disk(folder, "6m") as missing:
            if missing:
                self.skipTest(missing)
            flags = ["--disk", folder, "--disk-bytes", "256MiB"]
            with self.cluster(*flags) as cluster:
                def pages(outcome):
                    return total(cluster.metrics(), "lowkey_disk_pages_total", outcome=outcome)
                load, texts = self.prepare(cluster)
                wait_until(lambda: pages("dropped_full") > 0, 60, "a page for which the disk has no room")
                with load:
                    wait_until(lambda: load.count() >= 16, 120, "answers")
                self.check(load, texts)
                self.assertGreater(pages("written"), 0)
                self.assertEqual(pages("failed"), 0, "a full disk is not a broken one")
                self.assertTrue(self.store_is_up(cluster))
                self.assertEqual(cluster.stop(60), 0)
            with self.cluster(*flags) as cluster:  # what had room is found again, and the disk is still full
                load = self.load(cluster)
                with load:
                    wait_until(lambda: load.count() >= 16 and pages("dropped_full") > 0, 120, "answers")
                self.check(load, texts)
                self.assertGreater(pages("read"), 0)
                self.assertEqual(pages("corrupt") + pages("torn"), 0)

    def test_full(self):
        with self.cluster(host_bytes=1 << 20) as cluster:
            load, texts = self.prepare(cluster)
            with load:
                wait_until(lambda: load.count() >= 16, 120, "answers")
            self.check(load, texts)
            metrics = cluster.metrics()
            crowded = (total(metrics, "lowkey_kv_spill_pages_total", outcome="dropped_store_full")
                       + total(metrics, "lowkey_store_evicted_pages_total"))
            self.assertGreater(crowded, 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
