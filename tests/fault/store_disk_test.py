"""A disk that lies, or is full, costs time, never an answer: its pages are misses. Real processes, faults from outside
(tests/support/store_case.py)."""

import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from support import faults  # noqa: E402
from support.cluster import wait_until  # noqa: E402
from support.series import total  # noqa: E402
from support.store_case import StoreCase  # noqa: E402


class StoreDisk(StoreCase):
    def test_lying_disk(self):
        with tempfile.TemporaryDirectory() as folder:
            flags = ["--disk", folder, "--disk-bytes", "256MiB"]
            with self.cluster(*flags) as cluster:
                load, texts = self.prepare(cluster)
                wait_until(lambda: total(cluster.metrics(), "lowkey_disk_pages_total", outcome="written") > 100,
                           "pages on disk")
                self.assertEqual(cluster.stop(), 0)
            self.assertGreater(faults.flip_bits_of_files(folder), 1000)
            with self.cluster(*flags) as cluster:  # finds the segments of the first one, and not one right page
                def damaged():
                    page = cluster.metrics()
                    return sum(total(page, "lowkey_disk_pages_total", outcome=outcome) for outcome in ("torn", "corrupt"))
                load = self.load(cluster)
                with load:
                    wait_until(lambda: load.count() >= 16 and damaged() > 0,
                               "answers, and somebody who has looked at what lies")
                self.check(load, texts)

    def test_full_disk(self):
        with tempfile.TemporaryDirectory() as folder, faults.small_disk(folder, "6m") as missing:
            if missing:
                self.skipTest(missing)
            flags = ["--disk", folder, "--disk-bytes", "256MiB"]
            with self.cluster(*flags) as cluster:
                def pages(outcome):
                    return total(cluster.all_metrics(), "lowkey_disk_pages_total", outcome=outcome)
                load, texts = self.prepare(cluster)
                wait_until(lambda: pages("dropped_full") > 0, "a page for which the disk has no room")
                with load:
                    wait_until(lambda: load.count() >= 16, "answers")
                self.check(load, texts)
                self.assertGreater(pages("written"), 0)
                self.assertEqual(pages("failed"), 0, "a full disk is not a broken one")
                self.assertEqual(cluster.stop(), 0)
            with self.cluster(*flags) as cluster:  # what had room is found again, and the disk is still full
                load = self.load(cluster)
                with load:
                    wait_until(lambda: load.count() >= 16 and pages("dropped_full") > 0 and pages("read") > 0, "answers")
                self.check(load, texts)
                self.assertEqual(pages("corrupt") + pages("torn"), 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
