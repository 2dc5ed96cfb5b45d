"""Tiny translators, and a task that one of them learns: it writes each word in capitals, and keeps {placeholders}."""

import functools
from typing import Any

import torch
from datasets import Dataset

from modeling_lle import LLEConfig, LLEForSeq2SeqLM, LLETokenizer
from modeling_lle.data.text import encode_sentences
from modeling_lle.entries.pairs import padded

WORDS = ["ab", "cde", "fgh", "ij", "klm", "nöp", "qr", "süt", "{x}", "%d"]


def capitals(text: str) -> str:
    """The right translation."""
    return " ".join(word if word in ("{x}", "%d") else word.upper() for word in text.split())


def make_pairs(rows: int, seed: int = 0, longest: int = 6) -> Dataset:
    """Sentences of up to `longest` words, none twice, with their translations."""
    generator = torch.Generator().manual_seed(seed)
    texts: dict[str, None] = {}
    while len(texts) < rows:
        length = int(torch.randint(1, longest + 1, (), generator=generator))
        texts[" ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator).tolist())] = None
    return Dataset.from_dict({"source": list(texts), "target": [capitals(text) for text in texts]})


def make_tokenizer(kind: str = "word") -> LLETokenizer:
    """A tokenizer of all words; "bpe" splits most of them into bytes."""
    texts = [*WORDS, *map(capitals, WORDS)]
    return LLETokenizer.train(texts, 270 if kind == "bpe" else None, kind=kind, ends_texts=True)  # type: ignore[arg-type]


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


@functools.cache
def _trained() -> tuple[dict[str, torch.Tensor], LLETokenizer]:
    tokenizer = make_tokenizer()
    model = make_translator(tokenizer).train()
    pairs = make_pairs(400)
    sources, targets = (encode_sentences(pairs[side][:], tokenizer) for side in ("source", "target"))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(120):
        rows = torch.randint(len(sources), (32,), generator=torch.Generator().manual_seed(step)).tolist()
        batch = padded([sources[row] for row in rows], [targets[row] for row in rows], tokenizer.pad_token_id)
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model.state_dict(), tokenizer


def trained_translator(**values: Any) -> tuple[LLEForSeq2SeqLM, LLETokenizer]:
    """A translator that has learned most of it, and its tokenizer."""
    weights, tokenizer = _trained()
    model = make_translator(tokenizer, **values)
    model.load_state_dict(weights)
    return model, tokenizer
