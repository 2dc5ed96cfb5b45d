"""Texts with labels, from the Hub, from files or from memory.

Notable: whatever the source calls its columns and however it stores its classes, the result has the columns `text` and
`label`, and a label is the name of a class. Texts are not changed in any way. Loading says what cannot be read;
`check_labelled` says what is not fit to learn from.
"""

import difflib
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict, List, Value

from .rows import class_name, read_utf8
from .sources import SPLITS, Source, check_column, describe, local_files, open_columns, pick_split

OUT_OF_SCOPE_LABEL = "oos"  # of rows with none of the other labels, as CLINC150 writes it

_TEXT_COLUMNS = ("text", "utterance", "sentence", "query")
_LABEL_COLUMNS = ("label", "intent", "category", "labels")
_ASIDE = "oos_"  # how the splits of a JSON object begin whose rows are out of scope
_NAME = r'\s*"((?:[^"\\]|\\.)*)"\s*:\s*\[\s*'
_SPLITS_OF_PAIRS = re.compile(rf"\s*\{{(?:{_NAME}\]\s*,)*{_NAME}\[")
_SHOWN = 10  # bad examples in a message

logger = logging.getLogger(__name__)


def load_labelled(
    source: Source,
    *,
    name: str | None = None,
    split: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    out_of_scope: str | None = None,
    numbers: bool = False,
) -> Dataset:
    """Loads one split of a data set of texts with labels.

    Args:
        source: As in `load_texts`. Read as well is a .json file with an object from splits to lists of [text, label],
            in which the splits oos_train, oos_val and oos_test hold further rows of train, val and test: those that
            are out of scope.
        name: Configuration of a data set on the Hub.
        split: As in `load_texts`; only files that hold one split each can be sliced.
        text_column: Column of the texts. None takes the one that is called text, utterance, sentence or query.
        label_column: Column of the labels. None takes the one that is called label, intent, category or labels.
        out_of_scope: Label that means none of the others. The rows of oos_ splits have it; where no row has it, a
            warning is logged. None is "oos", which need not occur.
        numbers: Whether the labels are numbers to be predicted, not classes.

    Returns:
        The column `text` (string) and the column `label`: the name of a class (string), the names of all classes that
        apply where the source has lists of them, or a number (float64). What is missing is None. A name is what is
        written in the file: of "01" in a CSV file "01", of 1 and true in JSON "1" and "true".

    Raises:
        FileNotFoundError: `source` is neither on this machine nor on the Hub.
        ValueError: The split or column does not exist or is not clear, there are no rows, or a row holds something
            else than a text and a label.
    """
    if numbers and out_of_scope is not None:
        raise ValueError(f"numbers have no label for what is out of scope: leave out_of_scope={out_of_scope!r} away")
    where = describe(source)
    file = _file_of_splits(source, where)
    if file is not None:
        _find_columns(text_column, label_column, ["text", "label"], where)  # refuses others that are given
        splits = _read_splits(file, out_of_scope or OUT_OF_SCOPE_LABEL)
        pairs = splits[pick_split(split, splits, where)]
        texts, labels, feature = [text for text, _ in pairs], [label for _, label in pairs], None
    else:
        rows = open_columns(source, name=name, split=split)
        text_column, label_column = _find_columns(text_column, label_column, rows.names, where)
        texts, labels, feature = rows.values(text_column), rows.values(label_column), rows.features.get(label_column)
    if not texts:
        raise ValueError(f"there is no text in {where}: it has no rows")
    for row, text in enumerate(texts):
        if not isinstance(text, str | None):
            raise ValueError(f"the text in row {row} of {where} is {text!r:.80}, not a string")
    dataset = _make_dataset(texts, _read_labels(labels, feature, numbers, where), numbers, where)
    if out_of_scope is not None and not split_out_of_scope(dataset, out_of_scope)[1]:
        logger.warning("no row of %s has the label %r, which out_of_scope names", where, out_of_scope)
    return dataset


def _find_columns(
    text_column: str | None, label_column: str | None, columns: list[str], where: str
) -> tuple[str, str]:
    """The columns that are given, or else the only ones with a usual name."""
    text_column = _find_column(text_column, _TEXT_COLUMNS, "text", columns, columns, where)
    others = [column for column in columns if column != text_column]
    return text_column, _find_column(label_column, _LABEL_COLUMNS, "label", others, columns, where)


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
        f"{where} has no column called {', '.join(usual[:-1])} or {usual[-1]}{hint}: name that of the {kind} with "
        f"{kind}_column; its columns are: {', '.join(columns)}"
    )


def _file_of_splits(source: Source, where: str) -> Path | None:
    """The file that holds all splits as an object of lists of pairs, if the source is one."""
    if isinstance(source, (Dataset, DatasetDict, IterableDataset, IterableDatasetDict)):
        return None
    files = [file for part in (local_files(source) or {}).values() for file in part]
    holding = [file for file in files if file.suffix.lower() == ".json" and _holds_splits(file)]
    if holding and len(files) > 1:
        names = ", ".join(str(file) for file in holding)
        raise ValueError(f"{where} has other files beside one that holds all splits: give one file, such as {names}")
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
        raise ValueError(f"{str(file)!r} is no proper JSON, perhaps it was not copied as a whole: {error}") from error
    splits: dict[str, list[tuple[Any, Any]]] = {}
    for key in sorted(content, key=lambda key: key.startswith(_ASIDE)):  # what is out of scope comes last
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
    """The labels of all rows: numbers, names, or lists of names."""
    inner = feature.feature if isinstance(getattr(feature, "feature", None), ClassLabel) else feature
    classes = inner if isinstance(inner, ClassLabel) else None
    if numbers and classes is not None:
        raise ValueError(f"the labels of {where} are classes, not numbers: leave numbers=True away")
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
        raise ValueError(f"the label in row {row} of {where} is a list, and others are not: make lists of all")
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
        return classes.int2str(label) if label >= 0 else None  # the Hub writes -1 where the label is not given away
    if isinstance(label, float) and math.isfinite(label) and not label.is_integer():
        raise ValueError("for numbers instead of classes, give numbers=True")
    if isinstance(label, (list, dict)):
        raise ValueError("it should be the name of a class, or a list of names")
    return class_name(label)


