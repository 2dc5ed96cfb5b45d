"""Inputs of the benchmarks: a trained model, the text of a split, and the model's states. Shapes: T time, D width."""

from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling_lle import LLECache, LLEForCausalLM
from modeling_lle.data import StreamDataset, TextTokens, collect, load_texts, tokenize

Model = Annotated[str, typer.Argument(help="Folder written by `lle train`.")]
Source = Annotated[str, typer.Argument(help="Text with train, validation and test splits.")]
SEGMENT = 256  # positions read at once
SHORT_TRAINING: dict[str, Any] = {  # for models trained for a comparison
    "per_device_eval_batch_size": 10,
    "adam_beta2": 0.99,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "max_grad_norm": 0.5,
    "save_strategy": "no",
    "disable_tqdm": True,
}


def load_model(model: str) -> tuple[Any, Any]:
    """Loads the model, in evaluation mode, and its tokenizer."""
    return AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)


def read_tokens(source: str, split: str, tokenizer: Any, limit: int | None = None) -> TextTokens:
    """First `limit` tokens of a split, or all, with the same share of its words and bytes."""
    tokens = collect(tokenize(load_texts(source, split=split), tokenizer), start=tokenizer.eos_token_id)
    share = 1.0 if limit is None else min(1.0, limit / len(tokens.ids))
    return TextTokens(tokens.ids[:limit], int(tokens.words * share), int(tokens.bytes * share))


@torch.no_grad()
def read_states(model: LLEForCausalLM, ids: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
    """Reads token ids as one row, and yields states (T, D) with the tokens that followed (T,) int64."""
    stream, cache = StreamDataset(ids, 1, SEGMENT, evaluation=True), LLECache()
    for index in range(len(stream)):
        segment = stream[index]
        output = model.model(segment["input_ids"][None], past_key_values=cache, use_cache=False)
        yield output.last_hidden_state[0], segment["shift_labels"]
