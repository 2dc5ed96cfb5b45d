"""Saved classifiers and translators with the banks that lie with them: what `lle classify`, `lle learn`, `lle forget`,
`lle translate` and `lle memory` work on.
"""

import contextlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.utils import cached_file

from .bank.bank import TEMPORARY, HistoryBank
from .bank.files import MANIFEST
from .bank.manifest import HISTORY_FOLDER
from .bank.protocol import Bank
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
    """The task of a saved model; raises a ValueError as `task_of`."""
    config = AutoConfig.from_pretrained(model_path)
    return task_of((config.architectures or [config.model_type])[0], str(model_path))


def load_language_model(model_path: str | Path) -> "tuple[LLEForCausalLM, PreTrainedTokenizerBase]":
    """A saved language model and its tokenizer; arguments and errors as for `load_classifier`."""
    return _load(model_path, LANGUAGE, AutoModelForCausalLM)


def load_classifier(model_path: str | Path) -> "tuple[LLEForSequenceClassification, PreTrainedTokenizerBase]":
    """A saved classifier of texts and its tokenizer.

    Args:
        model_path: A folder, or a name on the Hub.

    Raises:
        ValueError: The model is another one.
    """
    return _load(model_path, CLASSIFICATION, AutoModelForSequenceClassification)


def load_translator(model_path: str | Path) -> "tuple[LLEForSeq2SeqLM, PreTrainedTokenizerBase]":
    """A saved translator and its tokenizer; arguments and errors as for `load_classifier`."""
    return _load(model_path, TRANSLATION, AutoModelForSeq2SeqLM)


def _load(model_path: str | Path, wanted: Task, auto: Any) -> Any:
    """The model of a task, by its Auto class, and its tokenizer; raises a ValueError if it is of another task."""
    task = task_in(model_path)
    if task != wanted:
        hint = "" if task.has_commands else f"; use {task.noun} in Python"
        raise ValueError(f"{model_path} holds a {task.model}, and {wanted.noun}, {wanted.model}, is needed{hint}")
    return auto.from_pretrained(model_path), AutoTokenizer.from_pretrained(model_path)


def bank_place(model_path: str | Path, bank: str | Path | None = None, option: str = "--bank") -> Path:
    """The folder of the bank that is given, or of the one that lies with a model, whether there is one or not.

    Args:
        model_path: A folder, or a name on the Hub.
        bank: The bank, as `HistoryBank.from_pretrained` takes it, or None.
        option: How the command line calls the bank.

    Raises:
        ValueError: The model is on the Hub, where nothing can be taught.
    """
    if bank is None and not Path(model_path).is_dir():
        raise ValueError(f"{model_path} is no folder on this machine: say with {option} where its bank is to lie")
    path = Path(model_path) if bank is None else Path(bank)
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
    """Attaches the bank that is given, or the one that lies with a saved model, if there is one.

    Args:
        model, tokenizer: What `load_classifier` or `load_translator` returned.
        model_path: Where they were loaded from.
        bank: The bank, as `HistoryBank.from_pretrained` takes it.
        namespaces: The namespaces to recall from; None: all.
        option: How the command line calls the bank.

    Raises:
        ValueError: There are namespaces but no bank.
    """
    if bank is None:
        manifest = f"{HISTORY_FOLDER}/{MANIFEST}"
        missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        if cached_file(str(model_path), manifest, **missing) is None:
            if namespaces:
                raise ValueError(f"no bank lies with {model_path}, so it has no namespaces: name one with {option}")
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
    """As `learn` of a classifier, into the bank at `path`, which is made if there is none; whole or not at all.

    Args:
        model, tokenizer: What `load_classifier` returned.
        path: The folder of the bank, which is attached to the model afterwards.
        texts, labels, options: As in `learn`.

    Returns:
        The number of new examples.
    """
    sweep(TEMPORARY)  # what a killed process left
    if (path / MANIFEST).exists():
        model.attach_history(HistoryBank.open(path), tokenizer=tokenizer)
        return model.learn(texts, labels, tokenizer, **options)
    added = model.learn(texts, labels, tokenizer, **options)  # into a temporary bank
    assert model.history_bank is not None
    model.history_bank.save_pretrained(path)
    model.attach_history(HistoryBank.open(path), tokenizer=tokenizer)
    return added


def remember(
    model: "LLEForSeq2SeqLM", tokenizer: "PreTrainedTokenizerBase", path: Path, pairs: Iterable[Any], **options: Any
) -> int:
    """Adds sentence pairs to the memory at `path`, which is made if there is none; whole or not at all.

    To a memory that is there, more than 65,536 pairs are added in parts of so many, each whole or not at all.

    Args:
        model, tokenizer: What `load_translator` returned.
        path: The folder of the memory, which is attached to the model afterwards.
        pairs, options: As in `modeling_lle.entries.pairs.add`.

    Returns:
        The number of new pairs.
    """
    before = 0
    sweep(TEMPORARY)  # what a killed process left
    if (path / MANIFEST).exists():
        bank = HistoryBank.open(path)
        before = count_pairs(bank)
        bank.add(pairs, model=model, tokenizer=tokenizer, **options)
    else:
        HistoryBank.build(model, tokenizer, pairs, **options).save_pretrained(path)  # from a temporary bank
        bank = HistoryBank.open(path)
    model.attach_history(bank, tokenizer=tokenizer)
    return count_pairs(bank) - before


def count_pairs(bank: Bank) -> int:
    """The number of sentence pairs in a bank, without those that were forgotten."""
    return sum(1 for _ in bank.documents())


def read_label(value: Any, kind: str) -> Any:
    """A label as it stands in a file, as `learn` takes it.

    Args:
        value: A string, a number or truth value, which is called as JSON writes it, or a list of them. Where a text
            may have several labels, a string may be a JSON list of them, or one of them.
        kind: What the labels are.
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
