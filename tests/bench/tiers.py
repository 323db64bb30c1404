#!/usr/bin/env python3
"""Measures the tiers below the device and what is done about pressure: one line a target, medians of alternating runs.

usage: tests/bench/tiers.py [--only SECTION ...] [--minutes M] [--json FILE]        (tests/bench/run calls it, too)

    restore     time to first token of a prefix in a store's memory against computing it, 135M shape, 2k / 8k / 32k
    spill       what writing every page to a store costs when nothing is ever read back
    preemption  tokens computed a second time when sequences are preempted all the time
    routing     Mooncake's conversation trace on two replicas: kv against round-robin, and against perfect knowledge
    pressure    requests a minute with the ladder (levels first) against preempting only
    restore_1b  the first section on the 1B shape, if memory and time allow: 32k takes seven minutes more

Every cluster is real: MPI, HTTP, shared memory. A section that would not end in its time is cut down, and names the lines
that it leaves out; a line that should have been measured and was not says `missing`, and fails.
"""

import argparse
import collections
import contextlib
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from bench import routing  # noqa: E402
from bench.pressure import cpu_seconds  # noqa: E402
from bench.report import Report, machine, median, ratio, samples  # noqa: E402
from bench.serving import by_label, first_token, load, random_model, settle  # noqa: E402
from support.cluster import DEMO_MODEL, Cluster, binary  # noqa: E402
from support.series import total  # noqa: E402

MINUTES = 12
RESTORE_OVER_COMPUTING = {8192: 30, 32768: 60}  # >=, by length
LENGTHS = (2048, 8192, 32768)


def restore_lines(shape, lengths=LENGTHS):
    """{name: (comparison, target)}, as LINES."""
    found = {}
    for length in lengths:
        name = f"restore_{shape}_{length // 1024}k"
        if length in RESTORE_OVER_COMPUTING:
            found[f"{name}_over_computing"] = (">=", RESTORE_OVER_COMPUTING[length])
        found[f"{name}_over_link_and_step"] = ("<=", 2)
    return found


LINES = {
    "restore": restore_lines("135M"),
    "spill": {"spill_throughput_loss": ("<=", 3), "spill_p99_between_tokens_growth": ("<=", 5)},
    "preemption": {"preemption_recomputed_share": ("<=", 2)},
    "routing": routing.LINES,
    "pressure": {"pressure_ladder_over_preempt": (">=", 2)},
    "restore_1b": restore_lines("1B"),
}


def say(report, name, value, unit=""):
    lines = {name: line for section in LINES.values() for name, line in section.items()}
    report.line(name, value, *lines[name], unit)


class Time:
    """What is left of a section's share, and of the whole."""

    def __init__(self, minutes):
        self._end = time.monotonic() + 60 * minutes

    def left(self):
        return self._end - time.monotonic()

    def share(self, seconds):
        return Time(min(seconds, self.left()) / 60)


# ---- a host-tier hit against computing -----------------------------------------------------------------------

def restore_of(cluster, length, rng):
    """One prompt, four times, on two replicas in turn: computed, restored from the store, on the device twice."""
    tokens = [rng.randrange(300, 40000) for _ in range(length)]
    computed, _ = first_token(cluster, tokens)
    settle(cluster)
    before = total(cluster.metrics(), "lowkey_transfer_bytes_total", direction="get")
    restored, usage = first_token(cluster, tokens)
    fetched = total(cluster.metrics(), "lowkey_transfer_bytes_total", direction="get") - before
    on_device = [first_token(cluster, tokens)[0] for _ in range(2)]
    tiers = usage.get("prompt_tokens_details", {}).get("cached_tokens_by_tier", {})
    found = {"tokens": length, "computed": computed, "restored": restored, "device": median(on_device), "bytes": fetched,
             "tiers": tiers}
    if tiers.get("host", 0) < 0.9 * length:
        print(f"# restore of {length} tokens: only {tiers} came back", flush=True)
        found["restored"] = None
    return found


