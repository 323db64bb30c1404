#!/usr/bin/env python3
"""The C++ path against the papers' formulas in numpy float64 (twin.py): whole windows through the fp32 engine, logits
against logits. Exit code 77: cannot run here, and says why.

  TWIN_PROBE=build/release/twin_probe TEST_BINARY=build/release/lowkey tests/quality/twin_test.py [NAME ...]
"""
import os
import re
import subprocess
import sys
import tempfile

try:
    import numpy as np
except ImportError:
    print("SKIPPED: numpy is absent")
    sys.exit(77)
import twin

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))
DEMO = f"{ROOT}/deploy/demo-model"
PROBE, LOWKEY = os.environ.get("TWIN_PROBE", "twin_probe"), os.environ.get("TEST_BINARY", "lowkey")
AFFINE = "bits: {quantizer: affine, width: 2, group: 16, key: {axis: channel}, value: {axis: token}}\n"
MINIKV = "hot: {flush: 128}\nstream: {prefill: exact}\n"
PAGE = 32


def shell(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise AssertionError(f"{command}: {done.stderr.strip()}")
    return done.stdout


class Work:
    """A folder with the files of one comparison."""

    def __init__(self, folder):
        self.folder = folder

    def path(self, name):
        return os.path.join(self.folder, name)

    def tokens(self, count, vocabulary, seed=3):
        """Text would do as well; these are words in an order no text has, some of them often."""
        random = np.random.default_rng(seed)
        return (random.random(count) ** 2 * (vocabulary - 4)).astype(np.int32) + 4

    def random_model(self, shape):
        folder = self.path("model-" + re.sub(r"\W", "-", shape))
        if not os.path.isdir(folder):
            shell(LOWKEY, "inspect", "--random", shape, "--out", folder, "--seed", 5)
        return folder

    def profile(self, folder, model, join=1, budgets={}):
        """PCA bases of words in no order: any basis tests the formula."""
        vectors, scale = twin.calibrated(model, [self.tokens(300, model.config["vocab_size"], 9)], join)
        fingerprint = re.search(r"fingerprint ([0-9a-f]{32})", shell(LOWKEY, "inspect", folder)).group(1)
        return self.path("profile"), twin.write_profile(self.path("profile"), model, fingerprint, vectors, join, budgets, scale)

    def logits(self, folder, recipe, tokens, prompt=0, profile="-"):
        with open(self.path("recipe.yaml"), "w") as f:
            f.write("name: twin\n" + recipe)
        tokens.astype("<i4").tofile(self.path("tokens"))
        shell(PROBE, "logits", folder, self.path("recipe.yaml"), profile, self.path("tokens"), max(prompt, 1), self.path("out"))
        rows = np.fromfile(self.path("out"), "<f4").reshape(len(tokens) - max(prompt, 1), -1)
        return rows.astype(np.float64)


def compare(what, found, expected, exact, tolerance, share=1.0):
    """`share` of the rows agree to `tolerance` of their largest logit (codes on a cell's edge may fall to either side),
    and the cache under test is no noise: it differs from the exact one by far more than the two from each other."""
    expected, exact = expected[-len(found):], exact[-len(found):]
    error = np.abs(found - expected).max(-1) / np.abs(expected).max(-1)
    distance, effect = twin.kl(expected, found), twin.kl(exact, expected)
    print(f"  {what}: rows within {tolerance:g}: {(error < tolerance).mean():.3f}, largest {error.max():.2e}; "
          f"KL to the twin {distance:.2e}, of the recipe {effect:.2e}")
    assert (error < tolerance).mean() >= share, what
    assert distance <= max(1e-9, .02 * effect), what


def projected(model, profile, join, kept, code=lambda bank, side, i, y: y, sink=0):
    """Attention of pages that keep the first `kept` features and what `code` leaves of them."""
    def cache(bank, k, v):
        out = []
        for side, x in enumerate((k, v)):
            encode, mean = profile["encode"][bank, side], profile["mean"][bank, side]
            y = twin.project(twin.join_heads(x, join), encode[:, :kept], mean, lambda i, z: code(bank, side, i, z))
            out.append(twin.part_heads(y, join))
        return out
    return twin.paged_attention(model.d, cache, PAGE, sink)


# ---- the papers ------------------------------------------------------------------------------------------------

def matryoshka(work):
    """A prefix of one orthonormal basis at every rank; exact at 100 %."""
    model, tokens = twin.Model(DEMO), work.tokens(200, 4096)
    path, profile = work.profile(DEMO, model)
    exact = model.exact(tokens)
    for keep in (.25, .5, .75):
        found = work.logits(DEMO, f"features: {{basis: pca, keep: {keep:.2f}}}\n", tokens, 1, path)
        expected = model.forward(tokens, projected(model, profile, 1, int(64 * keep)))
        compare(f"keep {keep}", found, expected, exact, 1e-3)
    found = work.logits(DEMO, "features: {basis: pca, keep: 1}\n", tokens, 1, path)
    compare("keep 1", found, exact, exact, 1e-3)


def embedded(work):
    """Nested codes behind a basis: bits per group of 16 features, static scales, one norm per token, sinks exact."""
    model, tokens = twin.Model(DEMO), work.tokens(200, 4096)
    bits = [8, 4, 2, 0]
    budget = np.broadcast_to(np.array(bits)[:, None], (len(model.banks), 2, model.kv_heads, 4, 1))
    path, profile = work.profile(DEMO, model, budgets={"4x": budget})
    found = work.logits(DEMO, "budget: 4x\nfeatures: {basis: pca}\nbits: {quantizer: embedded, width: auto}\n"
                        "hot: {sink: 4}\n", tokens, 1, path)
    kept = 48  # the last group is not stored, so the norm does not know it either
    code = lambda bank, side, i, y: twin.embedded_rows(y, np.repeat(bits, 16)[:kept], profile["scale"][bank, side, i][:kept])
    expected = model.forward(tokens, projected(model, profile, 1, kept, code, sink=4))
    # Attended in integers: the query and the weights are rounded, too.
    compare("8 4 2 0", found, expected, model.exact(tokens), 5e-2, .98)


def kv_heads(work):
    """s heads' post-rotary keys side by side, one basis, as many features kept as one head has (s = 2, 4)."""
    for folder, s in ((DEMO, 2), (work.random_model("tiny,layers=3,hidden=64,heads=4,kv_heads=4,head_dim=16"), 4)):
        model = twin.Model(folder)
        tokens = work.tokens(150, model.config["vocab_size"])
        path, profile = work.profile(folder, model, s)
        found = work.logits(folder, f"heads: {{join: {s}}}\nfeatures: {{basis: pca, keep: {1 / s:.2f}}}\n", tokens, 1, path)
        expected = model.forward(tokens, projected(model, profile, s, model.d))
        compare(f"s = {s}", found, expected, model.exact(tokens), 1e-3)


def kv_heads_basis(work):
    """`lowkey calibrate`: the joint basis is the SVD of the post-rotary keys (and values) side by side, centred."""
    text = f"{ROOT}/docs/architecture.md"
    shell(PROBE, "windows", DEMO, text, 1024, 1, work.path("window"))
    tokens = np.fromfile(work.path("window"), "<i4")
    shell(LOWKEY, "calibrate", "--model", DEMO, "--recipe", f"{ROOT}/recipes/kv-heads-2.yaml", "--text", text, "--tokens",
          1024, "--budget", "0.5", "--out", work.path("profile"))
    found, _ = twin.read_safetensors(work.path("profile"))
    worst = 1.0
    for bank, sides in enumerate(twin.Model(DEMO).keys_and_values(tokens)):
        for side, x in enumerate(sides):
            rows = twin.join_heads(x, 2)[0]
            rows = rows - rows.mean(0)
            svd = np.linalg.svd(rows, full_matrices=False)[2][:64]
            basis = found["encode"][bank, side, 0].astype(np.float64)
            assert np.abs(basis @ basis.T - np.eye(128)).max() < 1e-4, "not orthonormal"
            kept = lambda b: ((rows @ b.T) ** 2).sum()
            worst = min(worst, kept(basis[:64]) / kept(svd))
    print(f"  variance kept by 64 of 128 features, of what the SVD keeps: {worst:.6f} at least")
    assert worst > 1 - 1e-4


def minikv(work):
    """Tokens chosen by column sums of exact attention, 2-bit codes, blocks of 128; and the paper's bytes."""
    model, tokens = twin.Model(DEMO), work.tokens(460, 4096)
    exact = model.exact(tokens)
    paper = twin.MiniKv(model, 200, .25, .25, PAGE, 128)
    expected = paper.run(tokens)
    found = work.logits(DEMO, "tokens: {score: h2o, budget: {heavy: 0.25, recent: 0.25}}\n" + AFFINE + MINIKV, tokens, 200)
    compare("25 + 25 % of 200, 260 more", found, expected, exact, 1e-2, .98)
    total, codes = (int(n) / 1e9 for n in shell(PROBE, "bytes", f"{ROOT}/recipes/minikv.yaml", 32, 32, 128, 4096, 512).split())
    formula = twin.minikv_bytes(32, 32, 128, 4096, 512) / 1e9
    print(f"  LLaMA-2-7B, 4096 + 512 tokens: {codes:.4f} GB, with a buffer for the next page {total:.4f}; by the paper's "
          f"formula {formula:.4f}")
    assert abs(formula - .335) < .001 and abs(codes - formula) < 1e-6 * formula


def cla(work):
    """Consumers read the producer's post-rotary K and V; also in 2-bit pages, encoded once."""
    for name in ("llama_cla2", "llama_cla3", "llama_mlkv"):
        folder = f"{ROOT}/tests/golden/model/{name}"
        model, tokens = twin.Model(folder), work.tokens(60, 150)
        exact = model.exact(tokens)
        compare(name, work.logits(folder, "layers: {share: model}\n", tokens, 30), exact, exact, 1e-3)
    folder = work.random_model("tiny,layers=4,hidden=64,heads=4,kv_heads=2,head_dim=16,share=2")
    model = twin.Model(folder)
    tokens = work.tokens(150, model.config["vocab_size"])
    coded = lambda x, axis: np.stack([twin.affine(np.pad(head, ((0, -len(head) % 16), (0, 0))), 2, axis, 16)[:len(head)] for head in x])
    expected = model.forward(tokens, twin.paged_attention(
        model.d, lambda bank, k, v: (coded(k, "channel"), coded(v, "token")), PAGE, 0))
    compare("cla + 2 bits", work.logits(folder, "layers: {share: model}\n" + AFFINE, tokens), expected,
            model.exact(tokens), 1e-2, .98)


def matryoshka_2bit(work):
    """MatryoshkaKV's features in MiniKV's codes, with and without its choice of tokens."""
    model, tokens = twin.Model(DEMO), work.tokens(460, 4096)
    path, profile = work.profile(DEMO, model)
    exact, keep = model.exact(tokens), "features: {basis: pca, keep: 0.50}\n"

    def code(bank, side, i, y):
        rows = np.pad(y, ((0, -len(y) % 16), (0, 0)))
        return twin.affine(rows, 2, "token" if side else "channel", 16)[:len(y)]
    found = work.logits(DEMO, keep + AFFINE, tokens, 1, path)
    compare("+ 2 bits", found, model.forward(tokens, projected(model, profile, 1, 32, code)), exact, 1e-2, .98)

    def both(bank, head, k, v):
        out = []
        for side, x in enumerate((k, v)):
            basis, mean = profile["encode"][bank, side, head, :32], profile["mean"][bank, side, head]
            out.append(mean + code(bank, side, head, (x - mean) @ basis.T) @ basis)
        return out
    paper = twin.MiniKv(model, 200, .25, .25, PAGE, 128, code=both)
    found = work.logits(DEMO, keep + "tokens: {score: h2o, budget: {heavy: 0.25, recent: 0.25}}\n" + AFFINE + MINIKV, tokens, 200, path)
    compare("+ minikv", found, paper.run(tokens), exact, 1e-2, .98)


TESTS = dict(matryoshka=matryoshka, embedded=embedded, kv_heads=kv_heads, kv_heads_basis=kv_heads_basis, minikv=minikv, cla=cla,
             matryoshka_2bit=matryoshka_2bit)

if __name__ == "__main__":
    failed = []
    for name in sys.argv[1:] or TESTS:
        print(f"{name}: {TESTS[name].__doc__}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            try:
                TESTS[name](Work(folder))
            except AssertionError as problem:
                print(f"  FAILED {problem}")
                failed.append(name)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
