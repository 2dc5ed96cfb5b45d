"""Rows of CSV, TSV and JSON files, exactly as written; the one reader of tables.

Notable: no value is guessed to be a number, date or missing: CSV values are strings, JSON values keep their types.
Rows are counted from 0.
"""

import contextlib
import csv
import difflib
import io
import itertools
import json
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from ..common.checks import check_unicode
from .encoding import fault

TABLES = (".csv", ".tsv", ".json", ".jsonl")
PACKED = (".gz", ".bz2", ".xz", ".zip", ".zst")
_HEAD = 2**20  # bytes in which the first row is looked for
_SPACE = re.compile(r"[ \t\r\n]*")
_BATCH = 1000  # rows of a CSV file read at once


def ending(path: Path, endings: Collection[str]) -> str:
    """Ending of a file name, spelt as in `endings`: .CSV is .csv unless both are listed."""
    return path.suffix if path.suffix in endings else path.suffix.lower()


def cannot_read(path: Path, endings: Collection[str], text: bool = False) -> ValueError:
    """Error for a file that is of no kind that is read: those with these endings and, with `text`, text files."""
    packed = "unpack it, and " if path.suffix.lower() in PACKED else ""
    what = "a text file, or one" if text else "a file"
    return ValueError(
        f"cannot read {str(path)!r}: {packed}give {what} whose name ends with one of {', '.join(endings)}"
    )


def check_column(column: str, columns: Iterable[str], where: str) -> None:
    """Raises a ValueError, with the nearest name, unless `column` is one of `columns`."""
    names = list(columns)
    if column not in names:
        near = difflib.get_close_matches(column, names, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"{where} has no column {column!r}{hint}; its columns are: {', '.join(names)}")


def read_utf8(path: Path, where: str) -> str:
    """Text of a file without byte order mark; raises a ValueError if it is not UTF-8."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 ({fault(content, error)}): save it as UTF-8") from None


def split_lines(content: str) -> list[str]:
    """Lines, split at the line ends of text files only, not at other Unicode line breaks."""
    lines = [line.removesuffix("\r") for line in content.split("\n")]
    return lines if lines[-1] else lines[:-1]


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """As `numbered_rows`, without the lines."""
    return (row for _, row in numbered_rows(path))


def numbered_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the rows of a table, each with the line in which it begins, counted from 1.

    Args:
        path: File with one of the endings `TABLES`. CSV values are strings, None for absent fields; blank lines are
            skipped. JSON files hold one object per line, or a list of objects.

    Raises:
        ValueError: The file is not UTF-8 or a row is unreadable: the message names file and row.
    """
    kind = ending(path, TABLES)
    with _utf8(path), path.open(encoding="utf-8-sig", newline="" if kind in (".csv", ".tsv") else "\n") as file:
        if kind in (".csv", ".tsv"):
            yield from _csv_rows(file, repr(str(path)), "\t" if kind == ".tsv" else ",")
        else:
            yield from _json_rows(file, repr(str(path)))


