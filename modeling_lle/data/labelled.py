"""Texts with labels, from the Hub, from files or from memory.

Notable: the result always has the columns `text` and `label`, labels are class names, texts are unchanged; rows of
files say where they come from. Loading reports what cannot be read, `check_labelled` examples unfit for training.
"""

import difflib
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict, List, Value

from ..bank.places import PROVENANCE
from .gather import Taken
from .rows import check_column, class_name, read_utf8
from .sources import Source, Split, describe, local_files, open_columns
from .splits import SPLITS, pick_split

OUT_OF_SCOPE_LABEL = "oos"  # of rows with none of the other labels, as CLINC150 writes it

# Usual names.
TEXT_COLUMNS = ("text", "utterance", "sentence", "query")
LABEL_COLUMNS = ("label", "intent", "category", "labels")
_ASIDE = "oos_"  # prefix of the splits of a JSON object with out-of-scope rows
_NAME = r'\s*"((?:[^"\\]|\\.)*)"\s*:\s*\[\s*'
_SPLITS_OF_PAIRS = re.compile(rf"\s*\{{(?:{_NAME}\]\s*,)*{_NAME}\[")
_SHOWN = 10  # bad examples in a message
_IN_MEMORY = (Dataset, DatasetDict, IterableDataset, IterableDatasetDict)

logger = logging.getLogger(__name__)


def load_labelled(
    source: Source,
    *,
    name: str | None = None,
    split: Split = None,
    text_column: str | None = None,
    label_column: str | None = None,
    out_of_scope: str | None = None,
    numbers: bool = False,
) -> Dataset:
    """Loads one split of a data set of texts with labels.

    Args:
        source: As in `load_texts`, but files are tables, or a .json file with an object that maps splits to lists of
            [text, label], where oos_train, oos_val and oos_test hold the out-of-scope rows of train, val and test.
        name: Configuration of a data set on the Hub.
        split: As in `load_texts`; slices need files of a single split.
        text_column: Column of the texts; None: text, utterance, sentence or query.
        label_column: Column of the labels; None: label, intent, category or labels.
        out_of_scope: Label of out-of-scope rows, also given to oos_ splits; if no row has it, a warning is logged.
            None: "oos", which may be absent.
        numbers: Whether the labels are regression targets, not classes.

    Returns:
        The columns `text` (string) and `label`: a class name (string), a list of class names, or a number (float64).
        Missing values are None. Names are as written in the file: "01" in CSV stays "01", 1 and true in JSON become
        "1" and "true". Rows of files also have the columns `file` (string) and, except in files of splits, `line`
        (int32), in which they begin, counted from 1; of Parquet `file` and `row_in_file` (int32).

    Raises:
        FileNotFoundError: `source` is neither on this machine nor on the Hub.
        ValueError: The split or column is missing or ambiguous, there are no rows, or a row is not a text with a
            label.
    """
    if numbers and out_of_scope is not None:
        raise ValueError(f"numbers=True has no out-of-scope label: leave out out_of_scope={out_of_scope!r}")
    where = describe(source)
    files = None if isinstance(source, _IN_MEMORY) else local_files(source, text=False)
    file = None if files is None else _file_of_splits(files, where)
    if file is not None:
        _find_columns(text_column, label_column, ["text", "label"], where)  # refuses others that are given
        splits = _read_splits(file.path, out_of_scope or OUT_OF_SCOPE_LABEL)
        pairs = splits[pick_split(split, splits, where)]
        texts, labels, feature = [text for text, _ in pairs], [label for _, label in pairs], None
        places: list[dict[str, Any]] = [{"file": file.name}] * len(pairs)
    else:
        rows = open_columns(source, name=name, split=split, files=files)
        text_column, label_column = _find_columns(text_column, label_column, rows.names, where)
        texts, labels, feature = rows.values(text_column), rows.values(label_column), rows.features.get(label_column)
        places = rows.places
    if not texts:
        raise ValueError(f"there is no text in {where}: it has no rows")
    for row, text in enumerate(texts):
        if not isinstance(text, str | None):
            raise ValueError(f"the text in row {row} of {where} is {text!r:.80}, not a string")
    read = _read_labels(labels, feature, numbers, where)
    dataset = _make_dataset({"text": texts, "label": read, **_columns_of(places)}, numbers, where)
    if out_of_scope is not None and not split_out_of_scope(dataset, out_of_scope)[1]:
        logger.warning("no row of %s has the out_of_scope label %r", where, out_of_scope)
    return dataset


