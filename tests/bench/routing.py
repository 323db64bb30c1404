"""Mooncake's conversation trace on two replicas: kv routing against round-robin, and against perfect knowledge. A section of
tests/bench/tiers.py; tests/bench/routing_sim.py simulates it."""

import collections
import json
import pathlib
import random
import tempfile

from bench import oracle
from bench.report import ratio, samples
from bench.serving import load, random_model
from support.cluster import ROOT, Cluster, wait_until

PAGE_TOKENS = 32
CONVERSATIONS = ROOT.parent / "shared" / "data" / "traces" / "mooncake-fast25" / "conversation_trace.jsonl"
LINES = {"routing_kv_first_token_over_round_robin": ("<=", 0.6), "routing_hit_rate_over_perfect_knowledge": (">=", 0.9)}

# Small, so that the minutes hold a thousand requests: with a hundred, one conversation that moves is a point of the hit rate.
ROUTED_SHAPE = "layers=6,hidden=256,heads=4,kv_heads=2,head_dim=64,ffn=768,vocab=4096"
ROUTED_TOKEN_BYTES = 6 * 2 * 2 * 64 * 2 + 4  # exact, bf16, and a 32nd of a page's header
TRACE_TOKENS = 1 / 32  # of the trace's lengths: blocks of 16 tokens, prompts of 376 in the mean, 4,000 at most
TRACE_LOAD = 0.9       # prompt tokens asked for, over what both replicas can compute
TRACE_SECONDS = 900    # of the trace: three requests in ten share a prefix with an earlier one, most within five minutes
HELD_SHARE = 0.5       # of the pages asked for, what both replicas hold together


def sample_conversations(prompt_tokens, file, trace=CONVERSATIONS, seed=1):
    """Whole conversations of the trace's beginning, drawn until their scaled prompts have so many tokens. All requests that
    share more than the first block share the second, so what can be reused stays as in the trace."""
    with open(trace) as lines:
        requests = [r for r in map(json.loads, lines) if r["timestamp"] < 1000 * TRACE_SECONDS]
    talks = collections.defaultdict(list)
    for request in requests:
        talks[request["hash_ids"][:2][-1]].append(request)
    order = sorted(talks)
    random.Random(seed).shuffle(order)
    chosen, size = [], 0
    for key in order:
        if size >= prompt_tokens:
            break
        chosen += talks[key]
        size += TRACE_TOKENS * sum(r["input_length"] for r in talks[key])
    chosen.sort(key=lambda r: r["timestamp"])
    pathlib.Path(file).write_text("".join(json.dumps(r) + "\n" for r in chosen))
    return chosen


def routing_run(policy, kv_bytes, trace, speed):
    """Two replicas without a store: what a replica does not hold it computes."""
    flags = ["--tp", 1, "--replicas", 2, "--stores", 0, "--threads", 1, "--routing", policy, "--kv-bytes", kv_bytes,
             "--max-queued", 10000]
    with Cluster(random_model(ROUTED_SHAPE), ranks=3, flags=flags) as cluster:
        def capacities():  # of both; a worker may be late with its metrics
            found = [v for labels, v in samples(cluster, "lowkey_kv_pages")
                     if labels["tier"] == "device" and labels["state"] == "capacity"]
            return found if len(found) == 2 else None
        pages = sum(wait_until(capacities, "both replicas' capacity"))
        done = load(cluster, "--trace", trace, "--trace-tokens", TRACE_TOKENS, "--trace-speed", speed)
        reasons = {labels["reason"]: v for labels, v in samples(cluster, "lowkey_routed_requests_total")}
    return {"load": done, "pages": pages, "reasons": reasons}


def prompt_rate(kv_bytes):
    """Prompt tokens a second that two replicas compute, answers included."""
    flags = ["--tp", 1, "--replicas", 2, "--stores", 0, "--threads", 1, "--routing", "least-loaded", "--kv-bytes", kv_bytes]
    with Cluster(random_model(ROUTED_SHAPE), ranks=3, flags=flags) as cluster:
        return load(cluster, "--concurrency", 16, "--duration", 8, "--prompt-tokens", 376, "--output-tokens",
                    11)["prompt_tokens_per_second"]


def measure(report, clock):
    if not CONVERSATIONS.exists():
        report.leave_out(LINES, f"{CONVERSATIONS} is absent")
        return {}
    rate = prompt_rate("64MiB")
    seconds = max(30, (clock.left() - 40) / 3)
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        chosen = sample_conversations(TRACE_LOAD * rate * seconds, file.name)
        chains = oracle.read_trace(file.name, TRACE_TOKENS, PAGE_TOKENS)
        size = sum(chain.tokens for chain in chains)
        span = (chosen[-1]["timestamp"] - chosen[0]["timestamp"]) / 1000
        speed = span * TRACE_LOAD * rate / size
        distinct = len({page for chain in chains for page in chain.pages})
        # At least the longest prompt with what runs beside it.
        kv_bytes = int(max(HELD_SHARE * distinct * PAGE_TOKENS, 2 * 6000) * ROUTED_TOKEN_BYTES)
        runs = {policy: routing_run(policy, kv_bytes, file.name, speed) for policy in ("round-robin", "kv")}
    kv, turn = runs["kv"]["load"], runs["round-robin"]["load"]
    pages = int(runs["kv"]["pages"])
    best, lru = oracle.best(chains, pages, PAGE_TOKENS), oracle.lru(chains, pages, PAGE_TOKENS)
    for name, value, unit in (("requests", len(chains), ""), ("prompt_tokens", size, ""), ("prompt_rate", rate, "/s"),
                              ("speed", speed, "x"), ("pages_asked_for", distinct, ""), ("pages_held", pages, ""),
                              ("failed", kv["requests_failed"] + turn["requests_failed"], ""),
                              ("kv_first_token", kv["to_first_token_seconds"]["mean"], " s"),
                              ("round_robin_first_token", turn["to_first_token_seconds"]["mean"], " s"),
                              ("kv_hit_rate", kv["hit_rate"], ""), ("round_robin_hit_rate", turn["hit_rate"], ""),
                              ("perfect_knowledge_hit_rate", best, ""), ("lru_hit_rate", lru, "")):
        report.note(f"routing_{name}", value, unit)
    reached = {"routing_kv_first_token_over_round_robin": ratio(kv["to_first_token_seconds"]["mean"],
                                                                turn["to_first_token_seconds"]["mean"]),
               "routing_hit_rate_over_perfect_knowledge": ratio(kv["hit_rate"], best)}
    for name, value in reached.items():
        report.line(name, value, *LINES[name])
    return {"runs": runs, "perfect_knowledge": best, "lru": lru, "prompt_rate": rate, "speed": speed}
