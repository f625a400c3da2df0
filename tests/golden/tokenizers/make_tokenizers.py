"""Writes the tokenizers, texts and expected ids that tokenizer_golden_test.cpp compares with.

    python3 make_tokenizers.py [--real DIR]

NAME.json.xz     tokenizer.json of a small trained tokenizer, one for each family
NAME.ids.json.xz {"with": [ids…], "without": [ids…], "decoded": […], "decoded_skip": […]} for each
                 text of texts.json.xz, by Hugging Face tokenizers; "decoded" are of the ids "with"
llama3_1, qwen3  with --real DIR: DIR/NAME/tokenizer.json.xz is copied and its ids are written
"""

import argparse
import json
import lzma
import pathlib
import random
import shutil
import sys
import tempfile
import unicodedata

import tokenizers
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers,
                        pre_tokenizers, processors, trainers)

HERE = pathlib.Path(__file__).resolve().parent
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
          r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
         r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
         r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}+|"
         r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")

SCRIPTS = [
    "The quick brown fox jumps over the lazy dog, doesn't it? We're sure they'll say I'd've SHOULDN'T.",
    "Der Übermut des Größten: Äpfel, Öl und Straße – „Zitat“ … façade naïve coöperate Œuvre",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.", "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "敏捷的棕色狐狸跳过了懒狗。今天天气很好，我们去公园吧！", "いろはにほへと ちりぬるを カタカナ、漢字まじり文。ｶﾞｷﾞ",
    "다람쥐 헌 쳇바퀴에 타고파 각각", "العربية لغة جميلة، والسَّلَامُ عَلَيْكُمْ ١٢٣٤٥",
    "עִבְרִית היא שפה שמית", "हिन्दी में लिखा हुआ वाक्य, क्षत्रिय १२३४", "বাংলা ভাষা ৳৫০ ৴", "தமிழ் மொழி ௧௨௩",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ ๑๒๓", "ພາສາລາວ", "မြန်မာဘာသာ", "ქართული ენა", "Հայերեն", "አማርኛ ፩፪፫",
    "ᚠᚢᚦᚨᚱᚲ ᛮᛯᛰ", "𐍈𐌰𐌽 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟘𝟙𝟚 𒀀𒁀 𓀀", "ℵ₀ ≤ 2^ℵ₀ ∀x∈ℝ: ⌈x⌉ = −⌊−x⌋ ½ ² Ⅻ ⓐ ①",
]
EMOJI = ["👩‍👩‍👧‍👦 👨🏽‍🚀🏴‍☠️🏳️‍🌈", "🇩🇪🇫🇷 1️⃣ ☎️ 😀😃🫠🩷", "❤️‍🔥\u200d\ufe0f", "a😀b 😀c"]
ODD = [
    "", " ", "  ", "   a", "a   ", "\n", "\r\n", "\n\n\n", " \n \n x", "\r\r\n\n\ty", "a\tb\t\tc", "\u00a0x\u3000y\u2003 z",
    "a\u0000b\u0001\u0007\u001b[0m\u007f", "\u0085\u2028\u2029x", "\u180e a", "zero\u200bwidth\u200c \u200dx\ufeff",
    "\ue000\uf8ff\U000f0000\U0010fffd", "\u0378\U000e0fff\U0003fffd \ufffe\uffff", "\ufffd", "\u202eright\u202c",
    "e\u0301 e\u0323\u0302 \u1e69 s\u0323\u0307 s\u0307\u0323 \u212b \u2126 \u1100\u1161\u11a8", "ﬁ ﬂ ℌ ㎏ ㌀ Ⅷ",
    "\u0301leading mark", "a\u0301\u0301\u0301\u0323\u0323", "İIıi ẞß ΣΑΣ Ǆǅǆ", "\u1dfa\u0301 \u0898\u0301 a\U0001e08f\u0323",
    "\U00010C80 Ა\ua7dc\u019b \U00010d50\U0002ebf0\U000323b0\U000105c9", "1234567890 12 123 1234 1.234,56 0x1F ½¾ ٣٤ ४५",
    "'s 't 're 've 'm 'll 'd 'S 'T 'RE 'VE 'M 'LL 'D '\u017f 'x ' 'll'll", "don\u2019t I\u2019m", "can't've",
    "…—–‘’“”«»¿¡§¶†‡•‰", "$€£¥₹₿ +−×÷=≠ <>|~^`_ {}[]()", "#!/usr/bin/env bash\nfor i in $(seq 1 10); do\n\techo \"$i\"  # x\ndone\n",
    "def f(x):\n    if x:\n        return x ** 2\n\n\nclass A:\n\tpass", "https://example.org/a?b=c&d=%20#e user@example.org",
    "<s>", "</s>", "<s>a</s>", " <s> a </s> ", "<unk> <pad>", "x<|endoftext|>y <|endoftext|> <|endoftext|>\n", "<|im_start|>user\nHi<|im_end|>\n",
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nx<|eot_id|>", "<think>\n</think>\n\n", "<|endof", "<<s>>",
    "[MASK] a[MASK]b  [MASK]  c", "a [STRIP]  b", "word wordy WORD sword-word word", "▁a ▁▁b a▁b ▁", "\u2581\u2581", "<0x41><0x0A>",
    "x" * 300, "ab" * 2000, " " * 333 + "x", "\n" * 100, "é" * 500, "字" * 400, "a " * 300, "\t \t" * 50, "9" * 200, "!" * 200,
    "Pneumonoultramicroscopicsilicovolcanoconiosis" * 20,
]
ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz", "ABCXYZ", "0123456789", " ", "  ", "\n", "\r\n\t", "'", "'sStTreREvVemMlLdD", ".,;:!?-_()[]{}<>|/\\\"#$%&*+=@^`~",
    "äöüßéèñçøåæœ", "\u0300\u0301\u0302\u0308\u0323\u0327\u0345\u0334", "абвгдеёжз", "αβγδεζ", "中文字漢日本語", "ぁあかが゙゚ァアカガ", "가각힣각", "ابتثجَُِّ",
    "अआकखि्ा", "กขค่ำ", "٠١٢३४५", "\u00a0\u2003\u3000\u2028\u200b\u200c\u200d\ufeff\u180e\u0085", "😀👍🏽👩‍🚀🇩🇪️", "\u0000\u0001\u001b\u007f\u009f", "\ue000\uf8ff",
    "²³¹¼½Ⅷ①", "▁", "\u0378\U000e0fff", "𝔸𝟘𐍈𒀀",
]
SPECIALS = ["<s>", "</s>", "<unk>", "<|endoftext|>", "<|im_start|>", "<|eot_id|>", "<think>", "[MASK]", "[STRIP]", "word", "<0x41>"]


