"""The four papers' formulas in plain numpy float64: the twin that the C++ path is tested against.

A model is run over a whole window at once. A *cache* is a function (bank, k, v) -> Coded: what the exact, post-rotary
K and V [KV heads, tokens, d] of one bank read like when they come back from encoded pages; `attend` then follows the
rule of docs/architecture.md: the sink exact, every page that ended before the query's own page coded, its own page
exact. MiniKV keeps a prompt exact until it is complete and is a class of its own.
"""
import json
import math
import struct

import numpy as np


# ---- files ---------------------------------------------------------------------------------------------------

def read_safetensors(path):
    with open(path, "rb") as f:
        data = f.read()
    length = struct.unpack("<Q", data[:8])[0]
    head, body, tensors = json.loads(data[8:8 + length]), data[8 + length:], {}
    meta = head.pop("__metadata__", {})
    for name, t in head.items():
        raw = body[t["data_offsets"][0]:t["data_offsets"][1]]
        if t["dtype"] == "BF16":
            values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(raw, {"F32": "<f4", "F16": "<f2", "U8": "u1"}[t["dtype"]])
        tensors[name] = values.reshape(t["shape"])
    return tensors, meta


def write_safetensors(path, tensors, meta):
    head, blobs, at = {"__metadata__": meta}, [], 0
    for name in sorted(tensors):
        t = np.ascontiguousarray(tensors[name])
        kind = {"float32": "F32", "uint8": "U8"}[t.dtype.name]
        head[name] = {"dtype": kind, "shape": list(t.shape), "data_offsets": [at, at + t.nbytes]}
        blobs.append(t.tobytes())
        at += t.nbytes
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def write_profile(path, model, fingerprint, vectors, join=1, budgets={}, scale=None, basis="pca", origin=""):
    """A profile (kvstore/profile/profile.h) of vectors[bank][side][vector] = (mean, basis), with budgets of
    {name: bits [banks, 2, vectors, groups, 1]}. Gives back its numbers as the file holds them."""
    encode = np.array([[[b for _, b in side] for side in bank] for bank in vectors], np.float32)
    mean = np.array([[[m for m, _ in side] for side in bank] for bank in vectors], np.float32)
    scale = np.ones_like(mean) if scale is None else scale.astype(np.float32)
    tensors = {"encode": encode, "mean": mean, "scale": scale}
    meta = dict(lowkey_profile=1, basis=basis, model_fingerprint=fingerprint, num_banks=len(model.banks),
                num_kv_heads=model.kv_heads, head_dim=model.d, join=join, num_levels=1, norm="true", norm_edge=4.5,
                origin=origin)
    widths = {"budget." + name: np.ascontiguousarray(bits, np.uint8) for name, bits in budgets.items()}
    write_safetensors(path, tensors | widths, {k: str(v) for k, v in meta.items()})
    return {name: t.astype(np.float64) for name, t in tensors.items()}


# ---- the model -----------------------------------------------------------------------------------------------

