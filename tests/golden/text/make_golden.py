#!/usr/bin/env python3
"""Makes the golden files of the text layer with the packages `tokenizers` and `sentencepiece`, and Jinja as
`transformers` sets it up.

    tests/golden/text/make_golden.py [--stories DIR]

Trains one small tokenizer per kind that the engine supports (same pre-tokenizers, normalizers, decoders and
post-processors as the models of that kind, a vocabulary of some hundred tokens), encodes and decodes the strings of
text_samples.py with it, and renders the chat templates of template_samples.py. The demo model's own tokenizer is taken
from deploy/demo-model; --stories names a folder of the stories260K model, whose tokenizer is only read.
"""
import argparse
import json
import pathlib
import random
import shutil

from tokenizers import Tokenizer

import sentencepiece_kinds
import tokenizer_kinds
from chat_golden import render_all
from many_strings import RANGES, WORDS, broken_strings, checksums, many_strings
from text_samples import strings

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def expect(tokenizer, texts):
    """ids per text; decoded text or null where it equals the text; ids with special tokens; decoded random ids."""
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    decoded = [tokenizer.decode(i, skip_special_tokens=False) for i in ids]
    skipped = [tokenizer.decode(i, skip_special_tokens=True) for i in ids]
    random_ids = random.Random(17)
    size = tokenizer.get_vocab_size()
    noise = [[random_ids.randrange(size) for _ in range(12)] for _ in range(60)]
    return {
        "ids": ids,
        "decoded": [None if d == t else d for d, t in zip(decoded, texts)],
        "skipped": [None if s == d else s for s, d in zip(skipped, decoded)],
        "special": [tokenizer.encode(text, add_special_tokens=True).ids for text in texts[:10]],
        "noise": [[n, tokenizer.decode(n, skip_special_tokens=False)] for n in noise],
        "many": checksums([tokenizer.encode(text, add_special_tokens=False).ids for text in many_strings()]),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--stories", type=pathlib.Path)
    args = parser.parse_args()
    texts = strings()
    assert len(texts) >= 500 and len(set(texts)) == len(texts)
    write(HERE / "strings.json", texts)
    write(HERE / "broken.json", list(broken_strings()))
    write(HERE / "many.json", {"ranges": RANGES, "words": WORDS})
    folders = {"demo": ROOT / "deploy/demo-model"}
    if args.stories:
        folders["stories260K"] = args.stories
    for kind, tokenizer in tokenizer_kinds.train_all(texts):
        folder = HERE / kind
        shutil.rmtree(folder, ignore_errors=True)
        write(folder / "tokenizer.json", tokenizer)
        folders[kind] = folder
    for kind, folder in folders.items():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        write(HERE / kind / "expected.json", expect(tokenizer, texts))
    for kind, expected in sentencepiece_kinds.train_all(HERE, texts):
        write(HERE / kind / "expected.json", expected)
    write(HERE / "chat.json", render_all())


if __name__ == "__main__":
    main()
