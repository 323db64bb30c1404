#!/usr/bin/env python3
"""GGUF files for tests/unit/worker/model/gguf_test.cc and tests/unit/coordinator/text/gguf_tokenizer_test.cc.

    python3 tests/golden/gguf/make_golden.py     # from the repository root; needs gguf, torch, safetensors

blocks.gguf: random blocks of every quantized type, beside them (names in "expected.") what the gguf package makes of
them; values, and beside them (names in "rounded.") what it quantizes them to. The other files: models of tests/golden/model as llama.cpp's converter writes them (names by the gguf package's own
table, rows of q and k interleaved for llama, 1 added to Gemma's norms, llama3's scaling as divisors).
few_bits: a model, few_bits_*.gguf its weights in blocks. k_quants.gguf: a model of random Q4_K, Q6_K and Q5_0 blocks, in
the mix of "Q4_K_M" files; k_quants.json: what transformers computes from what the gguf package decodes. tokenizer_*.gguf: metadata alone, the vocabularies of tests/golden/text. The output is committed; rerun only when a case
changes.
"""

import json
import math
import pathlib
import sys

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from support import gguf_writer  # noqa: E402

TEXT = HERE.parent / "text"
MODELS = HERE.parent / "model"
ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "mistral": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2,
                 "qwen3": gguf.MODEL_ARCH.QWEN3, "phi3": gguf.MODEL_ARCH.PHI3, "gemma": gguf.MODEL_ARCH.GEMMA,
                 "gemma2": gguf.MODEL_ARCH.GEMMA2, "gemma3_text": gguf.MODEL_ARCH.GEMMA3}
CASES = ["llama_gqa_scaled", "llama_yarn", "mistral", "qwen2", "qwen3", "phi3_long", "gemma2", "gemma3"]


