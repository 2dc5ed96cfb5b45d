"""What can be trained on given files: a language model, a classifier or a translator."""

import itertools
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..data.gather import TABLES, Files, survey
from ..data.labelled import LABEL_COLUMNS, TEXT_COLUMNS
from ..data.rows import first_columns, read_rows
from ..data.tmx import read_units
from ..tasks import CLASSIFICATION, LANGUAGE, TRANSLATION

PAIR_KINDS = {".tmx": "tmx", ".po": "po", ".mo": "mo"}
_TRANSLATION = "translation"  # column of the Hub with mappings from languages to texts
# ISO 639-1, without codes that are more often endings of source code.
_CODE_LIST = (
    "aa ab ae af ak am an ar av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee "
    "el en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik "
    "io is it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk "
    "ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa "
    "sc sd se sg si sk sl sm sn so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr tt tw ty ug uk ur uz "
    "ve vi vo wa wo xh yi yo za zh zu"
)
_CODES = frozenset(_CODE_LIST.split(" "))
_LANGUAGE = re.compile(r"([a-z]{2})([-_][a-z]{2,4})?", re.IGNORECASE)
_HEADER = re.compile(rb'"Language: *([A-Za-z_-]+)')
_SOURCE_OF_TMX = re.compile(rb"""<header\b[^>]*\bsrclang\s*=\s*["']([\w-]+)""")
_HEAD = 2**14  # bytes in which headers are looked for
_ROWS = 1000  # of a table whose values are looked at
_LEAST_WORDS = 2  # mean number of words of texts
_LEAST_EXAMPLES = 5  # mean number of rows of a label
_NAMES_OF_LABELS = (
    "class",
    "topic",
    "component",
    "department",
    "type",
    "tag",
    "sentiment",
    "target",
    "product",
    "queue",
)


@dataclass(frozen=True)
class Guess:
    """A task, and what shows it.

    Attributes:
        task: Its name, as in `tasks`.
        why: What the files have that suits the task.
        languages: Source and target language, as far as the files state them.
        text_column, label_column: Columns of tables that were chosen by their values; None: those with a usual name.
    """

    task: str
    why: str
    languages: tuple[str | None, str | None] = (None, None)
    text_column: str | None = None
    label_column: str | None = None


def guess_task(files: Files, text_column: str | None = None, label_column: str | None = None) -> Guess:
    """The task that files suit: sentence pairs, texts with labels, and otherwise text.

    Args:
        files: Files, folders or globs.
        text_column, label_column: Columns that tables must have for labelled texts; None: those with a usual name.

    Raises:
        FileNotFoundError, ValueError: As `survey`; or several columns may hold the labels.
    """
    taken = survey(files, None, {**TABLES, **PAIR_KINDS}).taken
    kinds = {file.kind for file in taken}
    if kinds <= set(PAIR_KINDS.values()):
        names = ", ".join(sorted(f".{kind}" for kind in kinds))
        return Guess(TRANSLATION.name, f"every file is a {names} file", _languages_of(taken[0].path))
    if kinds == {"text"} and (sides := _parallel([file.path for file in taken])):
        return Guess(TRANSLATION.name, f"each file exists in {sides[0]} and in {sides[1]}")
    if kinds <= set(TABLES.values()):
        columns = _columns(taken[0].path)
        languages = [column for column in columns if is_language(column)]
        if _TRANSLATION in columns or {"source", "target"} <= {column.lower() for column in columns}:
            return Guess(TRANSLATION.name, f"the columns are {', '.join(columns)}")
        if len(languages) == 2:
            return Guess(TRANSLATION.name, f"the columns are {', '.join(columns)}", (languages[0], languages[1]))
        if _has(columns, text_column, TEXT_COLUMNS) and _has(columns, label_column, LABEL_COLUMNS):
            return Guess(CLASSIFICATION.name, f"the columns are {', '.join(columns)}")
        if text_column is None and not _has(columns, None, TEXT_COLUMNS):
            return _by_values(taken[0].path, label_column)
    return Guess(LANGUAGE.name, "the files hold text")


