"""The logits that lowkey computed on a device in bf16 (TWIN_LOGITS of gpu_engine) against transformers on the same
device: transformers_twin.py FILE prints one JSON object. Exit code 77: it cannot run here, with the reason."""

import json
import pathlib
import sys

import numpy

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOLERANCE = 0.03  # of a row's largest logit; both sides round weights and activations to bf16, in their own places


def cannot(reason):
    print(reason)
    sys.exit(77)


def main():
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError as missing:
        cannot(f"{missing.name} is not installed")
    if not torch.cuda.is_available():
        cannot("torch finds no CUDA device")
    cases = json.loads((ROOT / "tests/golden/model/greedy_demo.json").read_text())["cases"]
    model = AutoModelForCausalLM.from_pretrained(ROOT / "deploy/demo-model", dtype=torch.bfloat16).cuda().eval()
    vocab = model.config.vocab_size
    mine = numpy.fromfile(sys.argv[1], numpy.float32).reshape(-1, vocab)
    at, worst, agreed, rows = 0, 0.0, 0, 0
    for case in cases:
        tokens = torch.tensor([case["prompt_ids"]], device="cuda")
        with torch.no_grad():
            theirs = model(tokens).logits[0].float().cpu().numpy()
        part = mine[at:at + len(theirs)]
        at += len(theirs)
        worst = max(worst, float((abs(part - theirs).max(1) / abs(theirs).max(1)).max()))
        agreed += int((part.argmax(1) == theirs.argmax(1)).sum())
        rows += len(theirs)
    passed = worst <= TOLERANCE and at == len(mine)
    print(json.dumps({"rows": rows, "largest_difference": worst, "tolerance": TOLERANCE, "top1_agreement": agreed / rows,
                      "device": torch.cuda.get_device_name(), "torch": torch.__version__, "passed": passed}))
    sys.exit(0 if passed else 1)


main()
