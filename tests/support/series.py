"""Values of a Prometheus text page."""

import re

_LINE = re.compile(r'^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$')
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def samples(page, name):
    """[(labels, value)] of all series of this name."""
    lines = (_LINE.match(line) for line in page.splitlines() if line.startswith(name))
    return [(dict(_LABEL.findall(line[2] or "")), float(line[3])) for line in lines if line and line[1] == name]


def total(page, name, **labels):
    """The sum of all series of this name whose labels include these."""
    return sum(value for found, value in samples(page, name) if labels.items() <= found.items())
