"""What the measuring commands share: the lines of targets, the machine they ran on, metrics of a live cluster.

    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    from bench.report import Report
"""

import datetime
import os
import pathlib
import platform
import re
import statistics
import subprocess

from support import series
from support.cluster import ROOT


class Report:
    """Prints `name measured target pass|fail`, one line a target; keeps them for the JSON file."""

    def __init__(self):
        self.lines = []
        self.notes = {}

    def line(self, name, measured, comparison, target, unit=""):
        passed = measured is not None and (measured <= target if comparison == "<=" else measured >= target)
        shown = "missing" if measured is None else f"{measured:.4g}"
        print(f"{name} {shown}{unit} {comparison}{target:g}{unit} {'pass' if passed else 'fail'}", flush=True)
        self.lines.append({"name": name, "measured": measured, "comparison": comparison, "target": target,
                           "unit": unit, "pass": passed})

    def absent(self, name, comparison, target, reason, unit=""):
        """A target that this run could not, or should not, measure: it is named, and neither passes nor fails."""
        print(f"{name} not measured {comparison}{target:g}{unit} ({reason})", flush=True)
        self.lines.append({"name": name, "measured": None, "comparison": comparison, "target": target, "unit": unit,
                           "pass": None, "reason": reason})

    def leave_out(self, lines, reason):
        """Of {name: (comparison, target)} those that nothing was said of: absent."""
        for name, (comparison, target) in self._unsaid(lines).items():
            self.absent(name, comparison, target, reason)

    def missing(self, lines):
        """The same: they fail."""
        for name, (comparison, target) in self._unsaid(lines).items():
            self.line(name, None, comparison, target)

    def _unsaid(self, lines):
        said = {line["name"] for line in self.lines}
        return {name: line for name, line in lines.items() if name not in said}

    def note(self, name, measured, unit=""):
        """What stands beside a target, without one of its own."""
        print(f"{name} {'missing' if measured is None else f'{measured:.4g}'}{unit}", flush=True)
        self.notes[name] = measured

    def failed(self):
        return [line["name"] for line in self.lines if line["pass"] is False]


def machine():
    cpu = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {"cpu": cpu[1] if cpu else platform.processor(), "cores": len(os.sched_getaffinity(0)),
            "load": os.getloadavg()[0], "date": datetime.datetime.now().isoformat(timespec="seconds"),
            "commit": commit.stdout.strip()}


def samples(cluster, name):
    """[(labels, value)] of one metric on the page."""
    return series.samples(cluster.metrics(), name)


def median(values):
    """Of what was measured; None, which a report shows as missing, when nothing was."""
    values = [v for v in values if v is not None]
    return statistics.median(values) if values else None


def ratio(numerator, denominator):
    """None unless both were measured."""
    return numerator / denominator if numerator is not None and denominator else None
