"""Sentence pairs of three kinds, each with its tokenizer.

"Capitals" is a task that a tiny translator learns: it writes each word in capitals and keeps {placeholders}. The pairs
of words and of subwords are a few fixed ones, which a memory holds.
"""

import torch
from datasets import Dataset
from torch import Tensor

from modeling_lle import LLETokenizer
from modeling_lle.data.text import encode_sentences
from modeling_lle.entries.pairs import padded

CAPITALS_WORDS = ["ab", "cde", "fgh", "ij", "klm", "nöp", "qr", "süt", "{x}", "%d"]


def capitals(text: str) -> str:
    """The right translation."""
    return " ".join(word if word in ("{x}", "%d") else word.upper() for word in text.split())


def make_capitals_pairs(rows: int, seed: int = 0, longest: int = 6) -> Dataset:
    """Sentences of up to `longest` words, none twice, with their translations."""
    generator = torch.Generator().manual_seed(seed)
    texts: dict[str, None] = {}
    while len(texts) < rows:
        length = int(torch.randint(1, longest + 1, (), generator=generator))
        words = torch.randint(len(CAPITALS_WORDS), (length,), generator=generator).tolist()
        texts[" ".join(CAPITALS_WORDS[i] for i in words)] = None
    return Dataset.from_dict({"source": list(texts), "target": [capitals(text) for text in texts]})


def make_capitals_tokenizer(kind: str = "word") -> LLETokenizer:
    """A tokenizer of all words of the capitals task; "bpe" splits most of them into bytes."""
    texts = [*CAPITALS_WORDS, *map(capitals, CAPITALS_WORDS)]
    return LLETokenizer.train(texts, 270 if kind == "bpe" else None, kind=kind, ends_texts=True)  # type: ignore[arg-type]


WORD_PAIRS = [
    {"source": source, "target": target}
    for source, target in [
        ("a b c", "x y"),
        ("b c d e", "y z w v"),
        ("f g {n}", "u {n} v"),
        ("a a", "w x z v"),
        ("h", "v u y x"),
    ]
]
WORD_PAIRS_TOKENIZER = LLETokenizer.train(
    [text for pair in WORD_PAIRS for text in pair.values()], kind="word", ends_texts=True
)

SUBWORD_PAIRS = [
    ("the cat sat on the mat", "die Katze sass auf der Matte"),
    ("a dog runs in the park", "ein Hund rennt im Park"),
    ("two men play football", "zwei Männer spielen Fußball"),
    ("a cat runs", "eine Katze rennt"),
]
SUBWORD_PAIRS_TOKENIZER = LLETokenizer.train(
    [text for pair in SUBWORD_PAIRS for text in pair] * 3, 330, ends_texts=True
)


def pair_rows(pairs: list[tuple[str, str]] = SUBWORD_PAIRS) -> list[dict[str, str]]:
    """Sentence pairs as the rows of a data set."""
    return [{"source": source, "target": target} for source, target in pairs]


def encode_pairs(pairs: list[tuple[str, str]] = SUBWORD_PAIRS) -> dict[str, Tensor]:
    """Pairs of subwords as `LLEForSeq2SeqLM.forward` takes them."""
    sources, targets = (encode_sentences([pair[side] for pair in pairs], SUBWORD_PAIRS_TOKENIZER) for side in (0, 1))
    return padded(sources, targets, SUBWORD_PAIRS_TOKENIZER.pad_token_id)
