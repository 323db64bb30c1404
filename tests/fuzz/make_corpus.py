#!/usr/bin/env python3
"""Writes the seeds of the fuzz targets: corpus/<target>/<name>. Run it again after changing a format."""
import json
import os
import struct

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "corpus")


def seed(target, name, data):
    os.makedirs(os.path.join(ROOT, target), exist_ok=True)
    with open(os.path.join(ROOT, target, name), "wb") as f:
        f.write(data.encode() if isinstance(data, str) else data)


def safetensors(header, data_bytes):
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(data_bytes)


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


def varint(value):
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number, value):
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def make_sentencepiece():
    def piece(text, score, kind=1):
        return field(1, field(1, text.encode()) + field(2, score) + field(3, kind))

    pieces = piece("<unk>", 0.0, 2) + piece("<s>", 0.0, 3) + piece("</s>", 0.0, 3) + piece("<0xFF>", 0.0, 6)
    for score, text in enumerate(["lo", "\u2581w", "ll", "l", "o", "w", "\u2581", "\u00f6", "\n"]):
        pieces += piece(text, -float(score))
    spec = field(1, b"identity") + field(3, 1) + field(4, 0)
    seed("sentencepiece", "bpe", pieces + field(2, field(3, 2) + field(35, 1)) + field(3, spec))
    seed("sentencepiece", "spaces", pieces + field(2, field(3, 2)) + field(3, field(4, 1)))
    seed("sentencepiece", "unigram", pieces + field(2, field(3, 1)))


def make_json_schema():
    way = "\0" + "abcdefghijklmnopqrstuvwxyz0123456789"
    person = {"type": "object", "properties": {"name": {"type": "string", "minLength": 1, "maxLength": 9},
                                               "age": {"type": "integer", "minimum": 0, "maximum": 130}},
              "required": ["name"], "additionalProperties": {"type": "number", "exclusiveMinimum": -0.5}}
    seed("json_schema", "person", json.dumps(person) + way)
    tree = {"$ref": "#/$defs/t", "$defs": {"t": {"anyOf": [{"type": "null"}, {"type": "array", "maxItems": 2, "items":
                                                                             {"$ref": "#/$defs/t"}}]}}}
    seed("json_schema", "tree", json.dumps(tree) + way)
    seed("json_schema", "merge", json.dumps({"allOf": [{"properties": {"a": {"type": "integer"}}}, {
        "oneOf": [{"type": "object", "required": ["a"]}, {"type": "string", "pattern": "^(a|b)+\\d{2}$"}]}]}) + way)
    seed("json_schema", "enum", json.dumps({"enum": [1, "a\n", [None, {"k": 1.5}]], "type": ["array", "string"]}) + way)
    seed("json_schema", "tuple", json.dumps({"prefixItems": [{"const": 1}, {"format": "date"}], "items": False,
                                             "minItems": 2}) + way)


def make_api_request():
    seed("api_request", "completion", "\x00" + json.dumps(
        {"model": "m", "prompt": "Once", "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "stop": ["."],
         "stream": True, "stream_options": {"include_usage": True}, "logprobs": 2, "seed": 7}))
    seed("api_request", "parameters", "\x00" + json.dumps(
        {"prompt": ["a", [1, 2]], "n": 3, "min_p": 0.1, "presence_penalty": 1, "frequency_penalty": -1,
         "repetition_penalty": 1.1, "logit_bias": {"5": -100}, "stop_token_ids": [3], "min_tokens": 2, "max_tokens": 9,
         "echo": True, "priority": -1, "user": "u"}))
    seed("api_request", "json_schema", "\x01" + json.dumps(
        {"messages": [{"role": "user", "content": "a"}], "response_format": {
            "type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {
                "type": "object", "properties": {"a": {"enum": [1, "b"]}}}}}}))
    seed("api_request", "tokens", "\x00" + json.dumps({"prompt": [1, 2, 3]}))
    seed("api_request", "chat", "\x01" + json.dumps(
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "top_logprobs": 3,
         "logprobs": True}))
    seed("api_request", "tokenize", "\x02" + json.dumps({"prompt": "a b"}))
    seed("api_request", "detokenize", "\x03" + json.dumps({"tokens": [1, 2]}))


def make_chat_template():
    seed("chat_template", "chatml",
         "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m.content | trim }}{% if not loop.last %}"
         "\n{% endif %}{% endfor %}{%- if add_generation_prompt -%}<|im_start|>assistant{%- endif -%}")
    seed("chat_template", "namespace",
         "{{ bos_token }}{% set ns = namespace(n=0) %}{% macro f(x, y=1) %}[{{ x }}:{{ y }}]{% endmacro %}"
         "{% for m in messages if m.role != 'system' %}{% set ns.n = ns.n + 1 %}{{ f(m.content.upper(), y=ns.n) }}"
         "{% else %}{{ raise_exception('none') }}{% endfor %}{{ range(3) | join(',') }}{{ messages[0]['role'][:2] }}")


def page_header(version=1, levels=1, sink=0, identity=0):
    fields = struct.pack("<IBBBB", version, levels, 0, sink, 0)
    hashes = struct.pack("<6Q", 0, identity, 1, 2, 3, 4)
    rest = struct.pack("<HHI4Q", 0, 1, 0, *[7] * 4)
    header = fields + hashes + rest + bytes(8 + 24)
    assert len(header) == 128
    return header


def varint(n):
    out = b""
    while True:
        out += bytes([n & 127 | (128 if n > 127 else 0)])
        n >>= 7
        if not n:
            return out


def number(field, value):
    return varint(field << 3) + varint(value)


def blob(field, data):
    return varint(field << 3 | 2) + varint(len(data)) + data


def message(kind, body):
    return struct.pack("<BH", kind, len(body)) + body


def make_store_messages():
    zero = bytes(16)
    packed = blob(2, varint(256) + varint(0))
    reserve = message(64, number(1, 1) + blob(2, blob(1, zero) + packed) + blob(2, blob(1, b"y" * 16) + packed))
    commit = message(66, number(1, 1) + blob(2, number(1, 1) + blob(2, page_header())))
    lookup = message(67, number(1, 2) + blob(2, zero))
    granted = blob(2, number(1, 1) + number(3, 1) + blob(4, bytes(4)))
    seed("store_messages", "to_store", reserve + commit + lookup + message(69, blob(1, varint(3))) +
         message(70, blob(1, varint(2))))
    seed("store_messages", "to_writer", message(65, number(1, 1) + granted * 2) +
         message(71, number(1, 1) + blob(2, b"\x01\x01")))
    found = blob(2, number(1, 5) + blob(2, page_header()) + blob(3, bytes(4)) + blob(4, varint(256) + bytes(3)))
    seed("store_messages", "to_reader", message(68, number(1, 2) + found * 2))


def main():
    make_safetensors()
    make_gguf()
    make_gguf_tokenizer()
    make_tokenizer()
    make_sentencepiece()
    make_json_schema()
    make_api_request()
    make_chat_template()
    seed("page_header", "plain", page_header())
    seed("page_header", "sink", page_header(levels=7, sink=1))
    seed("page_header", "version", page_header(version=9))
    make_store_messages()


if __name__ == "__main__":
    main()
