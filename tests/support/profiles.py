"""A profile without calibration, for the random models of benchmarks: identity bases, unit scales, one budget that is the
same for every vector. Good for bytes and times, not for quality."""

import json
import pathlib
import re
import struct
import subprocess

from support.cluster import binary


def write_plain_profile(model, path, name, bits):
    """`bits`: [group][level], of a head's groups of 16 features; the budget's name is `name`."""
    config = json.loads((pathlib.Path(model) / "config.json").read_text())
    banks, heads = config["num_hidden_layers"], config["num_key_value_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    vectors = banks * 2 * heads
    described = subprocess.run([str(binary()), "inspect", str(model)], check=True, capture_output=True, text=True,
                               timeout=60).stdout
    assert dim == 16 * len(bits)
    identity = struct.pack(f"<{dim * dim}f", *(float(i % (dim + 1) == 0) for i in range(dim * dim)))
    tensors = {"encode": ("F32", [dim, dim], identity), "mean": ("F32", [dim], bytes(4 * dim)),
               "scale": ("F32", [dim], struct.pack(f"<{dim}f", *[1.0] * dim)),
               f"budget.{name}": ("U8", [len(bits), len(bits[0])], bytes(b for group in bits for b in group))}
    header, data = {}, b""
    for tensor, (dtype, shape, one) in tensors.items():
        header[tensor] = {"dtype": dtype, "shape": [banks, 2, heads, *shape],
                          "data_offsets": [len(data), len(data) + vectors * len(one)]}
        data += one * vectors
    header["__metadata__"] = {
        "lowkey_profile": "1", "basis": "weighted", "model_fingerprint": re.search(r"fingerprint ([0-9a-f]{32})", described)[1],
        "num_banks": str(banks), "num_kv_heads": str(heads), "head_dim": str(dim), "join": "1", "norm": "true",
        "norm_edge": "4.5", "origin": "no calibration"}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + data)
