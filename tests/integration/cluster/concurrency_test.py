"""A recipe of six times fewer bytes at 8k holds five and a half times the concurrent tokens of `exact` in the same
--kv-bytes, in a running cluster: as many prompts of 8,192 tokens as admission lets in, all in the cache at once, with bytes
in the metrics that are the forecast's."""

import pathlib
import random
import subprocess
import sys
import tempfile
import threading
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from support.cluster import PATIENCE, Cluster, binary, http, wait_until  # noqa: E402
from support.faults import TooLate, in_time  # noqa: E402
from support.series import total  # noqa: E402

PROMPT, ANSWER, VOCAB = 8192, 400, 512
EXACT_BYTES = 64 * 2 * 2  # of one token: one bank, one KV head of 64 features, bf16
KV_BYTES = 4 * (PROMPT + ANSWER) * EXACT_BYTES * 101 // 100  # four prompts, and what headers and superblocks take


class Concurrency(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        cls.model = cls.folder / "long"
        shape = f"tiny,layers=1,hidden=64,heads=1,kv_heads=1,head_dim=64,vocab={VOCAB},positions={PROMPT + ANSWER}"
        subprocess.run([binary(), "inspect", "--random", shape, "--out", cls.model], check=True, timeout=60,
                       stdout=subprocess.DEVNULL)

    def concurrent_tokens(self, requests, *flags):
        """Tokens in the cache once admission lets nobody in any more; the ratio that the recipe claims. The cache is full from
        the last prompt's end to the first answer's: again where that went unseen."""
        return in_time(lambda: self.fill(requests, *flags))

    def fill(self, requests, *flags):
        flags = ["--kv-bytes", str(KV_BYTES), "--host-bytes", "64MiB", "--step-tokens", "4096", *flags]
        with Cluster(model=self.model, workers=1, flags=flags) as cluster:
            def ask(seed):
                tokens = random.Random(seed).choices(range(4, VOCAB), k=PROMPT)
                try:
                    http(cluster.url + "/v1/completions", {"model": "long", "prompt": tokens, "max_tokens": ANSWER,
                                                           "temperature": 0, "ignore_eos": True}, timeout=250)
                except OSError:
                    pass  # the cluster has gone: enough was seen

            threads = [threading.Thread(target=ask, args=(i,), daemon=True) for i in range(requests)]
            for thread in threads:
                thread.start()
            held = wait_until(lambda: self.full(cluster.metrics()) or not any(thread.is_alive() for thread in threads),
                              "a full cache", seconds=240)
            cluster.kill()
            for thread in threads:
                thread.join(timeout=PATIENCE)
            if held is True:
                raise TooLate("all were answered")
            return held

    def full(self, page):
        """When all that run have all their prompt in the cache, and not one more fits: (tokens, ratio)."""
        running = total(page, "lowkey_num_requests_running")
        computed = total(page, "lowkey_prompt_tokens_total", source="computed")
        if not total(page, "lowkey_num_requests_waiting") or not running or computed != running * PROMPT:
            return None
        states = {state: total(page, "lowkey_kv_bytes", tier="device", state=state)
                  for state in ("capacity", "used", "free", "evictable", "slack")}
        if 2 * states["capacity"] != sum(states.values()):
            return None
        self.assertLessEqual(states["capacity"], KV_BYTES)
        ratio = total(page, "lowkey_kv_compression_ratio")
        claimed = PROMPT * EXACT_BYTES / ratio
        # Admission lets in what fits, and what the ledger holds for each is what the recipe says of 8,192 tokens and some
        # of an answer. The page is no snapshot of all ranks and moments: a state in between is no failure, staying in it is.
        if states["free"] >= 1.1 * claimed or not claimed <= states["used"] / running <= claimed * (1 + ANSWER / PROMPT):
            return None
        self.assertEqual(total(page, "lowkey_num_preemptions_total"), 0)
        return running * PROMPT, ratio

    def test_six_times_fewer_bytes_hold_five_and_a_half_times_the_tokens(self):
        recipe = self.folder / "two-bits.yaml"
        recipe.write_text("name: two-bits\nbits: {quantizer: embedded, width: 2}\nhot: {sink: 4}\n")
        exact, exact_ratio = self.concurrent_tokens(7)
        self.assertEqual(exact, 4 * PROMPT)
        self.assertLess(exact_ratio, 1)
        small, ratio = self.concurrent_tokens(32, "--recipe", recipe)
        self.assertGreaterEqual(ratio, 6)
        print(f"concurrent_tokens exact {exact:.0f} two-bits {small:.0f} ({small / exact:.2f}x) at ratio {ratio:.2f}")
        self.assertGreaterEqual(small / exact, 5.5)


if __name__ == "__main__":
    unittest.main(verbosity=2)
