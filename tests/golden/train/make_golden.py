#!/usr/bin/env python3
"""The formulas of training in numpy float64, on the tiny models of tests/golden/model, for tests/unit/calibrate_train.

    python3 tests/golden/train/make_golden.py     # from the repository root; needs numpy, safetensors

Writes cases.json: per case the model folder, what every stored vector keeps (bits per group of 16 features; 255: no
quantizer, 0: dropped), and the logits of some positions. Bases, means and scales are the formulas of `parameters()`, so
that the test can build the same ones.
"""

import json
import math
import pathlib

import numpy as np
from safetensors.numpy import load_file

HERE = pathlib.Path(__file__).parent
MODELS = HERE.parent / "model"
ROWS = [5, 9, 17, 23]  # in the sink's page, behind it, and in the last page

CASES = [
    {"model": "llama_gqa_scaled", "join": 4, "sink": 0, "page": 8, "bits": [[255, 0], [255, 255]]},
    {"model": "llama_gqa_scaled", "join": 4, "sink": 2, "page": 8, "bits": [[8, 2], [4, 4], [8, 4], [4, 0]]},
    {"model": "llama_mlkv", "join": 2, "sink": 2, "page": 4, "bits": [[255], [4], [8], [255], [2], [255], [0], [4]]},
]


def cayley(x):
    a = x - x.T
    eye = np.eye(len(x))
    return np.linalg.inv(eye - a / 2) @ (eye + a / 2)


def parameters(vector, dim):
    """Initial basis (a reflection), X of its rotation, mean, scale."""
    i = np.arange(dim)
    w = np.sin(0.9 * i + vector + 1)
    w /= np.linalg.norm(w)
    encode = np.eye(dim) - 2 * np.outer(w, w)
    x = 0.4 * np.sin(0.7 * vector + 1.3 * i[:, None] + 2.1 * i[None, :])
    return encode, x, 0.1 * np.sin(vector + 0.5 * i), 0.3 + 0.7 / (1 + i)


# Lloyd's cells of the standard normal density, from its definition: boundaries midway between conditional means.
def lloyd(levels):
    pdf = lambda v: math.exp(-v * v / 2) / math.sqrt(2 * math.pi)
    cdf = lambda v: 0.5 * (1 + math.erf(v / math.sqrt(2)))
    edges = [-math.inf] + [(k - levels / 2) * 6 / levels for k in range(1, levels)] + [math.inf]
    mean = lambda lo, hi: (pdf(lo) - pdf(hi)) / (cdf(hi) - cdf(lo))
    for _ in range(20000):
        values = [mean(lo, hi) for lo, hi in zip(edges, edges[1:])]
        edges = [-math.inf] + [(a + b) / 2 for a, b in zip(values, values[1:])] + [math.inf]
    return edges, values, mean


EDGES, VALUES4, MEAN = lloyd(16)
CUTS = np.array(EDGES[1:-1])
VALUES2 = np.array([MEAN(EDGES[4 * k], EDGES[4 * k + 4]) for k in range(4)])
OUTER = np.array([-4.5] + EDGES[1:-1] + [4.5])