def random_text(rng):
    parts = []
    for _ in range(rng.randint(1, 12)):
        kind = rng.random()
        if kind < 0.06:
            parts.append(rng.choice(SPECIALS))
        elif kind < 0.12:
            parts.append(rng.choice(SCRIPTS + EMOJI + ODD[:50])[:rng.randint(1, 30)])
        elif kind < 0.16:
            code = rng.randrange(0x110000)
            parts.append("" if 0xD800 <= code < 0xE000 else chr(code))
        else:
            alphabet = rng.choice(ALPHABETS)
            parts.append("".join(rng.choice(alphabet) for _ in range(rng.randint(1, 9))))
        if rng.random() < 0.3:
            parts.append(" ")
    return "".join(parts)


def texts(count=400, seed=1):
    rng = random.Random(seed)
    result = SCRIPTS + EMOJI + ODD
    result += [unicodedata.normalize("NFD", s) for s in SCRIPTS] + ["\n".join(SCRIPTS), " ".join(EMOJI)]
    return result + [random_text(rng) for _ in range(count)]


def training_texts():
    rng = random.Random(7)
    words = " ".join(SCRIPTS).split()
    return SCRIPTS * 20 + [" ".join(rng.choice(words) for _ in range(30)) for _ in range(400)] + ODD[-30:] * 2


def trained(tokenizer, size, **options):
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, **options)
    tokenizer.train_from_iterator(training_texts(), trainer)
    return tokenizer


def bytes_first():
    return ["<unk>", "<s>", "</s>"] + ["<0x%02X>" % b for b in range(256)]


def sentencepiece_model(normalizer, pre_tokenizer, size):
    """Trained on whole texts with spaces as U+2581, as SentencePiece's BPE splits them."""
    trainer = Tokenizer(models.BPE())
    trainer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained(trainer, size, special_tokens=bytes_first(), limit_alphabet=150)
    model = json.loads(trainer.to_str())["model"]
    tokenizer = Tokenizer(models.BPE(vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]],
                                     unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    return tokenizer


def template(tokenizer, single, names):
    ids = [(name, tokenizer.token_to_id(name)) for name in names]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair="$A $B", special_tokens=ids)


def special(*names, normalized=False):
    return [AddedToken(name, special=True, normalized=normalized) for name in names]


def spm_decoder():
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])


def make_llama2():
    t = sentencepiece_model(normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None, 1400)
    t.add_special_tokens(special("<unk>", "<s>", "</s>"))
    t.decoder = spm_decoder()
    template(t, "<s> $A", ["<s>"])
    return t


def make_llama2_normalized():
    """As some conversions have it: special tokens that are sought in normalized text."""
    t = sentencepiece_model(normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None, 1200)
    t.add_special_tokens(special("<unk>", "<s>", "</s>", normalized=True))
    t.add_tokens([AddedToken("[MASK]", lstrip=True), AddedToken("[STRIP]", rstrip=True, normalized=False),
                  AddedToken("word", single_word=True)])
    t.decoder = spm_decoder()
    template(t, "<s> $A </s>", ["<s>", "</s>"])
    return t


def make_mistral():
    t = sentencepiece_model(None, pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False), 1400)
    t.add_special_tokens(special("<unk>", "<s>", "</s>"))
    t.decoder = spm_decoder()
    template(t, "<s> $A", ["<s>"])
    return t


