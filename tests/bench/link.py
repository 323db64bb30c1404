#!/usr/bin/env python3
"""What a cached prefix is worth over a link: restore against recompute, compressed against exact pages, the first token
against the full restore. The store sits on the worker's host (shared memory), or on another one behind a rate-limited
link (tests/support/two_hosts.py; needs root). One line per target, `name measured target pass|fail`.

usage: tests/bench/link.py [--prefix 2048 8192 32768] [--shapes 135M 1B] [--rate 1gbit] [--json FILE]
       (needs a build of the preset release; tests/bench/run calls it, too)
"""

import argparse
import collections
import json
import lzma
import pathlib
import re
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from bench.report import Report, machine, median, ratio  # noqa: E402
from support.cluster import DEMO_MODEL, ROOT, binary, http, sse, wait_until  # noqa: E402
from support.profiles import write_plain_profile  # noqa: E402
from support.series import total  # noqa: E402
from support.two_hosts import ADDRESSES, LinkedCluster, TwoHosts  # noqa: E402

PAGE_TOKENS = 32
ANSWER_TOKENS = 16
# Without calibration: identity basis, 4-bit codes (3.7x).
FEW_BITS = "name: few-bits\nbits: {quantizer: embedded, width: 4}\nhot: {sink: 4}\n"
# For the progressive start: levels of the sizes that recipes/lowkey-levels.yaml has, on a model with random weights; and that
# recipe itself on the demo model.
LEVELS = ("name: in-levels\nbudget: levels\nfeatures: {basis: weighted}\nbits: {quantizer: embedded, width: auto}\n"
          "hot: {sink: 4}\nstream: {levels: 3}\n")
LEVEL_BITS = [[4, 4, 0], [4, 0, 4], [2, 2, 4], [2, 2, 4]]
DEMO_LEVELS = ROOT / "recipes" / "lowkey-levels.yaml"
ALL_LEVELS = 3
LONG = 32768  # a prompt from here on is minutes: two of them, few bits alone
BOOKS = ROOT.parent / "shared" / "data" / "text" / "pd-books-en" / "valid.jsonl.xz"
# `bytes_per_token` are those of the pool, where whole pages lie in superblocks of 2 MiB: two exact ones of either shape.
# `minutes` of a prefix on two cores that nobody else uses: lines that would not end are not begun.
Shape = collections.namedtuple("Shape", "label model bytes_per_token minutes")
SHAPES = {
    "135M": Shape("", "135M,positions=34816", {"exact": 33_000, "few-bits": 6_700, "in-levels": 13_000},
                  {("link", 2048): 2, ("link", 8192): 4, ("link", LONG): 6, ("shm", 2048): 2, ("shm", 8192): 3, ("shm", LONG): 6}),
    "1B": Shape("1B_", "1B,positions=10240", {"exact": 33_000, "few-bits": 10_500},
                {("link", 2048): 2, ("link", 8192): 5, ("shm", 8192): 5, ("shm", 2048): 2}),
}


