"""Clusters whose workers compute on a device: the host-side emulation of the CUDA sources, as the shared object that a worker
loads beside its executable. Tokens equal the CPU's, on one rank and on two that share the device, also when the prefix comes
back from the store; and what stands in the way of a device is one clear line."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from support.cluster import PATIENCE, Cluster, binary, http, mpirun, skip, wait_until  # noqa: E402
from support.series import total  # noqa: E402

BUILD = binary().parent
EMULATED = BUILD / "emulated" / "liblowkey_cuda.so"
PROMPTS = ["The old man walked to the window and said nothing. ", "In the year 1843 " * 9]
if not EMULATED.exists():
    skip(f"{EMULATED} is not built")


class OnADevice(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        original = binary()
        subprocess.run([original, "inspect", "--random", "tiny,layers=2,kv_heads=2,positions=1024", "--out", cls.folder / "tiny"], check=True,
                       timeout=PATIENCE, stdout=subprocess.DEVNULL)
        # An executable with the object beside it, and one without.
        for place in ("with", "without"):
            (cls.folder / place).mkdir()
            shutil.copy(original, cls.folder / place / "lowkey")
        shutil.copy(EMULATED, cls.folder / "with")

    def use(self, place):
        os.environ["TEST_BINARY"] = str(self.folder / place / "lowkey")

    def answers(self, workers, *flags, kv="4MiB", prompts=PROMPTS, log="", grows=None):
        """Tokens of each prompt, and the metrics once (counter, outcome) of `grows` has grown: pages are stored, and have to
        be there before they can come back, behind the answers."""
        with Cluster(model=self.folder / "tiny", workers=workers,
                     flags=["--dtype", "fp32", "--kv-bytes", kv, "--host-bytes", "32MiB", *flags]) as cluster:
            def ask(prompt):
                status, answer = http(cluster.url + "/v1/completions", body={
                    "model": "tiny", "prompt": prompt, "max_tokens": 8, "temperature": 0, "logprobs": 1})
                self.assertEqual(status, 200, answer)
                return answer["choices"][0]["logprobs"]["tokens"]

            def once_more():
                self.assertEqual([ask(prompt) for prompt in prompts], found, "from cached pages, or restored ones")
                return grows is None or total(cluster.all_metrics(), grows[0], outcome=grows[1]) > 0
            found = [ask(prompt) for prompt in prompts]
            wait_until(once_more, f"{grows} to grow")
            cluster.wait_log(log)
            return found, cluster.all_metrics()

    def test_tokens_are_the_cpus(self):
        self.use("without")
        expected, _ = self.answers(1, "--device", "auto", log="workers compute on the CPU")
        self.use("with")
        for workers in (1, 2):
            found, page = self.answers(workers, "--device", "cuda", log="workers compute on GPUs",
                                       grows=("lowkey_kv_spill_pages_total", "stored"))
            self.assertEqual(found, expected, f"{workers} workers")
            self.assertIn('device="cuda:0', page)

    def test_pages_come_back_from_the_store(self):
        prompts = [f"In the year {year} " * 16 for year in (1801, 1802, 1803)]
        self.use("without")
        expected, _ = self.answers(1, prompts=prompts)
        self.use("with")
        # Room for one of them at a time.
        found, _ = self.answers(1, "--device", "cuda", kv="300KiB", prompts=prompts,
                                grows=("lowkey_kv_restore_pages_total", "restored"))
        self.assertEqual(found, expected)

    def test_no_device_is_one_line(self):
        self.use("without")
        command = mpirun(3, "serve", "--model", self.folder / "tiny", "--device", "cuda", "--port", "0")
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        lines = [line for line in (done.stdout + done.stderr).splitlines() if "--device cuda" in line]
        self.assertEqual(len(lines), 1, done.stdout + done.stderr)
        self.assertIn("liblowkey_cuda.so is not there", lines[0])


if __name__ == "__main__":
    unittest.main(verbosity=2)
