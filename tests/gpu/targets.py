"""What the benchmarks measured against what they should reach: lines(results, parts) of tests/gpu/run.

Every target has a line, measured or not, and every fraction says what it is of: the floor, in the same run."""

LONG = 1 << 20  # tokens in the cache of a whole batch: enough to keep every multiprocessor at it
ATTENTION = {(4, True): 0.80, (4, False): 0.60, (2, True): 0.65, (16, True): 0.88}  # (bits, long): of read bandwidth


def line(name, measured, target=None, floor="", most=False):
    reached = None
    if target is not None and measured is not None:
        reached = measured <= target if most else measured >= target
    return {"name": name, "measured": measured, "target": target, "at_most": most, "reached": reached, "floor": floor}


def floor(seconds, what):
    return f"{seconds * 1e6:.1f} us: {what}"


def attention(cases, torch):
    """Best of the page sizes for every shape and width."""
    best = {}
    for case in cases:
        key = (case["bits"], case["batch"], case["context"])
        if key not in best or case["seconds"] < best[key]["seconds"]:
            best[key] = case
    theirs = {(case["batch"], case["context"]): case["ms"] / 1e3 for case in (torch or {}).get("attention", [])}
    missing = dict(ATTENTION)
    for (bits, batch, context), case in sorted(best.items()):
        wide = batch * context >= LONG
        name = f"decode attention, {bits} bits, batch {batch} x {context}, pages of {case['page_tokens']}: of read bandwidth"
        yield line(name, case["fraction_of_read_bandwidth"], ATTENTION.get((bits, wide)),
                   floor(case["floor_seconds"], f"{case['bytes'] / 1e6:.0f} MB of pages at the read kernel's rate"))
        missing.pop((bits, wide), None)
        if bits == 4:
            mine = theirs.get((batch, context))
            yield line(f"decode attention, 4 bits, batch {batch} x {context}: times torch SDPA on bf16",
                       mine and mine / case["seconds"], 3.0, floor(mine, "torch") if mine else "")
    for (bits, wide), target in missing.items():
        where = "batch x context of 1 M tokens" if wide else "batch 1 x 131072"
        yield line(f"decode attention, {bits} bits, {where}: of read bandwidth", None, target)


def steps(bench):
    read = bench.get("read", {}).get("bytes_per_second")
    one = bench.get("layers", {}).get("1_rows")
    if one:
        yield line("layers at batch 1: weights over read bandwidth", one["fraction_of_read_bandwidth"], None,
                   floor(one["weight_bytes"] / read, f"{one['weight_bytes'] / 1e6:.0f} MB of weights"))
    step = bench.get("decode_step")
    yield line("decode step at batch 1, recorded: weights over read bandwidth",
               step and step["fraction_of_read_bandwidth"], 0.80,
               floor(step["floor_seconds"], f"{step['weight_bytes'] / 1e9:.2f} GB of weights") if step else "")
    if step:
        yield line("decode step at batch 1: told call by call, times recorded",
                   step["seconds_told_call_by_call"] / step["seconds"])
    write = bench.get("cache_write")
    yield line("cache write: share of an attention step at batch 64", write and write["share"], 0.05,
               floor(write["seconds_without_a_complete_page"], "the step without it") if write else "", most=True)


def prompts(bench, torch):
    cases = bench.get("prefill_attention", [])
    rate = bench.get("products", {}).get("operations_per_second")
    for case in cases:
        name = f"prefill attention, {case['tokens']} tokens, {case['bits']} bits{', mapped' if case['basis'] else ''}"
        yield line(f"{name}: of cuBLASLt's bf16 rate", case["fraction_of_products"], 0.60 if case["bits"] == 4 else None,
                   f"{rate / 1e12:.0f} TFLOPS" if rate else "")
        if (torch or {}).get("prefill", {}).get("tokens") == case["tokens"] and case["bits"] in (4, 16):
            yield line(f"{name}: times torch SDPA on bf16", torch["prefill"]["ms"] / 1e3 / case["seconds"], None,
                       floor(torch["prefill"]["ms"] / 1e3, "torch"))
    if not any(case["bits"] == 4 for case in cases):
        yield line("prefill attention, 8192 tokens, 4 bits: of cuBLASLt's bf16 rate", None, 0.60)
    for case in bench.get("draws", []):
        kind = "the most likely token" if case["greedy"] else "top-k and top-p"
        yield line(f"drawing, {case['rows']} rows, {kind}: microseconds", case["seconds"] * 1e6)


def clean(parts):
    """Checks that are targets, too: 1 where they passed."""
    by_name = {part["name"]: part["result"] for part in parts}
    for name, part in (("compute-sanitizer memcheck: clean", "memcheck"), ("compute-sanitizer racecheck: clean", "racecheck"),
                       ("no leak over 10,000 steps (models and engine): passed", "models and engine")):
        result = by_name.get(part)
        yield line(name, {"passed": 1, "failed": 0, "late": 0}.get(result), 1)


def restores(measured):
    copy = measured.get("host_to_device_bytes_per_second")
    cases = measured.get("restores", [])
    for case in cases:
        whole = case["batch_bytes"] == measured["bytes"]
        many = "" if whole else f", {case['batch_bytes'] / 2**20:.0f} MiB at a time"
        yield line(f"restore of slabs of {case['slab_bytes'] / 2**10:.0f} KiB{many}: of the pinned copy",
                   case["fraction_of_copy"], 0.90 if whole else None, f"{copy / 1e9:.1f} GB/s")
    if not cases:
        yield line("restore of slabs of 64 KiB: of the pinned copy", None, 0.90)


def lines(results, parts):
    bench, torch = results.get("benchmarks") or {}, results.get("torch")
    rows = []
    if "read" in bench:
        rows.append(line("read kernel, GB/s", bench["read"]["bytes_per_second"] / 1e9))
    rows += attention(bench.get("decode_attention", []), torch)
    rows += steps(bench)
    rows += prompts(bench, torch)
    rows += restores(bench.get("restore", {}))
    rows += clean(parts)
    return rows


def table(rows):
    """The same as Markdown."""
    text = ["| what | measured | target | reached | floor |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        measured = "not measured" if row["measured"] is None else f"{row['measured']:.3g}"
        target = "" if row["target"] is None else f"{'<=' if row['at_most'] else '>='} {row['target']:g}"
        reached = {None: "", True: "yes", False: "no"}[row["reached"]]
        text.append(f"| {row['name']} | {measured} | {target} | {reached} | {row['floor']} |")
    return "\n".join(text) + "\n"