class Answer:
    """One streamed request, measured at the client."""

    def __init__(self, cluster, prompt, **more):
        body = {"model": cluster.model.name, "prompt": prompt, "max_tokens": ANSWER_TOKENS, "temperature": 0,
                "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}, "logprobs": 1, **more}
        self.prompt = tuple(prompt)
        self.tokens, self.usage, times = [], {}, []
        begin = time.monotonic()
        for event in sse(cluster.url + "/v1/completions", body, timeout=900):
            for choice in event.get("choices", []):
                if choice.get("logprobs"):
                    times.append(time.monotonic() - begin)
                    self.tokens += choice["logprobs"]["tokens"]
            self.usage = event.get("usage") or self.usage
        self.first = times[0]
        self.step = median([b - a for a, b in zip(times, times[1:])]) or 0.0

    @property
    def restored(self):
        """Prompt tokens that a store gave."""
        return self.usage.get("prompt_tokens_details", {}).get("cached_tokens_by_tier", {}).get("host", 0)


def book_prompts(cluster, texts, tokens):
    """The first tokens of three texts."""
    prompts = []
    for text in texts:
        status, answer = http(cluster.url + "/tokenize", {"model": cluster.model.name, "prompt": text[:12 * tokens]})
        assert status == 200, answer
        prompts.append(answer["tokens"][:tokens])
    return prompts


def prompt_of(seed, tokens, vocabulary):
    return [4 + (seed * 7919 + i * 104729 + i * i * seed) % (vocabulary - 8) for i in range(tokens)]


class Prefix:
    """Prompts of which hardly one fits the worker's memory: computed, spilled, pushed out, and asked for again. What was
    not pushed out, or was computed again, says nothing: `least` of a prompt must have come back."""

    def __init__(self, cluster, prompts, least=0.95):
        self.cluster = cluster
        self.prompts = prompts
        self.least = least
        self.pages = len(prompts[0]) // PAGE_TOKENS

    def stored(self):
        return total(self.cluster.metrics(), "lowkey_kv_spill_pages_total", outcome="stored")

    def compute(self):
        answers = []
        for prompt in self.prompts:
            before = self.stored()
            answers.append(Answer(self.cluster, prompt))
            wait_until(lambda: self.stored() >= before + self.pages, "pages in the store")
        return answers

    def restore(self, **more):
        """Of each prompt once: (answer, bytes fetched until its end)."""
        found = []
        for prompt in self.prompts:
            before = self.fetched()
            answer = Answer(self.cluster, prompt, **more)
            if answer.restored >= self.least * len(prompt):
                found.append((answer, self.fetched() - before))
        return found

    def fetched(self):
        return total(self.cluster.metrics(), "lowkey_transfer_bytes_total", direction="get")


def bare_loop(hosts, size=65536):
    """Bytes per second of UCX's own get loop over the link, on one buffer of that many bytes at a time."""
    environment = ["env", "UCX_TLS=tcp,self"]
    server = subprocess.Popen([*hosts.b.inside(), *environment, "ucx_perftest"], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL)
    try:
        def run():
            done = subprocess.run([*hosts.a.inside(), *environment, "ucx_perftest", ADDRESSES["b"], "-t", "ucp_get", "-s",
                                   str(size), "-n", "16384", "-w", "256", "-O", "16", "-f", "-v"], capture_output=True,
                                  text=True, timeout=300)
            return done.stdout if done.returncode == 0 else None
        text = wait_until(run, "ucx_perftest")
    finally:
        server.kill()
        server.wait(10)
    numbers = [line.split(",") for line in text.splitlines() if re.match(r"^\d+,", line)]
    return float(numbers[-1][5]) * 2**20 if numbers else None  # iterations, latency x3, bandwidth average, total


def held_out(path, count=24):
    """Passages of books the demo model was not trained on; without them there is nothing to say."""
    if not path.exists():
        return []
    with (lzma.open if path.suffix == ".xz" else open)(path, "rt", encoding="utf-8") as lines:
        books = [json.loads(line)["text"] for line in lines]
    books = [book for book in books if len(book) > 60_000][:count]
    each = -(-count // len(books)) if books else 0
    return [book[5000 + i * (len(book) - 20_000) // each:] for i in range(each) for book in books][:count]


def flags_for(shape, recipe, folder, tokens):
    per_token = shape.bytes_per_token[recipe]
    # Hardly more than one prompt; of two long ones, what is left of the first is then little enough.
    room = 1.02 * tokens * per_token if tokens >= LONG else 1.15 * tokens * per_token + (6 << 20)
    # Pages leave whole: the ladder would keep both prompts on the device, coarse.
    flags = ["--pressure", "preempt", "--max-batch", "2", "--kv-bytes", f"{int(room / 2**20)}MiB",
             "--host-bytes", f"{int(4 * tokens * per_token / 2**20) + 64}MiB"]
    if recipe != "exact":
        flags += ["--recipe", str(folder / f"{recipe}.yaml")]
    if recipe == "in-levels":
        flags += ["--profile", str(folder / "in-levels.profile")]
    return flags


def measure(make, shape, recipe, folder, tokens):
    """{recompute, restore, step: seconds; bytes} and, of recipes with levels, the progressive start."""
    with make(flags_for(shape, recipe, folder, tokens)) as cluster:
        count, least = (2, 0.85) if tokens >= LONG else (3, 0.95)
        prefix = Prefix(cluster, [prompt_of(3 + i, tokens, 49152) for i in range(count)], least)
        computed = prefix.compute()
        everything = {"min_levels": ALL_LEVELS} if recipe == "in-levels" else {}
        restored = prefix.restore(**everything)
        if tokens >= LONG:
            restored += prefix.restore()
        found = {"recompute": median([a.first for a in computed]), "restore": median([a.first for a, _ in restored]),
                 "step": median([a.step for a in computed]), "bytes": median([b for _, b in restored])}
        if everything:
            first = prefix.restore(min_levels=1)
            found["first"] = median([a.first for a, _ in first])
        return found


def agreement(hosts, texts):
    """Of the first tokens after a progressive start with those of the full level, on the trained model: a random one
    has no opinion to agree with. The link is slow enough that the later levels come in while these tokens are made.
    Greedy, each answer running on from its own tokens: one early difference changes all that follow."""
    flags = ["--recipe", str(DEMO_LEVELS), "--kv-bytes", "2560KiB", "--host-bytes", "64MiB", "--pressure", "preempt"]
    same = asked = whole = first_same = coarse = 0
    firsts, fulls = [], []
    with LinkedCluster(hosts, workers=1, model=DEMO_MODEL, flags=flags) as cluster:
        for group in (texts[i:i + 3] for i in range(0, len(texts) - 2, 3)):
            prefix = Prefix(cluster, book_prompts(cluster, group, 960))
            prefix.compute()
            hosts.set_rate("100mbit")  # slower, and computing again would be quicker
            read = total(cluster.metrics(), "lowkey_coarse_tokens_total")
            full = {a.prompt: a for a, _ in prefix.restore(min_levels=ALL_LEVELS)}
            read_coarse = total(cluster.metrics(), "lowkey_coarse_tokens_total")
            assert read_coarse == read, "all levels were demanded"
            first = {a.prompt: a for a, _ in prefix.restore(min_levels=1)}
            coarse += total(cluster.metrics(), "lowkey_coarse_tokens_total") - read_coarse
            hosts.set_rate("1gbit")
            for prompt in full.keys() & first.keys():
                a, b = full[prompt].tokens, first[prompt].tokens
                same += sum(x == y for x, y in zip(a, b))
                asked += len(a)
                whole += a == b
                first_same += a[0] == b[0]
                fulls.append(full[prompt].first)
                firsts.append(first[prompt].first)
    return {"same": ratio(same, asked), "answers": len(firsts), "whole": whole, "first_token": first_same,
            "coarse_tokens": coarse, "first_over_full": ratio(median(firsts), median(fulls))}


def recipes_of(shape, place, tokens):
    if tokens >= LONG:
        return ["few-bits"]
    return [recipe for recipe in shape.bytes_per_token if recipe != "in-levels" or place == "link"]


def prefix_lines(shape, place, tokens):
    """{what: (comparison, target)} of a prefix of so many tokens."""
    gain = {"link": {8192: 10, LONG: 20}, "shm": {8192: 30, LONG: 60}}[place].get(tokens)
    lines = {"recompute_over_restore": (">=", gain)} if gain else {}
    if place == "link":
        lines["few_bits_restore_over_bytes_and_step"] = ("<=", 2)
        if tokens < LONG:
            lines |= {"exact_restore_over_bytes_and_step": ("<=", 2), "restore_shrinks_over_bytes": (">=", 0.85),
                      "payload_over_bare_loop": (">=", 0.8)}
        if "in-levels" in recipes_of(shape, place, tokens):
            lines["first_token_over_full_restore"] = ("<=", 0.45)
    return {f"{place}_{shape.label}{tokens}_{what}": line for what, line in lines.items()}


AGREEMENT = {"progressive_first_16_tokens_agree": (">=", 0.9)}


def found_of(found, bandwidth):
    """{what: value} of one prefix; what a line is not made of is left out."""
    few, values = found["few-bits"], {}
    values["recompute_over_restore"] = ratio(few["recompute"], few["restore"])
    for recipe, one in found.items():
        floor = one["bytes"] / bandwidth + one["step"] if one["bytes"] and bandwidth else None
        values[f"{recipe.replace('-', '_')}_restore_over_bytes_and_step"] = ratio(one["restore"], floor)
    if "exact" in found:
        exact = found["exact"]
        values["restore_shrinks_over_bytes"] = ratio(ratio(exact["restore"], few["restore"]),
                                                     ratio(exact["bytes"], few["bytes"]))
        payload = ratio(exact["bytes"], exact["restore"] - exact["step"]) if exact["restore"] else None
        values["payload_over_bare_loop"] = ratio(payload, bandwidth)
    if "in-levels" in found:
        levels = found["in-levels"]
        values["first_token_over_full_restore"] = ratio(levels["first"], levels["restore"])
    return values


def report_prefix(report, shape, place, tokens, found, bandwidth):
    name = f"{place}_{shape.label}{tokens}"
    for recipe, one in found.items():
        report.note(f"{name}_{recipe}_recompute", one["recompute"], " s")
        report.note(f"{name}_{recipe}_restore", one["restore"], " s")
        report.note(f"{name}_{recipe}_bytes", one["bytes"], " B")
    lines = prefix_lines(shape, place, tokens)
    for what, value in found_of(found, bandwidth).items():
        if f"{name}_{what}" in lines:
            report.line(f"{name}_{what}", value, *lines[f"{name}_{what}"])
        elif value is not None and (place == "link" or what == "recompute_over_restore"):
            report.note(f"{name}_{what}", value)


def write_recipes(model, folder):
    for text in (FEW_BITS, LEVELS):
        (folder / f"{re.match('name: (.*)', text)[1]}.yaml").write_text(text)
    write_plain_profile(model, folder / "in-levels.profile", "levels", LEVEL_BITS)


AGREEMENT_MINUTES = 5


def cells(shapes, prefixes, places):
    """What a run measures: (shape, tokens, place)."""
    return [(SHAPES[name], tokens, place) for name in shapes for tokens in prefixes for place in places
            if (place, tokens) in SHAPES[name].minutes]


def expected(prefixes=(2048, 8192, LONG), places=("link", "shm"), agree=True, shapes=("135M",)):
    """All lines of a run."""
    lines = {}
    for shape, tokens, place in cells(shapes, prefixes, places):
        lines |= prefix_lines(shape, place, tokens)
    return lines | (AGREEMENT if agree else {})


def random_model(shape):
    model = binary().parent / f"link-{shape.model.split(',')[0]}"
    if not (model / "config.json").exists():
        subprocess.run([binary(), "inspect", "--random", shape.model, "--out", model], check=True, timeout=300,
                       stdout=subprocess.DEVNULL)
    return model


def run(report, prefixes=(2048, 8192, LONG), places=("link", "shm"), agree=True, shapes=("135M",), rate="1gbit", text=BOOKS,
        minutes=60):
    """Prints its lines; returns what was measured. What does not fit the minutes, or this machine, is named."""
    if missing := TwoHosts.missing():
        report.leave_out(expected(prefixes, places, agree, shapes), missing)
        return {}
    raw, end = {}, time.monotonic() + 60 * minutes

    def fits(needed):
        return time.monotonic() + 60 * needed <= end
    with tempfile.TemporaryDirectory(prefix="lowkey-link-") as folder, TwoHosts(rate) as hosts:
        folder = pathlib.Path(folder)
        bare = bare_loop(hosts)
        report.note("link_bare_get_loop", bare and bare / 1e6, " MB/s")
        for shape, tokens, place in cells(shapes, prefixes, places):
            if not fits(shape.minutes[place, tokens]):
                report.leave_out(prefix_lines(shape, place, tokens), "no time is left")
                continue
            model = random_model(shape)
            write_recipes(model, folder)

            def cluster(flags, model=model, one_host=place == "shm"):
                return LinkedCluster(hosts, workers=1, model=model, flags=flags, one_host=one_host)
            found = raw[f"{place}_{shape.label}{tokens}"] = {recipe: measure(cluster, shape, recipe, folder, tokens)
                                                             for recipe in recipes_of(shape, place, tokens)}
            report_prefix(report, shape, place, tokens, found, bare if place == "link" else None)
        if agree and fits(AGREEMENT_MINUTES):
            raw["demo"] = progressive(report, hosts, text)
        elif agree:
            report.leave_out(AGREEMENT, "no time is left")
    return raw


def progressive(report, hosts, text):
    texts = held_out(text)
    if not texts:
        report.leave_out(AGREEMENT, f"{text} is absent")
        return {}
    found = agreement(hosts, texts)
    for name, line in AGREEMENT.items():
        report.line(name, found["same"], *line)
    for name in ("answers", "whole", "first_token", "coarse_tokens"):
        report.note(f"progressive_{name}", found[name])
    report.note("progressive_demo_first_token_over_full_restore", found["first_over_full"])
    return found


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--prefix", type=int, nargs="+", default=[2048, 8192])
    options.add_argument("--place", choices=["link", "shm"], nargs="+", default=["link", "shm"])
    options.add_argument("--shapes", choices=SHAPES, nargs="+", default=["135M"])
    options.add_argument("--rate", default="1gbit")
    options.add_argument("--only", choices=["prefix", "agreement"], help="one part")
    options.add_argument("--text", type=pathlib.Path, default=BOOKS, help="books, one JSON object with `text` a line")
    options.add_argument("--minutes", type=float, default=60, help="for all of it")
    options.add_argument("--json")
    chosen = options.parse_args()
    report = Report()
    raw = run(report, chosen.prefix if chosen.only != "agreement" else [], chosen.place, chosen.only != "prefix", chosen.shapes,
              chosen.rate, chosen.text, chosen.minutes)
    if chosen.json:
        pathlib.Path(chosen.json).write_text(json.dumps(
            {"machine": machine(), "lines": report.lines, "notes": report.notes, "raw": raw}, indent=1) + "\n")
    sys.exit(1 if report.failed() else 0)


if __name__ == "__main__":
    main()
