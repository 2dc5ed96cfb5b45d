"""Loading of saved models with their banks, and adding to these banks, for the commands."""

import contextlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.utils import cached_file

from .bank.bank import TEMPORARY, HistoryBank
from .bank.copying import bank_exists, keep
from .bank.files import MANIFEST
from .bank.manifest import HISTORY_FOLDER
from .bank.protocol import Bank
from .common.paths import is_address
from .common.remembered import remembered
from .common.temporary import sweep
from .data.rows import class_name
from .history.label_rule import MULTI, REGRESSION, Label
from .tasks import CLASSIFICATION, LANGUAGE, TRANSLATION, Task, task_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .models.causal import LLEForCausalLM
    from .models.classification import LLEForSequenceClassification
    from .models.pretrained import LLEPreTrainedModel
    from .models.seq2seq import LLEForSeq2SeqLM


def task_in(model_path: str | Path) -> Task:
    """Task of a saved model; raises a ValueError as `task_of`."""
    config = AutoConfig.from_pretrained(model_path)
    return task_of((config.architectures or [config.model_type])[0], str(model_path))


def load_language_model(model_path: str | Path) -> "tuple[LLEForCausalLM, PreTrainedTokenizerBase]":
    """Loads a language model and its tokenizer; arguments and errors as for `load_classifier`."""
    return _load(model_path, LANGUAGE, AutoModelForCausalLM)


def load_classifier(model_path: str | Path) -> "tuple[LLEForSequenceClassification, PreTrainedTokenizerBase]":
    """Loads a classifier of texts and its tokenizer.

    Args:
        model_path: Folder, or name on the Hub.

    Raises:
        ValueError: The model is of another task.
    """
    return _load(model_path, CLASSIFICATION, AutoModelForSequenceClassification)


def load_translator(model_path: str | Path) -> "tuple[LLEForSeq2SeqLM, PreTrainedTokenizerBase]":
    """Loads a translator and its tokenizer; arguments and errors as for `load_classifier`."""
    return _load(model_path, TRANSLATION, AutoModelForSeq2SeqLM)


def load_in_float32(model_path: str | Path) -> "tuple[LLEPreTrainedModel, PreTrainedTokenizerBase]":
    """Loads a model of any task with float32 weights, and its tokenizer; raises a ValueError as `task_of`."""
    auto: Any = getattr(transformers, task_in(model_path).auto_class)
    return auto.from_pretrained(model_path, dtype=torch.float32), AutoTokenizer.from_pretrained(model_path)


def _load(model_path: str | Path, wanted: Task, auto: Any) -> Any:
    """Loads a model by its Auto class, and its tokenizer; raises a ValueError if it is of another task."""
    task = task_in(model_path)
    if task != wanted:
        commands = (
            f"use {' or '.join(f'lle {name}' for name in task.commands)}" if task.commands else "use it in Python"
        )
        raise ValueError(f"{model_path} holds {task.noun}, and {wanted.noun} is needed: {commands}")
    return auto.from_pretrained(model_path), AutoTokenizer.from_pretrained(model_path)


def languages_of(
    model_path: str | Path, source_language: str | None = None, target_language: str | None = None
) -> tuple[str, str]:
    """Source and target language: as given, or from the recipe saved with a model.

    Raises:
        ValueError: A language is unknown.
    """
    trained = remembered(model_path)
    source_language = source_language or trained.get("source_language")
    target_language = target_language or trained.get("target_language")
    if source_language is None or target_language is None:
        raise ValueError(f"the languages of {model_path} are unknown: give --source-language and --target-language")
    return source_language, target_language


def bank_place(model_path: str | Path, bank: str | Path | None = None, option: str = "--bank") -> Path:
    """Folder or address of a bank, or of the one saved with a model; it need not exist.

    Args:
        model_path: Folder, or name on the Hub.
        bank: Bank, as in `HistoryBank.from_pretrained`; None: that of the model.
        option: Option of the command line for the bank, for messages.

    Raises:
        ValueError: No bank is given, and the model is on the Hub, where banks cannot be changed.
    """
    if bank is None and not Path(model_path).is_dir():
        raise ValueError(f"{model_path} is not a local folder: give the folder of its bank with {option}")
    path = Path(model_path) if bank is None else Path(bank)
    if is_address(path):
        return path
    inner = path / HISTORY_FOLDER
    return inner if bank is None or (inner / MANIFEST).exists() else path


