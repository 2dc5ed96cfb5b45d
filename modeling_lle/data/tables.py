"""Rows of text files, CSV, TSV and JSON lines as they are written there, and back into files.

Notable: other than in `load_texts`, nothing is taken for a number or a date, so that a file can be written again with
every column as it was; a file is written as a whole or not at all. Rows are counted from 0.
"""

import contextlib
import csv
import difflib
import io
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .sources import check_column

KINDS = (".txt", ".csv", ".tsv", ".json", ".jsonl")
_LINE_BREAKS = re.compile(r"[\r\n]+")


@dataclass(frozen=True)
class Table:
    """Rows in their order.

    Attributes:
        where: What messages call them.
        rows: A mapping from columns to values for each; in a text file and for a text itself, the one column is that
            of the text.
    """

    where: str
    rows: list[dict[str, Any]]

    @property
    def columns(self) -> list[str]:
        """The columns of all rows, in the order in which they occur."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def values(self, column: str) -> list[Any]:
        """The values of a column, None where a row has none; raises a ValueError if no row has it."""
        check_column(column, self.columns, self.where)
        return [row.get(column) for row in self.rows]

    def texts(self, column: str) -> list[str]:
        """The texts of a column; raises a ValueError for the first that is none, or blank."""
        texts = self.values(column)
        for row, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                wrong = "missing" if text is None else "blank" if isinstance(text, str) else f"{text!r:.80}, no string"
                raise ValueError(f"the text in row {row} of {self.where} is {wrong}: take the row out")
        return texts


def read_table(given: str, text_column: str = "text") -> Table:
    """Reads a file, or takes what is no file for a text.

    Args:
        given: The name of a file that ends with one of `KINDS`, or a text. A text file has a text a line; a JSON file
            an object a line, or a list of them.
        text_column: What the column of a text file, or of a text, is called.

    Raises:
        FileNotFoundError: It looks like the name of a file, and there is none.
        ValueError: The file is of another kind, empty, not UTF-8 or not readable, or a text is not proper Unicode.
    """
    if not os.path.exists(given) and not (len(given.split()) == 1 and Path(given).suffix in KINDS):
        _check_unicode(given, "the text")
        return Table("the text", [{text_column: given}])
    path = Path(given)
    where = repr(str(path))
    check_input(path)
    content = read_utf8(path, where)
    if path.suffix == ".txt":
        rows: list[dict[str, Any]] = [{text_column: line} for line in split_lines(content)]
    elif path.suffix in (".csv", ".tsv"):
        rows = _read_csv(content, where, "\t" if path.suffix == ".tsv" else ",")
    else:
        rows = _read_json(content, where)
    if not rows:
        raise ValueError(f"there is no text in {where}: it {'has no rows' if content.strip() else 'is empty'}")
    return Table(where, rows)


def check_input(path: Path, endings: Sequence[str] = KINDS) -> None:
    """Raises an error unless there is a file of this name, and the name ends with one of `endings`."""
    where = repr(str(path))
    if not path.exists():
        near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.glob("*")], n=1)
        raise FileNotFoundError(f"there is no file {where}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    if path.suffix not in endings or not path.is_file():
        raise ValueError(f"cannot read {where}: give a file whose name ends with one of {', '.join(endings)}")


def read_utf8(path: Path, where: str) -> str:
    """The text of a file without its byte order mark; raises a ValueError if it is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from None


def split_lines(content: str) -> list[str]:
    """The lines; only what ends a line in a text file does, not the other line breaks of Unicode."""
    lines = [line.removesuffix("\r") for line in content.split("\n")]
    return lines if lines[-1] else lines[:-1]


def _read_csv(content: str, where: str, separator: str) -> list[dict[str, Any]]:
    limit = csv.field_size_limit(sys.maxsize)  # the module's own: else longer fields than 131,072 are an error
    try:
        lines = list(csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True))
    except csv.Error as error:
        raise ValueError(f"cannot read {where}, which is no proper CSV: {error}") from None
    finally:
        csv.field_size_limit(limit)
    header, *rows = [line for line in lines if line] or [[]]
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{where} has two columns called {twice!r}: rename one of them")
    for number, row in enumerate(rows):
        if len(row) > len(header):
            raise ValueError(
                f"row {number} of {where} has {len(row)} fields, its header {len(header)}: put quotation marks around "
                "fields that hold the separator"
            )
    return [dict(zip(header, row, strict=False)) for row in rows]


def _read_json(content: str, where: str) -> list[dict[str, Any]]:
    rows = []
    for number, row in _json_values(content, where):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} of {where} is {row!r:.80}: write one JSON object a line")
        _check_unicode(row, f"row {number} of {where}")
        rows.append(row)
    return rows


def _json_values(content: str, where: str) -> Iterator[tuple[int, Any]]:
    parts = [content] if content.lstrip().startswith("[") else [line for line in split_lines(content) if line.strip()]
    for number, part in enumerate(parts):
        try:
            value = json.loads(part)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"row {number} of {where} is no proper JSON: {error}") from None
        yield from enumerate(value) if isinstance(value, list) and len(parts) == 1 else [(number, value)]


def _check_unicode(value: Any, where: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} holds {error.object[error.start]!r}, which is no proper Unicode") from None


def check_output(path: str | Path, endings: Sequence[str] = KINDS[1:]) -> None:
    """Raises an error unless a file of this name, with one of `endings`, can be written; call it before the work."""
    path = Path(path)
    if path.suffix not in endings:
        raise ValueError(f"cannot write {str(path)!r}: its name should end with one of {', '.join(endings)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}; make it first")
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {str(path)!r}: it is a folder")


def write_table(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows as CSV, TSV or JSON lines, as the ending of the name says, as a whole or not at all.

    Args:
        path: The file, which is replaced if there is one; its folder must exist.
        rows: As in a `Table`. In CSV, None is an empty field, and what is no string is written as JSON.
    """
    check_output(path)
    path = Path(path)
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        if path.suffix in (".csv", ".tsv"):
            columns, separator = Table("", list(rows)).columns, "\t" if path.suffix == ".tsv" else ","
            file.write(_csv_line(columns, separator))
            file.writelines(_csv_line([row.get(column) for column in columns], separator) for row in rows)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_lines(path: str | Path, texts: Sequence[str]) -> None:
    """Writes texts into a text file, each as one line whatever line breaks it has, as a whole or not at all."""
    with replacing(Path(path)) as partial:
        partial.write_bytes("".join(_LINE_BREAKS.sub(" ", text) + "\n" for text in texts).encode())


def free_names(wanted: Sequence[str], taken: Sequence[str], where: str) -> dict[str, str]:
    """Names of new columns; one that is taken gets "predicted_" in front.

    Raises:
        ValueError: Even that is taken.
    """
    names = {name: f"predicted_{name}" if name in taken else name for name in wanted}
    for name, new in names.items():
        if new in taken:
            raise ValueError(f"{where} has the columns {name!r} and {new!r} already: rename one of them")
    return names


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of `path` in the end or, after an error, is taken away."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _csv_line(values: Sequence[Any], separator: str) -> str:
    line = io.StringIO()
    writer = csv.writer(line, delimiter=separator)  # with its own line end, else a "\r" has no quotation marks
    writer.writerow(
        [v if isinstance(v, str) else "" if v is None else json.dumps(v, ensure_ascii=False) for v in values]
    )
    return line.getvalue().removesuffix("\r\n") + "\n"