def restore(report, clock, shape="135M", lengths=((2048, 3), (8192, 2), (32768, 1)), kv="1800MiB", host="1GiB"):
    runs, rng = [], random.Random(4)
    # Two threads each: only one of the two replicas computes at a time.
    flags = ["--tp", 1, "--replicas", 2, "--stores", 1, "--threads", 2, "--routing", "round-robin", "--kv-bytes", kv,
             "--host-bytes", host, "--step-deadline-seconds", 120]
    with Cluster(random_model(shape), ranks=4, flags=flags, ready_seconds=300) as cluster:
        bandwidth = median([v for labels, v in samples(cluster, "lowkey_transport_bandwidth_bytes_per_second")
                            if labels["direction"] == "get" and labels["memory"] == "host" and labels["peer_role"] == "store"])
        report.note(f"restore_{shape}_link", bandwidth and bandwidth / 1e9, " GB/s")
        for length, repeats in lengths:
            for _ in range(repeats):
                # Attention grows with the square, the rest does not: at most this.
                expected = max((r["computed"] * (length / r["tokens"]) ** 1.7 for r in runs), default=0)
                if 1.3 * expected > clock.left():
                    print(f"# restore {shape} {length}: about {expected:.0f} s, {clock.left():.0f} s are left", flush=True)
                    break
                runs.append(restore_of(cluster, length, rng))
    for length, _ in lengths:
        mine = [r for r in runs if r["tokens"] == length]
        if not mine:
            report.leave_out(restore_lines(shape, (length,)), "no time is left")
            continue
        computed, restored, device, size = (median([r[key] for r in mine])
                                            for key in ("computed", "restored", "device", "bytes"))
        name = f"restore_{shape}_{length // 1024}k"
        report.note(f"{name}_computed", computed, " s")
        report.note(f"{name}_restored", restored, " s")
        if length in RESTORE_OVER_COMPUTING:
            say(report, f"{name}_over_computing", ratio(computed, restored))
        else:
            report.note(f"{name}_over_computing", ratio(computed, restored))
        floor = size / bandwidth + device if size and bandwidth and device else None
        say(report, f"{name}_over_link_and_step", ratio(restored, floor))
    return {"runs": runs, "link_bytes_per_second": bandwidth}


# ---- what spilling costs -------------------------------------------------------------------------------------

def spill(report, clock):
    """Slices of load in turn on two clusters that differ in the store; no prompt comes twice."""
    model = random_model("135M")
    flags = ["--tp", 1, "--replicas", 1, "--threads", 2, "--kv-bytes", "256MiB", "--host-bytes", "512MiB"]
    runs = collections.defaultdict(list)
    with contextlib.ExitStack() as stack:
        clusters = {stores: stack.enter_context(Cluster(model, ranks=2 + stores, flags=flags + ["--stores", stores]))
                    for stores in (1, 0)}
        for number in range(12):
            if clock.left() < 20:
                break
            for stores in ((1, 0) if number % 2 else (0, 1)):
                pids = clusters[stores].processes().values()
                before = sum(map(cpu_seconds, pids))
                run = load(clusters[stores], "--concurrency", 4, "--requests", 8, "--prompt-tokens", 256, "--output-tokens", 48,
                           "--seed", 1000 + number)
                settle(clusters[stores])  # asks for metrics in either case
                runs[stores].append({**run, "cpu_seconds": sum(map(cpu_seconds, pids)) - before})
        stored = total(clusters[1].metrics(), "lowkey_kv_spill_pages_total", outcome="stored")
        hits = sum(run["cached_tokens"] for run in runs[1] + runs[0])

    pairs = list(zip(runs[1], runs[0]))  # slices of the same prompts, one behind the other
    loss = median([1 - a["output_tokens_per_second"] / b["output_tokens_per_second"] for a, b in pairs])
    growth = median([a["between_tokens_seconds"]["p99"] / b["between_tokens_seconds"]["p99"] - 1 for a, b in pairs])
    cpu = median([a["cpu_seconds"] / b["cpu_seconds"] - 1 for a, b in pairs])
    report.note("spill_cpu_seconds_growth", cpu and 100 * cpu, "%")  # of all processes
    report.note("spill_pages_written", stored)
    report.note("spill_cached_tokens", hits)
    say(report, "spill_throughput_loss", None if loss is None or not stored else 100 * loss, "%")
    say(report, "spill_p99_between_tokens_growth", None if growth is None or not stored else 100 * growth, "%")
    return {"with": runs[1], "without": runs[0]}


# ---- preemption ----------------------------------------------------------------------------------------------

