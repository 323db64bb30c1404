"""A link that is slower than what is put on it: pages wait for their turn, or are dropped; who lives is not taken for dead.
Heartbeats travel behind the pages that were put on the same connection. Real namespaces and processes (tests/support/two_hosts.py)."""

import concurrent.futures
import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from support.cluster import skip, wait_until  # noqa: E402
from support.prefixes import Growth, complete  # noqa: E402
from support.series import total  # noqa: E402
from support.two_hosts import LinkedCluster, TwoHosts  # noqa: E402

RATE = "60mbit"  # several times less than one worker computes
FLAGS = ["--dtype", "fp32", "--kv-bytes", "8MiB", "--host-bytes", "512MiB"]
PROMPTS = 40  # 3.7 MB of pages each


class SlowLink(unittest.TestCase):
    def test_nobody_is_lost_behind_pages(self):
        with TwoHosts(RATE) as hosts, LinkedCluster(hosts, workers=1, flags=FLAGS, open_port=True) as cluster:
            complete(cluster, 1, max_tokens=2)
            grown = Growth(cluster)
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda seed: complete(cluster, 100 + seed, max_tokens=2), range(PROMPTS)))
            most = total(cluster.metrics(), "lowkey_spill_bytes_in_flight")
            wait_until(lambda: total(cluster.metrics(), "lowkey_spill_bytes_in_flight") == 0, "pages on their way")
            grown.read()
            print(f"{most / 1e6:.1f} MB on their way at the end; stored {grown('lowkey_kv_spill_pages_total', outcome='stored'):.0f} "
                  f"of {PROMPTS * 20} pages, failed {grown('lowkey_kv_spill_pages_total', outcome='failed'):.0f}", flush=True)
            self.assertEqual(grown("lowkey_peer_losses_total"), 0, cluster.log())
            self.assertEqual(total(cluster.metrics(), "lowkey_rank_up", peer_role="store"), 1)


if __name__ == "__main__":
    reason = TwoHosts.missing()
    if reason:
        skip(reason)
    unittest.main(verbosity=2)
