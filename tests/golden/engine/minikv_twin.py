#!/usr/bin/env python3
"""What MiniKV (arXiv:2411.18077) answers, from its formulas in float64: the twin of recipes/minikv{,-pyramid}.yaml.

    python3 tests/golden/engine/minikv_twin.py     # from the repository root; needs numpy; writes minikv_demo.json

A plain decoder of deploy/demo-model with a list of keys and values per layer and KV head. The prompt is attended exactly.
Then every head keeps the newest floor(n / 4) tokens and the floor(heavy n) others with the largest column sums (over all
rows and the query heads of the group); kept tokens are quantized to 2 bits in order, keys per channel and 16 tokens,
values per token and 16 channels, but for the last (kept mod 32), which stay exact with what is generated; 128 exact tokens
are quantized together. Minimum and step are f16. Two choices are the engine's, not the paper's: pages of 32 tokens (the
paper leaves kept mod 16 exact), and a pyramid whose counts are rounded so that all layers leave the same number exact.

An answer is cut where the two best logits come closer than MARGIN: there float32 may decide otherwise.
"""

import json
import pathlib
import struct

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[3]
DEMO = ROOT / "deploy" / "demo-model"
PAGE, GROUP, FLUSH, SHARE, DELTA = 32, 16, 128, 0.25, 7
MARGIN, ANSWER = 0.02, 200


