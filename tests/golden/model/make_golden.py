#!/usr/bin/env python3
"""Random tiny models and what Hugging Face transformers computes from them, for tests/unit/worker/model.

    python3 tests/golden/model/make_golden.py [CASE...]     # from the repository root; needs torch, transformers, safetensors

Models whose layers share K and V (`kv_producer`: Cross-Layer Attention) are unknown to transformers: theirs come from
the plain float64 forward pass below. Every model folder holds config.json (written by hand below, in the spellings that real files use), weights, and
expected.json: token ids and the float32 logits of every position, [positions][vocab], and for families the greedy
tokens after the first 16. greedy_demo.json holds greedy continuations of deploy/demo-model in float32, rope.json the
frequencies of every scaling of RoPE. The output is committed; rerun only when a case changes.
"""

import json
import pathlib
import shutil
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

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

# Beyond two pages of 16 tokens, and beyond the windows.
LONG = {"hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 64}
LONG_POSITIONS = 40
LONG_LLAMA = {**LLAMA, **LONG}
MISTRAL = {**LONG, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "head_dim": 8, "rms_norm_eps": 1e-5,
           "rope_theta": 10000.0, "hidden_act": "silu", "sliding_window": 20, "tie_word_embeddings": False,
           "bos_token_id": 1, "eos_token_id": 2}
QWEN3 = {**LONG, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16, "rms_norm_eps": 1e-6,
         "rope_theta": 1000000.0, "hidden_act": "silu", "tie_word_embeddings": True, "attention_bias": False,
         "use_sliding_window": False, "sliding_window": None, "max_window_layers": 2, "eos_token_id": 2}
PHI3 = {**LONG, "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu", "tie_word_embeddings": False, "attention_bias": False, "sliding_window": 20,
        "original_max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0}
GEMMA = {**LONG, "architectures": ["GemmaForCausalLM"], "model_type": "gemma", "head_dim": 16, "rms_norm_eps": 1e-6,
         "rope_theta": 10000.0, "hidden_act": "gelu_pytorch_tanh", "eos_token_id": 1, "bos_token_id": 2,
         "pad_token_id": 0}
GEMMA2 = {**GEMMA, "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "num_hidden_layers": 3,
          "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 20, "query_pre_attn_scalar": 24,
          "attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0}
GEMMA3 = {**GEMMA, "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "num_hidden_layers": 3,
          "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 20, "query_pre_attn_scalar": 24,
          "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "sliding_window_pattern": 3,
          "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
SHORT_FACTORS, LONG_FACTORS = [1.0, 1.1, 1.3, 1.7], [1.2, 1.9, 4.0, 9.5]

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
    "llama_linear": ({**LONG_LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0}}, torch.float32, 1),
    # the context that is served is 20 * 2: there transformers has the same base
    "llama_dynamic": ({**LONG_LLAMA, "max_position_embeddings": 20,
                       "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, torch.float32, 1),
    "llama_yarn": ({**LONG_LLAMA, "rope_scaling": YARN}, torch.float32, 1),
    "smollm2": ({**LONG_LLAMA, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 36, "head_dim": 4,
                 "rope_theta": 100000, "tie_word_embeddings": True, "rope_interleaved": False, "is_llama_config": True,
                 "rope_scaling": None, "pretraining_tp": 1}, torch.bfloat16, 1),
    "mistral": (MISTRAL, torch.float32, 1),
    "qwen2_window": ({**QWEN2, **LONG, "use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
                     torch.float32, 1),
    "qwen3": (QWEN3, torch.bfloat16, 1),
    "phi3": ({**PHI3, "rope_scaling": {"type": "longrope", "short_factor": SHORT_FACTORS, "long_factor": LONG_FACTORS}},
             torch.float32, 1),
    "phi3_long": ({**PHI3, "sliding_window": None, "head_dim": 16, "hidden_size": 64, "partial_rotary_factor": 0.5,
                   "original_max_position_embeddings": 16,
                   "rope_scaling": {"type": "longrope", "short_factor": SHORT_FACTORS, "long_factor": LONG_FACTORS}},
                  torch.bfloat16, 1),
    "gemma": (GEMMA, torch.bfloat16, 1),
    "gemma2": (GEMMA2, torch.float32, 1),
    "gemma3": (GEMMA3, torch.bfloat16, 1),
    "gemma3_parameters": ({**{k: v for k, v in GEMMA3.items()
                              if k not in ("rope_theta", "rope_local_base_freq", "rope_scaling",
                                           "sliding_window_pattern")},
                           "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
                           "rope_parameters": {
                               "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500000.0},
                               "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0}}},
                          torch.float32, 1),
}
# The base, or the choice of factors, that transformers takes changes with the length there.
NO_GREEDY = ("llama_dynamic", "phi3_long")


def positions_of(config):
    return LONG_POSITIONS if config["vocab_size"] == LONG["vocab_size"] else POSITIONS


def tensors(config, dtype, seed):
    gen = torch.Generator().manual_seed(seed)
    hidden, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head_dim = config.get("head_dim", hidden // config["num_attention_heads"])
    q, kv = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    qwen = config["model_type"] == "qwen2"
    gemma = config["model_type"].startswith("gemma")
    post_norms = config["model_type"] in ("gemma2", "gemma3_text")
    norm_mean = 0.0 if gemma else 1.0  # Gemma scales by 1 + weight

    def normal(*shape, std, mean=0.0):
        return (torch.randn(*shape, generator=gen) * std + mean).to(dtype)

    out = {"model.embed_tokens.weight": normal(vocab, hidden, std=0.5),
           "model.norm.weight": normal(hidden, std=0.2, mean=norm_mean)}
    if not config.get("tie_word_embeddings", gemma):
        out["lm_head.weight"] = normal(vocab, hidden, std=0.4)
    producer = config.get("kv_producer")
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        linears = {"self_attn.q_proj": (q, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
                   "self_attn.o_proj": (hidden, q), "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden),
                   "mlp.down_proj": (hidden, ffn)}
        if config["model_type"] == "phi3":
            fused = {"self_attn.qkv_proj": (q + 2 * kv, hidden), "mlp.gate_up_proj": (2 * ffn, hidden)}
            linears = {**fused, "self_attn.o_proj": (hidden, q), "mlp.down_proj": (hidden, ffn)}
        if config["model_type"] in ("qwen3", "gemma3_text"):
            for name in ("q_norm", "k_norm"):
                out[f"{p}self_attn.{name}.weight"] = normal(head_dim, std=0.3, mean=norm_mean)
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
        out[p + "input_layernorm.weight"] = normal(hidden, std=0.2, mean=norm_mean)
        out[p + "post_attention_layernorm.weight"] = normal(hidden, std=0.2, mean=norm_mean)
        if post_norms:
            for name in ("pre_feedforward_layernorm", "post_feedforward_layernorm"):
                out[f"{p}{name}.weight"] = normal(hidden, std=0.2, mean=norm_mean)
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


def greedy_tokens(model, prompt):
    """The whole text anew for every token: no cache that could differ."""
    text, margin = list(prompt), float("inf")
    while len(text) < LONG_POSITIONS:
        best = model(torch.tensor([text])).logits[0, -1].topk(2)
        margin = min(margin, (best.values[0] - best.values[1]).item())
        text.append(best.indices[0].item())
    assert margin > 1e-3, f"two tokens are nearly equal: {margin}"
    return text[len(prompt):]


ROPE_CASES = [  # rope_parameters, rope_theta, head_dim, max_position_embeddings, length of the sequence
    ({"rope_type": "linear", "factor": 4.0}, 10000.0, 64, 2048, 100),
    ({"rope_type": "dynamic", "factor": 2.0}, 10000.0, 64, 2048, 4096),
    ({"rope_type": "dynamic", "factor": 8.0}, 500000.0, 128, 4096, 32768),
    ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 1e6, 128, 32768, 100),
    ({"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096, "beta_fast": 16.0,
      "beta_slow": 2.0, "attention_factor": 1.5}, 10000.0, 128, 65536, 100),
    ({"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.0,
      "mscale_all_dim": 0.7}, 10000.0, 64, 163840, 100),
    ({"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}, 150000.0, 64,
     131072, 100),
    ({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192}, 500000.0, 64, 131072, 100),
    ({"rope_type": "longrope", "original_max_position_embeddings": 4096, "short_factor": [1.0 + i / 40 for i in range(48)],
      "long_factor": [1.0 + i * i / 40 for i in range(48)]}, 10000.0, 96, 131072, 131072),
    ({"rope_type": "longrope", "original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75,
      "short_factor": [1.0 + i / 40 for i in range(48)], "long_factor": [1.0 + i * i / 40 for i in range(48)]}, 10000.0,
     128, 4096, 4096),
]


def make_rope():
    cases = []
    for parameters, theta, head_dim, positions, length in ROPE_CASES:
        config = {**LLAMA, "head_dim": head_dim, "max_position_embeddings": positions, "rope_scaling": parameters,
                  "rope_theta": theta}
        folder = HERE / "rope"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        loaded = AutoConfig.from_pretrained(folder)
        shutil.rmtree(folder)
        frequencies, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](loaded, None, seq_len=length)
        cases.append({"config": {k: config[k] for k in ("head_dim", "max_position_embeddings", "rope_scaling",
                                                        "rope_theta")},
                      "inv_freq": [float(f"{x:.8g}") for x in frequencies.tolist()], "attention_factor": float(factor)})
    lines = ",\n".join(json.dumps(c) for c in cases)
    (HERE / "rope.json").write_text(f'{{"cases": [\n{lines}]}}\n')


def make_case(name, seed):
    config, dtype, files = CASES[name]
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_weights(folder, tensors(config, dtype, seed), files)
    ids = torch.randint(0, config["vocab_size"], (positions_of(config),),
                        generator=torch.Generator().manual_seed(seed + 1000))
    greedy = ""
    with torch.no_grad():
        if "kv_producer" in config:
            logits = forward_float64(config, tensors(config, dtype, seed), ids)
        else:
            model = load(folder)
            logits = model(ids[None]).logits[0]
            if positions_of(config) == LONG_POSITIONS and name not in NO_GREEDY:
                greedy = f'"greedy": {greedy_tokens(model, ids[:16].tolist())},\n'
    rows = ",\n".join("[" + ",".join(f"{x:.8g}" for x in row) + "]" for row in logits.tolist())
    (folder / "expected.json").write_text(f'{{"tokens": {ids.tolist()},\n{greedy}"logits": [\n{rows}]}}\n')
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
    wanted = sys.argv[1:] or [*CASES, "greedy_demo", "rope"]
    for number, case in enumerate(CASES):
        if case in wanted:
            make_case(case, number)
    if "greedy_demo" in wanted:
        make_greedy()
    if "rope" in wanted:
        make_rope()
