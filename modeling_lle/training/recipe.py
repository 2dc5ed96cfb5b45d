"""Recipes: one YAML file with data, tokenizer, model and training of a run.

Notable: unknown keys are errors that suggest the nearest key; the resolved recipe is saved beside the results.
"""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, Literal

import yaml
from transformers import HfArgumentParser

from ..common.remembered import remembered as remembered
from ..configuration import LLEConfig
from ..configuration_fields import check_keys
from ..tasks import CLASSIFICATION, LANGUAGE, TRANSLATION
from .arguments import ClassificationArguments, LLETrainingArguments, TranslationArguments

ARGUMENTS = {
    LANGUAGE.name: LLETrainingArguments,
    CLASSIFICATION.name: ClassificationArguments,
    TRANSLATION.name: TranslationArguments,
}

# Keys of the section `model` that are no fields of the configuration.
BEGINNING = ("path", "embeddings", "prune")

_LOCAL = {"dataloader_pin_memory", "disable_tqdm", "hub_token", "local_rank", "use_cpu"}


@dataclasses.dataclass
class DataArguments:
    """Data of a run.

    Args:
        source: Data set on the Hub, or local file, folder or glob, or a list of local ones: any text files, and
            tables (csv, tsv, json, jsonl, parquet); for translators also TMX, PO or MO files, or parallel files named
            by language (train.en, train.de).
        name: Configuration of a data set on the Hub.
        text_column: Column of the text.
        unlabelled: Local file, folder or glob, data set on the Hub, or list of local ones, with texts of the task that
            have no label, which classifiers learn from before training (`training.teacher`,
            `training.pretraining_epochs`).
        label_column: Column of the labels, for classifiers; None: the one with a usual name.
        source_language, target_language: Codes of the languages, for translators.
        source_column, target_column: Columns of the sentences, for translators; None: those named like the languages,
            or source and target.
        out_of_scope: Label of out-of-scope rows, for classifiers; None: there are none.
        sample_by: Whether a row of plain text is a line or a whole file.
        train, validation, test: Names of the splits.
        held_out: Share of the training split held out for validation, drawn by seed: of the bytes, by whole document,
            for language models (a file, or a row of a table; a single document is cut into contiguous parts), of each
            label for classifiers, of the pairs for translators; 0: use the validation split.
        held_out_test: Share held out likewise for a final measurement: neither trained on nor fitted on.
        max_bytes: Bytes of text to read at most, held-out text included, for language models; the files are drawn by
            seed. None: all.
        max_rows: Rows of the training split to read at most, drawn by seed, for classifiers and translators. None:
            all.
        streaming: Whether to read the training split while training, for data that does not fit in memory.
        num_proc: Processes for tokenising.
    """

    source: str | list[str] = ""
    name: str | None = None
    text_column: str = "text"
    label_column: str | None = None
    unlabelled: str | list[str] = ""
    source_language: str | None = None
    target_language: str | None = None
    source_column: str | None = None
    target_column: str | None = None
    out_of_scope: str | None = None
    sample_by: Literal["line", "document"] = "line"
    train: str = "train"
    validation: str = "validation"
    test: str = "test"
    held_out: float = 0.0
    held_out_test: float = 0.0
    max_bytes: int | None = None
    max_rows: int | None = None
    streaming: bool = False
    num_proc: int | None = None


@dataclasses.dataclass
class TokenizerArguments:
    """Tokenizer of a run.

    Args:
        path: Folder or name on the Hub of a saved tokenizer; None: train one on the training split.
        kind: "bpe", byte-level pieces, or "word", whitespace tokens as in the classic benchmarks.
        vocab_size: V; None, for words only: all types.
        lowercase: Whether to convert text to lower case.
        placeholders: Whether placeholders and markup of software are pieces of their own.
    """

    path: str | None = None
    kind: Literal["bpe", "word"] = "bpe"
    vocab_size: int | None = None
    lowercase: bool = False
    placeholders: bool = False


@dataclasses.dataclass
class Recipe:
    """Sections of a run, and its task: "text-generation", "text-classification" or "translation".

    `model` holds fields of `LLEConfig`, and optionally `path`: a pretrained model, a folder or a name on the
    Hub. The fields then change its configuration, and its tokenizer is the default. Or, for classifiers, `embeddings`:
    pretrained ones, as `load_embeddings` takes them, whose tokenizer becomes that of the model; with `prune: true`
    only the types that the training texts use are kept.
    """

    data: DataArguments
    tokenizer: TokenizerArguments
    model: dict[str, Any]
    training: Any
    task: str = LANGUAGE.name

    def resolved(self) -> dict[str, Any]:
        """Plain values of the recipe with defaults, except defaults of the model, which are in config.json.

        `make_recipe` restores the recipe. Values specific to this machine, and secrets, are left out.
        """
        training = self.training.to_dict()
        return {
            "task": self.task,
            "data": dataclasses.asdict(self.data),
            "tokenizer": dataclasses.asdict(self.tokenizer),
            "model": self.model,
            "training": {key: value for key, value in training.items() if key not in _LOCAL},
        }


