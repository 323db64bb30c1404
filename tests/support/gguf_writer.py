"""A model folder of the Llama family as a GGUF file, so that llama.cpp serves the same weights.

    python3 tests/support/gguf_writer.py MODEL_DIR OUT.gguf [--type f32|f16|bf16|q8_0|q4_0|q4_k_m]

Written with the `gguf` package (PyPI). Vectors stay f32, as llama.cpp has them. The package does not round to K-quants: q4_k_m
has llama.cpp's mix of Q4_K and Q6_K, its blocks rounded to their least and largest element.
"""

import argparse
import json
import pathlib
import struct

import gguf
import numpy as np

TYPES = {"f32": gguf.GGMLQuantizationType.F32, "f16": gguf.GGMLQuantizationType.F16,
         "bf16": gguf.GGMLQuantizationType.BF16, "q8_0": gguf.GGMLQuantizationType.Q8_0,
         "q4_0": gguf.GGMLQuantizationType.Q4_0, "q4_k_m": gguf.GGMLQuantizationType.Q4_K}
FILE_TYPES = {"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16,
              "bf16": gguf.LlamaFileType.MOSTLY_BF16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
              "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0, "q4_k_m": gguf.LlamaFileType.MOSTLY_Q4_K_M}
NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
         "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
         "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def gguf_name(name):
    stem, _, kind = name.rpartition(".")
    if stem.startswith("model.layers."):
        number, _, part = stem.removeprefix("model.layers.").partition(".")
        return f"blk.{number}.{NAMES[part]}.{kind}"
    return f"{NAMES[stem]}.{kind}"


def interleaved(rows, heads):
    """llama.cpp rotates neighbouring pairs, Hugging Face the two halves of a head: rows of q and k change places."""
    size = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, size, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def pre_of(tokenizer):
    """llama.cpp's name of what cuts a byte-level tokenizer.json's text into words."""
    steps = tokenizer["pre_tokenizer"]
    steps = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
    if [step["type"] for step in steps] == ["ByteLevel"]:
        return "gpt-2"
    if [step["type"] for step in steps] == ["Digits", "ByteLevel"]:
        return "smollm"
    regex = steps[0]["pattern"]["Regex"]
    if "\\p{Lu}" in regex:
        return "gpt-4o" if "'re" in regex else "tekken"
    if "{1,3}" in regex:
        return "llama-bpe" if tokenizer["model"]["ignore_merges"] else "dbrx"
    return "qwen2"


def add_byte_level(writer, tokenizer, vocab_size=None, pre=None):
    """tokenizer.json's vocabulary, merges and special tokens; ids up to `vocab_size` that are nothing are unused."""
    added = {token["id"]: token for token in tokenizer["added_tokens"]}
    tokens = {number: text for text, number in tokenizer["model"]["vocab"].items()}
    tokens.update({number: token["content"] for number, token in added.items()})
    kinds = []
    for i in range(vocab_size or max(tokens) + 1):
        special = i in added and added[i]["special"]
        kinds.append(gguf.TokenType.UNUSED if i not in tokens else gguf.TokenType.CONTROL if special else
                     gguf.TokenType.USER_DEFINED if i in added else gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre or pre_of(tokenizer))
    writer.add_token_list([tokens.get(i, f"[PAD{i}]") for i in range(len(kinds))])
    writer.add_token_types(kinds)
    # Without merges llama.cpp loads no vocabulary: a pair that occurs in no text serves as well as none.
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    writer.add_token_merges(merges or ["\u0120 \u0120"])


def protobuf_fields(data):
    """(number, value) of a message: integers, or bytes (4 of them of a float)."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        else:
            size = {1: 8, 2: 0, 5: 4}[key & 7] or varint()
            yield key >> 3, data[at:at + size]
            at += size


def add_pieces(writer, model):
    """Pieces, scores and types of SentencePiece's own file (sentencepiece_model.proto), spaces of user-defined pieces as
    llama.cpp's converter spells them."""
    tokens, scores, kinds, normalizer = [], [], [], {}
    for number, value in protobuf_fields(pathlib.Path(model).read_bytes()):
        if number == 3:
            normalizer = dict(protobuf_fields(value))
        if number != 1:
            continue
        piece = {2: bytes(4), 3: gguf.TokenType.NORMAL, **dict(protobuf_fields(value))}
        kinds.append(piece[3])
        scores.append(struct.unpack("<f", piece[2])[0])
        text = piece[1].decode()
        tokens.append(text.replace("\u2581", " ") if piece[3] == gguf.TokenType.USER_DEFINED else text)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_add_space_prefix(bool(normalizer.get(3, 1)))
    writer.add_remove_extra_whitespaces(bool(normalizer.get(4, 1)))


def add_tokenizer(writer, folder, config, pre):
    settings_file = folder / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text()) if settings_file.exists() else {}
    add_byte_level(writer, json.loads((folder / "tokenizer.json").read_text()), config["vocab_size"], pre)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(bool(settings.get("add_bos_token")))
    if "chat_template" in settings:
        writer.add_chat_template(settings["chat_template"])


