"""A replica that loses a rank while it answers, or while it restores, does not take its streams along: they go on in
another replica, with the tokens they would have had. Real processes, two replicas of two ranks."""

import pathlib
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from support import faults  # noqa: E402
from support.cluster import PATIENCE, Cluster, wait_until  # noqa: E402
from support.series import total  # noqa: E402

LEADERS, FOLLOWERS, STORE = (1, 3), (2, 4), 5
STREAMS = range(8)  # so many that a replica's half is not at its end before the fault, however quick the machine
FLAGS = ["--dtype", "fp32", "--kv-bytes", "64MiB", "--host-bytes", "64MiB"]


class StreamContinues(unittest.TestCase):
    def ask(self, cluster, body):
        answer = faults.ask(cluster.url, 0, body)
        self.assertEqual(answer.outcome, "ok", answer.detail)
        return answer

    def body(self, seed, max_tokens=900, tokens=96):
        return {"model": "demo-model", "prompt": faults.prompt(seed, tokens), "max_tokens": max_tokens,
                "temperature": 0, "ignore_eos": True, "stream": True}

    def begin(self, cluster, seeds):
        """(threads, answers) of a stream for each."""
        return faults.start(cluster.url, {seed: self.body(seed) for seed in seeds})

    def check(self, rank, fault):
        faults.in_time(lambda: self.check_once(rank, fault))

    def check_once(self, rank, fault):
        """Faults a rank while streams run on both replicas: those of its replica go on in the other one."""
        # In turns, so that both replicas answer, wherever the prompts were seen before.
        with Cluster(workers=2, replicas=2, flags=[*FLAGS, "--routing", "round-robin"], open_port=True) as cluster:
            undisturbed = {seed: self.ask(cluster, self.body(seed)).text for seed in STREAMS}
            pid = cluster.processes()[rank]
            leader = str(1 if rank in (1, 2) else 3)
            threads, caught = faults.catch(
                lambda: self.begin(cluster, STREAMS),
                lambda: total(cluster.all_metrics("worker"), "lowkey_generation_tokens_total", rank=leader), 900)
            begin = time.monotonic()
            fault(pid)
            more_threads, later = self.begin(cluster, range(4))
            for thread in threads + more_threads:
                thread.join(PATIENCE)
            for answer in caught + later:
                self.assertEqual(answer.outcome, "ok", answer.detail)
                self.assertEqual(answer.text, undisturbed[answer.key])
            print(f"the last of {len(caught)} streams ended {max(a.end for a in caught) - begin:.2f} s after the fault",
                  flush=True)
            metrics = cluster.metrics()
            self.assertEqual(total(metrics, "lowkey_continued_requests_total", outcome="ended"), 0)
            cluster.wait_replicas(1)
            if fault is faults.stop:
                faults.go_on(pid)  # finds itself alone
            replica = (1, 2) if rank in (1, 2) else (3, 4)
            wait_until(lambda: not set(replica) & set(cluster.processes()), "the rest of the replica to end")
            if total(metrics, "lowkey_continued_requests_total", outcome="continued") == 0:
                raise faults.TooLate("the replica's streams had ended")

    def test_leader_killed(self):
        self.check(LEADERS[0], faults.kill)

    def test_follower_killed_in_a_collective(self):
        self.check(FOLLOWERS[1], faults.kill)

    def test_follower_stopped_in_a_collective(self):
        self.check(FOLLOWERS[0], faults.stop)

    def restoring_leader(self, cluster):
        page = cluster.metrics()
        return next((rank for rank in LEADERS if total(page, "lowkey_restores_in_flight", rank=str(rank)) > 0), None)

    def test_killed_while_it_restores(self):
        faults.in_time(self.kill_while_it_restores)

    def kill_while_it_restores(self):
        flags = ["--dtype", "fp32", "--kv-bytes", "16MiB", "--host-bytes", "64MiB"]
        with Cluster(workers=2, replicas=2, flags=flags, open_port=True) as cluster:
            def body(seed):
                return {**self.body(seed, 128, tokens=640), "stream": False}

            first = self.ask(cluster, body(1))
            wait_until(lambda: total(cluster.metrics(), "lowkey_kv_spill_pages_total", outcome="stored") >= 40,
                       "pages in the store")
            for seed in range(2, 26):  # push it out of both replicas
                self.ask(cluster, body(seed))
            routed = total(cluster.metrics(), "lowkey_routed_requests_total")
            processes = cluster.processes()
            store = processes[STORE]
            faults.stop(store)  # a restore waits for it for 2 s and more; that it has begun the leader tells
            threads, answers = faults.start(cluster.url, dict.fromkeys(range(2), body(1)))
            leader = wait_until(lambda: self.restoring_leader(cluster) or (all(a.end for a in answers) and "none"),
                                "a restore under way")
            if leader != "none":
                faults.kill(processes[FOLLOWERS[LEADERS.index(leader)]])
            faults.go_on(store)
            for thread in threads:
                thread.join(PATIENCE)
            for answer in answers:
                self.assertEqual(answer.outcome, "ok", answer.detail)
                self.assertEqual(answer.text, first.text)
            moved = total(cluster.metrics(), "lowkey_routed_requests_total") - routed - len(answers)
            if moved == 0:
                raise faults.TooLate("nobody was answered by the replica that was lost")
            cluster.wait_replicas(1)
            print(f"restoring in rank {leader}: {moved:.0f} moved, slowest {max(a.seconds for a in answers):.2f} s", flush=True)


if __name__ == "__main__":
    unittest.main(verbosity=2)
