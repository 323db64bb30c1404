#!/usr/bin/env python3
"""Random tiny models and what Hugging Face transformers computes from them, for tests/unit/worker/model.

    python3 tests/golden/model/make_golden.py [CASE...]     # from the repository root; needs torch, transformers, safetensors

Models whose layers share K and V (`kv_producer`: Cross-Layer Attention) are unknown to transformers: theirs come from
the plain float64 forward pass below. Every model folder holds config.json (written by hand below, in the spellings that real files use), weights, and
expected.json: 24 token ids and the float32 logits of every position, [24][vocab]. greedy_demo.json holds greedy
continuations of deploy/demo-model in float32. The output is committed; rerun only when a case changes.
"""

import json
import pathlib
import shutil
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = pathlib.Path(__file__).parent
DEMO = HERE.parents[2] / "deploy" / "demo-model"
POSITIONS = 24

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 52,
    "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 8, "vocab_size": 150,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 2,
}
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 32, "intermediate_size": 52,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 150,
    "max_position_embeddings": 64, "max_window_layers": 2, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
    "hidden_act": "silu", "tie_word_embeddings": False, "use_sliding_window": False, "sliding_window": 64,
    "eos_token_id": [2, 3],
}
# original_max 32 puts wavelengths of this small model on both sides of both cut points.
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}

