"""Writes tests/data/tokenizers/: two small tokenizers in the forms of Hugging Face and GPT-2, and ids of both.

README.md beside this file has the command. Both learn from the texts below, so that they know letters beyond ASCII. Ids are those of `tokenizers`; where tiktoken can hold the same tokenizer, it must agree.
"""

import json
import random
from pathlib import Path

import tiktoken
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

OUT = Path("tests/data/tokenizers")
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

TEXTS = [
    "",
    " ",
    "  ",
    "\n",
    "\r\n\r\n",
    "The quick brown fox jumps over the lazy dog.",
    "I'm sure they're here; we've seen it, she'd say it's theirs and he'll go. DON'T! IT'S, WE'LL, 'S 'ſ 'K",
    "don''t 'tis 'twas rock'n'roll  'll",
    "a  b   c    d     e\t\tf\n\n\ng \n h\r\ni\u00a0j\u3000k\u2003 l\u2028m\u0085n \u180e o\u200bp\ufeffq",
    "   leading, trailing   ",
    "trailing line feeds\n\n\n",
    "x\n \n  y",
    "0 1 12 123 1234 12345 1234567890 3.14159 1,000,000 2024-11-05 0x1F ½ ² ①⑫ Ⅷ ٣٤٥ १२३ 𝟘𝟙𝟚",
    "naïve café Ångström Übergröße ŒUVRE ĳ ǆ ßẞ İi̇ ıI",
    "e\u0301a\u0300o\u0308 u\u0308\u0301 n\u0303 Z̷̢̛a̵l̶g̷o̸",
    "Привет, мир! Ёлка. Γειά σου Κόσμε. שָׁלוֹם עוֹלָם. مرحبا بالعالم. नमस्ते दुनिया",
    "こんにちは世界。日本語のテキスト、カタカナ！ 한국어 텍스트 你好，世界 𠀀𠮷",
    "🙂 👍🏽 👨‍👩‍👧‍👦 🇩🇪🇫🇷 ❤️ ✈︎ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 a🙂b 🙂🙂🙂",
    "price: $5.00 €7 £3 ¥9 (50%) [x] {y} <z> a_b __init__ `code` ~/path/to#frag?q=1&r=2 C++ ... --- *** !!!",
    "def f(x):\n    return x**2  # square\n\nclass A:\n\tpass\n",
    "\x00\x01\x1b[0m\x7f\x80\x9f",
    "a\u0000b \ue000\uf8ff \ufffd \U0010fffd",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa " * 3,
    " " * 100 + "x" + "\n" * 50 + "\t" * 7,
    "<|endoftext|>",
    "one<|endoftext|>two <|endoftext|> three<|end",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant",
    "a <mask> b<mask>c  <mask>  d\n<mask>\n",
    "<|begin_of_text|>again",
]


ENGLISH = """The loss of a step is the mean over all the tokens of the batch, and the gradient of the loss tells each weight
where the loss falls. A token is a piece of the text; the tokenizer learned the pieces from the text that it was given,
the most frequent first. What the model has seen often it knows well, and what it has never seen it must guess. There are
the words, and then there is the white space between the words, which is easily forgotten by those who count the words.
"""


def random_texts():
    rng = random.Random(5)
    blocks = [(0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x52F), (0x590, 0x6FF), (0x900, 0x97F),
              (0x2000, 0x206F), (0x2070, 0x218B), (0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
              (0x1F300, 0x1F6FF), (0x9, 0xD)]
    for _ in range(40):
        yield "".join(chr(rng.randint(*rng.choice(blocks))) for _ in range(rng.randint(1, 40)))
    for _ in range(40):  # bytes, as a careless program reads them
        yield bytes(rng.randrange(256) for _ in range(rng.randint(1, 40))).decode("utf-8", errors="replace")
    pieces = [" ", "  ", "\n", "\t", "'", "s", "ll", "re", "12", "3", "word", "É", "ß", ".", "!?", "世", "🙂", "\u0301"]
    for _ in range(60):
        yield "".join(rng.choice(pieces) for _ in range(rng.randint(1, 20)))


def train(tokenizer, vocab_size, special):
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    corpus = [ENGLISH] * 3 + TEXTS[:-5]
    tokenizer.train_from_iterator(corpus, trainer)


def tiktoken_of(tokenizer, pattern):
    byte_of = {c: b for b, c in byte_characters().items()}
    model = json.loads(tokenizer.to_str())
    special = {t["content"]: t["id"] for t in model["added_tokens"]}
    ranks = {bytes(byte_of[c] for c in token): id for token, id in model["model"]["vocab"].items() if token not in special}
    return tiktoken.Encoding("small", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


def byte_characters():
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return {b: chr(b) if b in printing else chr(next(others)) for b in range(256)}


def save(name, tokenizer, texts, pattern, check_tiktoken):
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, indent=None,
                                                      separators=(",", ":")) + "\n")
    other = tiktoken_of(tokenizer, pattern)
    special = {t["content"] for t in json.loads(tokenizer.to_str())["added_tokens"]}
    cases = []
    for text in texts:
        ids = tokenizer.encode(text).ids
        bare = tokenizer.encode(text, add_special_tokens=False).ids
        if not any(s in text for s in special):
            assert not check_tiktoken or other.encode_ordinary(text) == bare, (name, text)
        # What no token is found in: as if its added tokens were text.
        cases.append({"text": text, "ids": ids, "ordinary": other.encode_ordinary(text) if check_tiktoken else None})
    (folder / "ids.json").write_text("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]\n")


texts = TEXTS + list(random_texts())

# GPT-2's pre-tokenizer; ids of merged tokens are ranks, so tiktoken can hold it.
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
train(tokenizer, 700, [])
tokenizer.add_special_tokens(["<|endoftext|>"])
save("gpt2", tokenizer, texts, GPT2, True)
model = json.loads(tokenizer.to_str())["model"]
vocab = dict(model["vocab"]) | {"<|endoftext|>": tokenizer.token_to_id("<|endoftext|>")}
(OUT / "gpt2" / "encoder.json").write_text(json.dumps(vocab, separators=(",", ":")) + "\n")
(OUT / "gpt2" / "vocab.bpe").write_text("#version: 0.2\n" + "".join(" ".join(m) + "\n" for m in model["merges"]))

# Llama 3's: another pattern, pieces that are tokens first, a frame, added tokens that swallow space.
tokenizer = Tokenizer(models.BPE(ignore_merges=True))
tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
    pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
tokenizer.decoder = decoders.ByteLevel()
train(tokenizer, 700, [])
tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>",
                              AddedToken("<mask>", lstrip=True, rstrip=True)])
tokenizer.add_tokens(["assistant", "🙂🙂"])
begin = tokenizer.token_to_id("<|begin_of_text|>")
tokenizer.post_processor = processors.Sequence([
    processors.ByteLevel(trim_offsets=False),
    processors.TemplateProcessing(single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|> $B",
                                  special_tokens=[("<|begin_of_text|>", begin)])])
# A token that no merge leads to: only as a whole piece is it found.
data = json.loads(tokenizer.to_str())
data["model"]["merges"] = [m for m in data["model"]["merges"] if "".join(m) not in ("Ġthe", "Ġloss")]
assert all(t in data["model"]["vocab"] for t in ("Ġthe", "Ġloss"))
tokenizer = Tokenizer.from_str(json.dumps(data))
assert tokenizer.encode(" the", add_special_tokens=False).ids == [data["model"]["vocab"]["Ġthe"]]
save("llama3", tokenizer, texts, LLAMA3, False)
