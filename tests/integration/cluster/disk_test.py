"""A restarted cluster finds its prefixes again on the stores' disk: the same tokens, computed only at the end of the
prompt. Also after kill -9 in the middle of writing, and with another number of stores."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from support.cluster import DEMO_MODEL, PATIENCE, Cluster, http, mpirun, wait_until  # noqa: E402
from support.faults import TooLate, in_time  # noqa: E402
from support.series import total  # noqa: E402

PROMPT_TOKENS = 640
PAGE_TOKENS = 32
PAGES = PROMPT_TOKENS // PAGE_TOKENS
SEEDS = range(1, 5)


def complete(cluster, seed, max_tokens=8):
    prompt = [4 + (seed * 7919 + i * 104729) % 4000 for i in range(PROMPT_TOKENS)]
    status, answer = http(cluster.url + "/v1/completions",
                          {"model": "demo-model", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0,
                           "ignore_eos": True, "logprobs": 1})
    assert status == 200, answer
    return answer["choices"][0]["logprobs"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]


class Disk(unittest.TestCase):
    def cluster(self, folder, stores, workers=1):
        return Cluster(workers=workers, stores=stores,
                       flags=["--dtype", "fp32", "--kv-bytes", "32MiB", "--host-bytes", "64MiB", "--disk", folder,
                              "--disk-bytes", "256MiB"])

    def on_disk(self, cluster):
        return total(cluster.metrics(), "lowkey_kv_pages", tier="disk", state="used")

    def check_found(self, cluster, answers):
        """All of them come from disk, and nothing but their end is computed. TooLate where a busy machine has let the disk
        look slower than computing."""
        for seed, expected in answers.items():
            logprobs, cached = complete(cluster, seed)
            self.assertEqual(logprobs, expected)
            if cached < PROMPT_TOKENS - PAGE_TOKENS:
                raise TooLate(f"of prompt {seed} {cached} tokens were found")
        page = cluster.all_metrics()
        self.assertGreaterEqual(total(page, "lowkey_disk_pages_total", outcome="read"), len(answers) * (PAGES - 1))
        self.assertEqual(total(page, "lowkey_disk_pages_total", outcome="corrupt"), 0)

    def test_restart_with_another_number_of_stores(self):
        with tempfile.TemporaryDirectory(prefix="lowkey-disk-") as folder:
            with self.cluster(folder, stores=2) as cluster:
                answers = {seed: complete(cluster, seed)[0] for seed in SEEDS}
                wait_until(lambda: self.on_disk(cluster) >= len(SEEDS) * PAGES, "pages on disk")
                self.assertEqual(cluster.stop(), 0)
            for stores in (2, 1):
                in_time(lambda: self.restart(folder, stores, answers))

    def restart(self, folder, stores, answers):
        with self.cluster(folder, stores) as cluster:
            wait_until(lambda: self.on_disk(cluster) >= len(SEEDS) * PAGES, "pages found on disk")
            wait_until(lambda: total(cluster.metrics(), "lowkey_router_index_pages", holder="store") >= len(SEEDS) * PAGES,
                       "pages the coordinator was told of")
            self.check_found(cluster, answers)
            self.assertEqual(cluster.stop(), 0)

    def test_killed_while_writing(self):
        with tempfile.TemporaryDirectory(prefix="lowkey-disk-") as folder:
            with self.cluster(folder, stores=1) as cluster:
                first = {1: complete(cluster, 1)[0]}
                wait_until(lambda: self.on_disk(cluster) >= PAGES, "pages on disk")
                store = cluster.processes()[2]
                others = {seed: complete(cluster, seed)[0] for seed in SEEDS if seed > 1}
                os.kill(store, signal.SIGKILL)  # while what the last ones left is written behind

            def restart():
                with self.cluster(folder, stores=1) as cluster:
                    wait_until(lambda: self.on_disk(cluster) >= PAGES, "pages found on disk")
                    self.check_found(cluster, first)
                    for seed, expected in others.items():  # found as far as they were written
                        self.assertEqual(complete(cluster, seed)[0], expected)
            in_time(restart)

    def refused(self, *flags):
        """The message of a cluster that does not start."""
        command = mpirun(3, "serve", "--model", DEMO_MODEL, "--port", 0, *flags, recovery=False)
        ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        self.assertNotEqual(ended.returncode, 0)
        return ended.stdout + ended.stderr

    def test_what_cannot_work_is_refused_in_one_line(self):
        with tempfile.TemporaryDirectory(prefix="lowkey-disk-") as folder:
            self.assertIn("--disk-bytes", self.refused("--disk", folder, "--disk-bytes", "0"))
            file = pathlib.Path(folder) / "file"
            file.write_text("no folder")
            self.assertIn(str(file), self.refused("--disk", file, "--disk-bytes", "64MiB"))
            with self.cluster(folder, stores=1):
                self.assertIn("in use by another process", self.refused("--disk", folder, "--disk-bytes", "64MiB"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
