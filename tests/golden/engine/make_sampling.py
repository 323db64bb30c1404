#!/usr/bin/env python3
"""Writes sampling.json beside itself: what transformers' logits processors make of random logits, for every parameter
that changes a distribution, alone and all together. Frequency and presence penalties, which transformers lacks, are
numpy from OpenAI's definition (logit -= count * frequency + (count > 0) * presence, over the answer's tokens)."""
import json
import pathlib

import numpy
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, SequenceBiasLogitsProcessor, TemperatureLogitsWarper,
    TopKLogitsWarper, TopPLogitsWarper)

VOCAB = 32
PROMPT = [3, 5, 5, 7, 30]
ANSWER = [5, 9, 9, 9, 11, 2]
CASES = [
    {},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.6},
    {"frequency_penalty": 0.7},
    {"frequency_penalty": -1.5},
    {"presence_penalty": 1.1},
    {"logit_bias": {"4": 3.0, "9": -100, "31": -1.5}},
    {"min_p": 0.2},
    {"temperature": 0.6, "min_p": 0.05},
    {"temperature": 1.5, "top_k": 6, "min_p": 0.4},
    {"temperature": 1.2, "top_p": 0.7, "min_p": 0.1},
    {"temperature": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2, "frequency_penalty": 0.3,
     "presence_penalty": 0.5, "logit_bias": {"1": 2, "3": -2}},
]


def probabilities(logits, case):
    scores = torch.tensor(logits, dtype=torch.float32)[None]
    bias = {(int(token),): float(value) for token, value in case.get("logit_bias", {}).items()}
    ids = torch.tensor([PROMPT + ANSWER])
    if bias:
        scores = SequenceBiasLogitsProcessor([[list(k), v] for k, v in bias.items()])(ids, scores)
    if "repetition_penalty" in case:
        scores = RepetitionPenaltyLogitsProcessor(case["repetition_penalty"])(ids, scores)
    counts = torch.tensor(numpy.bincount(ANSWER, minlength=VOCAB), dtype=torch.float32)
    scores = scores - counts * case.get("frequency_penalty", 0) - (counts > 0) * case.get("presence_penalty", 0)
    scores = TemperatureLogitsWarper(float(case.get("temperature", 1)))(ids, scores)
    for name, warper in (("min_p", MinPLogitsWarper), ("top_k", TopKLogitsWarper), ("top_p", TopPLogitsWarper)):
        if name in case:
            scores = warper(case[name])(ids, scores)
    return torch.softmax(scores[0].double(), 0).tolist()


def main():
    random = numpy.random.default_rng(5)
    cases = []
    for case in CASES:
        logits = [round(float(x), 3) for x in random.normal(0, 2, VOCAB)]
        cases.append({"parameters": case, "logits": logits,
                      "probabilities": [float(f"{p:.6g}") for p in probabilities(logits, case)]})
    path = pathlib.Path(__file__).with_name("sampling.json")
    path.write_text(json.dumps({"prompt": PROMPT, "answer": ANSWER, "cases": cases}, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
