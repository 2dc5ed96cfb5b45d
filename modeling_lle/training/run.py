"""Running a recipe: from text to a folder with a model, its tokenizer, the resolved recipe and the metrics."""

import ctypes
import gc
import importlib.util
import json
import logging
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import PartialState
from datasets import DatasetDict
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.trainer_utils import get_last_checkpoint

from ..configuration_lle import LLEConfig
from ..data import StreamDataset, StreamIterableDataset, TextTokens, collect, load_texts, tokenize
from ..data.text import Rows
from ..modeling_lle import LLEForCausalLM
from ..tokenization_lle import LLETokenizer
from .recipe import DataArguments, Recipe
from .trainer import LLETrainer, LLETrainingArguments

logger = logging.getLogger(__name__)


def run(recipe: Recipe, texts: dict[str, Rows] | None = None, resume: bool = False) -> dict[str, Any]:
    """Trains a language model by a recipe, fits the rule's numbers on validation text, and saves all of it.

    Args:
        recipe: The recipe.
        texts: Rows in memory for "train" and "validation", instead of what `recipe.data` names.
        resume: Whether to go on from the newest checkpoint in the output folder, if there is one.

    Returns:
        The metrics, as in the metrics.json that lies beside the weights.
    """
    arguments = recipe.training
    _check_trackers(arguments)
    keep_freed_pages()
    if recipe.data.streaming and arguments.max_steps < 1:
        raise ValueError("a streamed text has no length that is known: set training.max_steps with data.streaming")
    torch.manual_seed(arguments.seed)
    texts = {split: _load(recipe.data, split, texts) for split in ("train", "validation")}
    tokenizer = _tokenizer(recipe, texts["train"])
    model = _model(recipe.model, tokenizer)
    validation = _read(texts["validation"], tokenizer, recipe.data)
    training = _training_stream(texts["train"], tokenizer, recipe)
    if isinstance(training, StreamDataset) and "path" not in recipe.model:
        _begin_at_frequencies(model, training.tokens)
    trainer = LLETrainer(
        model=model,
        args=arguments,
        train_dataset=training,
        eval_dataset=StreamDataset(
            validation.ids,
            arguments.eval_batch_size * arguments.world_size,
            arguments.segment_length,
            evaluation=True,
        ),
        processing_class=tokenizer,
    )
    numbers = 0 if model.history_loss is None else model.history_loss.values.numel()  # config.json will hold them
    start = time.perf_counter()
    folder = str(arguments.output_dir)
    checkpoint = get_last_checkpoint(folder) if resume and Path(folder).is_dir() else None
    outcome = trainer.train(resume_from_checkpoint=checkpoint)
    metrics: dict[str, Any] = {
        "parameters": model.num_parameters() - numbers,
        "train_minutes": (time.perf_counter() - start) / 60,
        "train_steps": outcome.global_step,
        "train_loss": outcome.training_loss,
        **trainer.evaluate(),
    }
    nats = metrics["eval_loss"] * (len(validation.ids) - 1)
    metrics["eval_word_perplexity"] = math.exp(min(nats / validation.words, 700.0))
    if arguments.calibration_tokens and model.config.stream.window:
        metrics["calibration"] = calibrate(model, validation.ids, arguments.calibration_tokens)
    model.config.use_cache = True  # the Trainer switches it off
    if trainer.is_world_process_zero():
        save(recipe, trainer, metrics)
    return metrics


def leave_group() -> None:
    """Ends the process group, if this is one of several processes: call it when their work is done.

    Its threads would otherwise meet an interpreter that is ending, and end the process with an error.
    """
    gc.collect()  # the model that was wrapped for the group holds on to it, in a cycle
    PartialState().destroy_process_group()


def segments(tokens: Any, limit: int, length: int) -> Iterator[dict[str, Tensor]]:
    """At most `limit` tokens (N,) read as one row, in segments of `length`, as `calibrate` of a model takes them."""
    stream = StreamDataset(tokens[: limit + 1], 1, length, evaluation=True)
    for index in range(len(stream)):
        yield {key: value[None] for key, value in stream[index].items()}


def calibrate(model: LLEForCausalLM, tokens: Any, limit: int, segment_length: int = 256) -> dict[str, float]:
    """Fits the rule's numbers on at most `limit` tokens (N,) of held-out text, read as one row."""
    targets = min(len(tokens) - 1, limit)
    if targets < model.config.stream.window:
        logger.warning("calibrating on %d tokens, fewer than the window of the stream", targets)
    return model.calibrate(segments(tokens, limit, segment_length))


