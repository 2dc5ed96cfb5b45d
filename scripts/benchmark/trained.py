"""Small language models that a benchmark trains itself, from the text of a folder, in minutes on one thread."""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Mamba2Config, Mamba2ForCausalLM, PreTrainedTokenizerBase

from modeling_lle import LLEConfig, LLEForCausalLM
from modeling_lle.data import load_texts
from modeling_lle.tokenization import LLETokenizer

WIDTH, LAYERS, TYPES = 256, 2, 4000
ROWS, LENGTH = 16, 128  # of a batch
RATE = 3e-3


def make_lstm(vocabulary: int, end: int) -> Any:
    """Two residual LSTM layers."""
    return LLEForCausalLM(
        LLEConfig(vocab_size=vocabulary, hidden_size=WIDTH, num_hidden_layers=LAYERS, eos_token_id=end)
    )


def make_mamba2(vocabulary: int, end: int) -> Any:
    """Mamba2 of transformers, with about as many parameters as the LSTM."""
    config = Mamba2Config(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        state_size=32,
        head_dim=32,
        num_heads=2 * WIDTH // 32,
        n_groups=1,
        chunk_size=64,
    )
    return Mamba2ForCausalLM(config)


FAMILIES: dict[str, Callable[[int, int], Any]] = {"LSTM": make_lstm, "Mamba2": make_mamba2}


def make_tokenizer(source: str, folder: Path) -> PreTrainedTokenizerBase:
    """A tokenizer of the training text, saved in a folder."""
    texts = load_texts(source, split="train")
    tokenizer = LLETokenizer.train((row["text"] for row in texts), vocab_size=TYPES)
    tokenizer.save_pretrained(folder)
    return tokenizer


def train_small(model: Any, ids: Tensor, minutes: float, seed: int = 0) -> float:
    """Trains a model on random pieces of a text, with a cosine of the processor time; returns the last loss.

    Args:
        model: A causal language model of transformers; it is left in evaluation mode.
        ids: (n,) int64, the text.
        minutes: Of processor time, on one thread.
        seed: Of the draw of pieces.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.01)
    options = {"use_history": False} if isinstance(model, LLEForCausalLM) else {"use_cache": False}
    begin, losses = time.process_time(), []
    model.train()
    for batch in _batches(ids, seed):
        done = (time.process_time() - begin) / (60 * minutes)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, done / 0.03) * (0.505 + 0.495 * math.cos(math.pi * min(done, 1.0)))
        loss = model(input_ids=batch, labels=batch, **options).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        losses.append(float(loss.detach()))
        if done >= 1:
            break
    model.eval()
    recent = losses[-50:]
    return sum(recent) / len(recent)


def _batches(ids: Tensor, seed: int) -> Iterator[Tensor]:
    """Endless batches (ROWS, LENGTH + 1)."""
    generator = torch.Generator().manual_seed(seed)
    length = min(LENGTH + 1, len(ids))
    for _ in itertools.count():
        starts = torch.randint(len(ids) - length + 1, (ROWS,), generator=generator).tolist()
        yield torch.stack([ids[start : start + length] for start in starts])
