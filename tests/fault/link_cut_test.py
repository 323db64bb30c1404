"""A link that goes away while pages are on it, without a word: coordinator and worker on one host, the store on another,
and the device between them taken down. Whoever waited for pages is answered with the same tokens, within bounds; what was
under way is given up, its memory let go of; and when the link is back, so is the store. Real namespaces and processes
(tests/support/two_hosts.py)."""

import concurrent.futures
import pathlib
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from support.cluster import skip, wait_until  # noqa: E402
from support.faults import TooLate, in_time  # noqa: E402
from support.prefixes import PAGE_TOKENS, PAGES, PROMPT_TOKENS, Growth  # noqa: E402
from support.prefixes import complete, push_out, said, stored, wait_stored  # noqa: E402
from support.series import total  # noqa: E402
from support.two_hosts import LinkedCluster, TwoHosts  # noqa: E402

RATE = "1gbit"
SLOW_RATE = "8mbit"  # a prefix takes seconds
GRACE_SECONDS = 20.0  # of a request beyond what computing it takes: 2 s of them a store has, a minute a transfer
FLAGS = ["--dtype", "fp32", "--kv-bytes", "8MiB", "--host-bytes", "128MiB"]


class LinkCut(unittest.TestCase):
    def setUp(self):
        self.hosts = TwoHosts(RATE)
        self.addCleanup(self.hosts.close)  # ends whatever the test has started
        self.hosts.__enter__()

    def cluster(self):
        self.hosts.set_rate(RATE)
        return LinkedCluster(self.hosts, workers=1, flags=FLAGS, open_port=True)

    def store_is_up(self, cluster):
        return total(cluster.metrics(), "lowkey_rank_up", peer_role="store") == 1

    def timed(self, cluster, seed):
        begin = time.monotonic()
        answer = complete(cluster, seed, max_tokens=24)
        return answer, time.monotonic() - begin

    def cut_when(self, cluster, metric, seed, over):
        """Asks for an answer over a slow link, which is cut as soon as the gauge tells of pages on it. TooLate where over()
        becomes true first."""
        self.hosts.set_rate(SLOW_RATE)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(self.timed, cluster, seed)
            wait_until(lambda: total(cluster.metrics(), metric) > 0 or over(waiting), metric)
            if over(waiting):
                waiting.result()
                raise TooLate(f"nobody saw {metric}")
            self.hosts.cut()
            return waiting.result()

    def wait_failed(self, grown, outcomes, pages):
        """Until pages have failed; TooLate where so many have come to another end."""
        def failed():
            return grown.read()(outcomes, outcome="failed") > 0
        wait_until(lambda: failed() or grown(outcomes) >= pages, "pages that did not arrive")
        if not failed():
            self.hosts.mend()
            raise TooLate("the link was quicker than the cut")

    def mend(self, cluster):
        """Once everybody knows that the store is gone. What was under way holds its memory until the network has let go of
        it, which may be as late as this."""
        wait_until(lambda: not self.store_is_up(cluster), "lowkey_rank_up to tell")
        quarantined = total(cluster.all_metrics("worker"), "lowkey_transfer_quarantined_bytes")
        self.hosts.mend()
        self.hosts.set_rate(RATE)
        wait_until(lambda: self.store_is_up(cluster), "the store to be adopted")
        wait_until(lambda: total(cluster.all_metrics(), "lowkey_transfer_quarantined_bytes") == 0, "quarantined memory")
        cluster.wait_replicas(1)
        return quarantined

    def check_restores(self, cluster, expected):
        def from_the_store():
            push_out(cluster)
            grown = Growth(cluster)
            answer = complete(cluster, 1, max_tokens=24)
            self.assertEqual(said(answer), said(expected))
            return grown.read()("lowkey_prompt_tokens_total", source="host") > 0
        wait_until(from_the_store, "a prefix from the store, over the mended link")

    def test_cut_during_a_restore(self):
        in_time(self.cut_a_restore)  # each in a cluster that has not learned yet that the link is slow

    def test_cut_during_a_spill(self):
        in_time(self.cut_a_spill)

    def cut_a_restore(self):
        with self.cluster() as cluster:
            first, computing = self.timed(cluster, 1)
            wait_stored(cluster, PAGES)
            push_out(cluster)
            grown = Growth(cluster, "worker")
            again, took = self.cut_when(cluster, "lowkey_restores_in_flight", 1, lambda asked: asked.done())
            self.assertEqual(said(again), said(first))
            self.wait_failed(grown, "lowkey_kv_restore_pages_total", PAGES - 1)
            self.assertLess(took, computing + GRACE_SECONDS)
            self.assertLess(grown("lowkey_prompt_tokens_total", source="host"), PROMPT_TOKENS - PAGE_TOKENS)
            quarantined = self.mend(cluster)
            print(f"cut during a restore: answered after {took:.2f} s, {computing:.2f} s computed before; {quarantined:.0f} B "
                  "were quarantined", flush=True)
            self.check_restores(cluster, first)

    def cut_a_spill(self):
        with self.cluster() as cluster:
            first, computing = self.timed(cluster, 1)
            wait_stored(cluster, PAGES)
            grown, most = Growth(cluster, "worker"), stored(cluster) + PAGES
            _, took = self.cut_when(cluster, "lowkey_spill_bytes_in_flight", 2, lambda _: stored(cluster) >= most)
            self.wait_failed(grown, "lowkey_kv_spill_pages_total", PAGES)
            self.assertLess(took, computing + GRACE_SECONDS)
            quarantined = self.mend(cluster)
            wait_until(lambda: total(cluster.all_metrics(), "lowkey_spill_bytes_in_flight") == 0, "nothing under way")
            print(f"cut during a spill: answered after {took:.2f} s; {quarantined:.0f} B were quarantined", flush=True)
            self.check_restores(cluster, first)


if __name__ == "__main__":
    reason = TwoHosts.missing()
    if reason:
        skip(reason)
    unittest.main(verbosity=2)
