"""Lines of targets, and the sample of conversations that the routing run asks: nothing here needs a cluster."""

import collections
import contextlib
import io
import json
import pathlib
import re
import tempfile
import unittest

from bench import routing, sections
from bench.report import Report, median, ratio
from support.cluster import ROOT


class Lines(unittest.TestCase):
    def test_what_was_not_measured_fails(self):
        report = Report()
        with contextlib.redirect_stdout(io.StringIO()) as text:
            report.line("slow", 3.0, "<=", 2, "s")
            report.line("fast", 3.0, ">=", 2)
            report.line("gone", None, "<=", 2)
            report.note("beside", None)
        self.assertEqual(report.failed(), ["slow", "gone"])
        self.assertEqual(text.getvalue(), "slow 3s <=2s fail\nfast 3 >=2 pass\ngone missing <=2 fail\nbeside missing\n")

    def test_what_should_not_be_measured_is_named_and_does_not_fail(self):
        report = Report()
        with contextlib.redirect_stdout(io.StringIO()) as text:
            report.absent("elsewhere", ">=", 0.5, "no second host", "x")
        self.assertEqual(report.failed(), [])
        self.assertEqual(text.getvalue(), "elsewhere not measured >=0.5x (no second host)\n")

    def test_every_line_of_the_page_has_the_target_that_is_run(self):
        """docs/measurements/README.md against the sections' own tables."""
        page = (ROOT / "docs" / "measurements" / "README.md").read_text()
        told = {name: (comparison, float(target)) for name, comparison, target in
                re.findall(r"^\| ([\w{}]+) \|[^|]*\| (<=|>=) ([\d.]+)", page, re.M)}
        run = {name: (comparison, float(target)) for name, (comparison, target) in sections.all_lines().items()}
        self.assertEqual(told, run)

    def test_medians_and_ratios_of_what_is_missing(self):
        self.assertEqual(median([None, 3, 1, 2]), 2)
        self.assertIsNone(median([None]))
        self.assertIsNone(ratio(1, None))
        self.assertIsNone(ratio(1, 0))
        self.assertEqual(ratio(0, 2), 0)


class Sample(unittest.TestCase):
    def test_takes_whole_conversations(self):
        requests = [{"timestamp": t, "input_length": 2000, "output_length": 9, "hash_ids": [0, t % 50, 100 + t, 2000 + t]}
                    for t in range(400)]
        with tempfile.TemporaryDirectory() as folder:
            trace, out = pathlib.Path(folder, "trace"), pathlib.Path(folder, "sample")
            trace.write_text("".join(json.dumps(r) + "\n" for r in requests))
            chosen = routing.sample_conversations(routing.TRACE_TOKENS * 2000 * 100, out, trace)
            self.assertEqual([json.loads(line) for line in out.read_text().splitlines()], chosen)
        talks = collections.Counter(r["hash_ids"][1] for r in chosen)
        self.assertEqual(set(talks.values()), {8})
        self.assertTrue(100 <= len(chosen) < 108)
        self.assertEqual([r["timestamp"] for r in chosen], sorted(r["timestamp"] for r in chosen))


if __name__ == "__main__":
    unittest.main()