def attach_bank(
    model: "LLEPreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    model_path: str | Path,
    bank: str | Path | None = None,
    namespaces: Sequence[str] | None = None,
    option: str = "--bank",
) -> None:
    """Attaches a bank, or the one saved with the model, if any.

    Args:
        model, tokenizer: Result of `load_classifier` or `load_translator`.
        model_path: Their folder, or name on the Hub.
        bank: Bank, as in `HistoryBank.from_pretrained`; None: that of the model.
        namespaces: Namespaces to recall from; None: all.
        option: Option of the command line for the bank, for messages.

    Raises:
        ValueError: There are namespaces but no bank.
    """
    if bank is None:
        manifest = f"{HISTORY_FOLDER}/{MANIFEST}"
        missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        if cached_file(str(model_path), manifest, **missing) is None:
            if namespaces:
                raise ValueError(f"{model_path} has no bank with namespaces: name one with {option}")
            return
    opened = HistoryBank.from_pretrained(model_path if bank is None else bank)
    model.attach_history(opened, namespaces, tokenizer)


def teach(
    model: "LLEForSequenceClassification",
    tokenizer: "PreTrainedTokenizerBase",
    path: Path,
    texts: Sequence[str],
    labels: Sequence[Label],
    **options: Any,
) -> int:
    """Runs `learn` of a classifier atomically into the bank at `path`, which is made if it does not exist.

    Args:
        model, tokenizer: Result of `load_classifier`.
        path: Folder or address of the bank, which is attached to the model afterwards.
        texts, labels, options: As in `learn`.

    Returns:
        Number of new examples.
    """
    sweep(TEMPORARY)  # what a killed process left
    if bank_exists(path):
        model.attach_history(HistoryBank.open(path), tokenizer=tokenizer)
        return model.learn(texts, labels, tokenizer, **options)
    added = model.learn(texts, labels, tokenizer, **options)  # into a temporary bank
    assert model.history_bank is not None
    keep(model.history_bank, path)
    model.attach_history(HistoryBank.open(path), tokenizer=tokenizer)
    return added


def remember(
    model: "LLEForSeq2SeqLM", tokenizer: "PreTrainedTokenizerBase", path: Path, pairs: Iterable[Any], **options: Any
) -> int:
    """Adds sentence pairs atomically to the memory at `path`, which is made if it does not exist.

    An existing memory gets more than 65,536 pairs in several atomic parts.

    Args:
        model, tokenizer: Result of `load_translator`.
        path: Folder or address of the memory, which is attached to the model afterwards.
        pairs, options: As in `PairEntries.add`.

    Returns:
        Number of new pairs.
    """
    before = 0
    sweep(TEMPORARY)  # what a killed process left
    if bank_exists(path):
        bank = HistoryBank.open(path)
        before = count_pairs(bank)
        bank.add(pairs, model=model, tokenizer=tokenizer, **options)
    else:
        keep(HistoryBank.build(model, tokenizer, pairs, **options), path)  # from a temporary bank
        bank = HistoryBank.open(path)
    model.attach_history(bank, tokenizer=tokenizer)
    return count_pairs(bank) - before


def count_pairs(bank: Bank) -> int:
    """Number of sentence pairs in a bank, without forgotten ones."""
    return sum(1 for _ in bank.documents())


def read_label(value: Any, kind: str) -> Any:
    """Converts a label from a file to a label for `learn`.

    Args:
        value: String, number or truth value, named as JSON writes it, or a list of them. In multi-label tasks, a
            string may be a JSON list of labels, or a single one.
        kind: `problem_type` of the labels.
    """
    if kind == REGRESSION:
        try:
            return value if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            return value  # learn() says what is wrong
    if kind == MULTI and isinstance(value, str):
        with contextlib.suppress(ValueError):
            several = json.loads(value)
            value = several if isinstance(several, list) else value
    try:
        if isinstance(value, list):
            return [class_name(one) for one in value]
        return [class_name(value)] if kind == MULTI and value is not None else class_name(value)
    except ValueError:
        return value  # learn() says what is wrong
