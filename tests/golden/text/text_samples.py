"""The strings on which tokenizers are compared: several scripts, and the corners that tokenizers treat apart."""
import random

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and then it sleeps.",
    "It's what they'd said: we'll see if you're right, I'm sure he's not.",
    "DON'T SHOUT! THEY'LL HEAR, I'M AFRAID; YOU'VE BEEN WARNED.",
    "Don’t use ‘smart quotes’ — or “do”… it’s fine.",
    "Voix ambiguë d'un cœur qui, au zéphyr, préfère les jattes de kiwis.",
    "Falsches Üben von Xylophonmusik quält jeden größeren Zwerg.",
    "El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia.",
    "Zażółć gęślą jaźń, a potem idź spać.",
    "Pijamalı hasta yağız şoföre çabucak güvendi. İstanbul ılık.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Жебракують філософи при ґанку церкви в Гадячі.",
    "Ξεσκεπάζω την ψυχοφθόρα σου βδελυγμία, φίλε μου.",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر",
    "السَّلامُ عَلَيْكُم، كَيْفَ حَالُكَ؟ ١٢٣٤٥",
    "דג סקרן שט בים מאוכזב ולפתע מצא לו חברה",
    "ऋषियों को सताने वाले दुष्ट राक्षसों का सर्वनाश करने वाले १२३",
    "আমার সোনার বাংলা, আমি তোমায় ভালোবাসি",
    "தமிழ் மொழி மிகவும் பழமையானது",
    "天地玄黄,宇宙洪荒。日月盈昃,辰宿列张。",
    "我今天去了北京,吃了三碗面,花了25元。",
    "いろはにほへと ちりぬるを わかよたれそ つねならむ",
    "東京タワーへようこそ!カタカナとひらがな。",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다.",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน",
    "Do bạch kim rất quý nên sẽ dùng để lắp vô xương.",
    "ქართული ენა და Հայերեն լեզու",
    "👍 ok 👩‍👩‍👧‍👦 family 🏳️‍🌈 flag 🇩🇪🇫🇷 👋🏽 ❤️ 1️⃣ 🧑🏿‍🚀",
    "def f(x):\n    return [i ** 2 for i in range(x)]  # squares\n",
    "for (int i = 0; i < n; ++i) {\n\t\tsum += a[i] * b[i];\n\t}\n",
    '{"key": [1, 2.5e-3, null, true], "näme": "välue\\n"}',
    "SELECT * FROM t WHERE a='x' AND b<>3; -- comment",
    "https://example.org/path?q=1&r=%20#frag user.name+tag@mail.example",
    "In 1984, 3.14159 and 1,000,000 were 42% of 0x7fff; 2024-11-05T12:34:56Z.",
    "<div class=\"a\">&nbsp;text</div><!-- note -->",
    "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α ∧ ¬β ⇒ ∑ᵢ xᵢ² ≤ ½ · Ⅷ ①②③ ㊿",
    "naïve café re\u0301sume\u0301 A\u030angstro\u0308m Z\u0336a\u0321l\u0322g\u0345o",
]

CORNERS = [
    "", " ", "  ", "   ", "\n", "\n\n", "\n\n\n", "\t", "\t\t", "\r\n", "\r\n\r\n", " \n", "\n ", " \n \n ", "\u00a0",
    "\u2003\u2003x", "\u3000全角\u3000", "\u0085a", "\u180ea b", "\u200ba\u200bb", "\ufeffbom", "\u2028line\u2029para",
    "a", "A", "é", "ß", "ﬁ", "ſ's 'ſ", "'S 'T 'RE 'VE 'M 'LL 'D", "''s", "'", "\"", "s't", "1", "12", "123", "1234",
    "12345678901234567890", "1a2b3c", "a1b2", "１２３", "²³¹", "٣٤٥", "१२३४", "Ⅳ", "½", "3½", "x²", "a  b", "a   b",
    "a    b   ", "   a", " a ", "a ", "a\n", "a\n\n", "a \n b", "a\n  b", "a\t b", "\ta", "  \t  a", "a\u00a0b",
    "!", "!!", "!!!", "...", "….", "-", "--", "---", "----", "-----", "=====", "a-b", "a_b", "__init__", "snake_case_name",
    "camelCaseName", "HTTPServer", "$100.00", "€5", "50%", "#hash", "@at", "a/b/c", "\\", "\\n", "\\\\n", "C:\\dir\\x",
    "\x00", "a\x00b", "\x01\x02\x1f", "\x7f", "\u0080\u009f", "\ufffd", "\U0010ffff", "\ue000", "\U000f0000",
    "🙂", "🙂🙂", "a🙂b", " 🙂", "👨‍👩‍👧", "🇺🇸", "👍🏾", "⌚️", "☺", "☺️", "e\u0301", "\u0301", " \u0301", "a\u0301\u0302\u0303",
    "\u1100\u1161\u11a8", "각", "가각", "\u212b", "\u2126", "ﷺ", "㎏", "ﾊﾝｶｸ", "Ａｂｃ", "İi", "ǅ", "Σς", "ﬀ",
    "▁", "▁a", "a▁b", "▁▁", " ▁ ", "Ġ", "Ċ", "Ġa", "<0x41>", "<0xE2>", "<s>", "</s>", "<unk>", "a<s>b", "<s> a", "a <s>",
    "<|endoftext|>", "a<|endoftext|>b", " <|endoftext|> ", "<|endoftext|><|endoftext|>", "<|endoftext|", "|endoftext|>",
    "<|im_start|>user\nhello<|im_end|>\n", "<|im_start|>system\nYou are.<|im_end|>\n<|im_start|>assistant\n",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>", "<tool_call>{}</tool_call>",
    "a <tool_call> b", "[INST] hi [/INST]", "  <mask>  x", "x<mask>", "x <mask> <mask> y", "word", "wordy", "a word b",
    "(word)", "aword", "word_", "MIX", "mix", "a MiX b", "ＭＩＸ", "<<word>>", "wordword word",
    "hello world", "Hello World", "HELLO WORLD", " hello", "hello ", "hello  world", "\u200dword\u200c",
]

ADDED = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "<|eot_id|>", "<tool_call>", "<mask>", "word", "MIX"]


def strings(count=520, seed=5):
    """`count` distinct strings: sentences, corners, and seeded mixtures of both."""
    rng = random.Random(seed)
    out = list(dict.fromkeys(SENTENCES + CORNERS + ["a" * 70 + "b" * 70, " " * 40 + "x", "ab" * 60, "\n" * 30, "7" * 50]))
    seen = set(out)
    words = [w for s in SENTENCES for w in s.split(" ")]
    while len(out) < count:
        kind = rng.randrange(4)
        if kind == 0:
            text = " ".join(rng.choice(words) for _ in range(rng.randrange(2, 7)))
        elif kind == 1:
            text = "".join(rng.choice(CORNERS) for _ in range(rng.randrange(2, 5)))
        elif kind == 2:
            a, b = rng.choice(SENTENCES), rng.choice(SENTENCES)
            text = a[rng.randrange(len(a)):][:25] + rng.choice(ADDED + [" ", "\n", ""]) + b[: rng.randrange(1, 25)]
        else:
            text = "".join(rng.choice(rng.choice(SENTENCES)) for _ in range(rng.randrange(3, 16)))
        if text not in seen:
            seen.add(text)
            out.append(text)
    return out
