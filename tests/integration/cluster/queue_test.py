"""--max-queued is honoured by whoever queues: one replica takes all that the coordinator admits."""

import concurrent.futures
import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from support.cluster import Cluster, http  # noqa: E402
from support.series import total  # noqa: E402

MOST = 700
REQUESTS, PROMPTS = 10, 64  # many more than an engine's own 256


class Queue(unittest.TestCase):
    def test_a_replica_takes_as_many_as_are_admitted(self):
        flags = ["--max-queued", MOST, "--max-batch", 1]  # few have ended when the last one comes
        with Cluster(workers=1, stores=0, flags=flags) as cluster:
            self.assertEqual(total(cluster.all_metrics(), "lowkey_engine_queue_limit_requests", role="worker"), MOST)

            def ask(number):
                prompts = [[4 + number, 5 + i] for i in range(PROMPTS)]
                return http(cluster.url + "/v1/completions", {"model": "demo-model", "prompt": prompts, "max_tokens": 8,
                                                              "temperature": 0, "ignore_eos": True}, timeout=200)
            with concurrent.futures.ThreadPoolExecutor(REQUESTS) as pool:
                for status, answer in pool.map(ask, range(REQUESTS)):
                    self.assertEqual(status, 200, answer)
                    self.assertEqual(len(answer["choices"]), PROMPTS)


if __name__ == "__main__":
    unittest.main(verbosity=2)
