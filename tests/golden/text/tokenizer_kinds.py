"""One small tokenizer per kind: the components are those of the models named, the vocabulary is trained here."""
import json

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from text_samples import SENTENCES

LLAMA3_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
BYTES = pre_tokenizers.ByteLevel.alphabet()


def byte_level(split, specials, size=700, normalizer=None, added=(), post=None, ignore_merges=False):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=specials, initial_alphabet=BYTES, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    tokenizer.add_tokens(list(added))
    if post:
        tokenizer.post_processor = post(tokenizer)
    return json.loads(tokenizer.to_str())


def sentencepiece(normalizer, pre_tokenizer, decoder, added=(), size=800):
    """Byte fallback: the vocabulary has the 256 byte tokens, and few characters beyond Latin."""
    specials = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer, tokenizer.decoder = normalizer, decoder
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=specials, limit_alphabet=120, show_progress=False)
    # Trained word by word: without a pre-tokenizer whole sentences would become tokens.
    trained = [word for sentence in SENTENCES for word in sentence.split()]
    tokenizer.train_from_iterator(trained * 3, trainer)
    tokenizer.add_tokens(list(added))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    value = json.loads(tokenizer.to_str())
    value["added_tokens"] = [t for t in value["added_tokens"] if not t["content"].startswith("<0x")]
    return value


def with_string_merges(value):
    """The older spelling of merges: "a b" instead of ["a", "b"]."""
    value["model"]["merges"] = [" ".join(pair) for pair in value["model"]["merges"]]
    return value


def llama_decoder(strip):
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if strip else []))


def begin(name):
    return lambda t: processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{name} $A", pair=f"{name} $A {name} $B",
                                      special_tokens=[(name, t.token_to_id(name))])])


TEKKEN_SPLIT = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
                r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
                r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def train_all(_texts):
    split = lambda regex: pre_tokenizers.Sequence([  # noqa: E731
        pre_tokenizers.Split(Regex(regex), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    yield "gpt2", with_string_merges(byte_level(gpt2, ["<|endoftext|>"]))
    yield "roberta", byte_level(
        pre_tokenizers.ByteLevel(add_prefix_space=True), ["<s>", "</s>", "<unk>"],
        added=[AddedToken("<mask>", lstrip=True, special=True)],
        post=lambda t: processors.RobertaProcessing(("</s>", 1), ("<s>", 0)))
    yield "llama3", byte_level(
        split(LLAMA3_SPLIT), ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        post=begin("<|begin_of_text|>"), ignore_merges=True)
    yield "qwen2", with_string_merges(byte_level(
        split(QWEN2_SPLIT), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], normalizer=normalizers.NFC(),
        added=[AddedToken("<tool_call>", normalized=False), AddedToken("</tool_call>", normalized=False)]))
    yield "smollm", byte_level(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2]),
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    yield "falcon", byte_level(
        pre_tokenizers.Sequence([pre_tokenizers.Punctuation("contiguous"), gpt2, pre_tokenizers.Digits(False),
                                 pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
                                 pre_tokenizers.Split("e", "merged_with_previous"),
                                 pre_tokenizers.Split("o", "merged_with_next")]),
        ["<|endoftext|>"], added=[AddedToken("word", single_word=True), AddedToken("<mask>", rstrip=True)])
    yield "tekken", byte_level(split(TEKKEN_SPLIT), ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"], ignore_merges=True)
    prepend = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    yield "llama2", with_string_merges(sentencepiece(prepend, None, llama_decoder(True)))
    yield "phi3", sentencepiece(
        prepend, None, llama_decoder(True),
        added=[AddedToken(name, rstrip=True, normalized=False, special=True) for name in
               ("<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>")])
    yield "mistral", sentencepiece(
        normalizers.Sequence([normalizers.NFKC()]), pre_tokenizers.Metaspace("▁", "first", False), llama_decoder(True),
        added=[AddedToken("MIX", normalized=True), AddedToken("word", single_word=True, lstrip=True, rstrip=True)])
    yield "metaspace", sentencepiece(
        normalizers.Sequence([normalizers.Strip(), normalizers.Lowercase(), normalizers.Replace(Regex(" {2,}"), " ")]),
        pre_tokenizers.Metaspace("▁", "always", True), decoders.Metaspace("▁", "always"),
        added=[AddedToken("MIX", normalized=True)])
    yield "gemma", sentencepiece(
        normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"), llama_decoder(False),
        added=[AddedToken("\n\n", normalized=False), AddedToken("▁▁", normalized=False)])
