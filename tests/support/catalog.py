"""The metric catalog (monitoring/catalog.h) as Python sees it."""

import re

from support.cluster import ROOT


def catalog():
    """{name: (type, labels)} with type counter, gauge or histogram."""
    text = (ROOT / "monitoring" / "catalog.h").read_text().replace("\\\n", " ")
    found = re.findall(r'X\(k\w+,\s*"(\w+)",\s*k(\w+),\s*k\w+,\s*"([^"]*)"', text)
    return {name: (kind.lower(), [label.split("=")[0] for label in labels.split()]) for name, kind, labels in found}


def series_names():
    """Every sample name that may appear on the metrics page."""
    names = set()
    for name, (kind, _) in catalog().items():
        names |= {name + suffix for suffix in ("_bucket", "_sum", "_count")} if kind == "histogram" else {name}
    return names
