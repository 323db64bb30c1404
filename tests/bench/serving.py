"""What the measuring commands ask of live clusters: models of a shape, load, and that it settles."""

import collections
import json
import pathlib
import re
import subprocess
import tempfile
import time

from support.cluster import binary, sse, wait_until
from support.series import total


def random_model(shape, positions=40960):
    """A model with random weights of a shape; written once."""
    folder = binary().parent / f"bench-{shape}-{positions}"
    if not (folder / "config.json").exists():
        subprocess.run([binary(), "inspect", "--random", f"{shape},positions={positions}", "--out", folder], check=True,
                       timeout=300, stdout=subprocess.DEVNULL)
    return folder


def load(cluster, *flags, seconds=300, timeout=120):
    """The report of `lowkey bench`; `timeout`: of one request."""
    with tempfile.NamedTemporaryFile(suffix=".json") as result:
        done = subprocess.run([binary(), "bench", "--url", cluster.url, "--json", result.name, "--timeout", str(timeout),
                               *map(str, flags)], check=False, timeout=seconds + 130, capture_output=True, text=True)
        text = pathlib.Path(result.name).read_text()
    if not text:
        raise RuntimeError(f"lowkey bench: {done.stderr}")
    return json.loads(text)


def first_token(cluster, tokens):
    """(seconds to the first token, usage) of a prompt of token ids."""
    body = {"model": cluster.model.name, "prompt": tokens, "max_tokens": 2, "temperature": 0, "ignore_eos": True,
            "stream": True, "stream_options": {"include_usage": True}}
    begin, first, usage = time.monotonic(), None, {}
    for event in sse(cluster.url + "/v1/completions", body, timeout=900):
        first = first or time.monotonic() - begin
        usage = event.get("usage") or usage
    return first, usage


def by_label(page, name, label):
    """{value of the label: sum} of a metric on a text page."""
    found = collections.Counter()
    for labels, value in re.findall(rf"^{name}\{{([^}}]*)\}} (\S+)$", page, re.M):
        found[re.search(rf'{label}="([^"]*)"', labels)[1]] += float(value)
    return dict(found)


def settle(cluster, seconds=60):
    """Waits until every published page has reached a store, or was refused."""
    last = [None, time.monotonic()]

    def quiet():
        page = cluster.metrics()
        waiting = total(page, "lowkey_spill_queue_pages") + total(page, "lowkey_spill_bytes_in_flight")
        now = (waiting, total(page, "lowkey_kv_spill_pages_total"))
        if now != last[0] or waiting:
            last[:] = [now, time.monotonic()]
        return time.monotonic() - last[1] > 0.6
    wait_until(quiet, "spills are done", seconds=seconds)
