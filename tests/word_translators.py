"""Tiny translators of words with random weights, and sentence pairs for them."""

from typing import Any

from modeling_lle import HistoryBank, LLEForSeq2SeqLM, LLETokenizer
from tests.translators import make_translator

PAIRS = [
    {"source": source, "target": target}
    for source, target in [
        ("a b c", "x y"),
        ("b c d e", "y z w v"),
        ("f g {n}", "u {n} v"),
        ("a a", "w x z v"),
        ("h", "v u y x"),
    ]
]
STRONG = {"bank": {"sharpness": 60.0, "gate": [20.0, 0.0, 0.0, 0.0]}}  # what is recalled is what comes out
TOKENIZER = LLETokenizer.train([text for pair in PAIRS for text in pair.values()], kind="word", ends_texts=True)


def make(seed: int = 0, **values: Any) -> LLEForSeq2SeqLM:
    """A translator in evaluation mode; the same arguments give the same weights."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 2}
    translator = {"num_attention_heads": 4, **values.pop("translator", {})}
    return make_translator(TOKENIZER, seed, **{**sizes, "initializer_range": 1.0, **values, "translator": translator})


def taught(history: dict[str, Any] = STRONG, **values: Any) -> LLEForSeq2SeqLM:
    """A translator with the `PAIRS` as its memory, which outweighs the base."""
    model = make(history=history, **values)
    bank = HistoryBank.build(model, TOKENIZER, PAIRS, source="pairs")
    model.attach_history(bank, tokenizer=TOKENIZER)
    return model
