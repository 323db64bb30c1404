"""Workers and stores are killed or stopped at random moments under load; replicas that are lost are replaced by others
that join. Every request is answered (tests/bench/run asks: within 5 s of its budget), every answer is that of the
undisturbed run, and no process is left behind.

    python3 tests/fault/random_kills_test.py --faults 50 --seed 1     # the full run; CTest does a few
"""

import argparse
import collections
import pathlib
import random
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from support import faults  # noqa: E402
from support.cluster import Cluster, wait_until  # noqa: E402
from support.series import total  # noqa: E402

TP, REPLICAS, STORES = 2, 2, 2
SEEDS = range(10)
FLAGS = ["--dtype", "fp32", "--kv-bytes", "16MiB", "--host-bytes", "64MiB"]
BUDGET_SECONDS = 15.0  # of a request, queueing included; under this load an undisturbed one takes a tenth
GRACE_SECONDS = 5.0
HANGING_SECONDS = 60.0  # twice a step's deadline: whatever the machine, this is no answer any more
KEPT_SECONDS = 6.0      # a replica that all its peers hear for so long is not about to be lost: that takes 3 s
MOST_TOKENS = 4000     # that are computed between the first answers and the fault: one or two seconds of the load


class Wrong(Exception):
    pass


class Rehearsal:
    """One cluster, for as many faults as it has stores for."""

    def __init__(self, cluster, chance, texts=None):
        self.cluster, self.chance = cluster, chance
        self.replicas = [(cluster, (1, 2)), (cluster, (3, 4))]  # (job, its ranks)
        self.stores = [5, 6]
        self.texts = texts or self.load().undisturbed()

    def load(self):
        return faults.Load(self.cluster.url, SEEDS, threads=4, tokens=320, max_tokens=160)

    def tokens(self):
        return total(self.cluster.metrics(), "lowkey_generation_tokens_total")  # without those of whoever was lost

    def strike(self):
        """One fault under load; returns what happened and the answers."""
        target = self.chance.choice(["worker", "store"])
        signal = self.chance.choice(["kill", "stop"])
        moment, pause = self.chance.randrange(MOST_TOKENS), self.chance.uniform(0.5, 7.0)
        if target == "store":
            rank = self.chance.choice(self.stores)
            pid = self.cluster.processes()[rank]
        else:
            job, ranks = victim = self.chance.choice(self.replicas)
            pid = job.processes()[self.chance.choice(ranks)]
        load = self.load()
        with load:
            wait_until(lambda: load.count() >= 2, "answers under load")
            moment += self.tokens()
            wait_until(lambda: self.tokens() >= moment, "the random moment")
            struck = time.monotonic()
            (faults.kill if signal == "kill" else faults.stop)(pid)
            if signal == "stop":
                wait_until(lambda: time.monotonic() >= struck + pause, "the end of the pause")
                faults.go_on(pid)
            wait_until(lambda: sum(a.begin > struck for a in list(load.answers)) >= 4, "answers after the fault")
        if target == "store":
            self.settle_store(rank, signal)
        else:
            self.settle_worker(victim, signal)
        return f"{target} {signal}" + (f" for {pause:.1f} s" if signal == "stop" else ""), load.answers

    def settle_store(self, rank, signal):
        if signal == "kill":
            self.stores.remove(rank)
        elif rank not in self.cluster.processes():
            raise Wrong("a store that was stopped and went on has ended")

    def settle_worker(self, victim, signal):
        job, ranks = victim
        since = time.monotonic()

        def gone():
            return not set(ranks) & set(job.processes())

        def kept():
            nonlocal since
            if self.cluster.ready_replicas() != REPLICAS:
                since = time.monotonic()
            return time.monotonic() - since > KEPT_SECONDS

        # One that was stopped may be either lost or kept (its peers know 3 s after its last message), but not half.
        wait_until(lambda: gone() or (signal == "stop" and kept()), "a broken replica to end, or to be kept")
        if not gone():
            return
        if job is not self.cluster:
            job.wait()
            job.wait_gone()
        self.cluster.wait_replicas(REPLICAS - 1)  # it is not counted any more
        self.replicas.remove(victim)
        self.replicas.append((self.cluster.join(workers=TP, flags=FLAGS), (0, 1)))
        self.cluster.wait_replicas(REPLICAS)

    def check(self, answers):
        for answer in answers:
            if answer.outcome == "broken":
                raise Wrong(f"an answer broke off: {answer.detail}")
            if answer.outcome == "ok" and answer.text != self.texts[answer.key]:
                raise Wrong(f"prompt {answer.key}: {answer.text!r} instead of {self.texts[answer.key]!r}")
            if answer.seconds > HANGING_SECONDS:
                raise Wrong(f"an answer took {answer.seconds:.1f} s")

    def end(self):
        if self.cluster.stop() != 0:
            raise Wrong("mpirun did not end with 0")
        self.cluster.wait_gone()


def run(count, seed):
    """{faults, requests, outcomes, slowest: seconds}; Wrong or TimeoutError where something was not as it has to be."""
    chance, texts, done, seconds, outcomes = random.Random(seed), None, 0, [], collections.Counter()
    while done < count:
        with Cluster(workers=TP, replicas=REPLICAS, stores=STORES, flags=FLAGS, open_port=True) as cluster:
            rehearsal = Rehearsal(cluster, chance, texts)
            texts = rehearsal.texts
            while done < count and rehearsal.stores:
                what, answers = rehearsal.strike()
                rehearsal.check(answers)
                done += 1
                seconds += [a.seconds for a in answers]
                counts = collections.Counter(a.outcome for a in answers)
                outcomes += counts
                print(f"{done:3} {what:18} {len(answers):3} answers {dict(counts)} slowest "
                      f"{max(a.seconds for a in answers):5.2f} s", flush=True)
                for answer in answers:
                    if answer.outcome != "ok":
                        print(f"    {answer.outcome}: {answer.detail}", flush=True)
            rehearsal.end()
    print(f"{done} faults, {len(seconds)} requests: {dict(outcomes)}; median {statistics.median(seconds):.2f} s, "
          f"slowest {max(seconds):.2f} s; no wrong token, no process left", flush=True)
    return {"faults": done, "requests": len(seconds), "outcomes": dict(outcomes), "slowest": max(seconds)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=4)
    parser.add_argument("--seed", type=int, default=485)
    options = parser.parse_args()
    run(options.faults, options.seed)
