"""Replicas come and go while requests run: `lowkey worker --join`, refusals, SIGTERM, death. Real processes."""

import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from support.cluster import DEMO_MODEL, PATIENCE, ROOT, Cluster, http, sse, wait_until  # noqa: E402
from support.series import total  # noqa: E402


def prompt(seed, tokens):
    """Tokens of the demo model's vocabulary (4,096 entries, the first 4 special), the same every time."""
    return [4 + (seed * 7919 + i * 104729) % 4000 for i in range(tokens)]


def complete(cluster, seed, tokens=96, max_tokens=24):
    status, answer = http(cluster.url + "/v1/completions",
                          {"model": "demo-model", "prompt": prompt(seed, tokens), "max_tokens": max_tokens,
                           "temperature": 0, "ignore_eos": True})
    assert status == 200, answer
    return answer["choices"][0]["text"]


def down(cluster):
    """The members that an alert is about."""
    return re.findall(r"^lowkey_rank_up\{.*\} 0$", cluster.metrics(), re.M)


class Stream(threading.Thread):
    """One streamed greedy answer, read in the background."""

    def __init__(self, cluster, seed, max_tokens):
        super().__init__(daemon=True)
        self.url, self.events, self.complete, self.ended_at = cluster.url, [], False, None
        self.body = {"model": "demo-model", "prompt": prompt(seed, 64), "max_tokens": max_tokens, "ignore_eos": True,
                     "stream": True, "temperature": 0}
        self.start()

    def run(self):
        try:
            for event in sse(self.url + "/v1/completions", self.body):
                self.events.append(event)
            self.complete = True
        except (EOFError, OSError):
            pass
        self.ended_at = time.monotonic()

    def text(self):
        return "".join(event["choices"][0]["text"] for event in self.events if event.get("choices"))

    def failed(self):
        return any("error" in event for event in self.events)


def streams_on_every_replica(cluster, count, max_tokens, replicas):
    """Starts `count` streams and returns them once each of them has tokens."""
    streams = [Stream(cluster, seed, max_tokens) for seed in range(100, 100 + count)]
    wait_until(lambda: all(len(stream.events) > 2 for stream in streams), "tokens on every stream")
    return streams


