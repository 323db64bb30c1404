"""Any process but the coordinator may be killed or stopped: what is in flight is answered within 5 s, nothing hangs,
/ready tells. Real processes under mpirun."""

import os
import pathlib
import signal
import sys
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from support import faults  # noqa: E402
from support.cluster import Cluster, http, sse, wait_until  # noqa: E402
from support.series import total  # noqa: E402

ANSWER_SECONDS = 5.0
SLACK_SECONDS = 5.0  # two cores carry five processes, this test, and perhaps others
LEADER, FOLLOWER, STORE = 1, 2, 3


class ProcessDeath(unittest.TestCase):
    def stream_until_broken(self, cluster, hit):
        """Streams a long answer and calls hit() after the first tokens; returns seconds from then to the stream's
        end, and what became of it."""
        body = {"model": "demo-model", "prompt": "Once upon a time", "max_tokens": 1000, "ignore_eos": True,
                "stream": True, "temperature": 0}
        def start():
            answer = faults.Answer(0)
            reader = threading.Thread(target=faults.ask, args=(cluster.url, 0, body, 60, answer), daemon=True)
            reader.start()
            return [reader], [answer]

        (reader,), (answer,) = faults.catch(
            start, lambda: total(cluster.metrics(), "lowkey_generation_tokens_total"), 500)
        begin = time.monotonic()
        hit()
        reader.join(timeout=ANSWER_SECONDS + SLACK_SECONDS)
        self.assertFalse(reader.is_alive(), "the stream hangs")
        return answer.end - begin, answer

    def check_worker_loss(self, rank, signal_number):
        with Cluster(workers=2) as cluster:
            pid = cluster.processes()[rank]
            took, answer = self.stream_until_broken(cluster, lambda: os.kill(pid, signal_number))
            print(f"rank {rank}, signal {signal_number}: the stream ended after {took:.2f} s", flush=True)
            self.assertLess(took, ANSWER_SECONDS + SLACK_SECONDS)
            self.assertEqual(answer.outcome, "error", answer.detail)
            wait_until(lambda: http(cluster.url + "/ready")[0] == 503, ANSWER_SECONDS, "/ready to turn 503")
            self.assertEqual(http(cluster.url + "/health")[0], 200)

    def test_leader_killed(self):
        self.check_worker_loss(LEADER, signal.SIGKILL)

    def test_follower_killed(self):
        self.check_worker_loss(FOLLOWER, signal.SIGKILL)

    def test_leader_stopped(self):
        self.check_worker_loss(LEADER, signal.SIGSTOP)

    def test_follower_stopped(self):
        self.check_worker_loss(FOLLOWER, signal.SIGSTOP)

    def check_store_loss(self, signal_number):
        with Cluster(workers=2) as cluster:
            body = {"model": "demo-model", "prompt": "The pass key of the " * 20, "max_tokens": 8, "temperature": 0}
            _, before = http(cluster.url + "/v1/completions", body)
            os.kill(cluster.processes()[STORE], signal_number)
            begin = time.monotonic()
            _, after = http(cluster.url + "/v1/completions", body)
            self.assertEqual(before["choices"][0]["text"], after["choices"][0]["text"])
            _, fresh = http(cluster.url + "/v1/completions", {**body, "prompt": "Another beginning. " * 20})
            self.assertLess(time.monotonic() - begin, ANSWER_SECONDS + SLACK_SECONDS)
            self.assertEqual(fresh["usage"]["completion_tokens"], 8)
            self.assertEqual(http(cluster.url + "/ready")[0], 200)  # a store is a cache: serving goes on without it
            wait_until(lambda: total(cluster.metrics(), "lowkey_rank_up", peer_role="store") == 0,
                       ANSWER_SECONDS + SLACK_SECONDS, "lowkey_rank_up to tell")

    def test_store_killed(self):
        self.check_store_loss(signal.SIGKILL)

    def test_store_stopped(self):
        self.check_store_loss(signal.SIGSTOP)


class Ending(unittest.TestCase):
    def test_drain_on_sigterm(self):
        with Cluster(workers=1) as cluster:
            events = []

            def read():
                body = {"model": "demo-model", "prompt": "Once", "max_tokens": 800, "ignore_eos": True, "stream": True}
                events.extend(sse(cluster.url + "/v1/completions", body))
                events.append("done")

            reader = threading.Thread(target=read, daemon=True)
            reader.start()
            wait_until(lambda: total(cluster.metrics(), "lowkey_generation_tokens_total") > 3, 30, "an answer under way")
            self.assertEqual(cluster.stop(seconds=40), 0)
            reader.join(timeout=10)
            self.assertEqual(events[-1], "done", "the answer under way was not finished")
            self.assertEqual(cluster.processes(), {})

    def test_an_idle_cluster_ends_at_once_and_without_an_error(self):
        with Cluster(workers=2) as cluster:
            self.assertEqual(http(cluster.url + "/v1/completions", {"prompt": "Once", "max_tokens": 4})[0], 200)
            begin = time.monotonic()
            self.assertEqual(cluster.stop(seconds=40), 0)
            self.assertLess(time.monotonic() - begin, 8, "nothing had to be waited for")
            self.assertNotIn(" E [", cluster.log())


if __name__ == "__main__":
    unittest.main(verbosity=2)