def is_language(name: str) -> bool:
    """Whether a name is a code of a language, such as "en" or "pt-BR"."""
    match = _LANGUAGE.fullmatch(name)
    return match is not None and match[1].lower() in _CODES


def _has(columns: Sequence[str], given: str | None, usual: Sequence[str]) -> bool:
    return given in columns if given is not None else any(column.lower() in usual for column in columns)


def _by_values(path: Path, label_column: str | None) -> Guess:
    """Guess for a table without usual names, by its first rows.

    Texts are the column of the longest values, most of which differ; labels are a column of few different values.
    """
    rows = _first_rows(path)
    values = {
        column: [str(row[column]) for row in rows if row.get(column) not in (None, "")]
        for column in dict.fromkeys(column for row in rows for column in row)
    }
    words = {column: sum(len(text.split()) for text in own) / max(1, len(own)) for column, own in values.items()}
    texts = [name for name, own in values.items() if words[name] >= _LEAST_WORDS and 2 * len(set(own)) > len(own)]
    if not texts:
        raise ValueError(
            f"no column of {str(path)!r} looks like texts ({', '.join(values)}): name one with text_column"
        )
    text = max(texts, key=lambda name: words[name])
    few = [name for name, own in values.items() if name != text and 1 < len(set(own)) <= len(own) / _LEAST_EXAMPLES]
    labels = [label_column] if label_column in values else [name for name in few if words[name] < words[text]]
    named = [name for name in labels if name.lower() in (*LABEL_COLUMNS, *_NAMES_OF_LABELS)]
    labels = named if len(named) == 1 else labels
    if len(labels) > 1:
        raise ValueError(
            f"the labels of {str(path)!r} may be in the columns {', '.join(labels)}: name one with label_column"
        )
    if not labels:
        return Guess(LANGUAGE.name, f"the column {text!r} holds texts, and none holds labels", text_column=text)
    number = len(set(values[str(labels[0])]))
    why = f"the column {text!r} holds texts and {labels[0]!r} labels, {number} in the first {len(rows)} rows"
    return Guess(CLASSIFICATION.name, why, text_column=text, label_column=labels[0])


def _first_rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix.lower() == ".parquet":
        batch = next(pq.ParquetFile(path).iter_batches(_ROWS), None)
        return [] if batch is None else batch.to_pylist()
    return list(itertools.islice(read_rows(path), _ROWS))


def _columns(path: Path) -> list[str]:
    if path.suffix.lower() == ".parquet":
        try:
            return pq.read_schema(path).names
        except pa.ArrowException:
            return []
    return first_columns(path) or []


def _parallel(paths: Sequence[Path]) -> tuple[str, str] | None:
    """The two languages that end the names of all files, each of which exists in both."""
    endings: Mapping[Path, set[str]] = defaultdict(set)
    for path in paths:
        endings[path.with_suffix("")].add(path.suffix[1:])
    sides = sorted(set().union(*endings.values()))
    both = len(sides) == 2 and all(is_language(side) for side in sides)
    return (sides[0], sides[1]) if both and all(len(found) == 2 for found in endings.values()) else None


def _languages_of(path: Path) -> tuple[str | None, str | None]:
    """Languages that the header of a catalogue or a translation memory states; catalogues are written in English."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if path.suffix.lower() == ".tmx":
        stated = _SOURCE_OF_TMX.search(head)
        units, _ = read_units(path)
        found = list(dict.fromkeys(language for unit in units for language in unit.texts))
        source = stated[1].decode() if stated else None
        others = [language for language in found if language != source]
        return source, others[0] if source is not None and len(others) == 1 else None
    stated = _HEADER.search(head)
    return "en", stated[1].decode() if stated else None
