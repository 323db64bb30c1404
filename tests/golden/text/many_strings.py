"""Ten thousand strings of many scripts, made from many.json the same way here and in
tests/unit/coordinator/text/many_strings.cc, so that no file has to hold them. Code points are of blocks that have been in Unicode for long: tables of different age agree."""

RANGES = [
    (0x20, 0x7E), (0x61, 0x7A), (0x41, 0x5A), (0x30, 0x39), (0x21, 0x2F), (0xA1, 0xFF), (0x100, 0x17F), (0x300, 0x315),
    (0x391, 0x3A1), (0x3B1, 0x3C9), (0x410, 0x44F), (0x531, 0x556), (0x5D0, 0x5EA), (0x621, 0x63A), (0x64B, 0x652),
    (0x660, 0x669), (0x904, 0x939), (0x93E, 0x94D), (0x966, 0x96F), (0x995, 0x9A8), (0xB85, 0xB8A), (0xE01, 0xE3A),
    (0x10D0, 0x10F0), (0x1100, 0x1112), (0x1161, 0x1175), (0x1E00, 0x1EF9), (0x2010, 0x2027), (0x2070, 0x2071),
    (0x20A0, 0x20AC), (0x2160, 0x216B), (0x2190, 0x21FF), (0x2200, 0x22FF), (0x2460, 0x2473), (0x2500, 0x257F),
    (0x3041, 0x3096), (0x30A1, 0x30FA), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0xF900, 0xFA2D), (0xFB00, 0xFB06),
    (0xFF01, 0xFF5E), (0x1D400, 0x1D454), (0x1F300, 0x1F320), (0x1F600, 0x1F64F), (0x1F1E6, 0x1F1FF), (0x1F3FB, 0x1F3FF),
    (0x20000, 0x20100), (0x200C, 0x200D), (0xFE0E, 0xFE0F), (0x2002, 0x200A), (0x9, 0xD), (0x20, 0x20), (0xA0, 0xA0),
]
WORDS = [
    "the", "The", " and", " of", "Hello", " world", "don't", "I'll", "WE'RE", "x1", "3.14", "2024-01-31", "100,000", "  ", "   ",
    "\n", "\n\n", "\r\n", " \n", "\t", "foo_bar", "fooBar", "http://a.b/c?d=e&f", "user@mail.org", "#include <x>", "if (a) {", "}",
    "größe", "Straße", "naïve", "cafe\u0301", "Ångström", "e\u0301", "привет", " мир", "שלום", "مرحبا", "नमस्ते", "สวัสดี", "你好",
    "世界", "こんにちは", "カタカナ", "안녕", "👩‍👩‍👧", "👍🏽", "🇩🇪", "❤️", "…", "—", "“quoted”", "½", "ﬁ", "①", "Ⅳ", "<s>", "</s>", "<unk>",
    "<|im_start|>", "<|endoftext|>", "<mask>", "▁", "▁▁", "\u200b", "\ufeff", "<0x41>", "word", "Once upon a time", ", ", ". ", "!!!",
]
COUNT = 10000
MASK = (1 << 64) - 1


class Random:
    """SplitMix64."""

    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        x = self.state
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        return (x ^ (x >> 31)) % n


def many_strings():
    strings = []
    for index in range(COUNT):
        random = Random(index)
        text = ""
        for _ in range(1 + random.below(6)):
            if random.below(2) == 0:
                text += WORDS[random.below(len(WORDS))]
                continue
            low, high = RANGES[random.below(len(RANGES))]
            for _ in range(1 + random.below(8)):
                text += chr(low + random.below(high - low + 1))
        strings.append(text)
    return strings


def broken_strings():
    """Bytes that are no UTF-8, in hexadecimal, and what Python makes of them: U+FFFD for each maximal wrong part."""
    for index, text in enumerate(many_strings()[:300]):
        random = Random(COUNT + index)
        data = bytearray(text.encode())
        for _ in range(1 + random.below(3)):
            at = random.below(len(data) + 1)
            kind = random.below(3)
            if kind == 0:
                data[at:at] = bytes([0x80 + random.below(0x80)])
            elif kind == 1:
                del data[at:at + 1 + random.below(2)]
            else:
                data[at:at] = [b"\xed\xa0\x80", b"\xf0\x9f\x99", b"\xc0\xaf", b"\xf4\x90\x80\x80"][random.below(4)]
        yield [data.hex(), data.decode("utf-8", "replace")]


def checksums(id_lists, block=10):
    """FNV-1a, 32 bits, over the ids of each ten strings in a row, each list followed by -1."""
    sums = []
    for begin in range(0, len(id_lists), block):
        value = 0x811C9DC5
        for ids in id_lists[begin:begin + block]:
            for token in [*ids, -1]:
                for shift in (0, 8, 16, 24):
                    value = ((value ^ ((token >> shift) & 0xFF)) * 0x01000193) & 0xFFFFFFFF
        sums.append(value)
    return sums
