"""Seeds of what is read from files."""
import json
import os
import struct

from seed_bytes import ROOT, blob, number, real, safetensors, seed


def make_safetensors():
    two = {"a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
           "b": {"dtype": "F32", "shape": [], "data_offsets": [12, 16]}, "__metadata__": {"format": "pt"}}
    seed("safetensors", "two", safetensors(two, 16))
    seed("safetensors", "empty", safetensors({}, 0))
    seed("safetensors", "gap", safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, 8))
    seed("safetensors", "short", b"\xff" * 8)
    seed("safetensors", "overflow", safetensors(
        {"a": {"dtype": "F64", "shape": [1 << 62, 16], "data_offsets": [0, 8]}}, 8))


def make_gguf():
    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    def file(pairs, tensors, data, version=3):
        head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs)) + b"".join(pairs) + b"".join(tensors)
        return head + bytes(-len(head) % 32) + bytes(data)

    def tensor(name, extents, kind, offset):
        return text(name) + struct.pack(f"<I{len(extents)}QIQ", len(extents), *extents, kind, offset)

    name = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    numbers = [text(f"k{kind}") + struct.pack("<I", kind) + bytes(size)
               for kind, size in ((0, 1), (3, 2), (5, 4), (6, 4), (7, 1), (10, 8), (12, 8))]
    texts = text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("")
    floats = text("scores") + struct.pack("<IIQ2f", 9, 6, 2, 0.5, 1.5)
    seed("gguf", "two", file([name, *numbers, texts, floats],
                             [tensor("a", [4, 2], 0, 0), tensor("b", [256], 14, 32)], 32 + 210))
    seed("gguf", "empty", file([], [], 0))
    seed("gguf", "beyond", file([name], [tensor("a", [32, 4], 8, 0)], 8))
    seed("gguf", "overflow", file([name], [tensor("a", [1 << 62, 1 << 62], 0, 1 << 63)], 0))
    seed("gguf", "long_array", file([text("x") + struct.pack("<IIQ", 9, 0, 1 << 62)], [], 0))
    seed("gguf", "version", file([], [], 0, 1))


def make_gguf_tokenizer():
    def text(value):
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def pair(key, kind, value):
        return text("tokenizer." + key) + struct.pack("<I", kind) + value

    def array(kind, values):
        return struct.pack("<IQ", kind, len(values)) + b"".join(
            text(v) if kind == 8 else struct.pack("<f" if kind == 6 else "<i", v) for v in values)

    def file(*pairs):
        head = b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs)) + b"".join(pairs)
        return head + bytes(-len(head) % 32)

    def ends(bos, eos):
        return [pair("ggml.bos_token_id", 4, struct.pack("<I", bos)), pair("ggml.eos_token_id", 4, struct.pack("<I", eos)),
                pair("ggml.add_bos_token", 7, b"\1"), pair("chat_template", 8, text("{{ bos_token }}{{ messages[0].content }}"))]

    for pre in ("default", "llama-bpe", "qwen2", "gpt-4o", "smollm"):
        seed("gguf_tokenizer", pre.replace("-", "_"), file(
            pair("ggml.model", 8, text("gpt2")), pair("ggml.pre", 8, text(pre)),
            pair("ggml.tokens", 9, array(8, ["<s>", "a", "b", "ab", "\u0120", "l", "ll", "o", "4", "2", "42", "."])),
            pair("ggml.token_type", 9, array(5, [3] + [1] * 10 + [4])),
            pair("ggml.merges", 9, array(8, ["a b", "l l", "4 2"])), *ends(0, 0)))
    seed("gguf_tokenizer", "pieces", file(
        pair("ggml.model", 8, text("llama")),
        pair("ggml.tokens", 9, array(8, ["<unk>", "<s>", "</s>", "\u2581", "a", "b", "ab", "<0x0A>", "  "])),
        pair("ggml.scores", 9, array(6, [0, 0, 0, -1, -2, -3, -4, 0, -5])),
        pair("ggml.token_type", 9, array(5, [2, 3, 3, 1, 1, 1, 1, 6, 4])), *ends(1, 2),
        pair("ggml.remove_extra_whitespaces", 7, b"\1")))


