#!/usr/bin/env python3
"""The same weights served by lowkey and by llama.cpp, on this machine, in one run: one line a target.

usage: tests/bench/llama_cpp.py --llama-cpp FOLDER [--only SECTION ...] [--shape 135M] [--json FILE]
       (tests/bench/run --llama-cpp FOLDER calls it, too)

FOLDER holds llama-bench, llama-server and llama-perplexity, built from llama.cpp's public sources for this machine (CMake,
Release). Both sides get the same bf16 weights (random values, or the demo model's) and number of threads, and take turns;
figures are medians.

    steps     one sequence decoding, prompts of 512 and 2,048 tokens: decode_bench against llama-bench
    few_bits  decoding with weights in 8 and 4 bits: beside bf16, and beside llama.cpp on the same GGUF file
    k_quants  a Q4_K_M file (Q4_K and Q6_K) of a model of its own, as 135M's rows are no blocks of 256 (6 layers of 1B)
    users     16 users over HTTP, prompts of 1,024 tokens, answers of 128: the likeliest tokens, and drawn ones
    contexts  32 users, each with questions about 8k tokens of its own, the same KV bytes for both, lowkey-6x (6 layers)
    long      one sequence behind 32,768 tokens: lowkey-4x (3.7 bits) against a q4_0 cache (6 layers)
    quality   what these bits cost: KL to a 16-bit cache, demo model
"""

import argparse
import contextlib
import json
import lzma
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from bench import llama_lines  # noqa: E402
from bench.llama_servers import Load, llama_server, random_tokens  # noqa: E402
from bench.report import Report, machine, median, ratio  # noqa: E402
from bench.serving import random_model  # noqa: E402
from support import gguf_writer  # noqa: E402
from support.cluster import DEMO_MODEL, ROOT, Cluster, binary  # noqa: E402
from support.series import total  # noqa: E402

THREADS = 2
ROUNDS = 3
RECIPES = ROOT / "recipes"
FOUR_BITS = "name: four-bits\nbits: {quantizer: embedded, width: 4}\nhot: {sink: 4}\n"
BASES = FOUR_BITS + "profile: lowkey\nfeatures: {basis: weighted}\n"


def say(report, section, arguments, what, value):
    """The line of a section; `what` without the shape's name."""
    lines = llama_lines.lines(section, arguments.shape)
    name = what if what in lines else f"{arguments.shape}_{what}"
    report.line(name, value, *lines[name])


def gguf_of(model, kind="bf16"):
    file = model / f"model-{kind}.gguf"
    if not file.exists():
        gguf_writer.write(model, file, kind)
    return file


# ---- one step after the other --------------------------------------------------------------------------------

def llama_bench(folder, file, *flags):
    """{(prompt tokens, answer tokens): tokens a second}"""
    # It takes a comma for the end of a path, and a shape's folder has some.
    done = subprocess.run([folder.resolve() / "llama-bench", "-m", file.name, "-t", str(THREADS), "-r", "2", "-fa", "1", "-o",
                           "json", *flags], cwd=file.parent, check=True, timeout=1800, stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True)
    return {(run["n_prompt"], run["n_gen"]): run["avg_ts"] for run in json.loads(done.stdout)}