def first_columns(path: Path) -> list[str] | None:
    """Columns of the first row of a CSV, TSV or JSON file, as far as they are known.

    Returns:
        The columns; [] if they cannot be told, because the first row is very long or faulty, which readers report;
        None for JSON that is no rows, such as an object that spans lines.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD).decode("utf-8-sig", errors="replace")
    kind = ending(path, TABLES)
    if kind in (".csv", ".tsv"):
        separator = "\t" if kind == ".tsv" else ","
        try:
            return next(csv.reader(io.StringIO(head, newline=""), delimiter=separator), [])
        except csv.Error:
            return []
    text = head.lstrip()
    listed = text.startswith("[")
    start = len(text) - len(text[1:].lstrip()) if listed else 0
    try:
        row, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return [] if listed or kind == ".jsonl" else None
    if kind == ".jsonl" or (isinstance(row, dict) and (listed or "\n" not in text[start:end])):
        return list(row) if isinstance(row, dict) else []
    return None


def read_lines(path: Path, whole: bool = False) -> Iterator[str]:
    """Yields lines of a text file, or with `whole` all of it at once; raises a ValueError if it is not UTF-8."""
    with _utf8(path), path.open(encoding="utf-8-sig") as file:
        if whole:
            yield file.read()
        else:
            yield from (line.removesuffix("\n") for line in file)


@contextlib.contextmanager
def _utf8(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError:
        read_utf8(path, repr(str(path)))  # names the place
        raise


def _csv_rows(file: Any, where: str, separator: str) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = _csv_lines(file, where, separator)
    _, header = next(lines, (1, []))
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        what = f"called {twice!r}: rename one of them" if twice else "without a name: name them, or remove them"
        raise ValueError(f"{where} has {header.count(twice) if not twice else 'two'} columns {what}")
    number = 0
    for begin, line in lines:
        if len(header) > 1 and len(line) == 1 and not line[0].strip():
            continue  # blank line
        if len(line) > len(header):
            raise ValueError(
                f"row {number} of {where} has {len(line)} fields, its header {len(header)}: put quotation marks "
                f"around fields that hold the separator (line {begin})"
            )
        yield begin, dict(itertools.zip_longest(header, line))
        number += 1


def _csv_lines(file: Any, where: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the fields of each line that has any, after the line in which they begin."""
    reader = csv.reader(file, delimiter=separator, strict=True)
    end = 0
    while True:
        limit = csv.field_size_limit(sys.maxsize)  # global; by default, fields end at 131,072
        try:
            batch = [(reader.line_num, line) for line in itertools.islice(reader, _BATCH)]
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num} of {where} is not valid CSV: {error}") from None
        finally:
            csv.field_size_limit(limit)
        if not batch:
            return
        for last, line in batch:
            if line:
                yield end + 1, line
            end = last


def _json_rows(file: Any, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, (line, part, row) in enumerate(_json_values(file, where)):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} of {where} is {row!r:.80}: write one JSON object per line")
        if "\\u" in part:
            check_unicode(row, f"row {number} of {where}")
        yield line, row


def _json_values(file: Any, where: str) -> Iterator[tuple[int, str, Any]]:
    """Yields the line in which each value begins, its text, and the value."""
    number = 0
    for place, line in enumerate(file, start=1):
        if not line.strip():
            continue
        if number == 0 and line.lstrip().startswith("["):
            yield from _json_list(line + file.read(), place, where)
            return
        try:
            yield place, line, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"row {number} of {where} is not valid JSON: {error}") from None
        number += 1


def _json_list(text: str, line: int, where: str) -> Iterator[tuple[int, str, Any]]:
    """As `_json_values`, of a list that begins in a line."""
    decoder, number = json.JSONDecoder(), 0
    place, counted = text.index("[") + 1, 0
    try:
        while True:
            place = _after_space(text, place)
            if text[place : place + 1] == "]" and number == 0:
                break
            value, end = decoder.raw_decode(text, place)
            line, counted = line + text.count("\n", counted, place), place
            yield line, text[place:end], value
            place, number = _after_space(text, end), number + 1
            if text[place : place + 1] != ",":
                break
            place += 1
        if text[place : place + 1] != "]" or text[place + 1 :].strip():
            raise json.JSONDecodeError("Expecting ',' or the end of the list", text, place)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"row {number} of {where} is not valid JSON: {error}") from None


def _after_space(text: str, place: int) -> int:
    """The place of the next character that is no white space of JSON."""
    match = _SPACE.match(text, place)
    assert match is not None
    return match.end()


def class_name(label: Any) -> str | None:
    """Class name as written in a file: 1 in JSON is "1", true is "true"; None stays None.

    Raises:
        ValueError: It is not a string, whole number or truth value.
    """
    if isinstance(label, bool):
        return json.dumps(label)
    if isinstance(label, int):
        return str(label)
    if isinstance(label, float) and label != label:  # NaN: a missing value of pandas
        return None
    if isinstance(label, float) and label.is_integer():  # pandas turns whole numbers into floats where one is missing
        return str(int(label))
    if not isinstance(label, str | None):
        raise ValueError("it should be a class name, a string")
    return label
