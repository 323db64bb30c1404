"""What tests of a store's faults share: a cluster whose prompts do not fit the workers' memory, a load on it, and the check
that every request is answered with the tokens of the undisturbed run, within seconds of what the same load takes without
the fault."""

import unittest

from support import faults
from support.cluster import Cluster, wait_until
from support.series import total

STORE = 3  # its rank
POOL = 64 << 20
SEEDS = range(12)
# Of a request beyond its budget, what the slowest one took before the fault: less than the 30 s of a step's deadline. How
# little it is on a quiet machine the test prints.
GRACE_SECONDS = 25.0
LEAST_BUDGET = 1.0


class StoreCase(unittest.TestCase):
    def cluster(self, *flags, host_bytes=POOL, **options):
        # 4 MiB per worker hold a few of these sequences: the others come back from the store.
        return Cluster(workers=2, flags=["--dtype", "fp32", "--kv-bytes", "8MiB", "--host-bytes", host_bytes, *flags],
                       open_port=True, **options)

    def load(self, cluster, **options):
        return faults.Load(cluster.url, SEEDS, threads=4, tokens=512, max_tokens=8, **options)

    def prepare(self, cluster):
        """Undisturbed answers, their pages in the store, and what the load takes while nothing is wrong."""
        texts = self.load(cluster).undisturbed()
        wait_until(lambda: total(cluster.metrics(), "lowkey_kv_spill_pages_total", outcome="stored") > 0, "pages in the store")
        calm = self.load(cluster)
        with calm:
            wait_until(lambda: calm.count() >= 2 * len(SEEDS), "answers without a fault")
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

    def store_is_up(self, cluster):
        """It answers within a second, that is: one to wait for."""
        return total(cluster.metrics(), "lowkey_rank_up", peer_role="store") == 1

    def restored(self, cluster, outcome="restored"):
        return total(cluster.all_metrics("worker"), "lowkey_kv_restore_pages_total", outcome=outcome)
