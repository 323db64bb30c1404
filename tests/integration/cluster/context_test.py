"""A scaling of RoPE makes the context longer: the coordinator says so and lets prompts in that are beyond
max_position_embeddings, 1,024 of the demo model. --max-context makes it shorter."""

import json
import pathlib
import shutil
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from support.cluster import DEMO_MODEL, Cluster, http  # noqa: E402


class Context(unittest.TestCase):
    def check(self, scaling, positions):
        with tempfile.TemporaryDirectory(prefix="lowkey-context-") as folder:
            model = pathlib.Path(folder) / "scaled"
            model.mkdir()
            for file in DEMO_MODEL.iterdir():
                if file.is_file() and file.name != "config.json":
                    shutil.copy(file, model)
            config = json.loads((DEMO_MODEL / "config.json").read_text())
            (model / "config.json").write_text(json.dumps(config | {"rope_scaling": scaling}))
            with Cluster(model=model, workers=1) as cluster:
                self.assertEqual(http(cluster.url + "/v1/models")[1]["data"][0]["max_model_len"], positions)
                prompt = [100 + i % 3000 for i in range(positions - 3)]
                request = {"model": model.name, "prompt": prompt, "max_tokens": 3, "temperature": 0, "ignore_eos": True}
                status, answer = http(cluster.url + "/v1/completions", request)
                self.assertEqual(status, 200, answer)
                self.assertEqual(answer["usage"]["total_tokens"], positions)
                status, answer = http(cluster.url + "/v1/completions", request | {"max_tokens": 4})
                self.assertEqual(status, 400, answer)

    def test_shorter(self):
        """--max-context: what is beyond is refused, and a prompt that fills it can be scored."""
        with Cluster(workers=1, flags=["--max-context", "300", "--served-model-name", "org/demo"]) as cluster:
            model = http(cluster.url + "/v1/models")[1]["data"][0]
            self.assertEqual((model["id"], model["max_model_len"]), ("org/demo", 300))
            self.assertEqual(http(cluster.url + "/v1/models/org%2Fdemo")[0], 200)
            request = {"model": "org/demo", "prompt": [100 + i for i in range(297)], "temperature": 0, "ignore_eos": True}
            self.assertEqual(http(cluster.url + "/v1/completions", request | {"max_tokens": 3})[0], 200)
            self.assertEqual(http(cluster.url + "/v1/completions", request | {"max_tokens": 4})[0], 400)
            whole = request | {"prompt": [100 + i for i in range(300)], "max_tokens": 0, "echo": True, "logprobs": 1}
            status, answer = http(cluster.url + "/v1/completions", whole)
            self.assertEqual(status, 200, answer)
            self.assertEqual(len(answer["choices"][0]["logprobs"]["token_logprobs"]), 300)
            self.assertEqual(answer["usage"]["completion_tokens"], 0)

    def test_linear(self):
        self.check({"rope_type": "linear", "factor": 1.5}, 1536)

    def test_dynamic(self):
        self.check({"rope_type": "dynamic", "factor": 1.5}, 1536)

    def test_yarn(self):
        self.check({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 1024}, 2048)


if __name__ == "__main__":
    unittest.main(verbosity=2)