def make_blocks():
    random = np.random.default_rng(5)
    writer = gguf.GGUFWriter(HERE / "blocks.gguf", "llama")
    for kind, halves in ((Type.Q8_0, [0]), (Type.Q4_0, [0]), (Type.Q4_K, [0, 2]), (Type.Q6_K, [208]), (Type.Q5_0, [0])):
        elements, block = gguf.GGML_QUANT_SIZES[kind]
        rows, per_row = 3, 512 // elements
        data = random.integers(0, 256, (rows, per_row * block), dtype=np.uint8)
        for b in range(per_row):
            for at in halves:  # scales that are numbers
                scale = random.normal(0, 0.1, rows).astype(np.float16)
                data[:, b * block + at:b * block + at + 2] = scale[:, None].view(np.uint8)
        writer.add_tensor(kind.name, data, raw_dtype=kind)
        writer.add_tensor("expected." + kind.name, gguf.quants.dequantize(data, kind).astype(np.float32))
    values = random.normal(0, 0.02, (3, 512)).astype(np.float32)
    values[1, 64:96] = 0
    writer.add_tensor("values", values)
    for kind in (Type.Q8_0, Type.Q4_0):
        writer.add_tensor("rounded." + kind.name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleave(weight, heads):
    """As llama.cpp: rows (i, i + d / 2) of every head become neighbours."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def llama3_divisors(config, scaling):
    d, theta = config["head_dim"], config.get("rope_theta", 10000.0)
    out = []
    for i in range(0, d, 2):
        frequency = theta ** (-i / d)
        turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        keep = min(max((turns - low) / (high - low), 0.0), 1.0)
        out.append(1 / ((1 - keep) / scaling["factor"] + keep))
    return np.array(out, dtype=np.float32)


def add_metadata(writer, config, arch):
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim", config["hidden_size"] // heads)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_freq_base(config.get("rope_theta", 10000.0))
    writer.add_rope_dimension_count(int(head_dim * config.get("partial_rotary_factor", 1.0)))
    if config.get("sliding_window") and config["model_type"] != "qwen2":
        writer.add_sliding_window(config["sliding_window"])
    if "query_pre_attn_scalar" in config:  # llama.cpp has head_dim there, and no key; these models have another
        writer.add_attention_scale(config["query_pre_attn_scalar"] ** -0.5)
    if "sliding_window_pattern" in config:
        writer.add_sliding_window_pattern(config["sliding_window_pattern"])
    if config.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(scaling["factor"])
        if kind == "yarn":
            writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    if kind == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_divisors(config, scaling))
    if kind == "longrope":
        original = config["original_max_position_embeddings"]
        writer.add_rope_scaling_orig_ctx_len(original)
        scale = config["max_position_embeddings"] / original
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0)
        writer.add_tensor("rope_factors_long.weight", np.array(scaling["long_factor"], dtype=np.float32))
        writer.add_tensor("rope_factors_short.weight", np.array(scaling["short_factor"], dtype=np.float32))


def make_model(name):
    config = json.loads((MODELS / name / "config.json").read_text())
    arch = ARCHITECTURES[config["model_type"]]
    architecture = gguf.MODEL_ARCH_NAMES[arch]
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(HERE / f"{name}.gguf", architecture)
    add_metadata(writer, config, architecture)
    gemma = config["model_type"].startswith("gemma")
    for tensor, weight in sorted(load_file(MODELS / name / "model.safetensors").items()):
        half = weight.dtype == torch.float16
        values = weight.to(torch.float32).numpy()
        if gemma and tensor.endswith("norm.weight"):
            values = values + np.float32(1)
        if architecture == "llama" and ".q_proj." in tensor:
            values = interleave(values, config["num_attention_heads"])
        if architecture == "llama" and ".k_proj." in tensor:
            values = interleave(values, config["num_key_value_heads"])
        their = names.get_name(tensor, try_suffixes=(".weight", ".bias"))
        if half and values.ndim == 2:
            writer.add_tensor(their, values.astype(np.float16))
        elif weight.dtype == torch.bfloat16 and values.ndim == 2:
            writer.add_tensor(their, gguf.quants.quantize(values, Type.BF16), raw_dtype=Type.BF16)
        else:
            writer.add_tensor(their, np.ascontiguousarray(values))
    finish(writer)
    print(name, (HERE / f"{name}.gguf").stat().st_size)


def make_few_bits():
    """A Llama of random weights, and the same in Q8_0 and Q4_0 (the vocabulary in Q8_0 in both)."""
    folder = HERE / "few_bits"
    folder.mkdir(exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
              "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 96,
              "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
              "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    random = torch.Generator().manual_seed(3)
    shapes = {"model.embed_tokens": (96, 64), "lm_head": (96, 64), "model.norm": (64,)}
    for i in range(2):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in {
            "input_layernorm": (64,), "post_attention_layernorm": (64,), "self_attn.q_proj": (64, 64),
            "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64), "self_attn.o_proj": (64, 64),
            "mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64), "mlp.down_proj": (64, 96)}.items()}
    weights = {f"{name}.weight": (torch.randn(shape, generator=random) * (0.12 if len(shape) == 2 else 0.1) +
                                  (0 if len(shape) == 2 else 1)).to(torch.bfloat16) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for kind in (Type.Q8_0, Type.Q4_0):
        writer = gguf.GGUFWriter(HERE / f"few_bits_{kind.name.lower()}.gguf", "llama")
        add_metadata(writer, config, "llama")
        for tensor, weight in sorted(weights.items()):
            values = weight.to(torch.float32).numpy()
            if ".q_proj." in tensor or ".k_proj." in tensor:
                values = interleave(values, 4 if ".q_proj." in tensor else 2)
            vocabulary = "embed" in tensor or "lm_head" in tensor
            stored = Type.F32 if values.ndim == 1 else Type.Q8_0 if vocabulary else kind
            writer.add_tensor(names.get_name(tensor, try_suffixes=(".weight",)),
                              gguf.quants.quantize(np.ascontiguousarray(values), stored), raw_dtype=stored)
        finish(writer)


def random_blocks(random, kind, rows, cols):
    """Blocks whose weights are near 0.1 each."""
    elements, block = gguf.GGML_QUANT_SIZES[kind]
    data = random.integers(0, 256, (rows, cols // elements, block), dtype=np.uint8)
    # (byte, scale) of the halves in a block; Q4_K: the minima's share takes away what codes have on average.
    halves = {Type.Q4_K: [(0, 4e-4), (2, 3e-3)], Type.Q6_K: [(208, 7e-5)], Type.Q5_0: [(0, 0.011)]}[kind]
    for at, size in halves:
        scale = (size * random.uniform(0.9, 1.1, (rows, cols // elements, 1))).astype(np.float16)
        data[:, :, at:at + 2] = scale.view(np.uint8)
    return data.reshape(rows, -1)


def make_k_quants():
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 256,
              "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 96,
              "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
              "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2}
    matrices = {"model.embed_tokens": (96, 256, Type.Q6_K), "lm_head": (96, 256, Type.Q6_K)}
    matrices |= {f"model.layers.0.{name}": case for name, case in {
        "self_attn.q_proj": (256, 256, Type.Q4_K), "self_attn.k_proj": (128, 256, Type.Q5_0),
        "self_attn.v_proj": (128, 256, Type.Q6_K), "self_attn.o_proj": (256, 256, Type.Q4_K),
        "mlp.gate_proj": (256, 256, Type.Q4_K), "mlp.up_proj": (256, 256, Type.Q4_K),
        "mlp.down_proj": (256, 256, Type.Q6_K)}.items()}
    random = np.random.default_rng(11)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    writer = gguf.GGUFWriter(HERE / "k_quants.gguf", "llama")
    add_metadata(writer, config, "llama")
    weights = {}
    for name in ("model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm"):
        weights[name] = random.normal(1, 0.1, 256).astype(np.float32)
        writer.add_tensor(names.get_name(name) + ".weight", weights[name])
    for name, (rows, cols, kind) in matrices.items():
        data = random_blocks(random, kind, rows, cols)
        writer.add_tensor(names.get_name(name) + ".weight", data, raw_dtype=kind)
        values = gguf.quants.dequantize(data, kind).astype(np.float32)
        heads = 4 if ".q_proj" in name else 2 if ".k_proj" in name else 0
        if heads:  # back to the order of transformers
            values = values.reshape(heads, rows // heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)
        weights[name] = values
    finish(writer)
    from transformers import LlamaConfig, LlamaForCausalLM
    model = LlamaForCausalLM(LlamaConfig(**config, attn_implementation="eager")).eval()
    model.load_state_dict({f"{name}.weight": torch.from_numpy(np.ascontiguousarray(value)) for name, value in weights.items()})
    tokens = [(i * 37 + 5) % 96 for i in range(24)]
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0]
    rounded = [[float(f"{value:.7g}") for value in row] for row in logits.tolist()]
    (HERE / "k_quants.json").write_text(json.dumps({"tokens": tokens, "logits": rounded}) + "\n")


# BOS and EOS by their texts, where a text begins with BOS.
TOKENIZERS = {"gpt2": (None, "<|endoftext|>"), "llama3": ("<|begin_of_text|>", "<|eot_id|>"),
              "qwen2": (None, "<|im_end|>"), "smollm": (None, "<|im_end|>"), "tekken": (None, "</s>")}


def make_tokenizers():
    for name, (bos, eos) in TOKENIZERS.items():
        tokenizer = json.loads((TEXT / name / "tokenizer.json").read_text())
        writer = gguf.GGUFWriter(HERE / f"tokenizer_{name}.gguf", "llama")
        gguf_writer.add_byte_level(writer, tokenizer)
        ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
        if bos:
            writer.add_bos_token_id(ids[bos])
        writer.add_add_bos_token(bool(bos))
        writer.add_eos_token_id(ids[eos])
        writer.add_chat_template("{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}{{ eos_token }}")
        finish(writer)
    for name in ("spm_llama", "spm_gemma", "spm_plain"):
        writer = gguf.GGUFWriter(HERE / f"tokenizer_{name}.gguf", "llama")
        gguf_writer.add_pieces(writer, TEXT / name / "tokenizer.model")
        writer.add_add_bos_token(name != "spm_plain")
        finish(writer)


if __name__ == "__main__":
    make_blocks()
    make_few_bits()
    make_k_quants()
    make_tokenizers()
    for case in CASES:
        make_model(case)
