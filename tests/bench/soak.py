#!/usr/bin/env python3
"""Many streaming clients for a while: no error, memory that does not grow once everything is warm, every page returned.

usage: tests/bench/soak.py [--clients N] [--seconds N] [--json FILE]

The demo model on two workers and a store, whose pools are small enough to be full, and to evict, soon. Memory is that of
every process, read every few seconds; its first half is the warm-up (what fills last is what the store remembers of 65,536
evicted pages, 5.6 MB), the medians of the two quarters behind it are compared.
"""

import argparse
import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from bench.report import Report, machine, samples  # noqa: E402
from support.cluster import Cluster, binary, wait_until  # noqa: E402

CLIENTS = 200
SECONDS = 600
MOST_GROWTH = 2  # per cent
POOLS = ["--kv-bytes", "24MiB", "--host-bytes", "8MiB"]  # full after some hundred requests


def own_memory(pid):
    """Anonymous + shared bytes of a process, without the segments that another one made: the pages of a store's pool
    are resident in every worker that touched them, but they are the store's, and counted there."""
    makers = {}  # SysV segment -> pid of its maker
    for line in pathlib.Path("/proc/sysvipc/shm").read_text().splitlines()[1:]:
        fields = line.split()
        makers[fields[1]] = int(fields[4])
    total, foreign = 0, False
    for line in pathlib.Path(f"/proc/{pid}/smaps").read_text().splitlines():
        fields = line.split()
        if "-" in fields[0] and not fields[0].endswith(":"):
            shared, inode, name = "s" in fields[1], fields[4], " ".join(fields[5:])
            foreign = name.startswith("/SYSV") and makers.get(inode) != pid
            shared = shared and (name.startswith(("/SYSV", "/dev/shm", "/memfd", "/dev/zero")) or not name)
        elif fields[0] == "Rss:" and shared and not foreign:
            total += int(fields[1]) * 1024
        elif fields[0] == "Anonymous:":
            total += 0 if shared else int(fields[1]) * 1024
    return total


def sample_memory(cluster, load, seconds):
    """[{rank: bytes}] while the load runs."""
    pids, found, every = cluster.processes(), [], max(0.5, seconds / 120)
    while load.poll() is None:
        found.append({rank: own_memory(pid) for rank, pid in pids.items()})
        with contextlib.suppress(subprocess.TimeoutExpired):
            load.wait(every)
    return found[:-1]  # the last may be of the end


def growth(memory):
    """Per cent by rank: the last quarter over the one before it."""
    quarter = len(memory) // 4
    if quarter == 0:
        return {}

    def median(part, rank):
        return statistics.median(sample[rank] for sample in part)
    return {rank: 100 * (median(memory[-quarter:], rank) / median(memory[-2 * quarter:-quarter], rank) - 1)
            for rank in memory[0]}


def drive(cluster, clients, seconds):
    """The load's report, and the memory meanwhile."""
    with tempfile.NamedTemporaryFile(suffix=".json") as result:
        load = subprocess.Popen([binary(), "bench", "--url", cluster.url, "--concurrency", str(clients), "--duration",
                                 str(seconds), "--prompt-tokens", "uniform:16,256", "--output-tokens", "uniform:8,96",
                                 "--json", result.name], stdout=subprocess.DEVNULL)
        try:
            memory = sample_memory(cluster, load, seconds)
            load.wait(timeout=400)
        finally:
            load.kill()
        text = pathlib.Path(result.name).read_text()
    return json.loads(text) if text else {}, memory


def pages_held(cluster):
    """Pages that some sequence still holds, over all workers, or that somebody writes to a store or reads there."""
    return sum(v for labels, v in samples(cluster, "lowkey_kv_pages")
               if labels["tier"] != "disk" and labels["state"] in ("used", "in_flight"))


def ledger_difference(cluster):
    """Ledger equal to allocator: the states of every pool add up to its capacity. Bytes; None: there are no pools."""
    pools = {}
    for labels, value in samples(cluster, "lowkey_kv_bytes"):
        pools.setdefault((labels["role"], labels["rank"], labels["tier"]), {})[labels["state"]] = value
    return sum(abs(p["capacity"] - sum(v for state, v in p.items() if state != "capacity")) for p in pools.values()) \
        if pools else None


def start():
    """The cluster to soak, for a `with`."""
    return Cluster(workers=2, flags=POOLS)


LINES = {"soak_errors": ("<=", 0), "soak_answered": (">=", CLIENTS), "soak_memory_growth": ("<=", MOST_GROWTH),
         "soak_pages_not_returned": ("<=", 0), "soak_ledger_difference": ("<=", 0)}


def run(report, cluster, seconds=SECONDS, clients=CLIENTS):
    """Prints its lines; of growth only a run of full length speaks."""
    load, memory = drive(cluster, clients, seconds)
    report.line("soak_errors", load.get("requests_failed"), "<=", 0)
    report.line("soak_answered", load.get("requests_answered"), ">=", clients)
    by_rank = growth(memory)
    if seconds >= SECONDS:
        report.line("soak_memory_growth", max(by_rank.values()) if by_rank else None, "<=", MOST_GROWTH, "%")
    else:
        report.absent("soak_memory_growth", "<=", MOST_GROWTH, f"needs {SECONDS} s: --soak-seconds", "%")
    try:
        wait_until(lambda: pages_held(cluster) == 0, "every page returned")
    except TimeoutError:
        pass
    try:  # a page of the metrics is no snapshot of all ranks and moments
        wait_until(lambda: ledger_difference(cluster) == 0, "every byte accounted for", seconds=20)
    except TimeoutError:
        pass
    report.line("soak_pages_not_returned", pages_held(cluster), "<=", 0)
    report.line("soak_ledger_difference", ledger_difference(cluster), "<=", 0, "B")
    return {"clients": clients, "seconds": seconds, "load": load, "memory": memory}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--seconds", type=int, default=SECONDS)
    parser.add_argument("--json", help="where all numbers go")
    arguments = parser.parse_args()
    report = Report()
    with start() as cluster:
        details = {"machine": machine(), **run(report, cluster, arguments.seconds, arguments.clients)}
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps({"lines": report.lines, **details}, indent=1) + "\n")
    return 1 if report.failed() else 0


if __name__ == "__main__":
    sys.exit(main())
