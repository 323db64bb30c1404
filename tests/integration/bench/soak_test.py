"""The short form of tests/bench/soak.py: two hundred streaming clients, no error, every page returned."""

import unittest

from bench import soak
from bench.report import Report


class Soak(unittest.TestCase):
    def test_two_hundred_clients_leave_nothing_behind(self):
        report = Report()
        with soak.start() as cluster:
            found = soak.run(report, cluster, seconds=20)
        self.assertEqual(report.failed(), [], found["load"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
