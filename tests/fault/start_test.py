"""A worker, or another rank, that dies or stops while the cluster starts: everybody else says so and ends, within seconds.
Real processes."""

import os
import pathlib
import re
import signal
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from support.cluster import DEMO_MODEL, Launch, mpirun, wait_until  # noqa: E402

RANKS = 4  # coordinator, two workers, store
SECONDS = 15.0
INIT_SECONDS = 35.0  # while MPI itself starts
GAVE_UP = re.compile(r"has been silent for 1\d s|has not come to it for [13]0 s|while connecting: rank")


class Start(unittest.TestCase):
    def lose(self, rank, signal_number, when, seconds=SECONDS):
        """Sends it the signal once `when(log)` is true; returns how long the others took to end, and their log."""
        command = mpirun(RANKS, "serve", "--model", DEMO_MODEL, "--port", 0)
        with Launch(command) as job:
            wait_until(lambda: rank in job.processes() and when(job.log()), 30, f"rank {rank}")
            pid = job.processes()[rank]
            others = lambda: {r: p for r, p in job.processes().items() if r != rank}  # noqa: E731
            os.kill(pid, signal_number)
            begin = time.monotonic()
            # Ranks that mpirun has not started yet are not there either: it has to have ended, but for the one stopped.
            wait_until(lambda: not others() and (signal_number == signal.SIGSTOP or job.ended()) and
                       len(GAVE_UP.findall(job.log())) > 0, seconds, "the others to end")
            took = time.monotonic() - begin
            if signal_number == signal.SIGSTOP:
                os.kill(pid, signal.SIGKILL)  # nobody but who stopped it can end it
            job.wait(10)
            self.assertEqual(job.all_pids(), [])
            print(f"rank {rank}, {signal.Signals(signal_number).name}: ended after {took:.1f} s", flush=True)
            return job.log()

    def spawned(self, log):
        return True

    def formed(self, log):
        return "settings:" in log

    def test_worker_killed_when_it_is_spawned(self):
        self.lose(1, signal.SIGKILL, self.spawned, INIT_SECONDS)

    def test_worker_stopped_when_it_is_spawned(self):
        self.lose(1, signal.SIGSTOP, self.spawned, INIT_SECONDS)

    def test_worker_stopped_when_the_ranks_know_each_other(self):
        log = self.lose(2, signal.SIGSTOP, self.formed)
        self.assertRegex(log, r"while [a-z ]+: rank 2 has been silent for|while connecting: rank 2, a worker")

    def test_worker_killed_when_the_ranks_know_each_other(self):
        log = self.lose(2, signal.SIGKILL, self.formed)
        self.assertRegex(log, r"while [a-z ]+: rank 2 has been silent for|while connecting: rank 2, a worker")

    def test_store_killed_when_the_ranks_know_each_other(self):
        self.lose(3, signal.SIGKILL, self.formed)


if __name__ == "__main__":
    unittest.main(verbosity=2)