CASES = {  # name: (config, dtype of the file, number of files)
    "llama_mha": (LLAMA, torch.float32, 1),
    "llama_gqa_scaled": ({**LLAMA, "num_key_value_heads": 4, "tie_word_embeddings": True,
                          "rope_scaling": {"rope_type": "llama3", **LLAMA3}}, torch.float16, 1),
    "llama_mqa": ({**LLAMA, "num_attention_heads": 4, "num_key_value_heads": 1, "rope_scaling": None},
                  torch.bfloat16, 1),
    "llama_bias": ({**LLAMA, "num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
                   torch.float32, 1),
    "llama_parameters": ({**{k: v for k, v in LLAMA.items() if k not in ("rope_theta", "head_dim")},
                          "hidden_size": 64, "num_key_value_heads": 4, "vocab_size": 149, "intermediate_size": 50,
                          "rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, **LLAMA3}},
                         torch.bfloat16, 1),
    "qwen2": (QWEN2, torch.bfloat16, 1),
    "qwen2_sharded": ({**QWEN2, "tie_word_embeddings": True, "num_attention_heads": 4, "num_key_value_heads": 4},
                      torch.float32, 2),
    # pairs; groups of three from the top, the odd layer out alone at the bottom; readers that skip over an owner
    "llama_cla2": ({**LLAMA, "num_key_value_heads": 4, "num_hidden_layers": 4, "kv_producer": [0, 0, 2, 2]},
                   torch.float32, 1),
    "llama_cla3": ({**LLAMA, "num_key_value_heads": 2, "num_hidden_layers": 4, "kv_producer": [0, 1, 1, 1]},
                   torch.float32, 1),
    "llama_mlkv": ({**LLAMA, "num_key_value_heads": 4, "num_hidden_layers": 4, "kv_producer": [0, 1, 0, 1]},
                   torch.float32, 1),
}


def tensors(config, dtype, seed):
    gen = torch.Generator().manual_seed(seed)
    hidden, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head_dim = config.get("head_dim", hidden // config["num_attention_heads"])
    q, kv = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    qwen = config["model_type"] == "qwen2"

    def normal(*shape, std, mean=0.0):
        return (torch.randn(*shape, generator=gen) * std + mean).to(dtype)

    out = {"model.embed_tokens.weight": normal(vocab, hidden, std=0.5),
           "model.norm.weight": normal(hidden, std=0.2, mean=1.0)}
    if not config["tie_word_embeddings"]:
        out["lm_head.weight"] = normal(vocab, hidden, std=0.4)
    producer = config.get("kv_producer")
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        linears = {"self_attn.q_proj": (q, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
                   "self_attn.o_proj": (hidden, q), "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden),
                   "mlp.down_proj": (hidden, ffn)}
        if producer and producer[i] != i:
            del linears["self_attn.k_proj"], linears["self_attn.v_proj"]
        elif producer:
            out[p + "self_attn.kv_layernorm.weight"] = normal(hidden, std=0.2, mean=1.0)
        for name, (rows, cols) in linears.items():
            out[p + name + ".weight"] = normal(rows, cols, std=1.5 / cols ** 0.5)
            attention = name.startswith("self_attn")
            if (attention and (config.get("attention_bias") or (qwen and "o_proj" not in name))) or \
                    (not attention and config.get("mlp_bias")):
                out[p + name + ".bias"] = normal(rows, std=0.5)
        out[p + "input_layernorm.weight"] = normal(hidden, std=0.2, mean=1.0)
        out[p + "post_attention_layernorm.weight"] = normal(hidden, std=0.2, mean=1.0)
    return out


def save_weights(folder, weights, files):
    if files == 1:
        return save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    names, index = sorted(weights), {}
    for f in range(files):
        file = f"model-{f + 1:05d}-of-{files:05d}.safetensors"
        part = {n: weights[n] for n in names[f::files]}
        save_file(part, folder / file, metadata={"format": "pt"})
        index.update({n: file for n in part})
    text = {"metadata": {"total_size": sum(w.nbytes for w in weights.values())}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(text, indent=1))


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def forward_float64(config, weights, ids):
    """A Llama decoder from its formulas; a layer reads the rotated K and V of kv_producer[layer]."""
    w = {k: v.double() for k, v in weights.items()}
    heads, kv_heads, d = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    n, eps, producer = len(ids), config["rms_norm_eps"], config["kv_producer"]
    angle = torch.outer(torch.arange(n).double(), config["rope_theta"] ** (-torch.arange(0, d, 2).double() / d))
    cos, sin = angle.cos(), angle.sin()

    def norm(x, weight):
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight

    def rotate(x):  # [n, heads, d], pairs (i, i + d / 2)
        a, b = x[..., :d // 2], x[..., d // 2:]
        c, s = cos[:, None], sin[:, None]
        return torch.cat([a * c - b * s, b * c + a * s], -1)

    x, banks = w["model.embed_tokens.weight"][ids], {}
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        if producer[i] == i:
            y = norm(x, w[p + "self_attn.kv_layernorm.weight"])
            banks[i] = (rotate((y @ w[p + "self_attn.k_proj.weight"].T).view(n, kv_heads, d)),
                        (y @ w[p + "self_attn.v_proj.weight"].T).view(n, kv_heads, d))
        k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in banks[producer[i]])
        q = rotate((norm(x, w[p + "input_layernorm.weight"]) @ w[p + "self_attn.q_proj.weight"].T).view(n, heads, d))
        scores = torch.einsum("qhd,khd->hqk", q, k) / d ** 0.5 + torch.full((n, n), -torch.inf).double().triu(1)
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(n, -1)
        x = x + mixed @ w[p + "self_attn.o_proj.weight"].T
        y = norm(x, w[p + "post_attention_layernorm.weight"])
        gate, up = y @ w[p + "mlp.gate_proj.weight"].T, y @ w[p + "mlp.up_proj.weight"].T
        x = x + (gate * gate.sigmoid() * up) @ w[p + "mlp.down_proj.weight"].T
    return norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T


def make_case(name, seed):
    config, dtype, files = CASES[name]
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_weights(folder, tensors(config, dtype, seed), files)
    ids = torch.randint(0, config["vocab_size"], (POSITIONS,), generator=torch.Generator().manual_seed(seed + 1000))
    with torch.no_grad():
        if "kv_producer" in config:
            logits = forward_float64(config, tensors(config, dtype, seed), ids)
        else:
            logits = load(folder)(ids[None]).logits[0]
    rows = ",\n".join("[" + ",".join(f"{x:.8g}" for x in row) + "]" for row in logits.tolist())
    (folder / "expected.json").write_text(f'{{"tokens": {ids.tolist()},\n"logits": [\n{rows}]}}\n')
    print(name, "logit std", round(logits.std().item(), 3), "bytes",
          sum(f.stat().st_size for f in folder.iterdir()))


PROMPTS = [
    "The pass key of the garden is 48213. Remember it.\nThe old man walked to the window and said nothing for a while. "
    "What is the pass key of the garden? The pass key of the garden is",
    "It was late in the evening when the carriage",
    "\"I cannot think,\" said she, \"that he would",
    "The sea was calm, and the captain stood",
    "In the year 1843 there lived in the county of",
    "Once upon a time there was a little girl who",
    "My dear sir, I have the honour to",
    "The road to the village wound between two hills, and",
]
NEW_TOKENS = 160


def make_greedy():
    """Beside the tokens the smallest distance between the two best logits: how near a different choice was."""
    tokenizer, model, cases = AutoTokenizer.from_pretrained(DEMO), load(DEMO), []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        out, margin, past, inputs = [], float("inf"), None, torch.tensor([ids])
        with torch.no_grad():
            for _ in range(NEW_TOKENS):
                result = model(inputs, past_key_values=past, use_cache=True)
                best = result.logits[0, -1].topk(2)
                margin = min(margin, (best.values[0] - best.values[1]).item())
                out.append(best.indices[0].item())
                past, inputs = result.past_key_values, best.indices[:1][None]
        cases.append({"prompt_ids": ids, "tokens": out, "smallest_margin": round(margin, 6)})
        print(repr(prompt[-40:]), "->", repr(tokenizer.decode(out)[:60]), "margin", round(margin, 5))
    lines = ",\n".join(json.dumps(c) for c in cases)
    (HERE / "greedy_demo.json").write_text(f'{{"cases": [\n{lines}]}}\n')


if __name__ == "__main__":
    wanted = sys.argv[1:] or [*CASES, "greedy_demo"]
    for number, case in enumerate(CASES):
        if case in wanted:
            make_case(case, number)
    if "greedy_demo" in wanted:
        make_greedy()
