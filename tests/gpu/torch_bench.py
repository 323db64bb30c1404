"""What torch reaches on this device, for the same shapes as our own benchmarks: one JSON object. Decode and
causal prefill attention over a bf16 cache (the shape of an 8B model: 32 query heads, 8 KV heads, d 128), a large bf16 product,
and a copy. Exit code 77: it
cannot run here."""

import json
import statistics
import sys


def cannot(reason):
    print(reason)
    sys.exit(77)


def milliseconds(torch, call, inputs, rounds=20):
    """Median time of call(input) over rotating inputs, so that caches do not serve them."""
    for item in inputs:
        call(item)
    times = []
    for i in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call(inputs[i % len(inputs)])
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def main():
    try:
        import torch
    except ImportError:
        cannot("torch is not installed")
    if not torch.cuda.is_available():
        cannot("torch finds no CUDA device")
    random = torch.Generator(device="cuda").manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=random, device="cuda", dtype=torch.bfloat16)

    results = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "attention": []}
    for batch, context in ((1, 131072), (8, 131072), (64, 16384)):
        inputs = [(normal(batch, 32, 1, 128), normal(batch, 8, context, 128), normal(batch, 8, context, 128))
                  for _ in range(2)]
        time = milliseconds(torch, lambda x: torch.nn.functional.scaled_dot_product_attention(*x, enable_gqa=True), inputs)
        size = 2 * inputs[0][1].numel() * 2
        results["attention"].append({"batch": batch, "context": context, "ms": time, "gb_per_s": size / time / 1e6})
        del inputs
    inputs = [(normal(1, 32, 8192, 128), normal(1, 8, 8192, 128), normal(1, 8, 8192, 128)) for _ in range(2)]
    time = milliseconds(torch, lambda x: torch.nn.functional.scaled_dot_product_attention(
        *x, is_causal=True, enable_gqa=True), inputs)
    results["prefill"] = {"tokens": 8192, "ms": time, "tflops": 2 * 32 * 128 * 8192 * 8192 / time / 1e9}
    a = [(normal(8192, 4096), normal(4096, 14336)) for _ in range(2)]
    time = milliseconds(torch, lambda x: x[0] @ x[1], a)
    results["bf16_tflops"] = 2 * 8192 * 4096 * 14336 / time / 1e9
    source = [torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_() for _ in range(2)]
    target = torch.empty_like(source[0])
    time = milliseconds(torch, target.copy_, source)
    results["copy_gb_per_s"] = 2 * target.numel() / time / 1e6
    pinned = torch.empty(1 << 28, dtype=torch.uint8).pin_memory()
    time = milliseconds(torch, lambda x: target[:1 << 28].copy_(x, non_blocking=True), [pinned])
    results["host_to_device_gb_per_s"] = (1 << 28) / time / 1e6
    print(json.dumps(results))


main()