class Model:
    """A Llama-type decoder (tied or untied head; kv_producer and kv_layernorm as in train.py)."""

    def __init__(self, folder):
        self.config = c = json.load(open(f"{folder}/config.json"))
        raw, _ = read_safetensors(f"{folder}/model.safetensors")
        self.weights = {name: t.astype(np.float64) for name, t in raw.items()}
        self.layers, self.heads = c["num_hidden_layers"], c["num_attention_heads"]
        self.kv_heads = c.get("num_key_value_heads") or self.heads
        self.d = c.get("head_dim") or c["hidden_size"] // self.heads
        self.producer = c.get("kv_producer") or list(range(self.layers))
        self.banks = sorted(set(self.producer))  # bank b is owned by layer banks[b]

    def norm(self, x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.config["rms_norm_eps"]) * self.weights[name]

    def rotate(self, x):  # [heads, tokens, d], split-half pairs
        n, half = x.shape[1], self.d // 2
        angle = np.arange(n)[:, None] * self.config.get("rope_theta", 10000.0) ** (-np.arange(half) / half)
        cos, sin, a, b = np.cos(angle), np.sin(angle), x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def split(self, x, name, heads):
        y = x @ self.weights[name + ".weight"].T
        if name + ".bias" in self.weights:
            y = y + self.weights[name + ".bias"]
        return y.reshape(len(x), heads, self.d).transpose(1, 0, 2)

    def forward(self, tokens, attend):
        """attend(layer, bank, q, k, v) -> [heads, tokens, d]. Logits [tokens, vocabulary]."""
        x, kv = self.weights["model.embed_tokens.weight"][tokens], {}
        for layer in range(self.layers):
            p = f"model.layers.{layer}."
            y = self.norm(x, p + "input_layernorm.weight")
            q = self.rotate(self.split(y, p + "self_attn.q_proj", self.heads))
            owner = self.producer[layer]
            if owner == layer:
                shared = p + "self_attn.kv_layernorm.weight"
                z = self.norm(x, shared) if shared in self.weights else y
                kv[layer] = (self.rotate(self.split(z, p + "self_attn.k_proj", self.kv_heads)),
                             self.split(z, p + "self_attn.v_proj", self.kv_heads))
            a = attend(layer, self.banks.index(owner), q, *kv[owner])
            x = x + a.transpose(1, 0, 2).reshape(len(x), -1) @ self.weights[p + "self_attn.o_proj.weight"].T
            y = self.norm(x, p + "post_attention_layernorm.weight")
            g, u = y @ self.weights[p + "mlp.gate_proj.weight"].T, y @ self.weights[p + "mlp.up_proj.weight"].T
            x = x + (g / (1 + np.exp(-g)) * u) @ self.weights[p + "mlp.down_proj.weight"].T
        head = self.weights.get("lm_head.weight", self.weights["model.embed_tokens.weight"])
        return self.norm(x, "model.norm.weight") @ head.T

    def exact(self, tokens):
        return self.forward(tokens, exact_attention(self.d))

    def keys_and_values(self, tokens):
        """Post-rotary K and V of every bank in the exact run: [banks][2][KV heads, tokens, d]."""
        seen, inner = {}, exact_attention(self.d)

        def look(layer, bank, q, k, v):
            seen[bank] = (k, v)
            return inner(layer, bank, q, k, v)
        self.forward(tokens, look)
        return [seen[b] for b in range(len(self.banks))]


def softmax(s):
    e = np.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def exact_attention(d):
    def attend(layer, bank, q, k, v):
        group, n = len(q) // len(k), q.shape[1]
        k, v = k.repeat(group, 0), v.repeat(group, 0)
        s = q @ k.transpose(0, 2, 1) / math.sqrt(d)
        s[:, np.triu(np.ones((n, n), bool), 1)] = -np.inf
        return softmax(s) @ v
    return attend