def make_metaspace():
    """Metaspace that splits, behind a normalizer that moves the start of the text."""
    t = sentencepiece_model(normalizers.Sequence([normalizers.Strip(), normalizers.NFKC(), normalizers.Lowercase()]),
                            pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=True), 1200)
    t.model.fuse_unk = False
    t.model.byte_fallback = False
    t.add_special_tokens(special("<s>", "</s>"))
    t.decoder = decoders.Metaspace("▁", prepend_scheme="first")
    return t


def make_gemma():
    t = sentencepiece_model(normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"), 1400)
    t.add_special_tokens(special("<s>", "</s>", "<|im_start|>"))
    t.add_tokens([AddedToken(s, normalized=False) for s in ["\n\n", "\n\n\n", "▁▁", "▁▁▁▁", "<think>"]])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    template(t, "<s> $A", ["<s>"])
    return t


def byte_level(pre_tokenizer, size=1400, normalizer=None, **model):
    t = Tokenizer(models.BPE(**model))
    if normalizer:
        t.normalizer = normalizer
    t.pre_tokenizer = pre_tokenizer
    t.decoder = decoders.ByteLevel()
    trained(t, size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    t.add_special_tokens(special("<|endoftext|>", "<|im_start|>", "<|eot_id|>"))
    return t


def make_gpt2():
    t = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    return t


def make_gpt2_prefix():
    t = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True))
    t.add_tokens([AddedToken("[MASK]", lstrip=True, rstrip=True), AddedToken("word", single_word=True)])
    t.post_processor = processors.RobertaProcessing(("<|endoftext|>", t.token_to_id("<|endoftext|>")),
                                                    ("<|im_start|>", t.token_to_id("<|im_start|>")))
    return t


def make_smollm():
    return byte_level(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False)]))


def make_o200k():
    """The split of GPT-4o, which goes by regular expression."""
    return byte_level(pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(O200K), "isolated"),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]),
                      normalizer=normalizers.NFC())


def make_odd():
    """The rest: affixes, unknown tokens that are not fused, every other splitter and normalizer."""
    t = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##", end_of_word_suffix="</w>"))
    t.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Replace(Regex(r"[\d]{3,}"), "9"),
                                         normalizers.Nmt(), normalizers.Strip(left=False, right=True)])
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation("contiguous"),
                                               pre_tokenizers.Digits(), pre_tokenizers.Split(Regex("[aeiou]+"), "merged_with_previous"),
                                               pre_tokenizers.Split(Regex("[A-Z]"), "merged_with_next"),
                                               pre_tokenizers.Split("q", "removed"), pre_tokenizers.Split(Regex("[a-z]+"), "contiguous", invert=True)])
    trained(t, 900, special_tokens=["<unk>", "<s>"], limit_alphabet=120, continuing_subword_prefix="##", end_of_word_suffix="</w>")
    template(t, "<s> $A <s> $A", ["<s>"])
    return t


def make_dropped():
    """No unknown token, no decoder: characters without a token vanish."""
    t = Tokenizer(models.BPE(ignore_merges=True))
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("merged_with_previous")])
    return trained(t, 900, limit_alphabet=100)


MAKERS = {name[5:]: f for name, f in list(globals().items()) if name.startswith("make_")}


def write_xz(path, text):
    path.write_bytes(lzma.compress(text.encode("utf-8"), preset=9 | lzma.PRESET_EXTREME))


def expected(tokenizer, corpus):
    with_special = [tokenizer.encode(s).ids for s in corpus]
    return {"with": with_special,
            "without": [tokenizer.encode(s, add_special_tokens=False).ids for s in corpus],
            "decoded": [tokenizer.decode(ids, skip_special_tokens=False) for ids in with_special],
            "decoded_skip": [tokenizer.decode(ids, skip_special_tokens=True) for ids in with_special]}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--real", type=pathlib.Path)
    options = parser.parse_args()
    corpus = texts()
    compact = dict(ensure_ascii=False, separators=(",", ":"))
    write_xz(HERE / "texts.json.xz", json.dumps(corpus, **compact))
    made = {}
    for name, make in MAKERS.items():
        # Loaded again, because the file is what counts.
        text = make().to_str()
        write_xz(HERE / f"{name}.json.xz", text)
        made[name] = Tokenizer.from_str(text)
    if options.real:
        for name in ("llama3_1", "qwen3"):
            source = options.real / name / "tokenizer.json.xz"
            shutil.copyfile(source, HERE / f"{name}.json.xz")
            (HERE / f"{name}.json.xz").chmod(0o644)
            made[name] = Tokenizer.from_str(lzma.decompress(source.read_bytes()).decode("utf-8"))
    for name, tokenizer in made.items():
        write_xz(HERE / f"{name}.ids.json.xz", json.dumps(expected(tokenizer, corpus), **compact))
    print("tokenizers", tokenizers.__version__, "texts", len(corpus), *made, file=sys.stderr)


if __name__ == "__main__":
    main()
