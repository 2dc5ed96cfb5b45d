"""Tiny translators: untrained ones of words and of subwords, and one that has learned the capitals task."""

import functools
from typing import Any

import torch

from modeling_lle import HistoryBank, LLEConfig, LLEForSeq2SeqLM, LLETokenizer
from modeling_lle.data.text import encode_sentences
from modeling_lle.entries.pairs import padded
from tests.factories.pairs import (
    SUBWORD_PAIRS,
    SUBWORD_PAIRS_TOKENIZER,
    WORD_PAIRS,
    WORD_PAIRS_TOKENIZER,
    make_capitals_pairs,
    make_capitals_tokenizer,
    pair_rows,
)

TRUSTED_MEMORY = {"bank": {"sharpness": 60.0, "gate": [20.0, 0.0, 0.0, 0.0]}}  # the memory outweighs the base
# Every value differs from its default, so that none can be left out unnoticed.
SUBWORD_MEMORY = {"sharpness": 6.0, "gate": [-0.5, 0.2, 0.1, -0.3], "match": 1.5, "continuation": 2.5, "length": 0.8}


def make_translator(tokenizer: LLETokenizer, seed: int = 0, **values: Any) -> LLEForSeq2SeqLM:
    """An untrained translator in evaluation mode; the same arguments give the same weights."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "translator": {"num_attention_heads": 2, **values.pop("translator", {})},
    }
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LLEConfig(**{**sizes, "initializer_range": 0.3, **ids, **values})
    return LLEForSeq2SeqLM(config).eval()


def make_word_translator(seed: int = 0, **values: Any) -> LLEForSeq2SeqLM:
    """An untrained translator of the `WORD_PAIRS`."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "initializer_range": 1.0}
    translator = {"num_attention_heads": 4, **values.pop("translator", {})}
    return make_translator(WORD_PAIRS_TOKENIZER, seed, **{**sizes, **values, "translator": translator})


def make_taught_word_translator(history: dict[str, Any] = TRUSTED_MEMORY, **values: Any) -> LLEForSeq2SeqLM:
    """A translator with the `WORD_PAIRS` as its memory, which outweighs the base."""
    model = make_word_translator(history=history, **values)
    bank = HistoryBank.build(model, WORD_PAIRS_TOKENIZER, WORD_PAIRS, source="pairs")
    model.attach_history(bank, tokenizer=WORD_PAIRS_TOKENIZER)
    return model


def make_subword_translator(recurrence: str = "qrnn", stack: str = "residual", **values: Any) -> LLEForSeq2SeqLM:
    """An untrained translator of the `SUBWORD_PAIRS`."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "recurrence": recurrence, "stack": stack}
    own = {"initializer_range": 1.0, "history": {"bank": SUBWORD_MEMORY}, **values}
    translator = {"sentences": 2, **values.pop("translator", {})}
    return make_translator(SUBWORD_PAIRS_TOKENIZER, **{**sizes, **own, "translator": translator})


def attach_pairs(model: LLEForSeq2SeqLM, pairs: list[tuple[str, str]] = SUBWORD_PAIRS) -> LLEForSeq2SeqLM:
    """The model, with a memory of pairs of subwords."""
    bank = HistoryBank.build(model, SUBWORD_PAIRS_TOKENIZER, pair_rows(pairs))
    model.attach_history(bank, tokenizer=SUBWORD_PAIRS_TOKENIZER)
    return model


def trust_memory(model: LLEForSeq2SeqLM) -> LLEForSeq2SeqLM:
    """The model, whose memory now outweighs the base."""
    numbers = model.config.bank
    numbers.gate, numbers.sharpness = [20.0, 0.0, 0.0, 0.0], 200.0
    numbers.match = numbers.continuation = numbers.length = 0.0
    return model


@functools.cache
def _trained() -> tuple[dict[str, torch.Tensor], LLETokenizer]:
    tokenizer = make_capitals_tokenizer()
    model = make_translator(tokenizer).train()
    pairs = make_capitals_pairs(400)
    sources, targets = (encode_sentences(pairs[side][:], tokenizer) for side in ("source", "target"))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(120):
        rows = torch.randint(len(sources), (32,), generator=torch.Generator().manual_seed(step)).tolist()
        batch = padded([sources[row] for row in rows], [targets[row] for row in rows], tokenizer.pad_token_id)
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model.state_dict(), tokenizer


def make_trained_translator(**values: Any) -> tuple[LLEForSeq2SeqLM, LLETokenizer]:
    """A translator that has learned most of the capitals task, and its tokenizer."""
    weights, tokenizer = _trained()
    model = make_translator(tokenizer, **values)
    model.load_state_dict(weights)
    return model, tokenizer
