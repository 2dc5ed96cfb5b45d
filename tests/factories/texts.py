"""Random words, token ids and texts, and a tokenizer of the words."""

import torch
from torch import Tensor

from modeling_lle import LLETokenizer

VOCAB = 11
WORDS = ["a", "b", "c", "d", "e", "f", "g", "h"]


def make_word_tokenizer() -> LLETokenizer:
    """A tokenizer of the `WORDS`, with at most `VOCAB` types."""
    tokenizer = LLETokenizer.train([" ".join(WORDS)], kind="word")
    assert len(tokenizer) <= VOCAB
    return tokenizer


WORD_TOKENIZER = make_word_tokenizer()


def make_ids(rows: int, length: int, seed: int = 0, vocab: int = VOCAB) -> Tensor:
    """Random tokens (rows, length), of few types, so that the history has something to recall."""
    return torch.randint(vocab, (rows, length), generator=torch.Generator().manual_seed(seed))


def make_texts(rows: int, length: int, seed: int = 0) -> list[str]:
    """Random texts of up to `length` words."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, length + 1, (rows,), generator=generator).tolist()
    return [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=generator).tolist()) for n in lengths]


def encode_texts(*texts: str) -> dict[str, Tensor]:
    """Texts of `WORDS` as a padded batch: input_ids and attention_mask (B, T)."""
    return WORD_TOKENIZER(list(texts), return_tensors="pt", padding=True)


def make_repetitive_segments(segments: int = 6, rows: int = 2, length: int = 20) -> list[dict[str, Tensor]]:
    """Consecutive segments of texts that repeat a passage, one for each row."""
    total = segments * length + 1
    ids = torch.stack([make_ids(1, 9, seed)[0].repeat(total // 9 + 1)[:total] for seed in range(rows)])
    noise = torch.rand(ids.shape, generator=torch.Generator().manual_seed(3)) < 0.15
    ids = torch.where(noise, make_ids(rows, total, 4), ids)
    cuts = range(0, total - 1, length)
    return [{"input_ids": ids[:, c : c + length], "shift_labels": ids[:, c + 1 : c + length + 1]} for c in cuts]
