"""A prefix of several levels comes back from the store level by level: who demands all levels gets the tokens of the
first run, who does not may read the first ones, and the explanation says so. Real processes: mpirun, two
tensor-parallel workers, one store. Codes cut at equal bits, and the calibrated recipe of several levels."""

import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from support.cluster import ROOT, Cluster, http  # noqa: E402
from support.prefixes import PAGES, complete, restored, said, wait_stored  # noqa: E402
from support.series import total  # noqa: E402

WORKERS = 2
RECIPE = """name: three-levels
hot: {sink: 4}
bits: {quantizer: embedded, width: 8}
stream: {levels: [0.25, 0.5, 1.0]}
"""


class ProgressiveRestore(unittest.TestCase):
    def test_levels(self):
        with tempfile.TemporaryDirectory() as folder:
            recipe = pathlib.Path(folder) / "levels.yaml"
            recipe.write_text(RECIPE)
            self.check(recipe)

    def test_levels_of_a_budget(self):
        self.check(ROOT / "recipes/lowkey-levels.yaml")

    def check(self, recipe):
        flags = ["--dtype", "fp32", "--recipe", str(recipe), "--kv-bytes", "4MiB", "--host-bytes", "128MiB",
                 "--pressure", "preempt"]
        with Cluster(workers=WORKERS, flags=flags) as cluster:
            first = complete(cluster, 1, max_tokens=24)
            wait_stored(cluster, WORKERS * PAGES)
            coarse, _ = restored(cluster, 1, max_tokens=24)
            status, why = http(cluster.url + "/v1/kv/explain?request=" + coarse["id"])
            self.assertEqual(status, 200, why)
            decided = sum(total(cluster.all_metrics(), "lowkey_prefix_decisions_total", decision=decision)
                          for decision in ("restore", "progressive"))
            self.assertGreater(decided, 0, why)
            for again in range(2):
                whole, grown = restored(cluster, 1, max_tokens=24, min_levels=3)
                self.assertEqual(said(whole), said(first), again)
                self.assertEqual(grown("lowkey_coarse_tokens_total"), 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
