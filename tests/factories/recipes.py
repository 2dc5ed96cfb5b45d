"""A tiny recipe of each task, with dropout and a checkpoint at every second of six steps, and its rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset

from modeling_lle.training import Recipe, make_recipe

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "that", "dog"]
LINES = [" ".join(WORDS[(3 * line + place * place) % 10] for place in range(7)) for line in range(40)]
MODEL = {"hidden_size": 8, "num_hidden_layers": 1, "input_dropout": 0.2}
Made = tuple[Recipe, dict[str, Any]]


def _training(folder: Path, **more: Any) -> dict[str, Any]:
    steps = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.01}
    sizes = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 10}
    return {"output_dir": str(folder), **steps, **sizes, "disable_tqdm": True, **more}


def make_language_recipe(folder: Path, **training: Any) -> Made:
    """It trains into `folder`."""
    own = {"segment_length": 6, "calibration_tokens": 30}
    values = {
        "tokenizer": {"kind": "word"},
        "model": {**MODEL, "history": {"stream": {"window": 9}}},
        "training": _training(folder, **own, **training),
    }
    rows = Dataset.from_dict({"text": LINES})
    return make_recipe(values), {"train": rows, "validation": rows.select(range(12))}


def make_classifier_recipe(folder: Path, **training: Any) -> Made:
    """It trains into `folder`, and makes a bank there; it is pretrained."""
    values = {
        "task": "text-classification",
        "data": {"held_out": 0.25},
        "tokenizer": {"kind": "word"},
        "model": {**MODEL, "bidirectional": True},
        "training": _training(folder, **{"pretraining_epochs": 1.0, **training}),
    }
    labels = [line.split()[0] for line in LINES]
    return make_recipe(values), {"train": Dataset.from_dict({"text": LINES, "label": labels})}


def make_translator_recipe(folder: Path, **training: Any) -> Made:
    """It trains into `folder`."""
    values = {
        "task": "translation",
        "data": {"source_language": "en", "target_language": "de"},
        "tokenizer": {"vocab_size": 300},
        "model": {**MODEL, "recurrence": "qrnn", "translator": {"num_attention_heads": 2}},
        "training": _training(folder, **training),
    }
    rows = Dataset.from_dict({"en": LINES, "de": [line.upper() for line in LINES]})
    return make_recipe(values), {"train": rows, "validation": rows.select(range(6))}


RECIPES: dict[str, Callable[..., Made]] = {
    "language": make_language_recipe,
    "classification": make_classifier_recipe,
    "translation": make_translator_recipe,
}