class Join(unittest.TestCase):
    flags = ["--dtype", "fp32", "--kv-bytes", "32MiB", "--host-bytes", "64MiB"]

    def refused(self, cluster, code, words, **join):
        job = cluster.join(**join, recovery=False)
        self.assertEqual(job.wait(), code, job.log())
        log = job.log()
        for word in words:
            self.assertIn(word, log)
        job.wait_gone()

    def test_joins_serves_and_leaves(self):
        with Cluster(workers=2, flags=self.flags, open_port=True) as cluster:
            before = [complete(cluster, seed) for seed in range(4)]
            running = Stream(cluster, 50, 300)
            job = cluster.join(workers=2, flags=self.flags)
            cluster.wait_replicas(2)
            job.wait_log("joined as replica 1")
            running.join(PATIENCE)
            self.assertTrue(running.complete and not running.failed(), "a request that ran while a replica joined")

            # Both replicas answer, and they give the same tokens.
            again = []
            threads = [threading.Thread(target=lambda seed=seed: again.append((seed, complete(cluster, seed))))
                       for seed in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
            self.assertEqual([text for _, text in sorted(again)], before)
            for rank in ("1", "4"):  # world ranks behind those of the first job
                wait_until(lambda rank=rank: total(cluster.metrics(), "lowkey_kv_bytes", rank=rank) > 0, f"rank {rank}")
            wait_until(lambda: total(cluster.metrics(), "lowkey_rank_up", peer_role="worker") == 4, "rank_up")

            # It leaves while it answers: what it began it ends, and nothing is cut.
            undisturbed = Stream(cluster, 100, 200)
            undisturbed.join(PATIENCE)
            streams = streams_on_every_replica(cluster, 4, 200, 2)
            os.kill(job.processes()[0], signal.SIGTERM)
            cluster.wait_replicas(1)
            for stream in streams:
                stream.join(PATIENCE)
                self.assertTrue(stream.complete and not stream.failed(), stream.events[-1])
            self.assertEqual(streams[0].text(), undisturbed.text())
            self.assertEqual(job.wait(), 0, job.log())
            job.wait_gone()
            self.assertNotIn(" E [", job.log())
            self.assertEqual([complete(cluster, seed) for seed in range(4)], before)
            wait_until(lambda: not down(cluster), "nobody to be missed who has left")

            # And the cluster's own end still ends those that have joined.
            job = cluster.join(workers=2, flags=self.flags)
            cluster.wait_replicas(2)
            self.assertEqual(cluster.stop(), 0)
            self.assertEqual(job.wait(), 0, job.log())
            cluster.wait_gone()

    def test_those_that_the_cluster_began_with_leave_too(self):
        with Cluster(workers=2, stores=1, replicas=2, flags=self.flags, open_port=True) as cluster:
            before = complete(cluster, 1)
            ranks = cluster.processes()  # 0 coordinator, 1 and 2, 3 and 4: replicas, 5 store
            stream = Stream(cluster, 50, 200)
            wait_until(lambda: len(stream.events) > 2, "tokens")
            os.kill(ranks[3], signal.SIGTERM)
            cluster.wait_replicas(1)
            wait_until(lambda: set(cluster.processes()) == {0, 1, 2, 5}, "the replica's processes to end")
            stream.join(PATIENCE)
            self.assertTrue(stream.complete and not stream.failed(), stream.events[-1:])
            os.kill(ranks[5], signal.SIGTERM)
            wait_until(lambda: set(cluster.processes()) == {0, 1, 2}, "the store to end")
            self.assertEqual(complete(cluster, 1), before)
            wait_until(lambda: not down(cluster), "nobody to be missed who has left")
            self.assertEqual(cluster.stop(), 0)
            cluster.wait_gone()
            self.assertNotIn(" E [", cluster.log())

    def test_refusals_name_their_reason(self):
        with Cluster(workers=1, flags=self.flags, open_port=True) as cluster:
            self.refused(cluster, 2, ["--cluster-secret", "wrong cluster secret"], secret="not the secret of anybody")
            self.refused(cluster, 2, ["--recipe", "layout fingerprint", "expected"],
                         flags=[*self.flags, "--recipe", ROOT / "recipes/q8.yaml"])
            with tempfile.TemporaryDirectory() as folder:
                for file in DEMO_MODEL.iterdir():
                    if file.is_file():
                        shutil.copy(file, folder)
                weights = pathlib.Path(folder) / "model.safetensors"
                data = bytearray(weights.read_bytes())
                data[-1] ^= 1
                weights.write_bytes(data)
                self.refused(cluster, 3, ["--model", "with its --weights", "model fingerprint"], model=folder, flags=self.flags)
            complete(cluster, 1)  # nothing of it has touched those who serve
            cluster.wait_replicas(1)

    def test_death_of_a_replica_that_joined(self):
        with Cluster(workers=1, flags=self.flags, open_port=True) as cluster:
            undisturbed = Stream(cluster, 100, 250)
            undisturbed.join(PATIENCE)
            job = cluster.join(workers=1, flags=self.flags)
            cluster.wait_replicas(2)
            streams = streams_on_every_replica(cluster, 4, 250, 2)
            os.kill(job.processes()[0], signal.SIGKILL)
            for stream in streams:
                stream.join(PATIENCE)
                self.assertTrue(stream.complete or stream.failed(), stream.events[-1:])
                if stream is streams[0] and not stream.failed():
                    self.assertEqual(stream.text(), undisturbed.text())
            cluster.wait_replicas(1)
            job.wait()
            job.wait_gone()


if __name__ == "__main__":
    unittest.main(verbosity=2)
