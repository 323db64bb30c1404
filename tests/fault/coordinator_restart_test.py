"""A coordinator that is killed and started again, alone, at its addresses: it adopts the workers and stores that
dial it, and the prefixes they hold are found. Real processes."""

import os
import pathlib
import signal
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from support import faults  # noqa: E402
from support.cluster import PATIENCE, Cluster, http, wait_until  # noqa: E402
from support.series import total  # noqa: E402

PROMPT_TOKENS = 640
PAGE_TOKENS = 32
WORKERS = 2
FLAGS = ["--dtype", "fp32", "--kv-bytes", "16MiB", "--host-bytes", "128MiB"]


def complete(cluster, seed, max_tokens=24):
    prompt = [4 + (seed * 7919 + i * 104729) % 4000 for i in range(PROMPT_TOKENS)]
    status, answer = http(cluster.url + "/v1/completions",
                          {"model": "demo-model", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0,
                           "ignore_eos": True, "logprobs": 1})
    assert status == 200, answer
    return answer["choices"][0]["logprobs"]["tokens"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]


class CoordinatorRestart(unittest.TestCase):
    def kill_coordinator(self, cluster):
        """While it answers: the client reads to where the answer breaks off."""
        coordinator = cluster.processes()[0]
        body = {"prompt": "Once upon a time", "max_tokens": 1000, "ignore_eos": True, "stream": True}
        (reader,), (answer,) = faults.catch(lambda: faults.start(cluster.url, {0: body}),
                                            lambda: total(cluster.all_metrics("worker"), "lowkey_generation_tokens_total"), 500)
        os.kill(coordinator, signal.SIGKILL)
        reader.join(PATIENCE)
        self.assertFalse(reader.is_alive(), "the connection of the killed coordinator stays open")
        # All of it may have been sent by then, and wait for a client that is slow.
        self.assertIn(answer.outcome, ("broken", "ok"), answer.detail)

    def test_adopts_workers_and_stores_and_finds_their_prefixes(self):
        with Cluster(workers=WORKERS, flags=FLAGS, open_port=True) as cluster:
            first, cached = complete(cluster, 1)
            self.assertEqual(cached, 0)
            pages = WORKERS * (PROMPT_TOKENS // PAGE_TOKENS)
            wait_until(lambda: total(cluster.metrics(), "lowkey_kv_spill_pages_total", outcome="stored") >= pages,
                       "pages in the store")
            others = {rank: pid for rank, pid in cluster.processes().items() if rank != 0}
            self.kill_coordinator(cluster)
            begin = time.monotonic()
            again = cluster.start_coordinator()
            cluster.wait_replicas(1)
            print(f"ready {time.monotonic() - begin:.2f} s after the start of the new coordinator", flush=True)
            self.assertEqual({rank: pid for rank, pid in cluster.processes().items()}, others, "nobody else has ended")

            for holder in ("device", "store"):  # they have told it what they hold
                wait_until(lambda: total(cluster.metrics(), "lowkey_router_index_pages", holder=holder) > 0,
                           f"the {holder}'s pages in the routing index")
            tokens, cached = complete(cluster, 1)  # on the device
            self.assertEqual(tokens, first)
            self.assertGreaterEqual(cached, PROMPT_TOKENS - PAGE_TOKENS)
            wait_until(lambda: total(cluster.metrics(), "lowkey_rank_up", peer_role="store") == 1, "the store")
            for seed in range(2, 18):  # push it out of the workers
                complete(cluster, seed, max_tokens=2)
            before = total(cluster.all_metrics(), "lowkey_prompt_tokens_total", source="host")
            tokens, cached = complete(cluster, 1)
            self.assertEqual(tokens, first)
            self.assertGreaterEqual(cached, PROMPT_TOKENS - PAGE_TOKENS)
            self.assertGreater(total(cluster.all_metrics(), "lowkey_prompt_tokens_total", source="host"), before)

            # A replica that joins now gets a place of its own, and the stores.
            job = cluster.join(workers=WORKERS, flags=FLAGS)
            cluster.wait_replicas(2)
            job.wait_log("joined as replica 1")

            # A second time, with nobody of the first coordinator's job left to help.
            os.kill(again.all_pids()[0], signal.SIGKILL)
            again.wait()
            third = cluster.start_coordinator()
            cluster.wait_replicas(2)
            self.assertEqual(complete(cluster, 1)[0], first)

            # Its SIGTERM ends everything, as the first one's would have.
            os.kill(third.all_pids()[0], signal.SIGTERM)
            self.assertEqual(third.wait(), 0, third.log())
            self.assertEqual(job.wait(), 0, job.log())
            cluster.wait()
            cluster.wait_gone()

    def kill_once_connected(self, cluster):
        """Everybody ends. A rank that never met its coordinator waits longer for it."""
        cluster.all_metrics()
        os.kill(cluster.processes()[0], signal.SIGKILL)
        cluster.wait()
        cluster.wait_gone()

    def test_nobody_waits_for_longer_than_told(self):
        with Cluster(workers=WORKERS, flags=[*FLAGS, "--reconnect-seconds", "2"], open_port=True) as cluster:
            self.kill_once_connected(cluster)
            self.assertIn("no coordinator at", cluster.log())

    def test_without_a_cluster_port_everybody_ends_at_once(self):
        with Cluster(workers=WORKERS, flags=FLAGS) as cluster:
            self.kill_once_connected(cluster)


if __name__ == "__main__":
    unittest.main(verbosity=2)
