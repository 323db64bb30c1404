"""What a user sees when something is wrong at start: one clear line, and the documented exit code.

Runs `lowkey` without mpirun where the message does not need a job, and under mpirun where it does."""

import json
import os
import pathlib
import shutil
import struct
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[3]
LOWKEY = os.environ.get("TEST_BINARY", str(ROOT / "build/release/lowkey"))
MODEL = ROOT / "deploy/demo-model"
# Without --enable-recovery: with it, Open MPI 4.1's mpirun ends with 0 whatever its processes end with.
MPIRUN = ["mpirun", "--oversubscribe", "--bind-to", "none"] + (
    ["--allow-run-as-root"] if os.geteuid() == 0 else [])


def clean_environment():
    return {k: v for k, v in os.environ.items() if not k.startswith("LOWKEY_")}


def run(*arguments, ranks=None):
    command = ([*MPIRUN, "-n", str(ranks)] if ranks else []) + [LOWKEY, *map(str, arguments)]
    return subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=120)


class ExitCodes(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="lowkey-exit-"))
        self.addCleanup(shutil.rmtree, self.folder)

    def broken_model(self):
        for file in MODEL.iterdir():
            if file.is_file() and file.name != "model.safetensors":
                shutil.copy(file, self.folder)
        return self.folder

    def test_help_is_zero(self):
        for command in ([], ["serve"], ["bench"], ["inspect"]):
            result = run(*command, "--help")
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertIn("--", result.stdout)

    def test_version_is_zero(self):
        result = run("--version")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stdout, r"^\d+\.\d+\.\d+$")

    def test_usage_is_two(self):
        for arguments in (["nonsense"], [], ["serve"], ["serve", "--model", "x", "--port", "99999"],
                          ["serve", "--model", "x", "--unknown"], ["inspect"]):
            result = run(*arguments)
            self.assertEqual(result.returncode, 2, (arguments, result.stderr))
            self.assertNotEqual(result.stderr.strip(), "", arguments)
        self.assertIn("found 'nonsense'", run("nonsense").stderr)

    def test_wrong_number_of_ranks_names_the_sum(self):
        result = run("serve", "--model", MODEL, "--tp", 2, "--replicas", 2, ranks=4)
        self.assertIn("= 6", result.stderr)
        self.assertIn("4 ranks", result.stderr)
        self.assertEqual(result.returncode, 2, result.stderr)

    def test_missing_model_folder(self):
        result = run("serve", "--model", self.folder / "absent", ranks=3)
        self.assertIn("absent", result.stderr)
        self.assertEqual(result.returncode, 3, result.stderr)

    def test_truncated_weights(self):
        model = self.broken_model()
        weights = (MODEL / "model.safetensors").read_bytes()
        (model / "model.safetensors").write_bytes(weights[:len(weights) // 2])
        result = run("serve", "--model", model, ranks=3)
        self.assertIn("model.safetensors", result.stderr)
        self.assertEqual(result.returncode, 3, result.stderr)

    def test_wrong_shape_names_tensor_expected_and_found(self):
        model = self.broken_model()
        weights = (MODEL / "model.safetensors").read_bytes()
        (header_bytes,) = struct.unpack("<Q", weights[:8])
        header = json.loads(weights[8:8 + header_bytes])
        name = "model.layers.0.self_attn.k_proj.weight"
        header[name]["shape"] = header[name]["shape"][::-1]
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        (model / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + weights[8 + header_bytes:])
        result = run("serve", "--model", model, ranks=3)
        self.assertEqual(result.returncode, 3, result.stderr)
        for word in ("model.safetensors", name, "128", "256", "expected", "found"):
            self.assertIn(word, result.stderr)

    def test_unknown_recipe_key_names_its_line(self):
        recipe = self.folder / "bad.yaml"
        recipe.write_text("name: bad\nfeatures: {basis: identity}\nbitz: {width: 8}\n")
        result = run("serve", "--model", MODEL, "--recipe", recipe, ranks=3)
        self.assertIn("bad.yaml", result.stderr)
        self.assertIn("3", result.stderr)
        self.assertIn("bitz", result.stderr)
        self.assertEqual(result.returncode, 3, result.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