def decode_bench(model, *flags):
    done = subprocess.run([binary().parent / "decode_bench", model, "--threads", str(THREADS), *flags], check=True, timeout=900,
                          stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def steps(report, arguments, model, file):
    ours, theirs = [], []
    for _ in range(ROUNDS):
        ours.append(decode_bench(model))
        theirs.append(llama_bench(arguments.llama_cpp, file, "-p", "512,2048", "-n", "64"))
    name = arguments.shape
    for what, mine, other in (("decode", lambda run: 1 / run["decode_seconds"], (0, 64)),
                              ("prefill_512", lambda run: 512 / run["prefill512_seconds"], (512, 0)),
                              ("prefill_2048", lambda run: 2048 / run["prefill2048_seconds"], (2048, 0))):
        report.note(f"{name}_{what}", median([mine(run) for run in ours]), " tokens/s")
        report.note(f"{name}_{what}_llama_cpp", median([run[other] for run in theirs]), " tokens/s")
        pairs = [ratio(mine(a), b[other]) for a, b in zip(ours, theirs)]
        say(report, "steps", arguments, f"{what}_over_llama_cpp", median(pairs))
    for what, key in (("decode_over_weight_read_floor", "decode_over_floor"), ("prefill_over_gemm_rate", "prefill_over_gemm"),
                      ("sixteen_decodes_over_one", "batch16_over_one")):
        report.note(f"{name}_{what}", median([run[key] for run in ours]))  # tests/bench/run has them as lines
    return {"lowkey": ours, "llama_cpp": [{f"{p}+{g}": v for (p, g), v in run.items()} for run in theirs]}


def few_bits(report, arguments, model, _):
    """The folder's weights rounded at load against the same in bf16; a file's blocks against llama.cpp's."""
    files = {"int8": gguf_of(model, "q8_0"), "int4": gguf_of(model, "q4_0")}
    runs = {"bf16": [], **{weights: [] for weights in files}}
    pairs = {weights: [] for weights in files}
    for _ in range(ROUNDS):
        runs["bf16"].append(decode_bench(model))
        for weights, file in files.items():
            runs[weights].append(decode_bench(model, "--weights", weights))
            pairs[weights].append((decode_bench(file), llama_bench(arguments.llama_cpp, file, "-p", "512", "-n", "64")))
    for weights in files:
        name = f"{arguments.shape}_{weights}"
        for key in ("decode_seconds", "prefill512_seconds", "packed_bytes"):
            report.note(f"{name}_{key}", median([run[key] for run in runs[weights]]))
        say(report, "few_bits", arguments, f"{weights}_decode_over_bf16",
            median([ratio(a["decode_seconds"], b["decode_seconds"]) for a, b in zip(runs["bf16"], runs[weights])]))
        report.note(f"{name}_prefill_over_bf16", median(
            [ratio(a["prefill512_seconds"], b["prefill512_seconds"]) for a, b in zip(runs["bf16"], runs[weights])]))
        say(report, "few_bits", arguments, f"{weights}_decode_over_llama_cpp",
            median([ratio(1 / a["decode_seconds"], b[0, 64]) for a, b in pairs[weights]]))
        report.note(f"{name}_prefill_over_llama_cpp",
                    median([ratio(512 / a["prefill512_seconds"], b[512, 0]) for a, b in pairs[weights]]))
    return {"lowkey": runs, "llama_cpp": {weights: [b[0, 64] for _, b in pairs[weights]] for weights in pairs}}


K_SHAPE = "1B,layers=6,vocab=32768"


def k_quants(report, arguments, *_):
    """Each file's blocks as both programs hold them."""
    file = gguf_of(random_model(K_SHAPE), "q4_k_m")
    pairs = [(decode_bench(file), llama_bench(arguments.llama_cpp, file, "-p", "512", "-n", "64")) for _ in range(ROUNDS)]
    report.note("q4_k_m_bytes_over_file", pairs[0][0]["packed_bytes"] / file.stat().st_size)
    for key, ours, theirs in (("decode", lambda run: 1 / run["decode_seconds"], (0, 64)),
                              ("prefill_512", lambda run: 512 / run["prefill512_seconds"], (512, 0))):
        report.note(f"q4_k_m_{key}", median([ours(a) for a, _ in pairs]), " tokens/s")
        report.note(f"q4_k_m_{key}_llama_cpp", median([b[theirs] for _, b in pairs]), " tokens/s")
        value = median([ratio(ours(a), b[theirs]) for a, b in pairs])
        if key == "decode":
            say(report, "k_quants", arguments, "q4_k_m_decode_over_llama_cpp", value)
        else:
            report.note(f"q4_k_m_{key}_over_llama_cpp", value)
    return {"lowkey": [a for a, _ in pairs], "llama_cpp": [{f"{p}+{g}": v for (p, g), v in b.items()} for _, b in pairs]}


# ---- servers -------------------------------------------------------------------------------------------------

def lowkey(model, kv_bytes, *flags):
    return Cluster(model, ranks=2, flags=["--stores", 0, "--threads", THREADS, "--kv-bytes", kv_bytes, *flags])


@contextlib.contextmanager
def recipe_file(text):
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as recipe:
        recipe.write(text)
        recipe.flush()
        yield recipe.name


def notes(report, name, found, keys):
    for side, runs in found.items():
        for key in keys:
            report.note(f"{name}_{side}_{key}", median([run[key] for run in runs]))


USERS = {"users": 16, "prompt": 1024, "answer": 128, "requests": 2, "rounds": 2}
DRAWN = 0.8  # temperature


def users(report, arguments, model, file):
    return {way: users_at(report, arguments, model, file, way, temperature)
            for way, temperature in (("", 0), ("drawn_", DRAWN))}


def users_at(report, arguments, model, file, way, temperature):
    users_, prompt, answer = USERS["users"], USERS["prompt"], USERS["answer"]
    found = {"lowkey": [], "llama_cpp": []}
    for number in range(USERS["rounds"]):
        def load(url, name):
            def prompts(user, count):
                return random_tokens(prompt, f"{number} {user} {count}") if count < USERS["requests"] else None
            return Load(url, name, users_, prompts, answer, temperature=temperature).report()
        with lowkey(model, "2GiB") as cluster:
            found["lowkey"].append(load(cluster.url, model.name))
        with llama_server(arguments.llama_cpp, file, THREADS, users_, prompt + answer + 64) as url:
            found["llama_cpp"].append(load(url, "any"))
    notes(report, f"{arguments.shape}_{users_}_users_{way}".rstrip("_"), found,
          ("tokens_per_second", "first_token", "between_p50", "between_p99", "failed"))

    def over(key):
        return median([ratio(a[key], b[key]) for a, b in zip(found["lowkey"], found["llama_cpp"])])
    say(report, "users", arguments, f"{users_}_users_{way}tokens_over_llama_cpp", over("tokens_per_second"))
    say(report, "users", arguments, f"{users_}_users_{way}p99_between_tokens_over_llama_cpp", over("between_p99"))
    return found


# Long contexts: fewer layers than the shape has, so that llama.cpp's prompts end in minutes. Both sides have the same
# ones, and reading the output's weights, of which a token then has more, weighs on both.
LONG_LAYERS = 6


def long_model(arguments):
    """Bases are its own; the bits, which random weights would say nothing about, are those of the demo model, which has as
    many layers: what is timed here has the bits of which the demo model shows the quality."""
    model = random_model(f"{arguments.shape},layers={LONG_LAYERS}")
    profile = model / "profiles" / "lowkey.profile.safetensors"
    if profile.exists():
        return model
    profile.parent.mkdir(exist_ok=True)
    with recipe_file(BASES) as recipe, tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "profile"
        subprocess.run([binary(), "calibrate", "--model", model, "--text", ROOT / "docs" / "architecture.md", "--recipe", recipe,
                        "--tokens", "4096", "--out", file], check=True, timeout=300, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
        with safe_open(file, "np") as opened:
            metadata = opened.metadata()
        tensors = load_file(file)
    heads = tensors["mean"].shape[2]
    for name, bits in load_file(DEMO_MODEL / "profiles" / profile.name).items():
        if name.startswith("budget."):
            tensors[name] = np.ascontiguousarray(bits[:, :, [head % bits.shape[2] for head in range(heads)]])
    save_file(tensors, profile, metadata)
    return model


def kv_bytes_per_token(model, bits=16):
    config = json.loads((model / "config.json").read_text())
    return 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * bits // 8


# Every user asks several questions about a document of its own. Memory for six of them in f16 on both sides: as many slots
# has llama.cpp, and computes a document again when it was forgotten; a recipe of 6 times holds all of them. It is given `seconds`, in which it answers a part of
# the questions, as the others would be answered at the same pace; that takes it ten minutes.
CONTEXTS = {"users": 32, "questions": 3, "document": 8192, "question": 32, "answer": 128, "slots": 6, "seconds": (300, 150)}


def contexts(report, arguments, *_):
    model = long_model(arguments)
    users_, slots, answer = CONTEXTS["users"], CONTEXTS["slots"], CONTEXTS["answer"]
    slot = CONTEXTS["document"] + CONTEXTS["question"] + answer + 32
    kv_bytes = slots * slot * kv_bytes_per_token(model)
    documents = [random_tokens(CONTEXTS["document"], user) for user in range(users_)]

    def prompts(user, number):
        if number == CONTEXTS["questions"]:
            return None
        return documents[user] + random_tokens(CONTEXTS["question"], f"{user} {number}")
    with lowkey(model, kv_bytes, "--recipe", RECIPES / "lowkey-6x.yaml") as cluster:
        ours = Load(cluster.url, model.name, users_, prompts, answer, CONTEXTS["seconds"][0]).report()
        held = total(cluster.metrics(), "lowkey_kv_compression_ratio")
    with llama_server(arguments.llama_cpp, gguf_of(model), THREADS, slots, slot) as url:
        theirs = Load(url, "any", users_, prompts, answer, CONTEXTS["seconds"][1]).report()
    name = f"{arguments.shape}_{users_}_users_8k"
    report.note(f"{name}_kv_bytes", kv_bytes, " B")
    report.note(f"{name}_llama_cpp_slots", slots)
    found = {"lowkey": [ours], "llama_cpp": [theirs]}
    notes(report, name, found, ("tokens_per_second", "answered", "failed", "cached_tokens", "first_token", "between_p50"))
    say(report, "contexts", arguments, f"{users_}_users_8k_recipe_over_bf16", held)
    say(report, "contexts", arguments, f"{users_}_users_8k_tokens_over_llama_cpp",
        ratio(ours["tokens_per_second"], theirs["tokens_per_second"]))
    return found


LONG = {"prompt": 32768, "answer": 48}


def long(report, arguments, *_):
    """The first token says when the prompt is in; what follows is decoding behind 32k tokens."""
    model = long_model(arguments)
    prompt, answer = LONG["prompt"], LONG["answer"]

    def prompts(_, number):
        return random_tokens(prompt, 1) if number == 0 else None
    with lowkey(model, "1GiB", "--recipe", RECIPES / "lowkey-4x.yaml", "--step-deadline-seconds", 120) as cluster:
        ours = Load(cluster.url, model.name, 1, prompts, answer).report()
    with llama_server(arguments.llama_cpp, gguf_of(model), THREADS, 1, prompt + 256, "-ctk", "q4_0", "-ctv", "q4_0") as url:
        theirs = Load(url, "any", 1, prompts, answer).report()
    name = f"{arguments.shape}_32k"
    found = {"lowkey": [ours], "llama_cpp": [theirs]}
    notes(report, name, found, ("first_token", "between_p50"))
    say(report, "long", arguments, "32k_decode_over_llama_cpp", ratio(theirs["between_p50"], ours["between_p50"]))
    return found


# ---- quality -------------------------------------------------------------------------------------------------

BOOKS = ROOT.parent / "shared" / "data" / "text" / "pd-books-en" / "valid.jsonl.xz"
WINDOWS, CONTEXT = 12, 1024  # the demo model's own
TEXT_BYTES = 5 * WINDOWS * CONTEXT  # a token of English has less than five


def held_out_text():
    """From the middle of the first book on: no title page, no table of contents."""
    with lzma.open(BOOKS, "rt") as lines:
        book = next(text for text in (json.loads(line)["text"] for line in lines) if len(text) > 4 * TEXT_BYTES)
    return book[len(book) // 2:][:TEXT_BYTES]


def llama_divergence(folder, file, text, base, *cache):
    """Mean KL of the second half of every window: to a 16-bit cache, the logits of which are in `base`. The program's last lines
    are often lost when it ends: then the mean is that of the last window it told of, which leaves out one or two."""
    done = subprocess.run([folder / "llama-perplexity", "-m", file, "-f", text, "-t", str(THREADS), "-c", str(CONTEXT), "-b",
                           str(CONTEXT), "-ub", str(CONTEXT), "--chunks", str(WINDOWS), "-fa", "on",
                           "--kl-divergence-base", base, *cache],
                          check=True, timeout=300, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    means = re.findall(r"Mean\s+KLD:\s+(-?[0-9.]+)", done.stdout)
    so_far = re.findall(r"^\s*\d+\s+\S+ ±\s+\S+\s+\S+ ±\s+\S+\s+(-?[0-9.]+) ±", done.stdout, re.M)
    found = means or so_far[-1:]
    return float(found[0]) if found else None


def quality(report, arguments, *_):
    """The same weights and text: pages of less than 4 bits against an exact cache, and a q4_0 cache against an f16 one."""
    name = "demo_kl"
    if not BOOKS.exists():
        for line, (comparison, target) in llama_lines.lines("quality", arguments.shape).items():
            report.absent(line, comparison, target, f"{BOOKS} is absent")
        return {}
    with tempfile.TemporaryDirectory() as folder, recipe_file(FOUR_BITS) as uniform:
        folder = pathlib.Path(folder)
        text, file = folder / "text.txt", folder / "demo.gguf"
        text.write_text(held_out_text())
        gguf_writer.write(DEMO_MODEL, file, pre="smollm")
        subprocess.run([binary(), "evaluate", "--model", DEMO_MODEL, "--text", text, "--recipe", RECIPES / "lowkey-4x.yaml",
                        RECIPES / "lowkey-6x.yaml", uniform, "--windows", str(WINDOWS), "--threads", str(THREADS), "--out",
                        folder], check=True, timeout=300, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        ours = {row["recipe"]: row for row in json.loads((folder / "evaluate.json").read_text())}
        base = folder / "base"
        llama_divergence(arguments.llama_cpp, file, text, base)
        same = llama_divergence(arguments.llama_cpp, file, text, base, "--kl-divergence")
        theirs = llama_divergence(arguments.llama_cpp, file, text, base, "--kl-divergence", "-ctk", "q4_0", "-ctv", "q4_0")
    for recipe, row in ours.items():
        report.note(f"{name}_{recipe}", row["kl"])
        report.note(f"{name}_{recipe}_bits_per_element", row["bits_per_element"])
    report.note(f"{name}_llama_cpp_q4_0", theirs)
    report.note(f"{name}_llama_cpp_q4_0_bits_per_element", 4.5)
    report.note(f"{name}_llama_cpp_f16_again", same)
    say(report, "quality", arguments, f"{name}_lowkey_4x_over_llama_cpp_q4_0", ratio(ours["lowkey-4x"]["kl"], theirs))
    return {"lowkey": ours, "llama_cpp": {"q4_0": theirs, "f16": same}}


SECTIONS = {"steps": steps, "few_bits": few_bits, "k_quants": k_quants, "users": users, "contexts": contexts, "long": long,
            "quality": quality}


def run(report, arguments, only):
    """Prints the lines of the sections `only`; `arguments`: with llama_cpp, the folder, and shape."""
    model = random_model(arguments.shape)
    file = gguf_of(model)
    return {section: SECTIONS[section](report, arguments, model, file) for section in only}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", type=pathlib.Path, required=True)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--shape", default="135M")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    report = Report()
    sections = run(report, arguments, arguments.only)
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(
            {"lines": report.lines, "notes": report.notes, "machine": machine(), "sections": sections}, indent=1))
    sys.exit(1 if report.failed() else 0)


if __name__ == "__main__":
    main()
