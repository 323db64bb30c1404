#!/usr/bin/env python3
"""Serving more than fits: the ladder (levels first) against preempting only, on the demo model, and what it costs.

usage: tests/bench/pressure.py [--rounds N] [--text FILE] [--json FILE]

Throughput: 24 clients, prompts of 400 tokens and answers of 300, memory for two and a half sequences at all levels;
alternating rounds, requests a minute and requests per CPU second of the worker (the machine may be shared).

Quality, with --text (book text, as the demo model was trained on): the same prompts with and without pressure, greedy.
As long as both answers agree they were computed on the same tokens, so each position up to the first difference gives
one divergence KL(all levels || as read) over the five likeliest tokens, all others
counted as one: a lower bound.
"""

import argparse
import concurrent.futures
import json
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from support.cluster import DEMO_MODEL, ROOT, Cluster, binary, http  # noqa: E402
from support.series import total  # noqa: E402

RECIPE = ROOT / "recipes" / "q8-levels.yaml"
CLIENTS = 24


def cluster(policy, kv_bytes):
    return Cluster(DEMO_MODEL, ranks=2, flags=["--tp", 1, "--replicas", 1, "--stores", 0, "--threads", 2, "--recipe", RECIPE,
                                               "--pressure", policy, "--kv-bytes", kv_bytes])


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def counts(page):
    read = {str(n): total(page, "lowkey_pages_read_total", levels=str(n)) for n in (1, 2, 3)}
    return {"steps": total(page, "lowkey_step_seconds_count"), "pages_read_at_levels": read,
            "preemptions": total(page, "lowkey_num_preemptions_total"),
            "recomputed_tokens": total(page, "lowkey_recomputed_tokens_total"),
            "level_drops_in_use": total(page, "lowkey_kv_level_drops_total", pages="in_use"),
            "evicted_pages": total(page, "lowkey_kv_evicted_pages_total")}


def serve(policy, requests, seed):
    with cluster(policy, "3MiB") as running, tempfile.NamedTemporaryFile(suffix=".json") as result:
        worker = running.processes()[1]
        before = cpu_seconds(worker)
        subprocess.run([binary(), "bench", "--url", running.url, "--json", result.name, "--concurrency", str(CLIENTS), "--requests",
                        str(requests), "--prompt-tokens", "400", "--output-tokens", "300", "--seed", str(seed)],
                       check=True, timeout=300, capture_output=True)
        report = json.loads(pathlib.Path(result.name).read_text())
        cpu = cpu_seconds(worker) - before
        return {"policy": policy, "per_minute": 60 * report["requests_per_second"], "per_cpu_second": requests / cpu,
                **counts(running.metrics())}


def answers(running, prompts):
    def ask(prompt):
        body = {"model": running.model.name, "prompt": prompt, "max_tokens": 200, "temperature": 0, "ignore_eos": True,
                "logprobs": 5}
        status, answer = http(running.url + "/v1/completions", body, timeout=300)
        if status != 200:
            raise RuntimeError(f"{status}: {answer}")
        logprobs = answer["choices"][0]["logprobs"]
        return list(zip(logprobs["tokens"], logprobs["top_logprobs"]))
    with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(ask, prompts))


def divergence(full, read):
    """KL over the likeliest tokens of `full`; what either has besides counts as one token."""
    floor = min(read.values())  # a token that is not listed has at most this
    kl, p_rest, q_rest = 0.0, 1.0, 1.0
    for token, logprob in full.items():
        p, q = math.exp(logprob), math.exp(read.get(token, floor))
        kl += p * (logprob - math.log(q))
        p_rest -= p
        q_rest -= q
    if p_rest > 1e-6:
        kl += p_rest * math.log(p_rest / max(q_rest, 1e-6))
    return max(kl, 0.0)


def quality(text):
    words = pathlib.Path(text).read_text(errors="replace")
    step = max(1, (len(words) - 4000) // CLIENTS)
    prompts = [words[i * step:i * step + 1400] for i in range(CLIENTS)]
    with cluster("ladder", "64MiB") as running:
        full = answers(running, prompts)
        assert counts(running.metrics())["level_drops_in_use"] == 0
    with cluster("ladder", "3MiB") as running:
        read = answers(running, prompts)
        page = counts(running.metrics())
    found, first = [], []
    for a, b in zip(full, read):
        same = next((i for i, (x, y) in enumerate(zip(a, b)) if x[0] != y[0]), len(a) - 1)
        first.append(same)
        found += [divergence(a[i][1], b[i][1]) for i in range(same + 1)]
    return {"positions": len(found), "mean_kl": statistics.fmean(found), "median_kl": statistics.median(found),
            "p90_kl": statistics.quantiles(found, n=10)[-1], "median_first_difference": statistics.median(first), **page}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=72, help="of one round")
    parser.add_argument("--text", help="a book, for the sample of quality")
    parser.add_argument("--json", help="where all numbers go")
    arguments = parser.parse_args()
    runs = []
    for seed in range(arguments.rounds):
        for policy in (("preempt", "ladder") if seed % 2 == 0 else ("ladder", "preempt")):
            runs.append(serve(policy, arguments.requests, seed))
            print(json.dumps(runs[-1]), flush=True)
    found = {"runs": runs}
    for key in ("per_minute", "per_cpu_second", "steps"):
        ladder, preempt = (statistics.median([r[key] for r in runs if r["policy"] == p]) for p in ("ladder", "preempt"))
        found[key] = {"ladder": ladder, "preempt": preempt, "ratio": ladder / preempt}
        print(f"{key}: ladder {ladder:.3g}, preempt {preempt:.3g}, ratio {ladder / preempt:.2f}", flush=True)
    if arguments.text:
        found["quality"] = quality(arguments.text)
        print(json.dumps(found["quality"]), flush=True)
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
