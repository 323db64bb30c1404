"""What tests/bench/run is made of: sections with the lines that each prints, what those have to reach, and about how many
minutes they take on two cores that nobody else uses."""

import collections
import json
import os
import pathlib
import subprocess
import tempfile
import time
import types

from bench import link, llama_lines, pressure, soak, tiers
from bench.report import samples
from bench.serving import random_model
from fault import random_kills_test
from support.cluster import Cluster, binary

IDLE_SECONDS = 20
FAULTS, QUICK_FAULTS = 50, 4
FAULT_SEED = 7
SHAPES = ("135M", "1B")


def last_json(command, seconds):
    """Of a program that prints one line of JSON behind everything else."""
    done = subprocess.run(command, check=True, timeout=seconds, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


# ---- programs of their own ---------------------------------------------------------------------------------------

def kernel_lines(options):
    lines = {}
    for shape in options.shapes:
        lines[f"{shape}_decode_over_weight_read_floor"] = (">=", 0.8 if shape == "1B" else 0.7)
        lines[f"{shape}_prefill_over_gemm_rate"] = (">=", 0.6)
        lines[f"{shape}_sixteen_decodes_over_one"] = (">=", 9)
    return lines


def kernels(report, options):
    """A model of the shape in bf16 on two threads, each number against its floor in the same run."""
    found, lines = {}, kernel_lines(options)
    for shape in options.shapes:
        found[shape] = last_json([binary().parent / "decode_bench", random_model(shape)], 1200)
        for what, key in (("decode_over_weight_read_floor", "decode_over_floor"),
                          ("prefill_over_gemm_rate", "prefill_over_gemm"), ("sixteen_decodes_over_one", "batch16_over_one")):
            report.line(f"{shape}_{what}", found[shape].get(key), *lines[f"{shape}_{what}"])
    return found


def told_lines(report, found):
    """Of a program that knows its targets itself."""
    for line in found["lines"]:
        report.line(line["name"], line["measured"], ">=", line["target"])
    return found


def attention(report, _):
    """Decode attention on cold pages of every format, against bf16 pages and against what the machine can read."""
    return told_lines(report, last_json([binary().parent / "attention_bench"], 900))


def transfer_lines(options):
    return {f"{place}_{what}": (">=", target) for place in (("shm", "network") if options.network else ("shm",))
            for what, target in (("spill_over_bare_put", 0.8), ("checksummed_spill_over_bare_put", 0.8),
                                 ("restore_over_bare_get", 0.8), ("restore_time_over_bytes_exact_to_small", 0.85))}


def transfer(report, options):
    """Spills and restores of a gigabyte between two processes, beside bare puts and gets of the same bytes."""
    bench = binary().parent / "transfer_bench"
    found = {"shm": told_lines(report, last_json([bench], 600))}
    if options.network:
        found["network"] = told_lines(report, last_json([bench, "--network"], 600))
    return found


# ---- a cluster -----------------------------------------------------------------------------------------------------

def cpu_seconds(pids):
    ticks = 0
    for pid in pids:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


CLUSTER_LINES = {"start_to_ready": ("<=", 3), "idle_cluster_cpu": ("<=", 0.5)}


def cluster(report, _):
    with Cluster(workers=2) as running:
        report.line("start_to_ready", running.seconds_to_ready, *CLUSTER_LINES["start_to_ready"], "s")
        pids = running.all_pids()  # mpirun as well
        before, begin = cpu_seconds(pids), time.monotonic()
        time.sleep(IDLE_SECONDS)  # what is measured
        share = 100 * (cpu_seconds(pids) - before) / (time.monotonic() - begin)
        report.line("idle_cluster_cpu", share, *CLUSTER_LINES["idle_cluster_cpu"], "%")
    return {}


def rank_memory(report, running):
    """Anonymous + shared memory of each worker over 1.1 x (packed weights + KV budget) + 200 MB."""
    def per_rank(name, **wanted):
        return {int(labels["rank"]): value for labels, value in samples(running, name)
                if labels["role"] == "worker" and all(labels[k] == v for k, v in wanted.items())}
    weights = per_rank("lowkey_weight_bytes")
    budget = per_rank("lowkey_kv_bytes", tier="device", state="capacity")
    pids = running.processes()
    taken = {rank: soak.own_memory(pids[rank]) for rank in weights}
    shares = [taken[r] / (1.1 * (weights[r] + budget[r]) + 200e6) for r in taken]
    report.line("rank_memory_over_bound", max(shares) if shares else None, "<=", 1)
    return {"taken": taken, "weights": weights, "budget": budget}


def soaking(report, options):
    with soak.start() as running:
        found = soak.run(report, running, options.soak_seconds)
        return {**found, "rank_memory": rank_memory(report, running)}


# ---- the tiers, the link, pressure, faults -----------------------------------------------------------------------

def tier_sections(options):
    return [name for name in tiers.LINES if name != "restore_1b" or "1B" in options.shapes]


def tier_lines(options):
    return {name: line for section in tier_sections(options) for name, line in tiers.LINES[section].items()}


def all_tiers(report, options):
    return tiers.run(report, tier_sections(options), tier_minutes(options))


def tier_minutes(options):
    return 8 if options.quick else 40 if "1B" in options.shapes else 16


def link_lengths(options):
    return (2048,) if options.quick else (2048, 8192, link.LONG)


def link_lines(options):
    return link.expected(link_lengths(options), agree=not options.quick, shapes=options.shapes)


def over_link(report, options):
    return link.run(report, link_lengths(options), agree=not options.quick, shapes=options.shapes,
                    minutes=link_minutes(options))


def link_minutes(options):
    return (5 if options.quick else 35) + (0 if options.shapes == ("135M",) else 5 if options.quick else 15)


def pressure_quality(report, _):
    """What pages that became coarser under pressure cost, on a sample: notes, there is no target."""
    texts = link.held_out(link.BOOKS, 1)
    if not texts:
        print(f"pressure_kl not measured ({link.BOOKS} is absent)", flush=True)
        return {}
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(texts[0])
        file.flush()
        found = pressure.quality(file.name)
    for key in ("mean_kl", "median_kl", "p90_kl", "positions", "median_first_difference"):
        report.note(f"pressure_{key}", found[key])
    read = found["pages_read_at_levels"]
    for levels, pages in read.items():
        report.note(f"pressure_kl_pages_read_at_{levels}", 100 * pages / max(1, sum(read.values())), "%")
    return found


def fault_count(options):
    return QUICK_FAULTS if options.quick else FAULTS


def fault_lines(options):
    most = random_kills_test.BUDGET_SECONDS + random_kills_test.GRACE_SECONDS
    return {"random_faults_survived": (">=", fault_count(options)), "random_faults_slowest_answer": ("<=", most)}


def faults(report, options):
    """Workers and stores killed and stopped under load; a wrong token, or a process that is left, ends it."""
    lines, found = fault_lines(options), {}
    try:
        found = random_kills_test.run(fault_count(options), FAULT_SEED)
    except (random_kills_test.Wrong, TimeoutError) as error:
        print(f"# faults: {error}", flush=True)
    report.line("random_faults_survived", found.get("faults"), *lines["random_faults_survived"])
    report.line("random_faults_slowest_answer", found.get("slowest"), *lines["random_faults_slowest_answer"], "s")
    return found


# ---- beside llama.cpp --------------------------------------------------------------------------------------------

def llama_sections(options, shape):
    return [name for name in llama_lines.sections_of(shape) if not options.quick or name in ("steps", "quality")]


def llama_cpp_lines(options):
    return {name: line for shape in options.shapes for section in llama_sections(options, shape)
            for name, line in llama_lines.lines(section, shape).items()}


def llama_cpp(report, options):
    if options.llama_cpp is None:
        report.leave_out(llama_cpp_lines(options), "--llama-cpp FOLDER was not given")
        return {}
    from bench import llama_cpp as programs  # needs numpy and safetensors
    return {shape: programs.run(report, types.SimpleNamespace(llama_cpp=options.llama_cpp, shape=shape),
                                llama_sections(options, shape)) for shape in options.shapes}


def llama_minutes(options):
    if options.llama_cpp is None:
        return 0
    return (6 if options.quick else 45) + (10 if "1B" in options.shapes else 0)


# ---- all of them -------------------------------------------------------------------------------------------------

Section = collections.namedtuple("Section", "measure lines minutes")

SECTIONS = {
    "kernels": Section(kernels, kernel_lines, lambda options: 1.5 if options.shapes == ("135M",) else 5),
    "attention": Section(attention, lambda _: {}, lambda _: 3),
    "transfer": Section(transfer, transfer_lines, lambda options: 3 if options.network else 1),
    "cluster": Section(cluster, lambda _: CLUSTER_LINES, lambda _: 0.6),
    "soak": Section(soaking, lambda _: {**soak.LINES, "rank_memory_over_bound": ("<=", 1)},
                    lambda options: options.soak_seconds / 60 + 0.6),
    "tiers": Section(all_tiers, tier_lines, tier_minutes),
    "link": Section(over_link, link_lines, link_minutes),
    "pressure_quality": Section(pressure_quality, lambda _: {}, lambda _: 2),
    "faults": Section(faults, fault_lines, lambda options: 0.2 * fault_count(options)),
    "llama_cpp": Section(llama_cpp, llama_cpp_lines, llama_minutes),
}


def full_options():
    return types.SimpleNamespace(shapes=SHAPES, network=True, quick=False, soak_seconds=soak.SECONDS, llama_cpp=None)


def all_lines():
    """{name: (comparison, target)} of everything that a full run prints, but for the programs that know their own."""
    return {name: line for section in SECTIONS.values() for name, line in section.lines(full_options()).items()}


def run(report, options):
    """The sections of the options, one after the other; what was measured, by section."""
    found, end = {}, time.monotonic() + 60 * options.minutes
    everything = types.SimpleNamespace(**{**vars(options), "shapes": SHAPES, "network": True, "quick": False})
    for name in options.sections:
        section, begin = SECTIONS[name], time.monotonic()
        lines, needed = section.lines(options), section.minutes(options)
        if begin + 60 * needed > end:
            print(f"# {name}: about {needed:.0f} minutes, {max(0, end - begin) / 60:.0f} are left", flush=True)
            report.leave_out(lines, "no time is left")
            continue
        try:
            found[name] = section.measure(report, options)
        except Exception as error:  # whatever it was, its lines fail and the other sections go on
            print(f"# {name}: {type(error).__name__}: {error}", flush=True)
        report.missing(lines)
        report.leave_out(section.lines(everything), "not chosen: --shapes, --network, or --quick")
        print(f"# {name}: {time.monotonic() - begin:.0f} s, load {os.getloadavg()[0]:.1f}", flush=True)
    return found
