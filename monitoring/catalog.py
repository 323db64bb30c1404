#!/usr/bin/env python3
"""The metric catalog (catalog.h) for tools and tests; run, it writes docs/metrics.md. A test fails when that is stale."""

import pathlib
import re
from typing import NamedTuple

HERE = pathlib.Path(__file__).resolve().parent
DOC = HERE.parent / "docs" / "metrics.md"

GROUPS = {
    "Coordinator": "Requests as users see them. Fed by the coordinator.",
    "Leader": "Engine steps. Fed by rank 0 of each replica.",
    "Cache": "Fed by workers (tier `device`) and stores (tiers `host` and `disk`).",
    "Rank": "Fed by every worker rank.",
    "Store": "Fed by stores.",
    "Process": "Fed by every process.",
}

HEAD = """# Metrics

<!-- Written by monitoring/catalog.py from monitoring/catalog.h; change that and run the script. -->

`GET /metrics` of the coordinator answers for all ranks of the cluster in Prometheus' text format; every series carries
`role` and `rank`, the numbers of [operations.md](operations.md#launch). Units are base units: seconds, bytes, shares from 0 to 1. Counters exist from the start with zero for all
label values listed here, so that `rate()` sees the first event. A label value that is not listed appears as `other`, and a
label without a list is bounded by the cluster (its peers, routes, settings), never by requests.

`deploy/observe/compose.yaml` brings Prometheus with the alert rules of `monitoring/alerts/lowkey.yaml`, and Grafana with the
dashboard `monitoring/grafana/lowkey.json`; which metric answers what is in [operations.md](operations.md#watch). When the server was started with `--api-key`, `/metrics` wants it as well.
"""


class Metric(NamedTuple):
    name: str
    type: str    # counter, gauge, histogram
    feeder: str  # Coordinator, Leader, ...
    labels: dict  # name -> list of values, empty when the cluster bounds it
    help: str


def catalog():
    text = (HERE / "catalog.h").read_text().replace("\\\n", " ")
    entries = re.findall(r'X\(k\w+,\s*"(\w+)",\s*k(\w+),\s*k(\w+),\s*"([^"]*)",\s*k\w+,\s*((?:"[^"]*"\s*)+)\)', text)
    assert len(entries) == len(re.findall(r"\bX\(k", text)), "an entry of catalog.h is not understood"
    result = []
    for name, kind, feeder, labels, help_text in entries:
        pairs = [label.partition("=")[::2] for label in labels.split()]
        result.append(Metric(name, kind.lower(), feeder, {key: values.split("|") if values else [] for key, values in pairs},
                             "".join(re.findall(r'"([^"]*)"', help_text))))
    return result


def series_names():
    """Every sample name that may appear on the metrics page."""
    names = set()
    for metric in catalog():
        names |= {metric.name + s for s in ("_bucket", "_sum", "_count")} if metric.type == "histogram" else {metric.name}
    return names


def document():
    lines = [HEAD]
    for feeder, meaning in GROUPS.items():
        lines += [f"## {feeder}\n", meaning + "\n", "| metric | type | labels | meaning |", "| --- | --- | --- | --- |"]
        for metric in catalog():
            if metric.feeder == feeder:
                labels = "; ".join(f"`{k}`" + (": " + ", ".join(v) if v else "") for k, v in metric.labels.items())
                lines.append(f"| `{metric.name}` | {metric.type} | {labels} | {metric.help} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    DOC.write_text(document())
