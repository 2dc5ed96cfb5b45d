"""Measured speed: the time of a training step on this machine, and the amount of text that fits a given time."""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..common.precision import in_precision, lack_of_bfloat16
from ..configuration import LLEConfig
from ..history.cache import LLECache
from ..models.causal import LLEForCausalLM
from ..models.seq2seq import LLEForSeq2SeqLM
from . import classification, translation
from .arguments import ClassificationArguments, LLETrainingArguments
from .pretraining import pretrain
from .progress import show_progress
from .recipe import Recipe
from .steps import keep_freed_pages, make_config, make_tokenizer

LEAST_STEPS = 20  # of an epoch, however slow the machine is
WARM_UP_STEPS = 2  # kernels are compiled, and buffers get their pages
MEASURED_STEPS = 5
MARGIN = 0.9  # of the time: the Trainer has overhead, and tokens may have fewer bytes than assumed


def choose_tokens(recipe: Recipe, most: int, seconds: float, say: Callable[[str], None]) -> int:
    """Number of tokens to train on within `seconds`, at most `most`, by timing a training step."""
    arguments: LLETrainingArguments = recipe.training
    step = seconds_of_a_step(recipe, seconds / 20)
    in_a_step = arguments.per_device_train_batch_size * arguments.segment_length
    steps = int(MARGIN * seconds / step / arguments.num_train_epochs)
    tokens = min(most, max(LEAST_STEPS, steps) * in_a_step)
    lack = lack_of_bfloat16(arguments.device)
    why = "" if lack is None or arguments.precision != "float32" else f", as {lack}"
    enough = "its maximum" if tokens == most else f"what fits {seconds / 60:.1f} minutes of training"
    if steps < LEAST_STEPS and tokens < most:
        enough = f"its minimum, in more than {seconds / 60:.1f} minutes of training"
    say(
        f"A training step of {in_a_step:,} tokens takes {step:.2f} s on this machine, in {arguments.precision}{why}: "
        f"the demo reads {tokens:,} tokens {arguments.num_train_epochs:g} times, {enough}."
    )
    return tokens


def seconds_of_a_step(recipe: Recipe, patience: float) -> float:
    """Median time of a few training steps of a language model, or of one if they exceed `patience` seconds.

    The text is random; the first two steps are warm-up.
    """
    arguments: LLETrainingArguments = recipe.training
    keep_freed_pages()
    size = recipe.tokenizer.vocab_size
    assert size is not None
    model: Any = LLEForCausalLM(LLEConfig(**{"vocab_size": size, **recipe.model}))
    model.to(arguments.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    ids = torch.randint(size, (arguments.per_device_train_batch_size, arguments.segment_length + 1))
    ids, cache = ids.to(arguments.device), LLECache()
    times: list[float] = []
    while _goes_on(times, patience):
        begin = time.perf_counter()
        with in_precision(model, arguments.precision):
            loss = model(ids[:, :-1], shift_labels=ids[:, 1:], past_key_values=cache.detach(), use_cache=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), arguments.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        float(loss.detach())  # waits for an accelerator
        times.append(time.perf_counter() - begin)
    return statistics.median(times[WARM_UP_STEPS:])


def _goes_on(times: Sequence[float], patience: float) -> bool:
    if len(times) > WARM_UP_STEPS and sum(times) >= patience:
        return False
    return len(times) < WARM_UP_STEPS + MEASURED_STEPS


class _Clock(TrainerCallback):
    """Times the steps of a Trainer, and stops it when there are enough."""

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self.times: list[float] = []
        self.before = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.before = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.times.append(time.perf_counter() - self.before)
        control.should_training_stop = not _goes_on(self.times, self.patience)

    @property
    def seconds(self) -> float:
        """Median time after the warm-up."""
        return statistics.median(self.times[WARM_UP_STEPS:] or self.times)


def seconds_with_labels(recipe: Recipe, examples: Dataset, patience: float) -> tuple[float, float]:
    """Times of a step of a classifier on some of its examples: in training, and in pretraining.

    Args:
        recipe: Recipe of a classifier.
        examples: Columns `text` and `label`, with at least two labels; the more, the better batches resemble those of
            training.
        patience: As in `seconds_of_a_step`.
    """
    with tempfile.TemporaryDirectory() as folder:
        recipe = _short(recipe, folder)
        arguments: ClassificationArguments = recipe.training
        tokenizer = make_tokenizer(recipe, examples["text"])
        labels = sorted(set(examples["label"]))
        model = classification.make_classifier(recipe.model, tokenizer, labels)
        encoded = classification.encode(examples, tokenizer, labels)
        clocks = _Clock(patience), _Clock(patience)
        texts = encoded.remove_columns("labels")
        pretrain(model.model, texts, tokenizer, arguments, arguments.num_train_epochs, [clocks[1]])
        _time(classification.make_trainer(recipe, model, tokenizer, encoded, encoded), clocks[0])
    return clocks[0].seconds, clocks[1].seconds


def seconds_with_pairs(recipe: Recipe, pairs: Dataset, patience: float) -> float:
    """Time of a training step of a translator on some of its pairs; arguments as in `seconds_with_labels`."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = _short(recipe, folder)
        tokenizer = make_tokenizer(recipe, [*pairs["source"], *pairs["target"]], ends_texts=True)
        config, _ = make_config(recipe.model, tokenizer, is_encoder_decoder=True)
        encoded = translation.encode(pairs, tokenizer)
        splits = {"train": encoded, "validation": encoded}
        clock = _Clock(patience)
        _time(translation.make_trainer(recipe, LLEForSeq2SeqLM(config), tokenizer, splits), clock)
    return clock.seconds


def _short(recipe: Recipe, folder: str) -> Recipe:
    """The recipe without evaluation, checkpoints and output, in a folder that is removed."""
    own: dict[str, Any] = {"output_dir": folder, "eval_strategy": "no", "save_strategy": "no", "disable_tqdm": True}
    own |= {"num_train_epochs": WARM_UP_STEPS + MEASURED_STEPS, "load_best_model_at_end": False}
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, **own))


def _time(trainer: Trainer, clock: _Clock) -> None:
    trainer.add_callback(clock)
    show_progress(trainer, "Measuring", 1, "rows")  # silent: `_short` says so
    trainer.train()