def make_tokenizer():
    def bpe(**more):
        return {"version": "1.0", "added_tokens": [{"id": 4, "content": "<s>", "special": True}],
                "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "\u0120": 3}, "merges": ["a b"]}, **more}

    split = {"type": "Split", "pattern": {"Regex": "\\p{L}+|\\s"}, "behavior": "Isolated", "invert": False}
    seed("tokenizer", "byte_level", json.dumps(bpe(
        pre_tokenizer={"type": "Sequence", "pretokenizers": [
            split, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]},
        decoder={"type": "ByteLevel"})))
    seed("tokenizer", "metaspace", json.dumps(bpe(
        normalizer={"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
        decoder={"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]})))
    seed("tokenizer", "no_model", "{}")


def make_sentencepiece():
    def piece(text, score, kind=1):
        return blob(1, blob(1, text.encode()) + real(2, score) + number(3, kind))

    pieces = piece("<unk>", 0.0, 2) + piece("<s>", 0.0, 3) + piece("</s>", 0.0, 3) + piece("<0xFF>", 0.0, 6)
    for score, text in enumerate(["lo", "\u2581w", "ll", "l", "o", "w", "\u2581", "\u00f6", "\n"]):
        pieces += piece(text, -float(score))
    spec = blob(1, b"identity") + number(3, 1) + number(4, 0)
    seed("sentencepiece", "bpe", pieces + blob(2, number(3, 2) + number(35, 1)) + blob(3, spec))
    seed("sentencepiece", "spaces", pieces + blob(2, number(3, 2)) + blob(3, number(4, 1)))
    seed("sentencepiece", "unigram", pieces + blob(2, number(3, 1)))


def make_chat_template():
    seed("chat_template", "chatml",
         "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m.content | trim }}{% if not loop.last %}"
         "\n{% endif %}{% endfor %}{%- if add_generation_prompt -%}<|im_start|>assistant{%- endif -%}")
    seed("chat_template", "namespace",
         "{{ bos_token }}{% set ns = namespace(n=0) %}{% macro f(x, y=1) %}[{{ x }}:{{ y }}]{% endmacro %}"
         "{% for m in messages if m.role != 'system' %}{% set ns.n = ns.n + 1 %}{{ f(m.content.upper(), y=ns.n) }}"
         "{% else %}{{ raise_exception('none') }}{% endfor %}{{ range(3) | join(',') }}{{ messages[0]['role'][:2] }}")


def make_model_config():
    base = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 512}

    def config(architecture, **more):
        return json.dumps({"architectures": [architecture], **base, **more})

    defaults = "\0" + json.dumps({"eos_token_id": [2, 5], "bos_token_id": 1})
    seed("model_config", "llama", config("LlamaForCausalLM", rope_theta=5e5, rope_scaling={
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128}, eos_token_id=2) + defaults)
    seed("model_config", "shared", config("LlamaForCausalLM", kv_producer=[0, 0, 2, 2], rope_scaling={
        "type": "dynamic", "factor": 2.0}))
    seed("model_config", "qwen3", config("Qwen3ForCausalLM", head_dim=32, use_sliding_window=True, sliding_window=64,
                                         max_window_layers=2, rope_scaling={"rope_type": "yarn", "factor": 4.0,
                                                                            "beta_fast": 32, "beta_slow": 1}))
    seed("model_config", "phi3", config("Phi3ForCausalLM", original_max_position_embeddings=128, sliding_window=256,
                                        rope_scaling={"type": "longrope", "short_factor": [1.0] * 8,
                                                      "long_factor": [2.0] * 8}))
    seed("model_config", "gemma3", config("Gemma3ForCausalLM", head_dim=16, hidden_activation="gelu_pytorch_tanh",
                                          sliding_window_pattern=2, sliding_window=64, rope_local_base_freq=1e4,
                                          rope_parameters={"full_attention": {"rope_type": "linear", "factor": 8.0,
                                                                              "rope_theta": 1e6},
                                                           "sliding_attention": {"rope_type": "default"}}))


def make_recipe():
    folder = os.path.join(ROOT, "..", "..", "..", "recipes")
    for name in sorted(os.listdir(folder)):
        if name.endswith(".yaml"):
            with open(os.path.join(folder, name), encoding="utf-8") as f:
                seed("recipe", name[:-5], "".join(line.split("#")[0].rstrip() + "\n" for line in f
                                                  if line.split("#")[0].strip()))


def make_profile():
    def profile(head_dim, heads, levels, **more):
        shapes = {"encode": [1, 2, heads, head_dim, head_dim], "mean": [1, 2, heads, head_dim],
                  "scale": [1, 2, heads, head_dim]}
        header, data = {}, b""
        for name, shape in shapes.items():
            count = 2 * heads * head_dim * (head_dim if name == "encode" else 1)
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + 4 * count]}
            data += struct.pack(f"<{count}f", *[0.5] * count)
        header["budget.4x"] = {"dtype": "U8", "shape": [1, 2, heads, 1, levels],
                               "data_offsets": [len(data), len(data) + 2 * heads * levels]}
        data += bytes([4, 2, 2][:levels]) * (2 * heads)
        header["__metadata__"] = {"lowkey_profile": "1", "basis": "pca", "model_fingerprint": "0" * 31 + "1",
                                  "num_banks": "1", "num_kv_heads": str(heads), "head_dim": str(head_dim), "join": "1",
                                  "norm": "true", "norm_edge": "4.5", "origin": "", **more}
        return safetensors(header, 0) + data

    seed("profile", "one_level", profile(2, 1, 1))
    seed("profile", "levels", profile(4, 2, 2))
    seed("profile", "joined", profile(2, 2, 1, join="2"))
    seed("profile", "no_norm", profile(2, 1, 3, norm="false", norm_edge="1e-9"))


def make():
    make_safetensors()
    make_gguf()
    make_gguf_tokenizer()
    make_tokenizer()
    make_sentencepiece()
    make_chat_template()
    make_model_config()
    make_recipe()
    make_profile()