def preempting_run(stores):
    """Demo model, sixteen clients, and room for the prompts of five, 24 pages each with the next page and the incomplete one,
    but not for their answers, nine pages more: 21 pages of 96 KiB in every 2 MiB."""
    flags = ["--tp", 1, "--replicas", 1, "--stores", stores, "--threads", 2, "--pressure", "preempt", "--kv-bytes", "12MiB",
             "--host-bytes", "256MiB"]
    with Cluster(DEMO_MODEL, ranks=2 + stores, flags=flags) as cluster:
        done = load(cluster, "--concurrency", 16, "--requests", 80, "--prompt-tokens", "uniform:640,680", "--output-tokens",
                    "uniform:270,300", seconds=240)
        page = cluster.metrics()
    again = {cause: total(page, "lowkey_recomputed_tokens_total", cause=cause)
             for cause in ("preemption", "retry", "restore_miss")}
    return {"load": done, "preemptions": total(page, "lowkey_num_preemptions_total"), "again": again,
            "decisions": by_label(page, "lowkey_prefix_decisions_total", "decision"),
            "spilled": by_label(page, "lowkey_kv_spill_pages_total", "outcome"),
            "share": 100 * sum(again.values()) / max(1, done["prompt_tokens"])}


def preemption(report, clock):
    runs, taken = {1: [], 0: []}, 0
    for number in range(3):
        begin = time.monotonic()
        if clock.left() < 1.2 * taken:
            break
        for stores in ((0, 1) if number % 2 else (1, 0)):
            runs[stores].append(preempting_run(stores))
        taken = time.monotonic() - begin

    def of(stores, get):
        return median([get(run) for run in runs[stores]])
    preempted = of(1, lambda run: run["preemptions"])
    report.note("preemption_sequences_preempted", preempted)
    report.note("preemption_recomputed_share_without_store", of(0, lambda run: run["share"]), "%")
    report.note("preemption_duration_over_without_store", ratio(*(of(stores, lambda run: run["load"]["duration_seconds"])
                                                                  for stores in (1, 0))))
    say(report, "preemption_recomputed_share", of(1, lambda run: run["share"]) if preempted else None, "%")
    return {"with": runs[1], "without": runs[0]}


# ---- pressure ------------------------------------------------------------------------------------------------

THREE_LEVELS = """name: eight-bits-in-three
bits: {quantizer: embedded, width: 8}
hot: {sink: 4}
stream: {levels: [0.25, 0.5, 1]}
"""


# Answers that outgrow the memory they were let in with: what pressure comes from. Room for not quite two of these
# sequences at all levels, and for five at the first. What cannot shrink, computing each token, is least of the whole.
# Two requests a client: when the first answers end others are under way, as in a server that goes on.
PRESSURE = {"clients": 10, "prompt": 64, "answer": 960, "kv_bytes": "24MiB"}


def pressure_run(policy, recipe, requests, seed):
    flags = ["--tp", 1, "--replicas", 1, "--stores", 1, "--threads", 2, "--pressure", policy, "--recipe", recipe, "--kv-bytes",
             PRESSURE["kv_bytes"], "--host-bytes", "512MiB"]
    with Cluster(random_model("135M"), ranks=3, flags=flags) as cluster:
        worker = cluster.processes()[1]
        before = cpu_seconds(worker)
        done = load(cluster, "--concurrency", PRESSURE["clients"], "--requests", requests, "--prompt-tokens", PRESSURE["prompt"],
                    "--output-tokens", PRESSURE["answer"], "--seed", seed, seconds=900, timeout=600)
        cpu = cpu_seconds(worker) - before
        page = cluster.metrics()
    read = {levels: total(page, "lowkey_pages_read_total", levels=str(levels)) for levels in (1, 2, 3)}
    steps = total(page, "lowkey_step_seconds_count")
    return {"load": done, "per_minute": 60 * done["requests_per_second"], "pages_read": read,
            "per_cpu_second": done["requests_answered"] / cpu, "steps": steps,
            "sequences": total(page, "lowkey_step_sequences_sum") / steps,
            "again": total(page, "lowkey_recomputed_tokens_total"),
            "preemptions": total(page, "lowkey_num_preemptions_total"),
            "coarse_tokens": total(page, "lowkey_coarse_tokens_total"),
            "level_drops": {kind: total(page, "lowkey_kv_level_drops_total", pages=kind) for kind in ("idle", "in_use")}}