def over(x, y):
    """x / y, 0 where y is."""
    return np.divide(x, y, out=np.zeros(np.broadcast_shapes(x.shape, y.shape), np.float32), where=y != 0)


def half(x):
    """(as stored, what that is)"""
    stored = x.astype(np.float16)
    return stored.view(np.uint8), stored.astype(np.float32)


def q4_k(x):
    """Blocks of 256: 8 times 32 elements with a step and a minimum of 6 bits, in units of the block's own."""
    x = x.reshape(-1, 8, 32)
    least = np.maximum(-x.min(-1), 0)
    step = (x.max(-1) + least) / 15
    d_bytes, d = half(step.max(-1, keepdims=True) / 63)
    m_bytes, m = half(least.max(-1, keepdims=True) / 63)
    steps = np.clip(np.rint(over(step, d)), 0, 63).astype(np.uint8)
    minima = np.clip(np.rint(over(least, m)), 0, 63).astype(np.uint8)
    codes = np.rint(over(x + (m * minima)[..., None], (d * steps)[..., None]))
    codes = np.clip(codes, 0, 15).astype(np.uint8)
    scales = np.concatenate([steps[:, :4] | steps[:, 4:] >> 4 << 6, minima[:, :4] | minima[:, 4:] >> 4 << 6,
                             steps[:, 4:] & 15 | (minima[:, 4:] & 15) << 4], axis=1)
    return np.concatenate([d_bytes, m_bytes, scales, (codes[:, ::2] | codes[:, 1::2] << 4).reshape(-1, 128)], axis=1)


def q6_k(x):
    """Blocks of 256: 16 times 16 elements with a scale of 8 bits, in units of the block's own."""
    x = x.reshape(-1, 16, 16)
    scale = np.abs(x).max(-1) / 31
    d_bytes, d = half(scale.max(-1, keepdims=True) / 127)
    scales = np.rint(over(scale, d)).astype(np.int8)
    codes = np.rint(over(x, (d * scales)[..., None]))
    codes = (np.clip(codes, -32, 31) + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low = codes & 15
    low = low[:, :, :2] | low[:, :, 2:] << 4
    high = (codes >> 4) << np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = np.bitwise_or.reduce(high, axis=2)
    return np.concatenate([low.reshape(-1, 128), high.reshape(-1, 64), scales.view(np.uint8), d_bytes], axis=1)


def read_tensors(file):
    """(name, float32 values) of a safetensors file, whose header says (type, shape, offsets in what follows it)."""
    data = np.memmap(file, np.uint8, "r")
    behind = 8 + int.from_bytes(data[:8].tobytes(), "little")
    for name, tensor in json.loads(data[8:behind].tobytes()).items():
        if name == "__metadata__":
            continue
        begin, end = tensor["data_offsets"]
        stored_values = data[behind + begin:behind + end]
        if tensor["dtype"] == "BF16":  # the upper half of a float32
            values = (stored_values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            values = stored_values.view({"F32": np.float32, "F16": np.float16}[tensor["dtype"]]).astype(np.float32)
        yield name, values.reshape(tensor["shape"])


def k_quants(name, data, layers):
    """(stored bytes, type) of a matrix in a q4_k_m file; which are in 6 bits: llama.cpp's use_more_bits()."""
    wide = not name.startswith("blk.")
    if not wide:
        layer, part = int(name.split(".")[1]), name.split(".")[2]
        more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
        wide = more and part in ("attn_v", "ffn_down")
    kind = gguf.GGMLQuantizationType.Q6_K if wide else gguf.GGMLQuantizationType.Q4_K
    return (q6_k if wide else q4_k)(data).reshape(data.shape[0], -1), kind


def stored(name, data, kind, layers):
    """(bytes or values, type) of a tensor."""
    if data.ndim > 1 and kind == "q4_k_m":
        return k_quants(name, data, layers)
    form = TYPES[kind] if data.ndim > 1 else TYPES["f32"]
    return gguf.quants.quantize(np.ascontiguousarray(data), form), form


def write(folder, out, kind="bf16", pre=None):
    folder = pathlib.Path(folder)
    config = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_name(folder.name)
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    add_tokenizer(writer, folder, config, pre)
    for file in sorted(folder.glob("*.safetensors")):
        for name, data in read_tensors(file):
            if ".q_proj." in name or ".k_proj." in name:
                data = interleaved(data, heads if ".q_proj." in name else kv_heads)
            values, form = stored(gguf_name(name), data, kind, config["num_hidden_layers"])
            writer.add_tensor(gguf_name(name), values, raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir")
    parser.add_argument("out")
    parser.add_argument("--type", choices=TYPES, default="bf16")
    parser.add_argument("--pre", help="llama.cpp's name of the pre-tokenizer; known by its tokenizer.json otherwise")
    arguments = parser.parse_args()
    write(arguments.model_dir, arguments.out, arguments.type, arguments.pre)


if __name__ == "__main__":
    main()
