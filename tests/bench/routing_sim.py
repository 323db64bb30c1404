#!/usr/bin/env python3
"""What routing costs in hits and in waiting, without a cluster: Mooncake's conversations on simulated replicas.

usage: tests/bench/routing_sim.py [--load 0.9] [--tokens 50000] [--seeds 5] [--weights 0 2 4 8] [--nearly 1.15]

A replica is what worker/engine's scheduler is without levels, stores and preemption: steps of at most 512 tokens, oldest
first, pages by identity, least recently used out first, nobody admitted whose prompt does not fit. A router is
coordinator/routing: the prediction, what is under way, reports every 100 ms or step. `--weights`: Candidate::kWaitBehindIt,
what a second of computing counts besides itself. Each line: mean time to the first token over round-robin's, and hit rate
over perfect knowledge's (tests/bench/oracle.py), means over samples of conversations. Deterministic.
"""

import argparse
import collections
import heapq
import pathlib
import statistics
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from bench import oracle  # noqa: E402
from bench.routing import HELD_SHARE, PAGE_TOKENS, TRACE_TOKENS, sample_conversations  # noqa: E402

STEP_TOKENS, STEP_SECONDS, TOKEN_SECONDS = 512, 0.015, 0.0025  # 135M on one thread
REPORT_SECONDS, MAX_BATCH, REPLICAS = 0.1, 64, 2


class Sequence:
    def __init__(self, number, chain, answer, arrival):
        self.number, self.ids, self.prompt, self.answer, self.arrival = number, chain.pages, chain.tokens, answer, arrival
        self.computed = self.sampled = self.found = self.expected = 0
        self.first_token = self.pages = None
        self.replica = None

    def page(self, index):
        return self.ids[index] if index < len(self.ids) else (self.number, index)

    def left(self):
        return self.prompt + self.sampled - self.computed