def pressure(report, clock):
    runs = {"ladder": [], "preempt": []}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as recipe:
        recipe.write(THREE_LEVELS)
        recipe.flush()
        requests, taken = 2 * PRESSURE["clients"], 0
        for number in range(3):
            begin = time.monotonic()
            if clock.left() < 1.2 * taken:
                break
            for policy in (("ladder", "preempt") if number % 2 else ("preempt", "ladder")):
                runs[policy].append(pressure_run(policy, recipe.name, requests, number))
            taken = time.monotonic() - begin
    ladder, preempt = (median([run["per_minute"] for run in runs[policy]]) for policy in ("ladder", "preempt"))
    report.note("pressure_ladder_requests", ladder, "/min")
    report.note("pressure_preempt_requests", preempt, "/min")
    for policy in runs:
        for key in ("preemptions", "again", "steps", "sequences", "per_cpu_second"):
            report.note(f"pressure_{policy}_{key}", median([run[key] for run in runs[policy]]))
    report.note("pressure_ladder_over_preempt_per_cpu_second",
                ratio(*(median([run["per_cpu_second"] for run in runs[policy]]) for policy in ("ladder", "preempt"))))
    read = collections.Counter()
    for run in runs["ladder"]:
        read.update(run["pages_read"])
    for levels in (1, 2, 3):
        report.note(f"pressure_ladder_pages_read_at_{levels}", ratio(100 * read[levels], sum(read.values())), "%")
    tokens = sum(run["load"]["output_tokens"] for run in runs["ladder"])
    report.note("pressure_ladder_coarse_tokens_per_answer_token", ratio(sum(r["coarse_tokens"] for r in runs["ladder"]), tokens))
    report.note("pressure_ladder_coarse_answers", median([100 * run["load"]["coarse_answers"] / run["load"]["requests_answered"]
                                                          for run in runs["ladder"]]), "%")
    say(report, "pressure_ladder_over_preempt", ratio(ladder, preempt))
    return runs


# ---- all of it -----------------------------------------------------------------------------------------------

def restore_1b(report, clock):
    """Room for one prompt of 32k (1,073 MB) in each of two replicas, and in the store."""
    available = int(next(line for line in open("/proc/meminfo") if line.startswith("MemAvailable")).split()[1]) * 1024
    if available < 14 << 30 or clock.left() < 100:
        report.leave_out(LINES["restore_1b"], f"expected 14 GiB and 100 s, found {available / 2**30:.0f} GiB and "
                  f"{clock.left():.0f} s")
        return {}
    return restore(report, clock, "1B", tuple((length, 1) for length in LENGTHS), "2400MiB", "1400MiB")


# Seconds of the twelve minutes; the last takes what is left.
SECTIONS = {"restore": (restore, 270), "spill": (spill, 90), "preemption": (preemption, 70), "routing": (routing.measure, 170),
            "pressure": (pressure, 100), "restore_1b": (restore_1b, 60 * MINUTES)}


def run(report, only=None, minutes=MINUTES):
    """Adds the lines of all sections, or of some, to `report`; returns what was measured, by section."""
    clock, found = Time(minutes), {}
    for name, (section, seconds) in SECTIONS.items():
        if only and name not in only:
            continue
        begin = time.monotonic()
        share = seconds * minutes / MINUTES if not only else 60 * minutes
        try:
            found[name] = section(report, clock.share(share))
        except (RuntimeError, OSError, EOFError, subprocess.SubprocessError) as error:
            print(f"# {name}: {error}", flush=True)
            report.missing(LINES[name])
        print(f"# {name}: {time.monotonic() - begin:.0f} s, load {machine()['load']:.1f}", flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="sections; they share the minutes freely")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all of it")
    parser.add_argument("--json", default=str(binary().parent / "tiers.json"), help="where the report goes")
    arguments = parser.parse_args()
    report, details = Report(), {"machine": machine()}
    details["sections"] = run(report, arguments.only, arguments.minutes)
    pathlib.Path(arguments.json).write_text(
        json.dumps({"lines": report.lines, "notes": report.notes, **details}, indent=1) + "\n")
    return 1 if report.failed() else 0


if __name__ == "__main__":
    sys.exit(main())
