"""What the benchmarks measured against what they should reach: lines(results) of tests/gpu/run."""

LONG = 1 << 20  # tokens in the cache of a whole batch: enough to keep every multiprocessor at it


def attention(cases, torch):
    """Best of the page sizes for every shape and width."""
    best = {}
    for case in cases:
        key = (case["bits"], case["batch"], case["context"])
        if key not in best or case["seconds"] < best[key]["seconds"]:
            best[key] = case
    theirs = {(case["batch"], case["context"]): case["ms"] / 1e3 for case in (torch or {}).get("attention", [])}
    for (bits, batch, context), case in sorted(best.items()):
        wide = batch * context >= LONG
        target = {(4, True): 0.80, (4, False): 0.60, (2, True): 0.65, (16, True): 0.88}.get((bits, wide))
        name = f"decode attention, {bits} bits, batch {batch} x {context}, pages of {case['page_tokens']}: of read bandwidth"
        yield name, case["fraction_of_read_bandwidth"], target
        if bits == 4 and (batch, context) in theirs:
            yield (f"decode attention, 4 bits, batch {batch} x {context}: times torch SDPA on bf16",
                   theirs[batch, context] / case["seconds"], 3.0)


def measured(results):
    bench, torch = results.get("benchmarks") or {}, results.get("torch")
    if "read" in bench:
        yield "read kernel, GB/s", bench["read"]["bytes_per_second"] / 1e9, None
    yield from attention(bench.get("decode_attention", []), torch)
    one = bench.get("layers", {}).get("1_rows")
    if one:
        yield "layers at batch 1: weights over read bandwidth", one["fraction_of_read_bandwidth"], None
    if "decode_step" in bench:
        step = bench["decode_step"]
        yield "decode step at batch 1, recorded: weights over read bandwidth", step["fraction_of_read_bandwidth"], 0.80
        yield "decode step at batch 1: told call by call, times recorded", step["seconds_told_call_by_call"] / step["seconds"], None
    for case in bench.get("prefill_attention", []):
        name = f"prefill attention, {case['tokens']} tokens, {case['bits']} bits{', mapped' if case['basis'] else ''}"
        yield f"{name}: of cuBLASLt's bf16 rate", case["fraction_of_products"], 0.60 if case["bits"] == 4 else None
        if (torch or {}).get("prefill", {}).get("tokens") == case["tokens"] and case["bits"] in (4, 16):
            yield f"{name}: times torch SDPA on bf16", torch["prefill"]["ms"] / 1e3 / case["seconds"], None
    for case in bench.get("draws", []):
        kind = "the most likely token" if case["greedy"] else "top-k and top-p"
        yield f"drawing, {case['rows']} rows, {kind}: microseconds", case["seconds"] * 1e6, None
    if "restore_fraction_of_copy" in bench.get("restore", {}):
        yield "restore of slabs: of the pinned copy", bench["restore"]["restore_fraction_of_copy"], 0.90


def lines(results):
    """[(name, measured, target or None, whether it is reached or None)]"""
    rows = [(name, value, target, None if target is None else value >= target) for name, value, target in measured(results)]
    share = ((results.get("benchmarks") or {}).get("cache_write") or {}).get("share")
    if share is not None:
        rows.append(("cache write: share of an attention step at batch 64", share, 0.05, share <= 0.05))
    return rows
