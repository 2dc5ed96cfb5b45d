"""Steps of every run: tokenizer, configuration, timed training, saving."""

import ctypes
import gc
import importlib.util
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from accelerate import PartialState
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ..bank.files import Folder
from ..bank.manifest import HISTORY_FOLDER
from ..bank.protocol import Bank
from ..common.temporary import replacing
from ..configuration import LLEConfig
from ..configuration_sections import SECTIONS
from ..tokenization import LLETokenizer
from .checkpoints import METRICS, remove_checkpoints
from .overlap import save_sketch
from .progress import show_progress
from .recipe import BEGINNING, Recipe

RECIPE = "recipe.yaml"


class _Clock(TrainerCallback):
    """Counts the minutes of training; checkpoints store them, so that resumed training counts on.

    Args:
        checkpoint: Checkpoint to resume from, if any.
        minutes: Minutes already spent by a new training.
    """

    FILE = "train_minutes.json"

    def __init__(self, checkpoint: str | None, minutes: float) -> None:
        self.start = time.perf_counter()
        file = None if checkpoint is None else Path(checkpoint) / self.FILE
        self.before = minutes if file is None else json.loads(file.read_text()) if file.is_file() else None

    @property
    def minutes(self) -> float | None:
        """Minutes so far; None if the checkpoint does not state them."""
        return None if self.before is None else self.before + (time.perf_counter() - self.start) / 60

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Writes the minutes so far into the checkpoint."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir() and self.minutes is not None:
            with replacing(folder / self.FILE) as partial:
                partial.write_text(json.dumps(self.minutes))


def train(trainer: Trainer, checkpoint: str | None, minutes: float = 0.0) -> dict[str, Any]:
    """Trains, evaluates, and returns the metrics of both.

    Args:
        trainer: Trainer.
        checkpoint: Result of `find_checkpoint`.
        minutes: Minutes already spent.
    """
    model: Any = trainer.model
    model._keys_to_ignore_on_save = list(model.all_tied_weights_keys)  # checkpoints lack them, which is no fault
    stream = getattr(trainer.args, "segment_length", None)
    show_progress(trainer, "Training", stream or 1, "tokens" if stream else "texts")
    clock = _Clock(checkpoint, minutes)
    trainer.add_callback(clock)
    outcome = trainer.train(resume_from_checkpoint=checkpoint)
    taken = clock.minutes
    return {
        "parameters": model.num_parameters(),
        **({} if taken is None else {"train_minutes": taken}),
        "train_steps": outcome.global_step,
        "train_loss": outcome.training_loss,
        **trainer.evaluate(),
    }


def leave_group() -> None:
    """Destroys the process group, if this is one of several processes; call it when their work is done.

    Else its threads outlive the interpreter, and the process ends with an error.
    """
    gc.collect()  # the wrapped model references the group in a cycle
    PartialState().destroy_process_group()


def save(
    recipe: Recipe,
    trainer: Trainer,
    metrics: dict[str, Any],
    bank: Bank | None = None,
    *,
    read: np.ndarray | Iterable[str] | None,
) -> None:
    """Writes the model, the tokenizer, recipe.yaml, a sketch, the bank and metrics.json into the output folder.

    metrics.json marks a finished run: it is removed first and written last.

    Args:
        recipe, trainer, metrics, bank: Those of the run.
        read: What was trained on, for the sketch, as in `save_sketch`; None if it was streamed.
    """
    folder = Path(str(recipe.training.output_dir))
    (folder / METRICS).unlink(missing_ok=True)
    trainer.save_model()
    write_recipe(recipe)
    save_sketch(folder, read, cast(PreTrainedTokenizerBase, trainer.processing_class))
    if bank is not None:
        Folder(folder / HISTORY_FOLDER).remove()  # left by a killed run
        bank.save_pretrained(folder / HISTORY_FOLDER)
    with replacing(folder / METRICS) as partial:
        partial.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    if not recipe.training.keep_checkpoints:
        remove_checkpoints(folder)


def write_recipe(recipe: Recipe) -> None:
    """Writes recipe.yaml into the output folder, which must exist."""
    with replacing(Path(str(recipe.training.output_dir)) / RECIPE) as partial:
        partial.write_text(yaml.safe_dump(recipe.resolved(), sort_keys=False), encoding="utf-8")


def keep_freed_pages() -> None:
    """Tells glibc to keep freed memory for the next step; else the kernel zeroes new pages in every step.

    See `man mallopt`. No effect without glibc.
    """
    if not (sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt")):
        return
    trim_threshold, mmap_threshold = -1, -3
    libc.mallopt(mmap_threshold, 1 << 30)
    libc.mallopt(trim_threshold, (1 << 31) - 1)


def check_trackers(arguments: TrainingArguments) -> None:
    """Raises an ImportError that names the extra of a missing tracker in `report_to`."""
    for tracker in sorted({"tensorboard", "trackio"}.intersection(arguments.report_to or [])):
        if importlib.util.find_spec(tracker) is None:
            raise ImportError(f"report_to: {tracker} needs {tracker}: pip install modeling_lle[tracking]")


def make_tokenizer(recipe: Recipe, texts: Iterable[str], ends_texts: bool = False) -> PreTrainedTokenizerBase:
    """Tokenizer of the recipe, of its pretrained model, or a new one trained on these texts.

    `ends_texts` as in `LLETokenizer.train`.
    """
    arguments = recipe.tokenizer
    path = arguments.path or recipe.model.get("path")
    if path:
        return AutoTokenizer.from_pretrained(path)
    return LLETokenizer.train(
        texts, arguments.vocab_size, arguments.kind, arguments.lowercase, ends_texts, arguments.placeholders
    )


@torch.no_grad()
def begin_at_frequencies(bias: Tensor, tokens: np.ndarray) -> None:
    """Sets the bias (V,) of an output layer to log frequencies of its targets, one-dimensional, add-one smoothed.

    Else the backbone first learns them by constant states, which drives LSTM cells into saturation for good.
    """
    counts = torch.from_numpy(np.bincount(tokens, minlength=len(bias))).float() + 1
    bias.copy_((counts / counts.sum()).log())


def _merged(saved: dict[str, Any], changes: dict[str, Any] | None) -> dict[str, Any]:
    """Values of a section with changes, merged recursively."""
    inner = {name: value for name, value in saved.items() if isinstance(value, dict)}
    changes = {
        name: _merged(inner[name], value) if name in inner else value for name, value in (changes or {}).items()
    }
    return {**saved, **changes}


def make_config(
    given: dict[str, Any], tokenizer: PreTrainedTokenizerBase, **more: Any
) -> tuple[LLEConfig, str | None]:
    """Configuration, and the `path` of the pretrained model whose configuration the values change, if given.

    Args:
        given: Section `model` of a recipe.
        tokenizer: Tokenizer.
        more: Further fields.
    """
    values = {name: value for name, value in {**given, **more}.items() if name not in BEGINNING}
    path = given.get("path")
    if path is None:
        ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = LLEConfig(**{"vocab_size": len(tokenizer), **ids, **values})
    else:
        saved = AutoConfig.from_pretrained(path).to_dict()
        sections = {name: _merged(saved[name], values.pop(name)) for name in SECTIONS.keys() & values.keys()}
        config = AutoConfig.from_pretrained(path, **sections, **values)  # flat fields after their section
    if config.vocab_size < len(tokenizer):
        raise ValueError(
            f"model.vocab_size is {config.vocab_size}, but the tokenizer has {len(tokenizer)} types: "
            "leave model.vocab_size out, or train a smaller tokenizer"
        )
    return config, path
