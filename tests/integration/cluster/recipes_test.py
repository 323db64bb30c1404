"""Recipes on real clusters in fp32: a rotated cache of full width and rank gives the tokens of `exact`, also with joined
heads; a cut one gives the same tokens on one rank and on two; what cannot be served ends with one line."""

import json
import pathlib
import random
import re
import struct
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from support.cluster import DEMO_MODEL, Cluster, binary, http  # noqa: E402

BANKS, HEADS, DIM = 6, 2, 64
PROMPTS = ["The old man walked to the window and said nothing for a while. " * 6, "abc", "In the year 1843 " * 20]


def rotation(dim, rng):
    """An orthonormal matrix: Hadamard's, with columns permuted and their signs changed; dim is a power of two."""
    columns = rng.sample(range(dim), dim)
    signs = [rng.choice((-1, 1)) for _ in range(dim)]
    return [[signs[c] * (-1) ** (r & columns[c]).bit_count() * dim ** -0.5 for c in range(dim)] for r in range(dim)]


def write_profile(path, fingerprint, basis, join):
    """As kvstore/profile/profile.h says, with random bases and means that no model has."""
    rng = random.Random(join)
    dim, vectors = DIM * join, HEADS // join
    count = BANKS * 2 * vectors
    numbers = {"encode": [x for _ in range(count) for row in rotation(dim, rng) for x in row],
               "mean": [rng.uniform(-0.3, 0.3) for _ in range(count * dim)],
               "scale": [1.0] * (count * dim)}
    shapes = {"encode": [BANKS, 2, vectors, dim, dim], "mean": [BANKS, 2, vectors, dim], "scale": [BANKS, 2, vectors, dim]}
    metadata = {"lowkey_profile": 1, "basis": basis, "model_fingerprint": fingerprint, "num_banks": BANKS,
                "num_kv_heads": HEADS, "head_dim": DIM, "join": join, "num_levels": 1, "norm": "true",
                "norm_edge": 4.5, "origin": "random"}
    header, data = {"__metadata__": {k: str(v) for k, v in metadata.items()}}, b""
    for name, values in numbers.items():
        begin = len(data)
        data += struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": shapes[name], "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


class Recipes(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        inspected = subprocess.run([binary(), "inspect", DEMO_MODEL], capture_output=True, text=True, timeout=60)
        fingerprint = re.search(r"fingerprint (\w{32})", inspected.stdout).group(1)
        write_profile(cls.folder / "heads.safetensors", fingerprint, "trained", 1)
        write_profile(cls.folder / "joined.safetensors", fingerprint, "pca", 2)
        cls.exact = cls.answers(cls, 1)

    def recipe(self, name, text):
        path = self.folder / f"{name}.yaml"
        path.write_text(f"name: {name}\n{text}\n")
        return path

    def answers(self, workers, *flags):
        with Cluster(workers=workers, flags=["--dtype", "fp32", *flags]) as cluster:
            def ask(prompt):
                status, answer = http(cluster.url + "/v1/completions",
                                      {"model": DEMO_MODEL.name, "prompt": prompt, "max_tokens": 40, "temperature": 0,
                                       "logprobs": 1})
                if status != 200:
                    raise RuntimeError(answer)
                return answer["choices"][0]["logprobs"]["tokens"]
            return [ask(prompt) for prompt in PROMPTS]

    def test_full_width_and_rank_is_exact(self):
        recipe = self.recipe("rotated", "features: {basis: trained}")
        self.assertEqual(self.answers(1, "--recipe", recipe, "--profile", self.folder / "heads.safetensors"), self.exact)

    def test_joined_heads_of_full_rank_are_exact(self):
        recipe = self.recipe("joined", "heads: {join: 2}\nfeatures: {basis: pca}")
        self.assertEqual(self.answers(1, "--recipe", recipe, "--profile", self.folder / "joined.safetensors"), self.exact)

    def test_a_cut_cache_has_the_same_tokens_on_one_rank_and_on_two(self):
        recipe = self.recipe("cut", "features: {basis: trained, keep: 0.75}\nbits: {width: 4, key: {width: 8}}")
        flags = ["--recipe", recipe, "--profile", self.folder / "heads.safetensors"]
        one = self.answers(1, *flags)
        self.assertEqual(self.answers(2, *flags), one)
        self.assertNotEqual(one, self.exact, "nothing was cut")

    def test_cutting_a_page_into_levels_changes_no_token(self):
        whole = self.recipe("whole", "bits: {width: 4}")
        levels = self.recipe("levels", "bits: {width: 4}\nstream: {levels: [0.5, 1]}")
        self.assertEqual(self.answers(1, "--recipe", levels), self.answers(1, "--recipe", whole))

    def test_affine_codes_have_the_same_tokens_on_one_rank_and_on_two(self):
        recipe = self.recipe("affine", "bits: {quantizer: affine, width: 3, group: 16, key: {axis: channel}, "
                                       "value: {axis: token}}")
        self.assertEqual(self.answers(2, "--recipe", recipe), self.answers(1, "--recipe", recipe))

    def test_what_cannot_be_served_ends_with_one_line(self):
        for recipe, line in ((self.recipe("nothing", "features: {basis: trained}"),
                              "profiles/nothing.profile.safetensors (made by lowkey calibrate"),
                             (self.recipe("wide", "heads: {join: 4}"), "heads: join: expected a divisor of the 2 KV heads")):
            with self.assertRaises(RuntimeError) as caught:
                Cluster(workers=1, flags=["--recipe", recipe]).start()
            self.assertIn(line, str(caught.exception))


if __name__ == "__main__":
    unittest.main(verbosity=2)