def paged_attention(d, cache, page, sink):
    """`cache(bank, k, v)` -> (k', v') as complete pages give them back."""
    memo = {}

    def attend(layer, bank, q, k, v):
        group, n = len(q) // len(k), q.shape[1]
        if bank not in memo:
            memo[bank] = cache(bank, k, v)
        kc, vc = memo[bank]
        at = np.arange(n)
        coded = (at[None, :] // page < at[:, None] // page) & (at[None, :] >= sink)  # [query, key]
        repeat = lambda x: x.repeat(group, 0)
        score = lambda x: q @ repeat(x).transpose(0, 2, 1) / math.sqrt(d)
        s = np.where(coded, score(kc), score(k))
        s[:, np.triu(np.ones((n, n), bool), 1)] = -np.inf
        w = softmax(s)
        return np.where(coded, w, 0) @ repeat(vc) + np.where(coded, 0, w) @ repeat(v)
    return attend


# ---- bases (MatryoshkaKV 2410.14731, section 3; KV-heads 2406.07056) -------------------------------------------

def pca(rows):
    """Mean, and the eigenvectors of the covariance as rows, by descending eigenvalue."""
    mean = rows.mean(0)
    values, vectors = np.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    return mean, vectors[:, ::-1].T


def join_heads(x, s):
    """[heads, tokens, d] -> [heads / s, tokens, s d]: s adjacent heads make one vector."""
    h, n, d = x.shape
    return x.reshape(h // s, s, n, d).transpose(0, 2, 1, 3).reshape(h // s, n, s * d)


def part_heads(x, s):
    h, n, sd = x.shape
    return x.reshape(h, n, s, sd // s).transpose(0, 2, 1, 3).reshape(h * s, n, sd // s)


def project(x, basis, mean, code):
    """x' = mean + B^T code(B (x - mean)) for every vector; basis [vectors, kept, dim]."""
    out = np.empty_like(x)
    for i in range(len(x)):
        out[i] = mean[i] + code(i, (x[i] - mean[i]) @ basis[i].T) @ basis[i]
    return out


def calibrated(model, windows, join=1):
    """PCA of the K and V of some windows, [bank][side][vector] (mean, basis), and for embedded codes the scales
    [bank, side, vector, dim] that leave features / (scale * norm) at unit size (norms by these scales: iterated)."""
    vectors, scales = [], []
    runs = [model.keys_and_values(w) for w in windows]
    for bank in range(len(model.banks)):
        vectors.append([])
        scales.append([])
        for side in (0, 1):
            heads = [join_heads(run[bank][side], join) for run in runs]
            rows = [np.concatenate([h[i] for h in heads]) for i in range(len(heads[0]))]
            found = [pca(r) for r in rows]
            vectors[-1].append(found)
            scales[-1].append([fit_scale((r - mean) @ basis.T) for r, (mean, basis) in zip(rows, found)])
    return vectors, np.array(scales)


def fit_scale(y, edge=4.5):
    scale = np.sqrt((y * y).mean(0))
    for _ in range(8):
        u = y / scale
        norm = np.maximum(np.sqrt((u * u).mean(1)), np.abs(u).max(1) / edge)
        scale = np.sqrt(((y / norm[:, None]) ** 2).mean(0))
    return scale


# ---- quantizers ------------------------------------------------------------------------------------------------

def normal_cells(n=16):
    """Lloyd-Max cells of N(0, 1): inner edges and conditional means, iterated to the fixed point."""
    density = lambda x: np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    below = np.vectorize(lambda x: .5 * math.erfc(-x / math.sqrt(2)))
    edges = np.linspace(-2.4, 2.4, n - 1)
    for _ in range(20000):
        e = np.concatenate([[-40.], edges, [40.]])
        means = (density(e[:-1]) - density(e[1:])) / (below(e[1:]) - below(e[:-1]))
        new = (means[1:] + means[:-1]) / 2
        if np.abs(new - edges).max() < 1e-14:
            break
        edges = new
    mass = below(e[1:]) - below(e[:-1])
    return edges, means, mass


CELLS = {}


def embedded(u, bits, edge=4.5):
    """Nested codes of u (about unit scale): 16 cells; narrower codes merge them, 5 to 8 bits cut them evenly."""
    if not CELLS:
        CELLS["edges"], CELLS["means"], CELLS["mass"] = normal_cells()
    edges = np.concatenate([[-edge], CELLS["edges"], [edge]])
    hi = np.searchsorted(CELLS["edges"], u, side="right")
    if bits <= 4:
        merge = 1 << (4 - bits)
        mass = CELLS["mass"].reshape(-1, merge)
        values = (CELLS["means"].reshape(-1, merge) * mass).sum(1) / mass.sum(1)
        return values[hi >> (4 - bits)]
    steps = 1 << (bits - 4)
    width = (edges[hi + 1] - edges[hi]) / steps
    return edges[hi] + (np.clip(np.floor((u - edges[hi]) / width), 0, steps - 1) + .5) * width


def bf16_up(x):
    """The smallest bf16 not below x >= 0."""
    bits = np.asarray(x, np.float32)
    bits = np.where(bits < x, np.nextafter(bits, np.float32(np.inf)), bits).view(np.uint32)
    return (((bits + 0xffff) >> 16) << 16).astype(np.uint32).view(np.float32).astype(np.float64)


def embedded_rows(y, bits, scale=None, edge=4.5, norm=True):
    """y [tokens, dim]; bits per feature (0: dropped); one norm per row."""
    scale = np.ones(y.shape[1]) if scale is None else scale
    u = y / scale
    size = np.ones(len(u))
    if norm:
        size = bf16_up(np.maximum(np.sqrt((u * u).mean(1)), np.abs(u).max(1) / edge))
    size = np.where(size > 0, size, 1)[:, None]
    out = np.zeros_like(u)
    for b in set(bits):
        pick = np.asarray(bits) == b
        if b > 0:
            out[:, pick] = embedded(u[:, pick] / size, int(b))
    return out * size * scale


def affine(x, bits, axis, span):
    """KIVI's and MiniKV's codes: x [tokens, d]; one f16 pair (minimum, step) per feature and `span` tokens
    (axis "channel") or per token and `span` features ("token")."""
    t, d = x.shape
    blocks = x.reshape(t // span, span, d) if axis == "channel" else x.reshape(t, d // span, span)
    along = 1 if axis == "channel" else 2
    low = blocks.min(along, keepdims=True)
    step = (blocks.max(along, keepdims=True) - low) / (2 ** bits - 1)
    low, step = low.astype(np.float16).astype(np.float64), step.astype(np.float16).astype(np.float64)
    code = np.clip(np.rint((blocks - low) / np.where(step > 0, step, 1)), 0, 2 ** bits - 1)
    return (low + step * code).reshape(t, d)


# ---- MiniKV (2411.18077, section 3) ----------------------------------------------------------------------------

class MiniKv:
    """Exact prefill of `prompt` tokens; per KV head the newest floor(recent n) and, of the others, the
    floor(heavy n) with the largest column sum of softmax weights over all prompt rows and query heads; codes in blocks
    of `page` kept tokens, the newest kept mod page exact; later tokens exact until `block` of them are coded."""

    def __init__(self, model, prompt, heavy, recent, page, block, bits=2, span=16, budgets=None, code=None):
        self.d, self.n, self.page, self.block = model.d, prompt, page, block
        self.recent = math.floor(recent * prompt + 1e-9)
        self.heavy = budgets or [math.floor(heavy * prompt + 1e-9)] * len(model.banks)
        self.code = code or (lambda bank, head, k, v: (affine(k, bits, "channel", span), affine(v, bits, "token", span)))
        self.model, self.chosen = model, {}

    def run(self, tokens):
        """Logits of all positions of `tokens`, the first `prompt` of which are the prompt."""
        self.sums, exact = {}, exact_attention(self.d)

        def watch(layer, bank, q, k, v):
            group, n = len(q) // len(k), q.shape[1]
            s = q @ k.repeat(group, 0).transpose(0, 2, 1) / math.sqrt(self.d)
            s[:, np.triu(np.ones((n, n), bool), 1)] = -np.inf
            sums = softmax(s).sum(1).reshape(len(k), group, n).sum(1)
            self.sums[bank] = self.sums.get(bank, 0) + sums
            return exact(layer, bank, q, k, v)
        self.model.forward(tokens[:self.n], watch)
        for bank, sums in self.sums.items():
            old = self.n - self.recent
            self.chosen[bank] = [np.sort(np.concatenate(
                [np.lexsort((-np.arange(old), -row[:old]))[:self.heavy[bank]], np.arange(old, self.n)])) for row in sums]
        return self.model.forward(tokens, self.attend)

    def attend(self, layer, bank, q, k, v):
        group, total = len(q) // len(k), q.shape[1]
        out = exact_attention(self.d)(layer, bank, q, k, v)  # the prompt's own rows
        for head in range(len(k)):
            kept = self.chosen[bank][head]
            exact = len(kept) % self.page  # a pyramid's banks share it: see token_budget.h
            ks, vs = [], []
            self.archive(bank, head, k[head, kept[:len(kept) - exact]], v[head, kept[:len(kept) - exact]], ks, vs)
            first, now = kept[len(kept) - exact:], self.n
            while now < total:
                rows = min(self.block - len(first), total - now)
                own = np.concatenate([first, np.arange(now, now + rows)])
                keys, values = np.concatenate(ks + [k[head, own]]), np.concatenate(vs + [v[head, own]])
                before = len(keys) - rows
                for h in range(head * group, (head + 1) * group):
                    s = q[h, now:now + rows] @ keys.T / math.sqrt(self.d)
                    s[:, before:][np.triu(np.ones((rows, rows), bool), 1)] = -np.inf
                    out[h, now:now + rows] = softmax(s) @ values
                now, first = now + rows, own
                if len(own) == self.block:
                    self.archive(bank, head, k[head, own], v[head, own], ks, vs)
                    first = own[:0]
        return out

    def archive(self, bank, head, k, v, ks, vs):
        if len(k):
            kc, vc = self.code(bank, head, k, v)
            ks.append(kc)
            vs.append(vc)


def minikv_bytes(layers, heads, d, prompt, generated, kept=.5, bits=2, span=16):
    """Codes and two f16 numbers per `span` of them; what is generated is counted coded, as the paper does."""
    elements = 2 * layers * heads * d * (prompt * kept + generated)
    return elements * (bits / 8 + 4 / span)


# ---- measures --------------------------------------------------------------------------------------------------

def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def kl(p_logits, q_logits):
    p, q = log_softmax(p_logits), log_softmax(q_logits)
    return (np.exp(p) * (p - q)).sum(-1).mean()