def _find_columns(
    text_column: str | None, label_column: str | None, columns: list[str], where: str
) -> tuple[str, str]:
    """The given columns, or the only ones with a usual name."""
    text_column = _find_column(text_column, TEXT_COLUMNS, "text", columns, columns, where)
    others = [column for column in columns if column != text_column]
    return text_column, _find_column(label_column, LABEL_COLUMNS, "label", others, columns, where)


def _find_column(
    given: str | None, usual: Sequence[str], kind: str, candidates: list[str], columns: list[str], where: str
) -> str:
    if given is not None:
        check_column(given, columns, where)
        return given
    found = [column for column in candidates if column.lower() in usual]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{where} may have its {kind} in {' or '.join(found)}: choose with {kind}_column")
    near = [column for column in candidates if difflib.get_close_matches(column.lower(), usual, n=1)]
    hint = f" (is it {near[0]!r}?)" if near else ""
    raise ValueError(
        f"{where} has no column {', '.join(usual[:-1])} or {usual[-1]}{hint}: name the {kind} column with "
        f"{kind}_column; its columns are: {', '.join(columns)}"
    )


def _columns_of(places: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Columns of where rows come from, without those that no row has."""
    columns = {name: [place.get(name) for place in places] for name in PROVENANCE}
    return {name: values for name, values in columns.items() if any(value is not None for value in values)}


def _file_of_splits(files: Mapping[str, list[Taken]], where: str) -> Taken | None:
    """The file, if the source is one that maps splits to lists of pairs."""
    every = [file for part in files.values() for file in part]
    holding = [file for file in every if file.path.suffix.lower() == ".json" and _holds_splits(file.path)]
    if holding and len(every) > 1:
        names = ", ".join(str(file.path) for file in holding)
        raise ValueError(f"{where} mixes a file of all splits with others: give one file, such as {names}")
    return holding[0] if holding else None


def _holds_splits(file: Path) -> bool:
    with file.open(encoding="utf-8-sig", errors="replace") as lines:
        match = _SPLITS_OF_PAIRS.match(lines.read(4096))
    return match is not None and match[2].removeprefix(_ASIDE) in SPLITS


def _read_splits(file: Path, out_of_scope: str) -> dict[str, list[tuple[Any, Any]]]:
    text = read_utf8(file, repr(str(file)))
    try:
        content: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{str(file)!r} is not valid JSON, perhaps truncated: {error}") from error
    splits: dict[str, list[tuple[Any, Any]]] = {}
    for key in sorted(content, key=lambda key: key.startswith(_ASIDE)):  # out-of-scope rows last
        rows, aside = content[key], key.startswith(_ASIDE)
        split = key.removeprefix(_ASIDE)
        into = splits.setdefault(SPLITS.get(split, split), [])
        if not isinstance(rows, list):
            raise ValueError(f"{key!r} of {str(file)!r} should be a list of [text, label], not {rows!r:.80}")
        for row, pair in enumerate(rows):
            if not isinstance(pair, list) or len(pair) != 2:
                raise ValueError(f"row {row} of {key!r} in {str(file)!r} should be [text, label], not {pair!r:.80}")
            text, label = pair
            if aside:
                label = [out_of_scope] if isinstance(label, list) else out_of_scope
            into.append((text, label))
    return splits


def _read_labels(labels: list[Any], feature: Any, numbers: bool, where: str) -> list[Any]:
    """Labels of all rows: numbers, names, or lists of names."""
    inner = feature.feature if isinstance(getattr(feature, "feature", None), ClassLabel) else feature
    classes = inner if isinstance(inner, ClassLabel) else None
    if numbers and classes is not None:
        raise ValueError(f"the labels of {where} are classes, not numbers: leave out numbers=True")
    read: list[Any] = []
    for row, label in enumerate(labels):
        try:
            if numbers:
                read.append(_number(label))
            elif isinstance(label, list):
                read.append([_class_name(one, classes) for one in label])
            else:
                read.append(_class_name(label, classes))
        except ValueError as error:
            raise ValueError(f"the label in row {row} of {where} is {label!r:.80}: {error}") from error
    kinds = {isinstance(label, list) for label in read if label is not None}
    if len(kinds) > 1:
        row = next(row for row, label in enumerate(read) if isinstance(label, list))
        raise ValueError(f"the label in row {row} of {where} is a list, others are not: make all of them lists")
    return read


def _number(label: Any) -> float | None:
    if label is None or label == "":
        return None
    if isinstance(label, (bool, list)):
        raise ValueError("with numbers=True, it should be a number")
    try:
        value = float(label)
    except (TypeError, ValueError):
        raise ValueError("with numbers=True, it should be a number") from None
    return None if math.isnan(value) else value


def _class_name(label: Any, classes: ClassLabel | None) -> str | None:
    if classes is not None and label is not None:
        return classes.int2str(label) if label >= 0 else None  # the Hub writes -1 for withheld labels
    if isinstance(label, float) and math.isfinite(label) and not label.is_integer():
        raise ValueError("for regression targets, give numbers=True")
    if isinstance(label, (list, dict)):
        raise ValueError("it should be a class name, or a list of class names")
    return class_name(label)


def _make_dataset(columns: dict[str, list[Any]], numbers: bool, where: str) -> Dataset:
    several = any(isinstance(label, list) for label in columns["label"])
    kind = Value("float64") if numbers else List(Value("string")) if several else Value("string")
    kinds = {"text": Value("string"), "label": kind, "file": Value("string")}
    features = Features({name: kinds.get(name, Value("int32")) for name in columns})
    try:
        return Dataset.from_dict(columns, features=features)
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} holds {error.object!r:.80}, which is not valid Unicode: {error.reason}") from error


def split_out_of_scope(dataset: Dataset, label: str = OUT_OF_SCOPE_LABEL) -> tuple[Dataset, Dataset]:
    """Separates in-scope rows from out-of-scope rows.

    Args:
        dataset: Result of `load_labelled`.
        label: Label of out-of-scope rows.

    Returns:
        In-scope rows and out-of-scope rows, each in order; both may be empty.
    """
    _check_table(dataset)
    labels = dataset.with_format(None)["label"][:]
    outside = [label in given if isinstance(given, list) else given == label for given in labels]
    return (
        dataset.select([row for row, out in enumerate(outside) if not out]),
        dataset.select([row for row, out in enumerate(outside) if out]),
    )


def check_labelled(dataset: Dataset, *, where: str = "the data set", refuse: bool = True) -> list[int]:
    """Finds examples unfit for training.

    These are texts that are empty, blank or not strings, missing labels, lists that repeat a class (such as rows of
    zeros and ones), and equal texts of different classes. Repeated examples and several numbers for one text are
    fine. Classes with a single example are logged as a warning.

    Args:
        dataset: Rows with `text` and `label`, as `load_labelled` makes them.
        where: Name of the data set in messages.
        refuse: Whether bad examples are an error; otherwise they are logged as a warning.

    Returns:
        Rows of the bad examples, counted from 0, sorted; leave them out before training.

    Raises:
        ValueError: Rows or columns are missing or, if `refuse`, there are bad examples: the message names the first
            ones and their faults.
    """
    _check_table(dataset)
    if not len(dataset):
        raise ValueError(f"{where} has no rows: there is nothing to learn from")
    plain = dataset.with_format(None)
    texts, labels = plain["text"][:], plain["label"][:]
    found: list[tuple[tuple[int, ...], str]] = [
        ((row,), wrong) for row in range(len(texts)) if (wrong := _what_is_wrong(texts[row], labels[row]))
    ]
    bad = {row for rows, _ in found for row in rows}
    good = [row for row in range(len(texts)) if row not in bad]
    found += _contradictions(texts, labels, good)
    _warn_of_single_examples([labels[row] for row in good], where)
    if found:
        found.sort()
        lines = [f"  {_name_rows(rows)}: {wrong}" for rows, wrong in found[:_SHOWN]]
        more = [f"  and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
        message = "\n".join([f"{where} has bad examples (rows are counted from 0):", *lines, *more])
        if refuse:
            raise ValueError(
                f"{message}\nfix them, or leave out the rows that check_labelled(..., refuse=False) returns"
            )
        logger.warning("%s", message)
    return sorted({row for rows, _ in found for row in rows})


def check_known(labels: Sequence[Any], known: Sequence[str], out_of_scope: str = OUT_OF_SCOPE_LABEL) -> None:
    """Raises a ValueError unless every label is known or `out_of_scope`, and at least one is known."""
    unknown = [row for row, label in enumerate(labels) if label not in known and label != out_of_scope]
    if unknown:
        raise ValueError(
            f"neither the model nor a bank knows the label {labels[unknown[0]]!r} (row {unknown[0]}; "
            f"{len({str(labels[row]) for row in unknown})} such labels): teach it with learn(new_labels=True), or "
            "name the label of out-of-scope rows with out_of_scope"
        )
    if all(label not in known for label in labels):
        raise ValueError(f"every text has the label {out_of_scope!r}: there is nothing in scope to measure")


def check_complete(texts: Sequence[Any], labels: Sequence[Any], where: str) -> None:
    """Raises a ValueError for the first row without a text or without a single class name."""
    for row, (text, label) in enumerate(zip(texts, labels, strict=True)):
        if not isinstance(text, str) or not text.strip():
            what = "missing" if text is None else "blank" if isinstance(text, str) else f"{text!r:.80}, not a string"
            raise ValueError(f"the text in row {row} of {where} is {what}: remove the row")
        if not isinstance(label, str) or not label.strip():
            what = "missing" if label in (None, "") else f"{label!r:.80}, not a class name"
            raise ValueError(f"the label in row {row} of {where} is {what}: remove the row")


def _check_table(dataset: Dataset) -> None:
    missing = {"text", "label"}.difference(dataset.column_names)
    if missing:
        raise ValueError(
            f"there is no column {' and no column '.join(map(repr, sorted(missing)))} among "
            f"{', '.join(dataset.column_names)}: load the data set with load_labelled"
        )
    kind = dataset.features["label"]
    if isinstance(kind, ClassLabel) or getattr(kind, "dtype", "").startswith(("int", "uint")):
        raise ValueError("the labels are class indices, not names: load the data set with load_labelled")


def _what_is_wrong(text: Any, label: Any) -> str | None:
    if text is None:
        return "the text is missing"
    if not isinstance(text, str):
        return f"the text is {text!r:.80}, not a string"
    if not text.strip():
        return f"the text is {'blank' if text else 'empty'}"
    if label is None or (isinstance(label, str) and not label.strip()):
        return "the label is missing"
    if isinstance(label, float):
        return None if math.isfinite(label) else f"the label is {label}"
    several = label if isinstance(label, list) else [label]
    if not all(isinstance(one, str) and one.strip() for one in several):
        return f"the label is {label!r:.80}, not a class name: load the data set with load_labelled"
    twice = next((one for one, count in Counter(several).items() if count > 1), None)
    return None if twice is None else f"the labels name {twice!r} twice"


def _contradictions(texts: list[str], labels: list[Any], rows: list[int]) -> list[tuple[tuple[int, ...], str]]:
    """Rows of each text that occurs with different classes."""
    by_text: dict[str, dict[Any, list[int]]] = {}
    for row in rows:
        label = labels[row]
        if not isinstance(label, float):
            key = tuple(sorted(label)) if isinstance(label, list) else label
            by_text.setdefault(texts[row], {}).setdefault(key, []).append(row)
    return [
        (
            tuple(sorted(row for same in by_label.values() for row in same)),
            f"the text {text!r:.80} is "
            + " but ".join(f"{_show(label)} in {_name_rows(same)}" for label, same in by_label.items()),
        )
        for text, by_label in by_text.items()
        if len(by_label) > 1
    ]


def _show(label: str | tuple[str, ...]) -> str:
    return repr(label if isinstance(label, str) else list(label))


def _name_rows(rows: Sequence[int]) -> str:
    if len(rows) == 1:
        return f"row {rows[0]}"
    return f"rows {', '.join(map(str, rows[:_SHOWN]))}{', ...' if len(rows) > _SHOWN else ''}"


def _warn_of_single_examples(labels: list[Any], where: str) -> None:
    counts: Counter[str] = Counter()
    for label in labels:
        if not isinstance(label, float):
            counts.update(label if isinstance(label, list) else [label])
    single = [name for name, count in counts.items() if count == 1]
    if single:
        rest = f" and {len(single) - _SHOWN} more" if len(single) > _SHOWN else ""
        names = ", ".join(map(repr, single[:_SHOWN])) + rest
        logger.warning("%d of the %d classes of %s have a single example: %s", len(single), len(counts), where, names)
