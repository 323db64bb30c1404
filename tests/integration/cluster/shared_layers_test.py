"""A model whose layers share K and V (Cross-Layer Attention) on real clusters in fp32: one cache bank per owner, and the
same tokens on one rank, on two, in small chunks, and after the prefix came back from the store."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from support.cluster import Cluster, binary, http  # noqa: E402
from support.series import total  # noqa: E402

PROMPTS = ["The old man walked to the window and said nothing for a while. " * 3, "abc", "In the year 1843 " * 20]


class SharedLayers(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def model(self, name, share):
        subprocess.run([binary(), "inspect", "--random", f"tiny,layers=6,kv_heads=2,share={share}", "--out",
                        self.folder / name], check=True, timeout=60, stdout=subprocess.DEVNULL)
        return self.folder / name

    def answers(self, model, workers, *flags):
        with Cluster(model=model, workers=workers, flags=["--dtype", "fp32", *flags]) as cluster:
            def ask(prompt):
                status, answer = http(cluster.url + "/v1/completions",
                                      {"model": model.name, "prompt": prompt, "max_tokens": 40, "temperature": 0,
                                       "logprobs": 1})
                self.assertEqual(status, 200, answer)
                return answer["choices"][0]["logprobs"]["tokens"]
            found = [ask(prompt) for prompt in PROMPTS]
            self.assertEqual([ask(prompt) for prompt in PROMPTS], found, "a second time, from cached pages")
            return found, total(cluster.all_metrics(), "lowkey_kv_bytes_per_token")

    def test_tokens_and_bytes(self):
        recipe = []
        model = self.model("pairs", 2)
        found, bytes_one = self.answers(model, 1, *recipe)
        self.assertGreater(len(set(sum(found, []))), 20)
        self.assertEqual(self.answers(model, 2, *recipe)[0], found)
        self.assertEqual(self.answers(model, 1, *recipe, "--step-tokens", "7")[0], found)
        _, bytes_alone = self.answers(self.model("alone", 1), 1)
        # Headers are the same for a page of three banks and of six.
        self.assertAlmostEqual(bytes_one / bytes_alone, 0.5, delta=0.01)


if __name__ == "__main__":
    unittest.main(verbosity=2)
