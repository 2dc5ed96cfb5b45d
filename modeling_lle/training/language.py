"""Training of a language model by a recipe, and fitting of the rule on validation text."""

import logging
import math
from collections.abc import Collection, Iterator
from typing import Any, cast

from datasets import Dataset, DatasetDict
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..common.precision import in_precision
from ..data import StreamDataset, StreamIterableDataset, TextTokens, collect, load_texts, tokenize
from ..data.text import Rows
from ..models.causal import LLEForCausalLM
from .arguments import LLETrainingArguments
from .checkpoints import find_checkpoint
from .held_out import hold_out_documents
from .reading import read_some
from .recipe import DataArguments, Recipe
from .steps import begin_at_frequencies, make_config, make_tokenizer, save, train
from .trainer import LLETrainer

logger = logging.getLogger(__name__)


def run_language(recipe: Recipe, texts: dict[str, Rows] | None = None, resume: bool = False) -> dict[str, Any]:
    """Trains a language model; see `run`."""
    arguments: LLETrainingArguments = recipe.training
    if recipe.data.streaming and arguments.max_steps < 1:
        raise ValueError("a streamed text has unknown length: set training.max_steps with data.streaming")
    texts = text_splits(recipe, texts)
    tokenizer = make_tokenizer(recipe, (row[recipe.data.text_column] for row in texts["train"]))
    config, path = make_config(recipe.model, tokenizer)
    model = LLEForCausalLM(config) if path is None else LLEForCausalLM.from_pretrained(path, config=config)
    validation = _read(texts["validation"], tokenizer, recipe.data)
    training = _training_stream(texts["train"], tokenizer, recipe)
    if isinstance(training, StreamDataset) and "path" not in recipe.model:
        begin_at_frequencies(model.lm_head.bias, training.tokens)
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
    metrics = train(trainer, find_checkpoint(trainer, resume))
    metrics["parameters"] -= numbers
    nats = metrics["eval_loss"] * (len(validation.ids) - 1)
    metrics["eval_word_perplexity"] = math.exp(min(nats / validation.words, 700.0))
    if arguments.calibration_tokens and (model.config.stream.window or model.config.matches.window):
        with in_precision(model, arguments.precision):
            metrics["calibration"] = calibrate(model, validation.ids, arguments.calibration_tokens)
    model.config.use_cache = True  # the Trainer switches it off
    if trainer.is_world_process_zero():
        read = training.tokens if isinstance(training, StreamDataset) else None
        save(recipe, trainer, metrics, read=read)
    return metrics


def segments(tokens: Any, limit: int, length: int) -> Iterator[dict[str, Tensor]]:
    """Yields at most `limit` tokens as one row in segments of `length`, for `calibrate` of a model."""
    stream = StreamDataset(tokens[: limit + 1], 1, length, evaluation=True)
    for index in range(len(stream)):
        yield {key: value[None] for key, value in stream[index].items()}


def calibrate(
    model: LLEForCausalLM, tokens: Any, limit: int, segment_length: int = 256, fixed: Collection[str] = ()
) -> dict[str, float]:
    """Runs `LLEForCausalLM.calibrate` on at most `limit` held-out tokens, one-dimensional, read as one row."""
    targets = min(len(tokens) - 1, limit)
    if targets < model.config.stream.window:
        logger.warning("calibrating on %d tokens, fewer than the window of the stream", targets)
    return model.calibrate(segments(tokens, limit, segment_length), fixed=fixed)


def text_splits(recipe: Recipe, texts: dict[str, Rows] | None = None) -> dict[str, Rows]:
    """Texts of a recipe, or rows in memory, by split.

    Returns:
        "train" and "validation", and "test" with `data.held_out_test`.

    Raises:
        ValueError: A split is unusable.
    """
    data = recipe.data
    shares = (data.held_out, data.held_out_test)
    if data.streaming and any(shares):
        raise ValueError("a streamed text cannot be held out of: leave out data.streaming, or set data.held_out=0")
    training = (
        _load(data, "train", texts)
        if texts is not None or data.max_bytes is None
        else read_some(data.source, data.text_column, data.max_bytes, recipe.training.seed)
    )
    if not any(shares):
        return {"train": training, "validation": _load(data, "validation", texts)}
    parts = hold_out_documents(cast(Dataset, training), data.text_column, shares, recipe.training.seed)
    found: dict[str, Rows] = dict(zip(("train", "validation", "test"), parts, strict=True))
    if not data.held_out:
        found["validation"] = _load(data, "validation", texts)
    if not data.held_out_test:
        del found["test"]
    empty = [split for split, rows in found.items() if not len(cast(Dataset, rows))]
    if empty:
        raise ValueError(f"the text is too short to hold any of it out: the part for {empty[0]!r} is empty")
    return found


def _load(data: DataArguments, split: str, texts: dict[str, Rows] | None) -> Rows:
    if texts is not None:
        return load_texts(DatasetDict(texts), split=split, text_column=data.text_column)
    if not data.source:
        raise ValueError("the recipe has no data.source: set it to a data set on the Hub or a local path")
    return load_texts(
        data.source,
        name=data.name,
        split=getattr(data, split),
        text_column=data.text_column,
        sample_by=data.sample_by,
        streaming=data.streaming and split == "train",
    )


def _read(rows: Rows, tokenizer: PreTrainedTokenizerBase, data: DataArguments) -> TextTokens:
    encoded = tokenize(rows, tokenizer, text_column=data.text_column, num_proc=data.num_proc)
    return collect(encoded, start=tokenizer.eos_token_id)


def _training_stream(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, recipe: Recipe
) -> StreamDataset | StreamIterableDataset:
    arguments: LLETrainingArguments = recipe.training
    count = arguments.train_batch_size * arguments.world_size
    if recipe.data.streaming:
        # Endless, so that training is one epoch: the Trainer resumes exactly only within an epoch.
        documents = tokenize(rows, tokenizer, text_column=recipe.data.text_column).repeat(None)
        return StreamIterableDataset(documents, count, arguments.segment_length)
    tokens = _read(rows, tokenizer, recipe.data).ids
    return StreamDataset(tokens, count, arguments.segment_length, seed=arguments.seed)
