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


def varint(n):
    out = b""
    while True:
        out += bytes([n & 127 | (128 if n > 127 else 0)])
        n >>= 7
        if not n:
            return out


# Fields of Protobuf messages.
def number(field, value):
    return varint(field << 3) + varint(value)


def blob(field, data):
    return varint(field << 3 | 2) + varint(len(data)) + data


def real(field, value):
    return varint(field << 3 | 5) + struct.pack("<f", value)


def double(field, value):
    return varint(field << 3 | 1) + struct.pack("<d", value)


def packed(field, values):
    return blob(field, b"".join(varint(v & (1 << 64) - 1) for v in values))


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


def make_http():
    def request(line, *fields, body="", key="k"):
        head = [line, *([f"Authorization: Bearer {key}"] if key else []), *fields]
        return "\r\n".join(head) + "\r\n\r\n" + body

    def posted(path, value, *fields, **more):
        body = json.dumps(value)
        return request(f"POST {path} HTTP/1.1", f"Content-Length: {len(body)}", *fields, body=body, **more)

    def chunked(path, *chunks):
        body = "".join(f"{len(chunk):x};a=b\r\n{chunk}\r\n" for chunk in chunks) + "0\r\nT: v\r\n\r\n"
        return request(f"POST {path} HTTP/1.1", "Transfer-Encoding: chunked", "Expect: 100-continue", body=body)

    tokens = posted("/detokenize", {"tokens": [1, 2]})
    seed("http", "pipelined", "\2" + request("GET /health HTTP/1.1", key="") + tokens +
         request("HEAD /v1/models/a%2fb?c=%zz#d HTTP/1.1") + request("OPTIONS /tokenize HTTP/1.1"))
    seed("http", "completion", "\6" + posted("/v1/completions", {"prompt": "a", "max_tokens": 3, "stop": ["."]}))
    seed("http", "chunked", "\0" + chunked("/tokenize", '{"prompt"', ': "a b"}') + tokens)
    seed("http", "chat", "\7" + posted("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}) +
         request("GET /v1/kv/explain?request=cmpl-1 HTTP/1.0", "Connection: keep-alive"))
    seed("http", "refused", "\4" + posted("/tokenize", {"prompt": "a"}, key="other"))
    seed("http", "compressed", "\1" + posted("/tokenize", {}, "Content-Encoding: gzip"))
    seed("http", "two_lengths", "\3" + posted("/tokenize", {}, "Transfer-Encoding: chunked"))
    seed("http", "long_header", "\x3f" + request("GET /version HTTP/1.1", "X: " + "x" * 400))
    seed("http", "long_body", "\x3f" + request("POST /tokenize HTTP/1.1", "Content-Length: 18446744073709551615"))
    seed("http", "long_chunk", "\5" + request("POST /tokenize HTTP/1.1", "Transfer-Encoding: chunked",
                                              body="ffffffffffffffff\r\nx"))
    seed("http", "no_http", "\1\x16\x03\x01\r\n\r\n")


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


def make_handshake():
    def hears(side, what, body=b"", kind=0):
        return struct.pack("<BH", side | what << 1 | kind << 3, len(body)) + body

    honest = [hears(1, 0), hears(0, 0), hears(1, 0), hears(0, 0)]
    seed("handshake", "honest", b"".join(honest))
    seed("handshake", "changed_hello", hears(1, 2, b"\0" * 40 + b"\1") + b"".join(honest[1:]))
    seed("handshake", "changed_reply", honest[0] + hears(0, 2, b"\0" * 50 + b"\1") + b"".join(honest[2:]))
    seed("handshake", "changed_proof", b"".join(honest[:2]) + hears(1, 2, b"\0\0\1") + honest[3])
    peer = number(1, 1) + number(2, 3) + number(5, 1) + blob(6, b"host")
    seed("handshake", "hello", hears(1, 3, number(1, 1) + blob(2, bytes(32)) + blob(3, peer), 1))
    seed("handshake", "reply", hears(0, 3, number(1, 1) + blob(2, bytes(32)) + blob(3, peer) + blob(4, bytes(32)), 2))
    seed("handshake", "proof", honest[0] + hears(1, 3, blob(1, bytes(32)), 3))
    seed("handshake", "goodbye", hears(0, 3, blob(1, b"no\n") + number(2, 4), 6))


def make_cluster_messages():
    up, down, join, introduce, leave, metrics, state, prefixes = range(8)

    def says(sender, kind, body=b""):
        return message(sender << 5 | kind, body)

    cache = blob(1, b"m" * 16) + blob(2, b"l" * 16) + number(3, 16) + number(4, 2) + number(5, 2)
    rates = b"".join(double(i, 10.0 ** i) for i in range(1, 7))
    ready = number(2, 1) + number(4, 1) + number(6, 1000) + blob(9, cache) + blob(10, rates) + number(11, 50)
    seed("cluster_messages", "states", says(0, state, ready) + says(2, state, ready) + says(0, state, blob(3, b"no")))
    pages = number(1, 1) + number(2, 1) + blob(3, bytes(64))
    seed("cluster_messages", "pages", says(0, state, ready) + says(0, prefixes, pages) + says(3, prefixes, pages) +
         says(0, prefixes, number(1, 2) + blob(4, bytes(16))))
    seed("cluster_messages", "joins", says(4, join, number(1, 2)) + says(5, join, number(1, 1)) + says(4, join, b"\x08\0"))
    seed("cluster_messages", "come_and_go", says(3, introduce, blob(1, b"a:1")) + says(0, state, ready) +
         says(1, down) + says(1, up) + says(0, leave, number(1, 5)) + says(0, down) + says(3, leave) + says(0, up))
    family = struct.pack("<BHHI", 0, 1, 0, 1) + struct.pack("<H", 4) + b"stop" + struct.pack("<d", 1.0)
    seed("cluster_messages", "metrics", says(2, metrics, number(1, 1) + blob(2, family)))


def make_step_plan():
    none = (1 << 32) - 1

    def planned(sequence=1, tail=0, position=0, tokens=1, page=0, slabs=(), slot=None, more=b""):
        return blob(2, number(1, sequence) + number(2, tail) + number(3, position) + packed(4, [1] * tokens) +
                    number(5, page) + packed(6, slabs) + number(7, 1) +
                    number(9, position if slot is None else slot) + more)

    def plan(*parts):
        return message(0, number(1, 1) + b"".join(parts))

    def placed(slabs):
        return packed(1, slabs) + blob(2, bytes(16)) + number(3, 0)

    first = planned(tokens=64, slabs=[0, 0, 0, 1, 1])
    change = blob(12, number(1, 1) + packed(2, [1, none]))
    seed("step_plan", "levels", b"\0" + plan(first) + plan(planned(position=64, page=2, more=change)) +
         plan(packed(3, [1]), blob(4, placed([0, 0, 0])), blob(5, number(1, 5))))
    seed("step_plan", "window", b"\0" + plan(planned(tokens=33, slabs=[none, none, none])) + plan(planned(tokens=0)))
    seed("step_plan", "two", b"\0" + plan(planned(), planned(sequence=2, tail=1, more=number(13, 1))))
    seed("step_plan", "restore", b"\0" + message(1, number(1, 1) + blob(2, placed([0, 0, 0])) + blob(
        2, placed([none, 1])) + number(3, 1)))
    room = blob(10, number(1, 0) + number(2, 64))
    kept = blob(11, number(1, 16) + packed(2, [16, 16]) + packed(3, [1, 1]) + packed(4, [2, 3]))
    seed("step_plan", "chosen", b"\1" + plan(planned(tokens=32, slabs=[0], more=room)) + plan(planned(
        position=32, page=1, tokens=32, slabs=[1], more=room + kept)) + plan(planned(position=64, slot=0)))
    sampling = double(1, 0.5) + double(2, 0.9) + number(5, 9) + packed(9, [3]) + packed(15, [1]) + blob(
        16, struct.pack("<f", 2.5))
    seed("step_plan", "sampling", b"\0" + message(2, sampling))


def make_token_events():
    def scored(token, logprob=-0.5):
        return number(1, token) + real(2, logprob)

    def event(choice, tokens, more=b""):
        return message(choice, number(1, 1) + packed(2, tokens) + more)

    logprobs = blob(3, scored(0)) + blob(4, blob(1, scored(1)) + blob(1, scored(2, -1e30)))
    report = blob(12, number(1, 5) + number(8, 2) + number(9, 1) + number(10, 3))
    prompt = blob(13, scored(3)) + blob(14, blob(1, scored(3)))
    seed("token_events", "whole", b"\0" + event(0, [0], logprobs + number(8, 1)) + event(0, [1, 0], logprobs + report) +
         event(0, [], number(5, 2)))
    seed("token_events", "echo", b"\1" + message(0, prompt) + event(1, [0], prompt + number(5, 2)) + event(0, [0], number(5, 1)))
    seed("token_events", "choices", b"\2" + event(0, [3]) + event(1, [0, 1]) + event(0, [3, 3, 1], number(5, 1)) +
         event(129, [0, 4], number(5, 1)))
    seed("token_events", "chat", b"\3" + event(0, [0], logprobs) + event(128, [2, 1], report) + event(0, [], number(5, 2)))
    seed("token_events", "error", b"\3" + event(0, [0]) + event(0, [], number(5, 4) + blob(6, b"\xff no") + number(7, 99)))


def main():
    make_safetensors()
    make_gguf()
    make_gguf_tokenizer()
    make_tokenizer()
    make_sentencepiece()
    make_json_schema()
    make_api_request()
    make_http()
    make_chat_template()
    seed("page_header", "plain", page_header())
    seed("page_header", "sink", page_header(levels=7, sink=1))
    seed("page_header", "version", page_header(version=9))
    make_store_messages()
    make_model_config()
    make_recipe()
    make_profile()
    make_handshake()
    make_cluster_messages()
    make_step_plan()
    make_token_events()


if __name__ == "__main__":
    main()
