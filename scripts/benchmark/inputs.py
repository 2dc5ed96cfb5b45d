"""Inputs of the benchmarks: a trained model, the text of a split, and the model's states. Shapes: T time, D width."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from modeling_lle import LLECache, LLEConfig, LLEForCausalLM, LLETokenizer
from modeling_lle.data import TextTokens, collect, load_texts, tokenize
from modeling_lle.training.recipe import load_recipe

Model = Annotated[str, typer.Argument(help="Folder written by `lle train`.")]
Source = Annotated[str, typer.Argument(help="Text with train, validation and test splits.")]
OwnModel = Annotated[
    str | None,
    typer.Option("--model", help="Folder of `lle train`; by default an untrained model as large as PTB's."),
]
OwnSource = Annotated[
    str | None,
    typer.Option("--source", help="Text with a train split; by default random words."),
]
WORDS, LINES = 10_000, 100_000  # of a text that is made
RECIPE = Path(__file__).resolve().parents[2] / "configs" / "lm" / "ptb.yaml"
SEGMENT = 256  # positions read at once
CONTEXT = 2048  # tokens after which a model with attention begins anew
SHORT_TRAINING: dict[str, Any] = {  # for models trained for a comparison
    "per_device_eval_batch_size": 10,
    "adam_beta2": 0.99,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "max_grad_norm": 0.5,
    "save_strategy": "no",
    "disable_tqdm": True,
}


@contextlib.contextmanager
def given_or_made(model: str | None, source: str | None) -> Iterator[tuple[str, str]]:
    """The model and the text that are given; else, where only their sizes matter, an untrained model and random words.

    The words have frequencies by Zipf's law, and the lines the mean length of Penn Treebank's.
    """
    with tempfile.TemporaryDirectory() as folder:
        random = np.random.default_rng(0)
        ranks = 1 / np.arange(2, WORDS + 2)
        lengths = random.integers(5, 38, LINES)
        words = iter(random.choice(WORDS, int(lengths.sum()), p=ranks / ranks.sum()).tolist())
        lines = [" ".join(f"w{next(words):x}" for _ in range(length)) for length in lengths.tolist()]
        made = Path(folder) / "train.txt"
        made.write_text("\n".join(lines) + "\n")
        if model is None:
            tokenizer = LLETokenizer.train(lines, kind="word")
            sizes = load_recipe(RECIPE).model
            LLEForCausalLM(LLEConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(Path(folder) / "model")
            tokenizer.save_pretrained(Path(folder) / "model")
        yield model or str(Path(folder) / "model"), source or str(made)


def load_model(model: str) -> tuple[Any, Any]:
    """Loads the model, in evaluation mode, and its tokenizer; one of transformers becomes a backbone."""
    is_own = AutoConfig.from_pretrained(model).model_type == LLEConfig.model_type
    loaded: Any = AutoModelForCausalLM.from_pretrained(model) if is_own else LLEForCausalLM.from_backbone(model)
    return loaded.eval(), AutoTokenizer.from_pretrained(model)


def read_tokens(source: str, split: str, tokenizer: Any, limit: int | None = None) -> TextTokens:
    """First `limit` tokens of a split, or all, with the same share of its words and bytes."""
    tokens = collect(tokenize(load_texts(source, split=split), tokenizer), start=tokenizer.eos_token_id)
    share = 1.0 if limit is None else min(1.0, limit / len(tokens.ids))
    return TextTokens(tokens.ids[:limit], int(tokens.words * share), int(tokens.bytes * share))


def context_of(model: LLEForCausalLM, most: int = CONTEXT) -> int | None:
    """Tokens after which a model with attention begins anew; None for a model whose state has one size."""
    positions = getattr(getattr(model.config, "wrapped", None), "max_position_embeddings", None)
    return None if positions is None else min(positions, most)


def begin_anew(cache: LLECache) -> None:
    """Ends the text of the backbone; stream and matches go on."""
    cache.state, cache.seen_tokens = None, 0


def parts_of(length: int, cache: LLECache, context: int | None = None) -> Iterator[slice]:
    """Yields the segments of a text of `length` tokens, which are read with the cache one after another.

    With a context, the backbone begins anew after that many tokens, whole segments of them; stream and matches go on.
    """
    size = SEGMENT if context is None else min(SEGMENT, context)
    for begin in range(0, length, size):
        if context is not None and begin // size % (context // size) == 0:
            begin_anew(cache)
        yield slice(begin, min(begin + size, length))


def segments_of(
    ids: np.ndarray, cache: LLECache, device: torch.device, context: int | None = None
) -> Iterator[dict[str, Tensor]]:
    """Yields the segments of a text, which is read as one row: `input_ids` and `shift_labels`, (1, T) int64.

    Cache and context are those of `parts_of`.
    """
    text = torch.from_numpy(ids.astype(np.int64))[None].to(device)
    for part in parts_of(len(ids) - 1, cache, context):
        yield {"input_ids": text[:, :-1][:, part], "shift_labels": text[:, 1:][:, part]}


@torch.no_grad()
def read_states(model: LLEForCausalLM, ids: np.ndarray, context: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Reads token ids as one row, and yields states (T, D) with the tokens that followed (T,) int64.

    With a context, the backbone begins anew after that many tokens, as in `parts_of`.
    """
    cache = LLECache()
    for segment in segments_of(ids, cache, model.device, context):
        output = model.model(segment["input_ids"], past_key_values=cache, use_cache=False)
        yield output.last_hidden_state[0], segment["shift_labels"][0]
