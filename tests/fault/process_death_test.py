"""Any process but the coordinator may be killed or stopped: what is in flight is answered within seconds, nothing hangs,
/ready tells. Real processes under mpirun."""

import os
import pathlib
import signal
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from support import faults  # noqa: E402
from support.cluster import PATIENCE, Cluster, http, wait_until  # noqa: E402
from support.series import total  # noqa: E402

STEP_SECONDS = 30.0  # a step's deadline: who notices a loss only then has missed it
DRAIN_SECONDS = 30.0  # --drain-seconds
LEADER, FOLLOWER, STORE = 1, 2, 3


class ProcessDeath(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="lowkey-death-")
        cls.addClassCleanup(folder.cleanup)
        cls.model = faults.long_demo_model(folder.name)

    def streams_until_broken(self, cluster, hit):
        """Streams long answers and calls hit() after the first tokens; returns seconds from then to the end of the last
        stream, and what became of them."""
        body = {"model": "demo-model", "prompt": "Once upon a time", "max_tokens": 15000, "ignore_eos": True,
                "stream": True, "temperature": 0}
        readers, answers = faults.catch(lambda: faults.start(cluster.url, dict.fromkeys(range(4), body)),
                                        lambda: total(cluster.all_metrics("worker"), "lowkey_generation_tokens_total"), 20000)
        begin = time.monotonic()
        hit()
        for reader in readers:
            reader.join(PATIENCE)
            self.assertFalse(reader.is_alive(), "the stream hangs")
        return max(answer.end for answer in answers) - begin, answers

    def check_worker_loss(self, rank, signal_number):
        # Open, so that it stays and says what it has lost.
        with Cluster(model=self.model, workers=2, open_port=True) as cluster:
            pid = cluster.processes()[rank]
            took, answers = self.streams_until_broken(cluster, lambda: os.kill(pid, signal_number))
            print(f"rank {rank}, signal {signal_number}: the streams ended after {took:.2f} s", flush=True)
            self.assertLess(took, STEP_SECONDS)
            for answer in answers:  # the last ones may not have begun
                self.assertIn(answer.outcome, ("error", "refused"), answer.detail)
            self.assertIn("error", [answer.outcome for answer in answers])
            wait_until(lambda: http(cluster.url + "/ready")[0] == 503, "/ready to turn 503")
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
            cluster.all_metrics()  # it has met everybody
            os.kill(cluster.processes()[STORE], signal_number)
            begin = time.monotonic()
            _, after = http(cluster.url + "/v1/completions", body)
            self.assertEqual(before["choices"][0]["text"], after["choices"][0]["text"])
            _, fresh = http(cluster.url + "/v1/completions", {**body, "prompt": "Another beginning. " * 20})
            self.assertLess(time.monotonic() - begin, STEP_SECONDS)
            self.assertEqual(fresh["usage"]["completion_tokens"], 8)
            self.assertEqual(http(cluster.url + "/ready")[0], 200)  # a store is a cache: serving goes on without it
            wait_until(lambda: total(cluster.metrics(), "lowkey_rank_up", peer_role="store") == 0, "lowkey_rank_up to tell")

    def test_store_killed(self):
        self.check_store_loss(signal.SIGKILL)

    def test_store_stopped(self):
        self.check_store_loss(signal.SIGSTOP)


class Ending(unittest.TestCase):
    def test_drain_on_sigterm(self):
        with Cluster(workers=1) as cluster:
            body = {"model": "demo-model", "prompt": "Once", "max_tokens": 800, "ignore_eos": True, "stream": True}
            (reader,), (answer,) = faults.start(cluster.url, {0: body})
            wait_until(lambda: total(cluster.metrics(), "lowkey_generation_tokens_total") > 3, "an answer under way")
            self.assertEqual(cluster.stop(), 0)
            reader.join(PATIENCE)
            self.assertEqual(answer.outcome, "ok", "the answer under way was not finished")
            cluster.wait_gone()

    def test_an_idle_cluster_ends_at_once_and_without_an_error(self):
        with Cluster(workers=2) as cluster:
            self.assertEqual(http(cluster.url + "/v1/completions", {"prompt": "Once", "max_tokens": 4})[0], 200)
            begin = time.monotonic()
            self.assertEqual(cluster.stop(), 0)
            self.assertLess(time.monotonic() - begin, DRAIN_SECONDS, "there was nothing to wait for")
            self.assertNotIn(" E [", cluster.log())


if __name__ == "__main__":
    unittest.main(verbosity=2)
