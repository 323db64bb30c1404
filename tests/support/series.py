"""Values of a Prometheus text page."""

import re

_LINE = re.compile(r'^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$')
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def total(page, name, **labels):
    """The sum of all series of this name whose labels include these."""
    values = []
    for line in page.splitlines():
        match = _LINE.match(line)
        if not match or match[1] != name:
            continue
        found = dict(_LABEL.findall(match[2] or ""))
        if all(found.get(key) == value for key, value in labels.items()):
            values.append(float(match[3]))
    return sum(values)
