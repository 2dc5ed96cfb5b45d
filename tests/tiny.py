"""Tiny models with random weights, large enough to tell right from wrong."""

from typing import Any

import torch
from torch import Tensor

from modeling_lle import LLEConfig, LLEForCausalLM, LLETokenizer

VOCAB = 11
# Every number differs from its default, so that none can be left out unnoticed.
NUMBERS = {"sharpness": 5.0, "recency": 0.5, "gate": [-0.7, 0.4, 0.3, -0.2]}
BANK_NUMBERS = {"neighbours": 4, "sharpness": 6.0, "gate": [-0.5, 0.2, 0.1, -0.3]}
WORDS = ["a", "b", "c", "d", "e", "f", "g", "h"]


def make_model(window: int = 7, recurrence: str = "lstm", stack: str = "plain", **values: Any) -> LLEForCausalLM:
    """A language model in evaluation mode; the same arguments give the same weights. `history` adds sections."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 6, "num_hidden_layers": 2, "initializer_range": 1.0}
    history = {"stream": {"window": window, **NUMBERS}, "bank": BANK_NUMBERS, **values.pop("history", {})}
    config = LLEConfig(recurrence=recurrence, stack=stack, history=history, **{**sizes, **values})
    return LLEForCausalLM(config).eval()


def make_ids(rows: int, length: int, seed: int = 0, vocab: int = VOCAB) -> Tensor:
    """Random tokens (rows, length), of few types, so that the history has something to recall."""
    return torch.randint(vocab, (rows, length), generator=torch.Generator().manual_seed(seed))


def make_tokenizer() -> LLETokenizer:
    """A tokenizer of the `WORDS`, with no more types than the models have."""
    tokenizer = LLETokenizer.train([" ".join(WORDS)], kind="word")
    assert len(tokenizer) <= VOCAB
    return tokenizer


def make_texts(rows: int, length: int, seed: int = 0) -> list[str]:
    """Random texts of up to `length` words."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, length + 1, (rows,), generator=generator).tolist()
    return [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=generator).tolist()) for n in lengths]


def repetitive(segments: int = 6, rows: int = 2, length: int = 20) -> list[dict[str, Tensor]]:
    """Consecutive segments of texts that repeat a passage, one for each row."""
    total = segments * length + 1
    ids = torch.stack([make_ids(1, 9, seed)[0].repeat(total // 9 + 1)[:total] for seed in range(rows)])
    noise = torch.rand(ids.shape, generator=torch.Generator().manual_seed(3)) < 0.15
    ids = torch.where(noise, make_ids(rows, total, 4), ids)
    cuts = range(0, total - 1, length)
    return [{"input_ids": ids[:, c : c + length], "shift_labels": ids[:, c + 1 : c + length + 1]} for c in cuts]