def read_back(u, bits):
    if bits == 0:
        return np.zeros_like(u)
    if bits == 255:
        return u
    cell = np.searchsorted(CUTS, u, side="right")
    if bits == 2:
        return VALUES2[cell // 4]
    if bits == 4:
        return np.array(VALUES4)[cell]
    step = (OUTER[cell + 1] - OUTER[cell]) / 16
    return OUTER[cell] + step * (np.clip(np.floor((u - OUTER[cell]) / step), 0, 15) + 0.5)


def bf16_up(x):
    bits = np.array(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0xFFFF) & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(np.float64)


def coded(rows, vector, bits):
    """What is read back of rows [tokens, dim] of one stored vector."""
    dim = rows.shape[1]
    start, x, mean, scale = parameters(vector, dim)
    basis = cayley(x) @ start
    y = (rows - mean) @ basis.T
    width = np.repeat(bits, 16)[:dim]
    if any(b not in (0, 255) for b in bits):
        last = max(i for i in range(dim) if width[i]) + 1
        u = y / scale
        norm = np.maximum(np.sqrt((u[:, :last] ** 2).mean(1)), np.abs(u[:, :last]).max(1) / 4.5)
        norm = bf16_up(norm)[:, None]
        u = u / norm
        for f in range(dim):
            y[:, f] = read_back(u[:, f], width[f]) * norm[:, 0] * scale[f]
    return mean + (y * (width > 0)) @ basis


def rope_frequencies(config):
    half = config["head_dim"] // 2
    freq = config["rope_theta"] ** (-np.arange(half) / half)
    s = config.get("rope_scaling")
    if not s:
        return freq
    wave = 2 * np.pi / freq
    low, high = (s["original_max_position_embeddings"] / s[k] for k in ("low_freq_factor", "high_freq_factor"))
    smooth = (s["original_max_position_embeddings"] / wave - s["low_freq_factor"]) / (
        s["high_freq_factor"] - s["low_freq_factor"])
    mixed = (1 - smooth) * freq / s["factor"] + smooth * freq
    return np.where(wave < high, freq, np.where(wave > low, freq / s["factor"], mixed))


def logits(case):
    folder = MODELS / case["model"]
    config = json.loads((folder / "config.json").read_text())
    w = {k: v.astype(np.float64) for k, v in load_file(folder / "model.safetensors").items()}
    tokens = np.array(json.loads((folder / "expected.json").read_text())["tokens"])
    n, heads, kv_heads, d = len(tokens), config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    join, per_side = case["join"], kv_heads // case["join"]
    angle = np.outer(np.arange(n), rope_frequencies(config))
    cos, sin = np.cos(np.concatenate([angle, angle], 1)), np.sin(np.concatenate([angle, angle], 1))
    norm = lambda v, weight: v / np.sqrt((v * v).mean(-1, keepdims=True) + config["rms_norm_eps"]) * weight
    rotate = lambda v: v * cos[:, None] + np.concatenate([-v[..., d // 2:], v[..., : d // 2]], -1) * sin[:, None]
    producer = config.get("kv_producer") or list(range(config["num_hidden_layers"]))
    exact_pair = [[s <= t and (s < case["sink"] or s // case["page"] == t // case["page"]) for s in range(n)]
                  for t in range(n)]
    exact_pair = np.array(exact_pair)
    banks, bank = {}, 0
    h = w["model.embed_tokens.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        y = norm(h, w[p + "input_layernorm.weight"])
        if producer[layer] == layer:
            source = norm(h, w[p + "self_attn.kv_layernorm.weight"]) if config.get("kv_producer") else y
            k = rotate((source @ w[p + "self_attn.k_proj.weight"].T).reshape(n, kv_heads, d))
            v = (source @ w[p + "self_attn.v_proj.weight"].T).reshape(n, kv_heads, d)
            read = []
            for side, x in ((0, k), (1, v)):
                first = (bank * 2 + side) * per_side
                parts = [coded(x[:, j * join:(j + 1) * join].reshape(n, join * d), first + j,
                               case["bits"][(first + j) % len(case["bits"])]).reshape(n, join, d)
                         for j in range(per_side)]
                read.append(np.concatenate(parts, 1))
            banks[layer] = (k, v, *read)
            bank += 1
        k, v, coded_k, coded_v = banks[producer[layer]]
        q = rotate((y @ w[p + "self_attn.q_proj.weight"].T).reshape(n, heads, d))
        out = np.zeros((n, heads, d))
        for head in range(heads):
            kv = head * kv_heads // heads
            score = np.where(exact_pair, q[:, head] @ k[:, kv].T, q[:, head] @ coded_k[:, kv].T) / math.sqrt(d)
            score[np.triu_indices(n, 1)] = -np.inf
            weight = np.exp(score - score.max(1, keepdims=True))
            weight /= weight.sum(1, keepdims=True)
            out[:, head] = (weight * exact_pair) @ v[:, kv] + (weight * ~exact_pair) @ coded_v[:, kv]
        h = h + out.reshape(n, -1) @ w[p + "self_attn.o_proj.weight"].T
        y = norm(h, w[p + "post_attention_layernorm.weight"])
        gate = y @ w[p + "mlp.gate_proj.weight"].T
        h = h + (gate / (1 + np.exp(-gate)) * (y @ w[p + "mlp.up_proj.weight"].T)) @ w[p + "mlp.down_proj.weight"].T
    head = w["model.embed_tokens.weight"] if config["tie_word_embeddings"] else w["lm_head.weight"]
    return norm(h, w["model.norm.weight"]) @ head.T


def main():
    x = 0.4 * np.sin(1.3 * np.arange(6)[:, None] + 2.1 * np.arange(6)[None, :])
    rows = lambda matrix: [[float(f"{v:.8g}") for v in row] for row in matrix]
    cases = [{**case, "rows": ROWS, "logits": rows(logits(case)[ROWS])} for case in CASES]
    text = json.dumps({"cayley": rows(cayley(x)), "cases": cases}, separators=(",", ":"))
    (HERE / "cases.json").write_text(text.replace("],[", "],\n[") + "\n")


if __name__ == "__main__":
    main()