def save(recipe: Recipe, trainer: LLETrainer, metrics: dict[str, Any]) -> None:
    """Writes the model, the tokenizer, recipe.yaml and metrics.json into the output folder."""
    folder = Path(str(recipe.training.output_dir))
    trainer.save_model()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.resolved(), sort_keys=False), encoding="utf-8")
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def keep_freed_pages() -> None:
    """Tells glibc to keep freed memory for the next step: else the kernel zeroes the pages of every step's buffers.

    See `man mallopt`. Elsewhere than on glibc it does nothing.
    """
    if not (sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt")):
        return
    trim_threshold, mmap_threshold = -1, -3
    libc.mallopt(mmap_threshold, 1 << 30)
    libc.mallopt(trim_threshold, (1 << 31) - 1)


def _check_trackers(arguments: LLETrainingArguments) -> None:
    """Raises an ImportError that names the extra of what `report_to` asks for and is not installed."""
    for tracker in sorted({"tensorboard", "trackio"}.intersection(arguments.report_to or [])):
        if importlib.util.find_spec(tracker) is None:
            raise ImportError(f"report_to: {tracker} needs {tracker}: pip install modeling_lle[tracking]")


def _load(data: DataArguments, split: str, texts: dict[str, Rows] | None) -> Rows:
    if texts is not None:
        return load_texts(DatasetDict(texts), split=split, text_column=data.text_column)
    if not data.source:
        raise ValueError("the recipe names no text: set data.source to a data set on the Hub or a local path")
    return load_texts(
        data.source,
        name=data.name,
        split=getattr(data, split),
        text_column=data.text_column,
        sample_by=data.sample_by,
        streaming=data.streaming and split == "train",
    )


def _tokenizer(recipe: Recipe, train: Rows) -> PreTrainedTokenizerBase:
    arguments = recipe.tokenizer
    path = arguments.path or recipe.model.get("path")
    if path:
        return AutoTokenizer.from_pretrained(path)
    column = recipe.data.text_column
    return LLETokenizer.train((row[column] for row in train), arguments.vocab_size, arguments.kind)


def _model(values: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> LLEForCausalLM:
    """A new model with the configuration `values`, or the trained one at its `path` with these changes."""
    values = dict(values)
    path = values.pop("path", None)
    if path is None:
        ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = LLEConfig(**{"vocab_size": len(tokenizer), **ids, **values})
    else:
        history = LLEConfig.from_pretrained(path).to_dict()["history"]
        for section, numbers in (values.get("history") or {}).items():
            history[section].update(numbers or {})
        config = LLEConfig.from_pretrained(path, **{**values, "history": history})
    if config.vocab_size < len(tokenizer):
        raise ValueError(
            f"model.vocab_size is {config.vocab_size}, but the tokenizer has {len(tokenizer)} types: "
            "leave model.vocab_size out, or train a smaller tokenizer"
        )
    return LLEForCausalLM(config) if path is None else LLEForCausalLM.from_pretrained(path, config=config)


@torch.no_grad()
def _begin_at_frequencies(model: LLEForCausalLM, tokens: np.ndarray) -> None:
    """Sets the output bias to the log frequencies of the training text (N,), each type counted once more.

    Otherwise the backbone learns them first, by constant states: the cells of an lstm run into saturation and stay.
    """
    counts = torch.from_numpy(np.bincount(tokens, minlength=model.config.vocab_size)).float() + 1
    model.lm_head.bias.copy_((counts / counts.sum()).log())


def _read(rows: Rows, tokenizer: PreTrainedTokenizerBase, data: DataArguments) -> TextTokens:
    encoded = tokenize(rows, tokenizer, text_column=data.text_column, num_proc=data.num_proc)
    return collect(encoded, start=tokenizer.eos_token_id)


def _training_stream(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, recipe: Recipe
) -> StreamDataset | StreamIterableDataset:
    arguments: LLETrainingArguments = recipe.training
    count = arguments.train_batch_size * arguments.world_size
    if recipe.data.streaming:
        # Endless, so that all of it is one epoch for the Trainer, which resumes exactly within an epoch only.
        documents = tokenize(rows, tokenizer, text_column=recipe.data.text_column).repeat(None)
        return StreamIterableDataset(documents, count, arguments.segment_length)
    tokens = _read(rows, tokenizer, recipe.data).ids
    return StreamDataset(tokens, count, arguments.segment_length, seed=arguments.seed)
