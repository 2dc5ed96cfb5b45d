"""Tiny translators of subwords with random weights, and sentence pairs for them."""

from typing import Any

from torch import Tensor

from modeling_lle import HistoryBank, LLEForSeq2SeqLM, LLETokenizer
from modeling_lle.data.text import encode_sentences
from modeling_lle.entries.pairs import padded
from tests.translators import make_translator

PAIRS = [
    ("the cat sat on the mat", "die Katze sass auf der Matte"),
    ("a dog runs in the park", "ein Hund rennt im Park"),
    ("two men play football", "zwei Männer spielen Fußball"),
    ("a cat runs", "eine Katze rennt"),
]
TOKENIZER = LLETokenizer.train([text for pair in PAIRS for text in pair] * 3, 330, ends_texts=True)
NUMBERS = {"sharpness": 6.0, "gate": [-0.5, 0.2, 0.1, -0.3]}  # none is a default


def make(recurrence: str = "qrnn", stack: str = "residual", **values: Any) -> LLEForSeq2SeqLM:
    """A translator in evaluation mode; the same arguments give the same weights."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 2}
    own = {"initializer_range": 1.0, "history": {"bank": NUMBERS}, "recurrence": recurrence, "stack": stack}
    translator = {"sentences": 2, **values.pop("translator", {})}
    return make_translator(TOKENIZER, **{**sizes, **own, **values, "translator": translator})


def rows(pairs: list[tuple[str, str]] = PAIRS) -> list[dict[str, str]]:
    """Sentence pairs as the rows of a data set."""
    return [{"source": source, "target": target} for source, target in pairs]


def batch(pairs: list[tuple[str, str]] = PAIRS) -> dict[str, Tensor]:
    """Pairs as forward takes them."""
    sources, targets = (encode_sentences([pair[side] for pair in pairs], TOKENIZER) for side in (0, 1))
    return padded(sources, targets, TOKENIZER.pad_token_id)


def remembering(model: LLEForSeq2SeqLM, pairs: list[tuple[str, str]] = PAIRS) -> LLEForSeq2SeqLM:
    """The model with a memory of pairs."""
    model.attach_history(HistoryBank.build(model, TOKENIZER, rows(pairs)), tokenizer=TOKENIZER)
    return model


def trusting(model: LLEForSeq2SeqLM) -> LLEForSeq2SeqLM:
    """The model, which says what its memory says."""
    model.config.bank.gate, model.config.bank.sharpness = [20.0, 0.0, 0.0, 0.0], 200.0
    return model
