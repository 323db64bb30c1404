"""A cluster over two hosts with a rate-limited link between them: coordinator and worker here, store there. Real
namespaces, a real queue on the link, mpirun over both (tests/support/two_hosts.py)."""

import pathlib
import subprocess
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from support.cluster import PATIENCE, skip, wait_until  # noqa: E402
from support.faults import TooLate, in_time  # noqa: E402
from support.prefixes import PAGES, PROMPT_TOKENS, Growth, cached, complete, push_out, restored, said, wait_stored  # noqa: E402
from support.series import total  # noqa: E402
from support.two_hosts import LINK, LinkedCluster, TwoHosts  # noqa: E402

RATE = "1gbit"
RATE_BYTES = 125e6
SLOW_RATE = "8mbit"
SLOW_RATE_BYTES = 1e6
DELAY_SECONDS = 0.02  # each way


def timed(cluster, seed):
    """An answer, and what it took."""
    begin = time.monotonic()
    answer = complete(cluster, seed, max_tokens=24)
    return answer, time.monotonic() - begin


class TwoHostsTest(unittest.TestCase):
    def setUp(self):
        self.hosts = TwoHosts(RATE)
        self.addCleanup(self.hosts.close)  # ends whatever the test has started
        self.hosts.__enter__()

    def test_pages_cross_the_link_and_come_back(self):
        in_time(self.check_transport_and_pages)

    def check_transport_and_pages(self):
        flags = ["--dtype", "fp32", "--kv-bytes", "8MiB", "--host-bytes", "128MiB"]
        with LinkedCluster(self.hosts, workers=1, flags=flags) as cluster:
            pair = {"role": "worker", "peer_role": "store"}
            wait_until(lambda: total(cluster.metrics(), "lowkey_transport_info", **pair) == 1, "transport measured")
            page = cluster.all_metrics()
            self.assertEqual(total(page, "lowkey_transport_info", transport="tcp", device=f"tcp/{LINK}",
                                   expected="tcp", **pair), 1)
            self.assertEqual(total(page, "lowkey_transport_mismatch", **pair), 0)
            for direction in ("put", "get"):
                measured = total(page, "lowkey_transport_bandwidth_bytes_per_second", direction=direction, **pair)
                if measured == 0:  # the measurement has a deadline of its own
                    raise TooLate(f"{direction} was not measured")
                # No faster than the link, up to what its queue lets pass at once: no way around it was found.
                self.assertLess(measured, 1.5 * RATE_BYTES, direction)

            first, computed = timed(cluster, 1)
            self.assertEqual(cached(first), 0)
            wait_stored(cluster, PAGES)
            sent = []
            again, grown = restored(cluster, 1, max_tokens=24, begin=lambda: sent.append(self.hosts.b.sent_bytes()))
            self.assertEqual(said(again), said(first), "restored over the link, not what was computed")
            self.assertEqual(grown("lowkey_prompt_tokens_total", source="host"), cached(again))
            fetched = grown("lowkey_transfer_bytes_total", direction="get", transport="tcp")
            self.assertGreater(fetched, 0)
            self.assertEqual(grown("lowkey_transfer_bytes_total", direction="get"), fetched)
            self.assertGreaterEqual(self.hosts.b.sent_bytes() - sent[-1], fetched)
            print(f"{PROMPT_TOKENS} tokens over {RATE}: {computed:.3f} s with computing them, {grown.seconds:.3f} s with "
                  f"restoring {fetched / 1e6:.2f} MB ({computed / grown.seconds:.1f}x)", flush=True)

    def test_a_delayed_link_delays_by_round_trips_alone(self):
        reason = self.hosts.no_delay()
        if reason:
            self.skipTest(reason)
        flags = ["--dtype", "fp32", "--kv-bytes", "8MiB", "--host-bytes", "128MiB"]
        with LinkedCluster(self.hosts, workers=1, flags=flags) as cluster:
            first, computed = timed(cluster, 1)
            wait_stored(cluster, PAGES)
            again, grown = restored(cluster, 1, max_tokens=24, begin=lambda: self.hosts.set_delay(1000 * DELAY_SECONDS))
            self.assertEqual(said(again), said(first))
            self.assertGreater(grown("lowkey_prompt_tokens_total", source="host"), 0)
            self.assertGreater(grown.seconds, 4 * DELAY_SECONDS, "a lookup and a transfer, there and back")
            print(f"{PROMPT_TOKENS} tokens over {RATE} with {DELAY_SECONDS} s each way: {computed:.3f} s with computing them, "
                  f"{grown.seconds:.3f} s with restoring", flush=True)

    def test_a_slow_link_slows_the_transfer_not_the_tokens(self):
        flags = ["--kv-bytes", "4MiB", "--host-bytes", "64MiB"]
        with LinkedCluster(self.hosts, workers=1, flags=flags) as cluster:
            first = complete(cluster, 1, max_tokens=24)
            wait_stored(cluster, PAGES)
            push_out(cluster)
            self.hosts.set_rate(SLOW_RATE)
            grown = Growth(cluster)
            again = complete(cluster, 1, max_tokens=24)
            grown.read()
            self.assertEqual(said(again), said(first))
            # Restored as slowly as the link is, or computed again because that is quicker: never waiting for both.
            fetched, took = (grown(name, direction="get")
                             for name in ("lowkey_transfer_bytes_total", "lowkey_transfer_seconds_total"))
            if fetched > 0:
                self.assertLess(fetched / took, 1.5 * SLOW_RATE_BYTES)

    def test_a_required_transport_that_is_not_there_refuses_the_start(self):
        # Without --enable-recovery: with it, mpirun ends with 0 whatever its processes end with.
        cluster = LinkedCluster(self.hosts, workers=1, recover=False, flags=["--require-transport", "shm"])
        self.addCleanup(cluster.__exit__, None, None, None)
        done = subprocess.run(cluster.command(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE)
        self.assertEqual(done.returncode, 4, done.stderr)
        lines = [line for line in done.stderr.splitlines() if "--require-transport shm" in line]
        self.assertEqual(len(lines), 1, done.stderr)
        self.assertIn(f"store 2 is reached over tcp (tcp/{LINK}), not shm", lines[0])


if __name__ == "__main__":
    reason = TwoHosts.missing()
    if reason:
        skip(reason)
    unittest.main(verbosity=2)