def load(folder):
    raw = (folder / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    weights = {}
    for name, entry in json.loads(raw[8:8 + size]).items():
        if name == "__metadata__":
            continue
        assert entry["dtype"] == "BF16"
        begin, end = entry["data_offsets"]
        bits = np.frombuffer(raw, "<u2", (end - begin) // 2, 8 + size + begin).astype(np.uint32) << 16
        weights[name] = bits.view(np.float32).astype(np.float64).reshape(entry["shape"])
    return json.loads((folder / "config.json").read_text()), weights


def quantized(block, axis):
    """2 bits between the extremes along `axis`."""
    low, high = block.min(axis, keepdims=True), block.max(axis, keepdims=True)
    minimum = low.astype(np.float16).astype(np.float64)
    step = ((high - low) / 3).astype(np.float16).astype(np.float64)
    codes = np.where(step > 0, np.rint((block - minimum) / np.where(step > 0, step, 1)), 0)
    return minimum + step * np.clip(codes, 0, 3)


def quantized_keys(rows):  # [tokens, d]: one range per channel and 16 tokens
    return quantized(rows.reshape(len(rows) // GROUP, GROUP, rows.shape[1]), 1).reshape(rows.shape)


def quantized_values(rows):  # one range per token and 16 channels
    return quantized(rows.reshape(len(rows), rows.shape[1] // GROUP, GROUP), 2).reshape(rows.shape)


def kept_count(n, layer, layers, pyramid):
    """How many of n tokens a layer keeps, and how many of them are the newest."""
    recent = int(SHARE * n)
    uniform = recent + int(SHARE * n)
    if not pyramid:
        return uniform, recent
    last = SHARE / DELTA
    first = 2 * SHARE - last
    wanted = recent + int((first + (last - first) * layer / (layers - 1)) * n + 1e-9)
    allowed = [k for k in range(recent, n + 1) if k % PAGE == uniform % PAGE]
    return min(allowed, key=lambda k: (abs(k - wanted), -k)), recent


class Head:
    """The cache of one KV head of one layer."""

    def __init__(self):
        self.archive_k = self.archive_v = None
        self.k, self.v = [], []

    def rows(self):
        k, v = np.array(self.k), np.array(self.v)
        if self.archive_k is None:
            return k, v
        if len(self.k) == 0:
            return self.archive_k, self.archive_v
        return np.concatenate([self.archive_k, k]), np.concatenate([self.archive_v, v])

    def archive(self, k, v, exact):
        encoded = len(k) - exact
        ak, av = quantized_keys(k[:encoded]), quantized_values(v[:encoded])
        self.archive_k = ak if self.archive_k is None else np.concatenate([self.archive_k, ak])
        self.archive_v = av if self.archive_v is None else np.concatenate([self.archive_v, av])
        self.k, self.v = list(k[encoded:]), list(v[encoded:])


class Decoder:
    def __init__(self, config, weights, pyramid):
        self.c, self.w, self.pyramid = config, weights, pyramid
        self.layers, self.d = config["num_hidden_layers"], config["head_dim"]
        self.kv_heads = config["num_key_value_heads"]
        self.group = config["num_attention_heads"] // self.kv_heads
        self.heads = [[Head() for _ in range(self.kv_heads)] for _ in range(self.layers)]
        self.inv_freq = config["rope_theta"] ** (-np.arange(0, self.d, 2) / self.d)

    def norm(self, x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.c["rms_norm_eps"]) * self.w[name]

    def rotate(self, x, positions):  # [n, heads, d], pairs (i, i + d / 2)
        angle = positions[:, None, None] * self.inv_freq
        a, b = x[..., :self.d // 2], x[..., self.d // 2:]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)

    def attend(self, layer, q, k, v, prompt):
        n = len(q)
        out = np.empty_like(q)
        for h, head in enumerate(self.heads[layer]):
            head.k += list(k[:, h])
            head.v += list(v[:, h])
            keys, values = head.rows()
            visible = np.arange(len(keys))[None] <= np.arange(len(keys) - n, len(keys))[:, None]
            sums = np.zeros(len(keys))
            for query in range(h * self.group, (h + 1) * self.group):
                scores = np.where(visible, q[:, query] @ keys.T / np.sqrt(self.d), -np.inf)
                weights = np.exp(scores - scores.max(-1, keepdims=True))
                weights /= weights.sum(-1, keepdims=True)
                out[:, query] = weights @ values
                sums += weights.sum(0)
            if prompt:
                kept, recent = kept_count(n, layer, self.layers, self.pyramid)
                older = sorted(range(n - recent), key=lambda t: (-sums[t], -t))[:kept - recent]
                chosen = sorted(older) + list(range(n - recent, n))
                head.archive(keys[chosen], values[chosen], kept % PAGE)
            elif len(head.k) == FLUSH:
                head.archive(np.array(head.k), np.array(head.v), 0)
        return out

    def forward(self, tokens, first, prompt):
        """Logits after the last token."""
        x = self.w["model.embed_tokens.weight"][tokens]
        positions = np.arange(first, first + len(tokens), dtype=np.float64)
        for layer in range(self.layers):
            p = f"model.layers.{layer}."
            y = self.norm(x, p + "input_layernorm.weight")
            q, k, v = ((y @ self.w[p + f"self_attn.{m}_proj.weight"].T).reshape(len(tokens), -1, self.d) for m in "qkv")
            a = self.attend(layer, self.rotate(q, positions), self.rotate(k, positions), v, prompt)
            x = x + a.reshape(len(tokens), -1) @ self.w[p + "self_attn.o_proj.weight"].T
            y = self.norm(x, p + "post_attention_layernorm.weight")
            gate, up = (y @ self.w[p + f"mlp.{m}_proj.weight"].T for m in ("gate", "up"))
            x = x + (gate / (1 + np.exp(-gate)) * up) @ self.w[p + "mlp.down_proj.weight"].T
        return self.norm(x[-1], "model.norm.weight") @ self.w["model.embed_tokens.weight"].T


def answer(config, weights, prompt, pyramid):
    decoder = Decoder(config, weights, pyramid)
    logits = decoder.forward(np.array(prompt), 0, True)
    tokens, margin = [], np.inf
    while len(tokens) < ANSWER:
        best = int(logits.argmax())
        gap = logits[best] - np.delete(logits, best).max()
        if gap < MARGIN:
            break
        margin = min(margin, gap)
        tokens.append(best)
        logits = decoder.forward(np.array([best]), len(prompt) + len(tokens) - 1, False)
    return tokens, margin


def main():
    config, weights = load(DEMO)
    texts = [c["prompt_ids"] + c["tokens"] for c in
             json.loads((ROOT / "tests/golden/model/greedy_demo.json").read_text())["cases"]]
    prompts = texts[:3] + [texts[0] + texts[1], (texts[2] + texts[0] + texts[1])[:500], texts[1][:61]]
    cases = []
    for recipe in ("minikv", "minikv-pyramid"):
        for prompt in prompts:
            tokens, margin = answer(config, weights, prompt, recipe == "minikv-pyramid")
            print(recipe, len(prompt), len(tokens), round(float(margin), 4), flush=True)
            cases.append({"recipe": recipe, "prompt": prompt, "tokens": tokens, "smallest_margin": round(float(margin), 4)})
    out = pathlib.Path(__file__).parent / "minikv_demo.json"
    out.write_text("{\"cases\": [\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]}\n")


if __name__ == "__main__":
    main()
