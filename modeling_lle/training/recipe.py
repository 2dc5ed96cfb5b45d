"""A run: one YAML file that says what to read, with which tokenizer, which model, and how to train it.

Notable: unknown keys are errors that propose the nearest key; the resolved recipe is saved beside the results.
"""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, Literal

import yaml
from transformers import HfArgumentParser

from ..configuration_lle import LLEConfig, check_keys
from .trainer import LLETrainingArguments


@dataclasses.dataclass
class DataArguments:
    """Which text to read.

    Args:
        source: A data set on the Hub, or a local file, folder or glob of text, csv, json, jsonl or parquet files.
        name: Configuration of a data set on the Hub.
        text_column: Column of the text.
        sample_by: Whether a row is a line or a whole file of plain text.
        train, validation, test: Names of the splits.
        streaming: Read the training split while training, for what does not fit in memory.
        num_proc: Processes that tokenize.
    """

    source: str = ""
    name: str | None = None
    text_column: str = "text"
    sample_by: Literal["line", "document"] = "line"
    train: str = "train"
    validation: str = "validation"
    test: str = "test"
    streaming: bool = False
    num_proc: int | None = None


@dataclasses.dataclass
class TokenizerArguments:
    """Which tokenizer to use.

    Args:
        path: A saved tokenizer, a folder or a name on the Hub; None: train one on the training split.
        kind: "bpe", byte-level pieces, or "word", whitespace tokens as in the classic benchmarks.
        vocab_size: Number of types; None, for words only: all.
    """

    path: str | None = None
    kind: Literal["bpe", "word"] = "bpe"
    vocab_size: int | None = None


@dataclasses.dataclass
class Recipe:
    """The sections of a run."""

    data: DataArguments
    tokenizer: TokenizerArguments
    model: dict[str, Any]
    training: LLETrainingArguments

    def resolved(self) -> dict[str, Any]:
        """Every value, defaults included, as plain types."""
        return {
            "data": dataclasses.asdict(self.data),
            "tokenizer": dataclasses.asdict(self.tokenizer),
            "model": self.model,
            "training": self.training.to_dict(),
        }


def load_recipe(path: str | Path, settings: list[str] | None = None) -> Recipe:
    """Reads a recipe.

    Args:
        path: The YAML file.
        settings: Overriding values, `section.key=value`, the value in YAML.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A key is unknown, or a value has the wrong form; the message proposes the nearest key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no recipe at {path}: give a YAML file such as configs/lm/smoke.yaml")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        section, dot, name = key.partition(".")
        if not (equals and dot):
            raise ValueError(f"cannot read the setting {setting!r}: write section.key=value")
        target = values.setdefault(section, {})
        *inner, name = name.split(".")
        for part in inner:
            target = target.setdefault(part, {})
        target[name] = yaml.safe_load(value)
    return make_recipe(values, str(path))


def make_recipe(values: dict[str, Any], where: str = "the recipe") -> Recipe:
    """A recipe from plain values, its keys and the model's configuration checked."""
    check_keys(values, ["data", "tokenizer", "model", "training"], where)
    values = {key: value or {} for key, value in values.items()}
    model = {key: _number(value) for key, value in values.get("model", {}).items()}
    LLEConfig(**model)
    training = {"output_dir": f"runs/{Path(where).stem}", **values.get("training", {})}
    return Recipe(
        data=_section(DataArguments, values.get("data", {}), f"the section data of {where}"),
        tokenizer=_section(TokenizerArguments, values.get("tokenizer", {}), f"the section tokenizer of {where}"),
        model=model,
        training=_section(LLETrainingArguments, training, f"the section training of {where}"),
    )


def _section(cls: Any, values: dict[str, Any], where: str) -> Any:
    """An instance of the dataclass `cls`, its keys checked, its numbers read as YAML means them."""
    hints = typing.get_type_hints(cls)
    check_keys(values, [field.name for field in dataclasses.fields(cls) if field.init], where)
    numbers = {key for key, hint in hints.items() if hint is float or float in _members(hint)}
    values = {key: _number(value) if key in numbers else value for key, value in values.items()}
    return HfArgumentParser(cls).parse_dict(values)[0]


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else ()


def _number(value: Any) -> Any:
    """YAML 1.1 reads 2e-3 as text; everybody who writes it means the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