def load_recipe(path: str | Path, settings: list[str] | None = None) -> Recipe:
    """Reads a recipe.

    Args:
        path: YAML file.
        settings: Overrides, `section.key=value`, the value in YAML.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A key is unknown (the message suggests the nearest one), or a value has the wrong type.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no recipe at {path}: give a YAML file such as configs/lm/smoke.yaml")
    values = _parse(path.read_text(encoding="utf-8"), str(path)) or {}
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        sections, dot, name = key.rpartition(".")
        if not (equals and dot):
            raise ValueError(f"cannot read the setting {setting!r}: write section.key=value")
        target = _mapping(values, str(path))
        for section in sections.split("."):
            target[section] = target.get(section) or {}
            target = _mapping(target[section], f"{section} in the setting {setting!r}")
        target[name] = _parse(value, f"the setting {setting!r}")
    return make_recipe(values, str(path))


def make_recipe(values: dict[str, Any], where: str = "the recipe") -> Recipe:
    """Recipe of plain values; checks keys and the model's configuration."""
    check_keys(_mapping(values, where), ["task", "data", "tokenizer", "model", "training"], where)
    task = values.get("task", LANGUAGE.name)
    if task not in ARGUMENTS:
        raise ValueError(f"task in {where} is {task!r}: choose one of {', '.join(map(repr, ARGUMENTS))}")
    sections = {
        name: _mapping(values.get(name) or {}, f"the section {name} of {where}")
        for name in ("data", "tokenizer", "model", "training")
    }
    model = _numbers(sections["model"])
    _check_beginning(model, task, where)
    LLEConfig(**{key: value for key, value in model.items() if key not in BEGINNING})
    training = {"output_dir": f"runs/{Path(where).stem}", **sections["training"]}
    return Recipe(
        data=_section(DataArguments, sections["data"], f"the section data of {where}"),
        tokenizer=_section(TokenizerArguments, sections["tokenizer"], f"the section tokenizer of {where}"),
        model=model,
        training=_section(ARGUMENTS[task], training, f"the section training of {where}"),
        task=task,
    )


def _check_beginning(model: dict[str, Any], task: str, where: str) -> None:
    """Raises a ValueError if what a model begins with is contradictory, or not for models of this task."""
    if "embeddings" in model and task != CLASSIFICATION.name:
        raise ValueError(f"model.embeddings in {where} is for classifiers, and its task is {task}: leave it out")
    if "embeddings" in model and "path" in model:
        raise ValueError(f"model.embeddings and model.path in {where} exclude each other: leave one of them out")
    if "prune" in model and "embeddings" not in model:
        raise ValueError(f"model.prune in {where} is for pretrained embeddings: set model.embeddings, or leave it out")


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not valid YAML: {error}") from error


def _mapping(values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"{where} should hold keys with values, got {values!r}")
    return values


def _section(cls: Any, values: dict[str, Any], where: str) -> Any:
    """Instance of the dataclass `cls`, with keys checked and values converted to their types."""
    hints = typing.get_type_hints(cls)
    check_keys(values, [field.name for field in dataclasses.fields(cls) if field.init], where)
    values = {key: _value(value, hints[key], f"{key} in {where}") for key, value in values.items()}
    return HfArgumentParser(cls).parse_dict(values)[0]


def _value(value: Any, hint: Any, where: str) -> Any:
    """Checks `value` against the type `hint` of a number or choice; other types check themselves."""
    if typing.get_origin(hint) is typing.Literal and value not in typing.get_args(hint):
        raise ValueError(f"{where} is {value!r}: choose one of {', '.join(map(repr, typing.get_args(hint)))}")
    kinds = {hint, *_members(hint)} - {type(None)}
    if value is False and str in kinds and bool not in kinds:
        return "no"  # YAML 1.1 reads "no" as false; save_strategy means the word
    if kinds and kinds <= {int, float} and not (value is None and hint not in kinds):
        value = _numbers(value)
        if float not in kinds and isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, tuple(kinds | {int})):
            raise ValueError(f"{where} is {value!r}: give {'a number' if float in kinds else 'a whole number'}")
    return value


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else ()


def _numbers(value: Any) -> Any:
    """Converts 2e-3, a string in YAML 1.1, to a number, except in label names."""
    if isinstance(value, dict):
        return {key: inner if key in ("id2label", "label2id") else _numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_numbers(inner) for inner in value]
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
