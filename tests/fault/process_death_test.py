"""Any process but the coordinator may be killed or stopped: what is in flight is answered within 5 s, nothing hangs,
/ready tells. Real processes under mpirun."""

import os
import pathlib
import signal
import sys
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from cluster import Cluster  # noqa: E402

ANSWER_SECONDS = 5.0
SLACK_SECONDS = 3.0  # two cores carry five processes and this test


class ProcessDeath(unittest.TestCase):
    def stream_until_broken(self, cluster, hit):
        """Streams a long answer, calls hit() after the first tokens; returns seconds from hit to the stream's end, and
        its last event."""
        events, times = [], {}

        def read():
            for event in cluster.stream("/v1/completions", {"prompt": "Once upon a time", "max_tokens": 900,
                                                            "ignore_eos": True, "temperature": 0}):
                events.append(event)
            times["end"] = time.monotonic()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        cluster.wait_for(lambda: len(events) > 3, "tokens streamed")
        times["hit"] = time.monotonic()
        hit()
        reader.join(timeout=ANSWER_SECONDS + SLACK_SECONDS)
        self.assertFalse(reader.is_alive(), "the stream hangs")
        return times["end"] - times["hit"], events[-1]

    def check_worker_loss(self, rank, signal_number):
        with Cluster(workers=2) as cluster:
            pid = cluster.pid_of_rank(rank)
            took, last = self.stream_until_broken(cluster, lambda: os.kill(pid, signal_number))
            self.assertLess(took, ANSWER_SECONDS + SLACK_SECONDS)
            self.assertIn("error", last, last)
            cluster.wait_for(lambda: cluster.status("/ready") == 503, "/ready to turn 503")
            self.assertEqual(cluster.status("/health"), 200)
            if signal_number == signal.SIGSTOP:
                os.kill(pid, signal.SIGKILL)

    def test_leader_killed(self):
        self.check_worker_loss(1, signal.SIGKILL)

    def test_follower_killed(self):
        self.check_worker_loss(2, signal.SIGKILL)

    def test_leader_stopped(self):
        self.check_worker_loss(1, signal.SIGSTOP)

    def test_follower_stopped(self):
        self.check_worker_loss(2, signal.SIGSTOP)

    def check_store_loss(self, signal_number):
        with Cluster(workers=2) as cluster:
            body = {"prompt": "The pass key of the " * 20, "max_tokens": 8, "temperature": 0}
            before = cluster.post("/v1/completions", body)
            pid = cluster.pid_of_rank(3)
            os.kill(pid, signal_number)
            begin = time.monotonic()
            after = cluster.post("/v1/completions", body)
            self.assertEqual(before["choices"][0]["text"], after["choices"][0]["text"])
            fresh = cluster.post("/v1/completions", {**body, "prompt": "Another beginning. " * 20})
            self.assertLess(time.monotonic() - begin, ANSWER_SECONDS + SLACK_SECONDS)
            self.assertEqual(fresh["usage"]["completion_tokens"], 8)
            self.assertEqual(cluster.status("/ready"), 200)  # a store is a cache: serving goes on without it
            cluster.wait_for(lambda: cluster.metric("lowkey_rank_up", peer_role="store") == 0, "rank_up to tell")
            if signal_number == signal.SIGSTOP:
                os.kill(pid, signal.SIGKILL)

    def test_store_killed(self):
        self.check_store_loss(signal.SIGKILL)

    def test_store_stopped(self):
        self.check_store_loss(signal.SIGSTOP)


class Ending(unittest.TestCase):
    def test_drain_on_sigterm(self):
        with Cluster(workers=1) as cluster:
            events = []

            def read():
                events.extend(cluster.stream("/v1/completions", {"prompt": "Once", "max_tokens": 400,
                                                                 "ignore_eos": True}))

            reader = threading.Thread(target=read, daemon=True)
            reader.start()
            cluster.wait_for(lambda: cluster.metric("lowkey_generation_tokens_total") > 3, "an answer under way")
            os.kill(cluster.pid_of_rank(0), signal.SIGTERM)
            reader.join(timeout=30)
            self.assertFalse(reader.is_alive())
            self.assertEqual(events[-1], "[DONE]")
            self.assertEqual(cluster.wait_exit(timeout=15), 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
