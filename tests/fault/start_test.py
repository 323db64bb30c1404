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
from support.faults import TooLate, in_time  # noqa: E402

RANKS = 4  # coordinator, two workers, store
# What those say who give up; how long it took the log tells, too.
GAVE_UP = re.compile(r"ha(s|ve) been silent for \d+ s|has not come to it for \d+ s|while connecting: rank")
NAMED = r"while [a-z ]+: ranks? [\d, ]*\b2\b[\d, ]* ha(s|ve) been silent for|while connecting: rank 2, a worker"
STARTED = "listening on http"  # whoever dies now does not die while the cluster starts


class Start(unittest.TestCase):
    def lose(self, rank, signal_number, when):
        """Sends it the signal once `when(log)` is true: the others end. Returns their log."""
        return in_time(lambda: self.lose_once(rank, signal_number, when))

    def lose_once(self, rank, signal_number, when):
        command = mpirun(RANKS, "serve", "--model", DEMO_MODEL, "--port", 0)
        with Launch(command) as job:
            wait_until(lambda: rank in job.processes() and when(job.log()), f"rank {rank}")
            pid = job.processes()[rank]
            os.kill(pid, signal_number)
            begin = time.monotonic()
            if STARTED in job.log():
                raise TooLate("the cluster had started")

            def ended():
                # Ranks that mpirun has not started yet are not there either: it has to have ended, but for the one stopped.
                others = {r for r in job.processes() if r != rank}
                return not others and (signal_number == signal.SIGSTOP or job.ended()) and GAVE_UP.search(job.log())

            try:
                wait_until(ended, "the others to end")
            except TimeoutError:
                if STARTED in job.log() and not GAVE_UP.search(job.log()):  # mpirun told of it later
                    raise TooLate("the cluster had started") from None
                raise
            took = time.monotonic() - begin
            if signal_number == signal.SIGSTOP:
                os.kill(pid, signal.SIGKILL)  # nobody but who stopped it can end it
            job.wait()
            job.wait_gone()
            print(f"rank {rank}, {signal.Signals(signal_number).name}: ended after {took:.1f} s", flush=True)
            return job.log()

    def spawned(self, log):
        return True

    def formed(self, log):
        return "settings:" in log

    def test_worker_killed_when_it_is_spawned(self):
        self.lose(1, signal.SIGKILL, self.spawned)

    def test_worker_stopped_when_it_is_spawned(self):
        self.lose(1, signal.SIGSTOP, self.spawned)

    def test_worker_stopped_when_the_ranks_know_each_other(self):
        log = self.lose(2, signal.SIGSTOP, self.formed)
        self.assertRegex(log, NAMED)

    def test_worker_killed_when_the_ranks_know_each_other(self):
        log = self.lose(2, signal.SIGKILL, self.formed)
        self.assertRegex(log, NAMED)

    def test_store_killed_when_the_ranks_know_each_other(self):
        self.lose(3, signal.SIGKILL, self.formed)


if __name__ == "__main__":
    unittest.main(verbosity=2)