def _make_dataset(texts: list[str | None], labels: list[Any], numbers: bool, where: str) -> Dataset:
    several = any(isinstance(label, list) for label in labels)
    kind = Value("float64") if numbers else List(Value("string")) if several else Value("string")
    features = Features({"text": Value("string"), "label": kind})
    try:
        return Dataset.from_dict({"text": texts, "label": labels}, features=features)
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} holds {error.object!r:.80}, which is not proper Unicode: {error.reason}") from error


def split_out_of_scope(dataset: Dataset, label: str = OUT_OF_SCOPE_LABEL) -> tuple[Dataset, Dataset]:
    """Parts the rows that have a label of the data set from those that have none.

    Args:
        dataset: What `load_labelled` made.
        label: Label that means none of the others.

    Returns:
        The rows that are in scope, and those that are out of scope, in their order; both may be empty.
    """
    _check_table(dataset)
    labels = dataset.with_format(None)["label"][:]
    outside = [label in given if isinstance(given, list) else given == label for given in labels]
    return (
        dataset.select([row for row, out in enumerate(outside) if not out]),
        dataset.select([row for row, out in enumerate(outside) if out]),
    )


def check_labelled(dataset: Dataset, *, where: str = "the data set", refuse: bool = True) -> list[int]:
    """Looks for examples that nothing can be learned from.

    These are texts that are empty, blank or no strings, labels that are missing, lists that name a class twice (such
    as rows of zeros and ones), and texts that occur again with another class. The same text again with the same label
    is fine, and so are two numbers for one text. A class with a single example is worth a warning in the log.

    Args:
        dataset: Rows with `text` and `label`, as `load_labelled` makes them.
        where: What messages call the data set.
        refuse: Whether bad examples are an error. Otherwise they are logged as a warning.

    Returns:
        The rows of all bad examples, counted from 0 and sorted: what to leave out before training.

    Raises:
        ValueError: There are no rows, no columns of these names or, if `refuse`, bad examples: the message names the
            first of them with what is wrong.
    """
    _check_table(dataset)
    if not len(dataset):
        raise ValueError(f"there is nothing to learn from in {where}: it has no rows")
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
                f"{message}\nmend them, or leave out the rows that check_labelled(..., refuse=False) returns"
            )
        logger.warning("%s", message)
    return sorted({row for rows, _ in found for row in rows})


def check_known(labels: Sequence[Any], known: Sequence[str], out_of_scope: str = OUT_OF_SCOPE_LABEL) -> None:
    """Raises a ValueError unless all labels are known or mean none of the others, and one at least is known."""
    unknown = [row for row, label in enumerate(labels) if label not in known and label != out_of_scope]
    if unknown:
        raise ValueError(
            f"neither the model nor a bank knows the label {labels[unknown[0]]!r} (row {unknown[0]}; "
            f"{len({str(labels[row]) for row in unknown})} such labels): teach it with learn(new_labels=True), or "
            "name the label that means none of the others as out_of_scope"
        )
    if all(label not in known for label in labels):
        raise ValueError(f"every text has the label {out_of_scope!r}: there is nothing in scope to measure")


def check_complete(texts: Sequence[Any], labels: Sequence[Any], where: str) -> None:
    """Raises a ValueError for the first row without a text, or without the name of one class."""
    for row, (text, label) in enumerate(zip(texts, labels, strict=True)):
        if not isinstance(text, str) or not text.strip():
            what = "missing" if text is None else "blank" if isinstance(text, str) else f"{text!r:.80}, not a string"
            raise ValueError(f"the text in row {row} of {where} is {what}: take the row out")
        if not isinstance(label, str) or not label.strip():
            what = "missing" if label in (None, "") else f"{label!r:.80}, not the name of a class"
            raise ValueError(f"the label in row {row} of {where} is {what}: take the row out")


def _check_table(dataset: Dataset) -> None:
    missing = {"text", "label"}.difference(dataset.column_names)
    if missing:
        raise ValueError(
            f"there is no column {' and no column '.join(map(repr, sorted(missing)))} among "
            f"{', '.join(dataset.column_names)}: load the data set with load_labelled"
        )
    kind = dataset.features["label"]
    if isinstance(kind, ClassLabel) or getattr(kind, "dtype", "").startswith(("int", "uint")):
        raise ValueError("the labels are numbers of classes, not their names: load the data set with load_labelled")


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
        return f"the label is {label!r:.80}, which is not the name of a class: load the data set with load_labelled"
    twice = next((one for one, count in Counter(several).items() if count > 1), None)
    return None if twice is None else f"the labels name {twice!r} twice"


def _contradictions(texts: list[str], labels: list[Any], rows: list[int]) -> list[tuple[tuple[int, ...], str]]:
    """All rows of each text that occurs with different classes."""
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
        logger.warning("%d of the %d classes of %s have one example only: %s", len(single), len(counts), where, names)
