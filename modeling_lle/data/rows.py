"""Rows of CSV, TSV and JSON files as they are written there: every command that reads a table reads it here.

Notable: nothing is taken for a number, a date or a missing value by what it looks like: what stands in a CSV file is a
string, and JSON says what is what. Rows are counted from 0.
"""

import contextlib
import csv
import itertools
import json
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ..common.checks import check_unicode

TABLES = (".csv", ".tsv", ".json", ".jsonl")
_PACKED = (".gz", ".bz2", ".xz", ".zip", ".zst")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_BATCH = 1000  # rows of a CSV file that are read at once


def ending(path: Path, endings: Collection[str]) -> str:
    """How the name of a file ends, as `endings` has it: .CSV is .csv, unless both are there."""
    return path.suffix if path.suffix in endings else path.suffix.lower()


def cannot_read(path: Path, endings: Collection[str]) -> ValueError:
    """What to say of a file whose name ends with none of these."""
    packed = "unpack it, and " if path.suffix.lower() in _PACKED else ""
    return ValueError(
        f"cannot read {str(path)!r}: {packed}give a file whose name ends with one of {', '.join(endings)}"
    )


def read_utf8(path: Path, where: str) -> str:
    """The text of a file without its byte order mark; raises a ValueError if it is not UTF-8."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wrong = "UTF-16" if content.startswith(_UTF_16) else f"{error.reason} at byte {error.start}"
        raise ValueError(f"{where} is not UTF-8 ({wrong}): save it as UTF-8") from None


def split_lines(content: str) -> list[str]:
    """The lines; only what ends a line in a text file does, not the other line breaks of Unicode."""
    lines = [line.removesuffix("\r") for line in content.split("\n")]
    return lines if lines[-1] else lines[:-1]


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table.

    Args:
        path: A file whose name ends with one of `TABLES`. Of CSV, every value is a string, None where a row has no
            field for a column; blank lines are no rows. JSON is an object a line, or a list of them.

    Raises:
        ValueError: The file is not UTF-8, or a row cannot be read: the message names both.
    """
    kind = ending(path, TABLES)
    with _utf8(path), path.open(encoding="utf-8-sig", newline="" if kind in (".csv", ".tsv") else "\n") as file:
        if kind in (".csv", ".tsv"):
            yield from _csv_rows(file, repr(str(path)), "\t" if kind == ".tsv" else ",")
        else:
            yield from _json_rows(file, repr(str(path)))


def read_lines(path: Path, whole: bool = False) -> Iterator[str]:
    """The lines of a text file, or with `whole` all of it as one; raises a ValueError if it is not UTF-8."""
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
        read_utf8(path, repr(str(path)))  # says where
        raise


def _csv_rows(file: Any, where: str, separator: str) -> Iterator[dict[str, Any]]:
    lines = _csv_lines(file, where, separator)
    header = next(lines, [])
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        what = f"called {twice!r}: rename one of them" if twice else "without a name: name them, or take them out"
        raise ValueError(f"{where} has {header.count(twice) if not twice else 'two'} columns {what}")
    number = 0
    for line in lines:
        if len(header) > 1 and len(line) == 1 and not line[0].strip():
            continue  # a line of blanks
        if len(line) > len(header):
            raise ValueError(
                f"row {number} of {where} has {len(line)} fields, its header {len(header)}: put quotation marks "
                "around fields that hold the separator"
            )
        yield dict(itertools.zip_longest(header, line))
        number += 1


def _csv_lines(file: Any, where: str, separator: str) -> Iterator[list[str]]:
    """The fields of every line that has some."""
    reader = csv.reader(file, delimiter=separator, strict=True)
    while True:
        limit = csv.field_size_limit(sys.maxsize)  # the module's own: else longer fields than 131,072 are an error
        try:
            batch = list(itertools.islice(reader, _BATCH))
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num} of {where} is no proper CSV: {error}") from None
        finally:
            csv.field_size_limit(limit)
        if not batch:
            return
        yield from (line for line in batch if line)


def _json_rows(file: Any, where: str) -> Iterator[dict[str, Any]]:
    for number, (part, row) in enumerate(_json_values(file, where)):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} of {where} is {row!r:.80}: write one JSON object a line")
        if "\\u" in part:
            check_unicode(row, f"row {number} of {where}")
        yield row


def _json_values(file: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Every value with the text that it stands in."""
    number = 0
    for line in file:
        if not line.strip():
            continue
        listed = number == 0 and line.lstrip().startswith("[")
        part = line + file.read() if listed else line
        try:
            value = json.loads(part)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"row {number} of {where} is no proper JSON: {error}") from None
        yield from ((part, one) for one in value) if listed else ((part, value),)
        number += 1


def class_name(label: Any) -> str | None:
    """The name of a class as it is written in a file: 1 in JSON is "1", and true is "true"; None stays None.

    Raises:
        ValueError: It is no text, whole number or truth value.
    """
    if isinstance(label, bool):
        return json.dumps(label)
    if isinstance(label, int):
        return str(label)
    if isinstance(label, float) and label != label:  # what pandas has for a missing value
        return None
    if isinstance(label, float) and label.is_integer():  # as it makes of whole numbers where one is missing
        return str(int(label))
    if not isinstance(label, str | None):
        raise ValueError("it should be the name of a class, a text")
    return label
