"""One GGUF file and nothing else: a cluster serves it as it serves the folder that it was written from, token for token,
text and chat; one in blocks of 8 bits as the folder with --weights int8. With LLAMA_CPP_BIN (a folder with llama-server) llama.cpp's ids for the same file, too."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from support.cluster import DEMO_MODEL, ROOT, Cluster, binary, free_port, http, skip, wait_until  # noqa: E402
from support.series import samples, total  # noqa: E402

PROMPTS = ["The sea was", "It was in the year 1842 that", "“No,” said she;", "été 🦙 12345\n\n  x"]
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me of <|im_end|> the sea."}]


class BareFile(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        from support import gguf_writer
        cls.folder = tempfile.TemporaryDirectory(prefix="lowkey-gguf-")
        cls.file = pathlib.Path(cls.folder.name) / "bare.gguf"
        gguf_writer.write(DEMO_MODEL, cls.file)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def answers(self, model, *flags):
        name = model.stem if model.suffix == ".gguf" else model.name
        with Cluster(model=model, workers=2, flags=["--dtype", "fp32", *flags]) as cluster:
            page = cluster.all_metrics()
            self.weights = total(page, "lowkey_weight_bytes")
            self.errors = {labels["kind"]: value
                           for labels, value in samples(page, "lowkey_weight_rounding_error_ratio") if value > 0}
            out = []
            for prompt in PROMPTS:
                out.append(http(cluster.url + "/tokenize", {"model": name, "prompt": prompt})[1]["tokens"])
                status, answer = http(cluster.url + "/v1/completions",
                                      {"model": name, "prompt": prompt, "max_tokens": 24, "temperature": 0, "logprobs": 1})
                self.assertEqual(status, 200, answer)
                out.append((answer["choices"][0]["text"], answer["choices"][0]["logprobs"]["tokens"]))
            status, answer = http(cluster.url + "/v1/chat/completions",
                                  {"model": name, "messages": CHAT, "max_tokens": 24, "temperature": 0})
            self.assertEqual(status, 200, answer)
            out.append((answer["choices"][0]["message"]["content"], answer["usage"]["prompt_tokens"]))
            return out

    def test_serves_as_its_folder(self):
        self.assertEqual(self.answers(self.file), self.answers(DEMO_MODEL))

    def test_starts_behind_a_link(self):
        """As in the Hugging Face cache: the link has the name, the file is called by its hash."""
        folder = pathlib.Path(self.folder.name) / "hub"
        (folder / "blobs").mkdir(parents=True)
        (folder / "snapshots").mkdir()
        os.link(self.file, folder / "blobs" / "0123abcd")
        link = folder / "snapshots" / "linked.gguf"
        link.symlink_to("../blobs/0123abcd")
        self.answers(link)

    def test_blocks_serve_as_weights_rounded_at_load(self):
        from support import gguf_writer
        file = pathlib.Path(self.folder.name) / "blocks.gguf"
        gguf_writer.write(DEMO_MODEL, file, "q8_0")
        stored = self.answers(file)
        weights, errors = self.weights, self.errors
        self.assertEqual(errors, {}, "nothing was rounded")
        self.assertEqual(self.answers(DEMO_MODEL, "--weights", "int8"), stored)
        self.assertEqual(self.weights, weights)
        self.assertEqual(set(self.errors), {"qkv", "o", "gate_up", "down", "embedding"})
        self.assertTrue(all(0.003 < error < 0.01 for error in self.errors.values()), self.errors)
        self.answers(DEMO_MODEL, "--weights", "full")
        self.assertGreater(self.weights, 3.6 * weights, "4 bytes against 1 and a sixteenth")

    def test_inspect_reads_it(self):
        done = subprocess.run([binary(), "inspect", self.file], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue(done.stdout.startswith("bare: Llama"), done.stdout)

    def test_llama_cpp_gives_the_same_ids(self):
        folder = os.environ.get("LLAMA_CPP_BIN")
        if not folder:
            self.skipTest("LLAMA_CPP_BIN does not name a folder with llama-server")
        texts = json.loads((ROOT / "tests/golden/text/strings.json").read_text())[:200]
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        server = subprocess.Popen([pathlib.Path(folder) / "llama-server", "-m", self.file, "-t", "1", "-c", "256", "--port",
                                   str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            def ready():
                try:
                    return http(url + "/health", timeout=5)[0] == 200
                except OSError:
                    return False
            wait_until(ready, "llama-server is ready")
            theirs = [http(url + "/tokenize", {"content": text, "parse_special": True})[1]["tokens"] for text in texts]
        finally:
            server.kill()
            server.wait(10)
        with Cluster(model=self.file, workers=1) as cluster:
            ours = [http(cluster.url + "/tokenize", {"model": "bare", "prompt": text})[1]["tokens"] for text in texts]
        self.assertEqual(ours, theirs)


if __name__ == "__main__":
    if importlib.util.find_spec("gguf") is None:
        skip("the package gguf is not installed")
    unittest.main(verbosity=2)