class Replica:
    def __init__(self, capacity):
        self.capacity, self.used, self.idle = capacity, collections.Counter(), collections.OrderedDict()
        self.waiting, self.running, self.plan = [], [], []
        self.unstarted = {}  # number -> (tokens, sent, pages)
        self.in_flight, self.reported, self.reported_at = 0, (0, 0, 0), -1.0

    def has(self, page):
        return page in self.used or page in self.idle

    def leading(self, sequence, *more):
        count = 0
        while count < len(sequence.ids) and (self.has(sequence.ids[count]) or any(sequence.ids[count] in m for m in more)):
            count += 1
        return count

    def report(self, now):
        queued = sum(s.left() for s in self.running if s.left() > 1) + sum(s.left() - s.expected for s in self.waiting)
        self.reported, self.reported_at = (queued, len(self.running), len(self.waiting)), now

    def add(self, sequence):
        promised = {page for other in self.waiting + self.running for page in other.ids}
        sequence.expected = PAGE_TOKENS * self.leading(sequence, promised)
        for page in reversed(sequence.ids[:self.leading(sequence)]):
            if page in self.idle:
                self.idle.move_to_end(page)
        self.waiting.append(sequence)

    def begin_step(self):
        """Seconds that it takes; 0: nothing to do."""
        self.plan = [(s, 1) for s in self.running if s.left() == 1]
        budget = STEP_TOKENS - len(self.plan)
        for sequence in self.running:
            if sequence.left() > 1 and budget > 0:
                self.plan.append((sequence, min(budget, sequence.left())))
                budget -= self.plan[-1][1]
        for sequence in list(self.waiting):
            if budget <= 0 or len(self.running) >= MAX_BATCH:
                break
            found = self.leading(sequence)
            if any(o.computed // PAGE_TOKENS <= found < min(len(o.ids), len(sequence.ids)) and o.ids[found] == sequence.ids[found]
                   for o in self.running):
                continue
            idle_hits = sum(page in self.idle for page in sequence.ids[:found])
            wanted = (sequence.prompt + PAGE_TOKENS) // PAGE_TOKENS - found + 1 + idle_hits
            wanted += sum((s.prompt + s.sampled + PAGE_TOKENS) // PAGE_TOKENS - len(s.pages) for s in self.running)
            if len(self.used) + len(self.running) + wanted > self.capacity and self.running:
                break
            self.waiting.remove(sequence)
            self.running.append(sequence)
            sequence.pages = []
            for page in sequence.ids[:found]:
                self.hold(sequence, page)
            sequence.computed = sequence.found = found * PAGE_TOKENS
            self.plan.append((sequence, min(budget, sequence.left())))
            budget -= self.plan[-1][1]
        return STEP_SECONDS + TOKEN_SECONDS * sum(count for _, count in self.plan) if self.plan else 0

    def hold(self, sequence, page):
        if not self.has(page):
            while len(self.used) + len(self.idle) + len(self.running) >= self.capacity and self.idle:
                self.idle.popitem(last=False)
        self.idle.pop(page, None)
        self.used[page] += 1
        sequence.pages.append(page)

    def end_step(self, now):
        for sequence, count in self.plan:
            sequence.computed += count
            while len(sequence.pages) < sequence.computed // PAGE_TOKENS:
                self.hold(sequence, sequence.page(len(sequence.pages)))
            if sequence.left() > 0:
                continue
            sequence.sampled += 1
            if sequence.first_token is None:
                sequence.first_token = now
                self.unstarted.pop(sequence.number)
            if sequence.sampled >= sequence.answer:
                self.running.remove(sequence)
                self.in_flight -= 1
                for page in reversed(sequence.pages):
                    self.used[page] -= 1
                    if not self.used[page]:
                        del self.used[page]
                        self.idle[page] = None


def choose(replicas, sequence, weight, nearly):
    """(replica, tokens to compute there), as coordinator/routing predicts and chooses."""
    rated = []
    for number, replica in enumerate(replicas):
        under_way = {page for _, _, pages in replica.unstarted.values() for page in pages}
        compute = sequence.prompt - PAGE_TOKENS * replica.leading(sequence, under_way)
        queued = replica.reported[0] + sum(t for t, sent, _ in replica.unstarted.values() if sent + 0.02 > replica.reported_at)
        queue = queued * TOKEN_SECONDS
        if replica.reported[1]:
            queue += -(-(queued + compute) // STEP_TOKENS) * STEP_SECONDS
        rated.append((queue + compute * TOKEN_SECONDS * (1 + weight), compute, number))
    limit = nearly * min(cost for cost, _, _ in rated)
    least = nearly * min(compute for cost, compute, _ in rated if cost <= limit)
    _, compute, number = min(rated, key=lambda r: (r[0] > limit, r[1] > least, replicas[r[2]].in_flight,
                                                      sum(replicas[r[2]].reported[1:]), r[1]))
    return number, compute


def run(chains, answers, arrivals, capacity, weight, nearly):
    """(mean time to the first token, hit rate). `weight` None: in turn."""
    replicas = [Replica(capacity // REPLICAS) for _ in range(REPLICAS)]
    events = [(at, 0, number) for number, at in enumerate(arrivals)]
    heapq.heapify(events)
    sequences, busy = [], [False] * REPLICAS

    def step(now, number):
        replica = replicas[number]
        if now - replica.reported_at >= REPORT_SECONDS or not replica.running:
            replica.report(now)
        took = replica.begin_step()
        busy[number] = took > 0
        if took:
            heapq.heappush(events, (now + took, 1, number))

    while events:
        now, kind, number = heapq.heappop(events)
        if kind == 1:
            replicas[number].end_step(now)
            step(now, number)
            continue
        sequence = Sequence(number, chains[number], answers[number], now)
        sequences.append(sequence)
        target, compute = (number % REPLICAS, 0) if weight is None else choose(replicas, sequence, weight, nearly)
        replicas[target].unstarted[number] = (compute, now, sequence.ids)
        replicas[target].in_flight += 1
        replicas[target].add(sequence)
        if not busy[target]:
            step(now, target)
    return (statistics.fmean(s.first_token - s.arrival for s in sequences),
            sum(s.found for s in sequences) / sum(s.prompt for s in sequences))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", type=float, default=0.9, help="prompt tokens asked for, over what the replicas can compute")
    parser.add_argument("--tokens", type=float, default=50000, help="of all prompts of a sample")
    parser.add_argument("--seeds", type=int, default=5, help="samples")
    parser.add_argument("--weights", type=float, nargs="+", default=[0, 2, 4, 8])
    parser.add_argument("--nearly", type=float, default=1.15)
    a = parser.parse_args()
    found = collections.defaultdict(list)
    for seed in range(1, a.seeds + 1):
        with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
            requests = sample_conversations(a.tokens, file.name, seed=seed)
            chains = oracle.read_trace(file.name, TRACE_TOKENS, PAGE_TOKENS)
        answers = [max(1, int(r["output_length"] * TRACE_TOKENS + 0.5)) for r in requests]
        capacity = int(HELD_SHARE * len({page for chain in chains for page in chain.pages}))
        work = sum(c.tokens * TOKEN_SECONDS + n * (TOKEN_SECONDS + STEP_SECONDS / 3) for c, n in zip(chains, answers))
        span = requests[-1]["timestamp"] - requests[0]["timestamp"]
        arrivals = [(r["timestamp"] - requests[0]["timestamp"]) / span * work / REPLICAS / a.load for r in requests]
        best = oracle.best(chains, capacity, PAGE_TOKENS)
        turn, turn_hits = run(chains, answers, arrivals, capacity, None, 0)
        found["in turn"].append((1, turn_hits / best))
        found["one LRU cache"].append((float("nan"), oracle.lru(chains, capacity, PAGE_TOKENS) / best))
        for weight in a.weights:
            first, hits = run(chains, answers, arrivals, capacity, weight, a.nearly)
            found[f"weight {weight:g}"].append((first / turn, hits / best))
    for name, values in found.items():
        first, hits = (statistics.fmean(v) for v in zip(*values))
        print(f"{name:14} first token {first:.3f} of round-robin's, hits {hits:.3f} of perfect knowledge's")


if __name__ == "__main__":
    main()
