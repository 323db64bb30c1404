#!/usr/bin/env python3
"""The same weights served by lowkey and by llama.cpp, on this machine, in one run: one line a target.

usage: tests/bench/llama_cpp.py --llama-cpp FOLDER [--only steps users long] [--shape 135M] [--json FILE]

FOLDER holds llama-bench and llama-server, built from llama.cpp's public sources for this machine (CMake, Release). Both
sides get bf16 weights with random values, the same number of threads, and take turns; figures are medians.

    steps   one sequence decoding, prompts of 512 and 2,048 tokens: decode_bench against llama-bench
    users   16 users over HTTP, prompts of 1,024 tokens, answers of 128
    long    one sequence behind 32,768 tokens: 4-bit pages against a q4_0 cache
"""

import argparse
import contextlib
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from bench.report import Report, machine, median, ratio  # noqa: E402
from bench.tiers import random_model  # noqa: E402
from support import gguf_writer  # noqa: E402
from support.cluster import Cluster, binary, free_port, sse, wait_until  # noqa: E402

THREADS = 2
ROUNDS = 3
FEW_BITS = "name: few-bits\nbits: {quantizer: embedded, width: 4}\nhot: {sink: 4}\n"


def gguf_of(model):
    file = model / "model-bf16.gguf"
    if not file.exists():
        gguf_writer.write(model, file)
    return file


# ---- one step after the other --------------------------------------------------------------------------------

def llama_bench(folder, file, *flags):
    """{(prompt tokens, answer tokens): tokens a second}"""
    done = subprocess.run([folder / "llama-bench", "-m", file, "-t", str(THREADS), "-r", "2", "-fa", "1", "-o", "json", *flags],
                          check=True, timeout=1800, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return {(run["n_prompt"], run["n_gen"]): run["avg_ts"] for run in json.loads(done.stdout)}


def steps(report, arguments, model, file):
    ours, theirs = [], []
    for _ in range(ROUNDS):
        done = subprocess.run([binary().parent / "decode_bench", model, "--threads", str(THREADS)], check=True, timeout=900,
                              stdout=subprocess.PIPE, text=True)
        ours.append(json.loads(done.stdout.strip().splitlines()[-1]))
        theirs.append(llama_bench(arguments.llama_cpp, file, "-p", "512,2048", "-n", "64"))
    name = arguments.shape
    for what, mine, other, target in (
            ("decode", lambda run: 1 / run["decode_seconds"], (0, 64), 1),
            ("prefill_512", lambda run: 512 / run["prefill512_seconds"], (512, 0), 2),
            ("prefill_2048", lambda run: 2048 / run["prefill2048_seconds"], (2048, 0), 2)):
        report.note(f"{name}_{what}", median([mine(run) for run in ours]), " tokens/s")
        report.note(f"{name}_{what}_llama_cpp", median([run[other] for run in theirs]), " tokens/s")
        pairs = [ratio(mine(a), b[other]) for a, b in zip(ours, theirs)]
        report.line(f"{name}_{what}_over_llama_cpp", median(pairs), ">=", target)
    report.line(f"{name}_decode_over_weight_floor", median([run["decode_over_floor"] for run in ours]), ">=",
                0.8 if name == "1B" else 0.7)
    report.line(f"{name}_prefill_over_gemm_rate", median([run["prefill_over_gemm"] for run in ours]), ">=", 0.6)
    report.line(f"{name}_sixteen_decodes_over_one", median([run["batch16_over_one"] for run in ours]), ">=", 9)
    return {"lowkey": ours, "llama_cpp": [{f"{p}+{g}": v for (p, g), v in run.items()} for run in theirs]}


# ---- servers -------------------------------------------------------------------------------------------------

@contextlib.contextmanager
def llama_server(folder, file, slots, context, *flags):
    """Its URL."""
    port = free_port()
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen([folder / "llama-server", "-m", file, "-t", str(THREADS), "-np", str(slots), "-c",
                                   str(slots * context), "-fa", "on", "--host", "127.0.0.1", "--port", str(port), "--no-webui",
                                   *flags], stdout=log, stderr=subprocess.STDOUT)
        try:
            def ready():
                if server.poll() is not None:
                    log.seek(0)
                    raise RuntimeError(log.read()[-2000:].decode(errors="replace"))
                with contextlib.suppress(OSError):
                    return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200
            wait_until(ready, 120, "llama-server is ready")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(30)


class Load:
    """`users` clients in closed loops, token ids of their own as prompts, every token seen as it comes."""

    def __init__(self, url, model, users, requests, prompt_tokens, answer_tokens, seed):
        self.gaps, self.firsts, self.tokens, self.failed = [], [], 0, 0
        self._url, self._model, self._left, self._lock = url, model, requests, threading.Lock()
        self._sizes, self._random = (prompt_tokens, answer_tokens), random.Random(seed)
        threads = [threading.Thread(target=self._user) for _ in range(users)]
        begin = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.seconds = time.monotonic() - begin

    def _user(self):
        while True:
            with self._lock:
                if self._left == 0:
                    return
                self._left -= 1
                prompt = [self._random.randrange(300, 40000) for _ in range(self._sizes[0])]
            self._ask(prompt)

    def _ask(self, prompt):
        body = {"model": self._model, "prompt": prompt, "max_tokens": self._sizes[1], "temperature": 0, "ignore_eos": True,
                "stream": True, "stream_options": {"include_usage": True}}
        begin, times, usage = time.monotonic(), [], {}
        try:
            for event in sse(self._url + "/v1/completions", body, timeout=900):
                usage = event.get("usage") or usage
                if event.get("choices"):
                    times.append(time.monotonic())
        except OSError:
            pass
        with self._lock:
            self.failed += usage.get("completion_tokens") != self._sizes[1]
            self.tokens += usage.get("completion_tokens", 0)
            self.firsts += [t - begin for t in times[:1]]
            self.gaps += [b - a for a, b in zip(times, times[1:])]

    def report(self):
        gaps = sorted(self.gaps)
        return {"tokens_per_second": self.tokens / self.seconds, "failed": self.failed, "first_token": median(self.firsts),
                "between_p50": gaps[len(gaps) // 2] if gaps else None,
                "between_p99": gaps[len(gaps) * 99 // 100] if gaps else None}


def users(report, arguments, model, file):
    users_, prompt, answer, requests = 16, 1024, 128, 32
    found = {"lowkey": [], "llama_cpp": []}
    for number in range(2):
        def load(url, name):
            return Load(url, name, users_, requests, prompt, answer, number).report()
        with Cluster(model, ranks=2, flags=["--stores", 0, "--threads", THREADS, "--kv-bytes", "2GiB"]) as cluster:
            found["lowkey"].append(load(cluster.url, model.name))
        with llama_server(arguments.llama_cpp, file, users_, prompt + answer + 64) as url:
            found["llama_cpp"].append(load(url, "any"))
    name = f"{arguments.shape}_{users_}_users"
    for side, runs in found.items():
        for key in ("tokens_per_second", "first_token", "between_p50", "between_p99", "failed"):
            report.note(f"{name}_{side}_{key}", median([run[key] for run in runs]))

    def over(key):
        return median([ratio(a[key], b[key]) for a, b in zip(found["lowkey"], found["llama_cpp"])])
    report.line(f"{name}_tokens_over_llama_cpp", over("tokens_per_second"), ">=", 2)
    report.line(f"{name}_p99_between_tokens_over_llama_cpp", over("between_p99"), "<=", 0.5)
    return found


def long(report, arguments, model, file):
    """The first token says when the prompt is in; what follows is decoding behind 32k tokens."""
    prompt, answer = 32768, 48
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as recipe:
        recipe.write(FEW_BITS)
        recipe.flush()
        with Cluster(model, ranks=2, flags=["--stores", 0, "--threads", THREADS, "--kv-bytes", "1GiB", "--recipe", recipe.name,
                                            "--step-deadline-seconds", 120]) as cluster:
            ours = Load(cluster.url, model.name, 1, 1, prompt, answer, 1).report()
    with llama_server(arguments.llama_cpp, file, 1, prompt + 256, "-ctk", "q4_0", "-ctv", "q4_0") as url:
        theirs = Load(url, "any", 1, 1, prompt, answer, 1).report()
    name = f"{arguments.shape}_32k"
    for side, run in (("lowkey", ours), ("llama_cpp", theirs)):
        for key in ("first_token", "between_p50"):
            report.note(f"{name}_{side}_{key}", run[key], " s")
    report.line(f"{name}_decode_over_llama_cpp", ratio(theirs["between_p50"], ours["between_p50"]), ">=", 2.5)
    return {"lowkey": ours, "llama_cpp": theirs}


SECTIONS = {"steps": steps, "users": users, "long": long}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", type=pathlib.Path, required=True)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--shape", default="135M")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    report, sections = Report(), {}
    model = random_model(arguments.shape)
    file = gguf_of(model)
    for section in arguments.only:
        sections[section] = SECTIONS[section](report, arguments, model, file)
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(
            {"lines": report.lines, "notes": report.notes, "machine": machine(), "sections": sections}, indent=1))
    sys.exit(1 if report.failed() else 0)


if __name__ == "__main__":
    main()
