"""Rows of text files, CSV, TSV and JSON lines as they are written there, and back into files.

Notable: a file can be written again with every column as it was; it is written as a whole or not at all. Rows are
counted from 0.
"""

import csv
import difflib
import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.checks import check_unicode
from ..common.temporary import replacing
from .rows import TABLES, cannot_read, ending, read_rows, read_utf8, split_lines
from .sources import check_column

KINDS = (".txt", *TABLES)
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
    if not os.path.exists(given) and not (len(given.split()) == 1 and ending(Path(given), KINDS) in KINDS):
        check_unicode(given, "the text")
        return Table("the text", [{text_column: given}])
    path = Path(given)
    where = repr(str(path))
    check_input(path)
    if ending(path, KINDS) == ".txt":
        rows: list[dict[str, Any]] = [{text_column: line} for line in split_lines(read_utf8(path, where))]
    else:
        rows = list(read_rows(path))
    if not rows:
        raise ValueError(
            f"there is no text in {where}: it {'has no rows' if read_utf8(path, where).strip() else 'is empty'}"
        )
    return Table(where, rows)


def check_input(path: Path, endings: Sequence[str] = KINDS) -> None:
    """Raises an error unless there is a file of this name, and the name ends with one of `endings`."""
    where = repr(str(path))
    if not path.exists():
        near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.glob("*")], n=1)
        raise FileNotFoundError(f"there is no file {where}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    if ending(path, endings) not in endings or not path.is_file():
        raise cannot_read(path, endings)


def check_output(path: str | Path, endings: Sequence[str] = KINDS[1:]) -> None:
    """Raises an error unless a file of this name, with one of `endings`, can be written; call it before the work."""
    path = Path(path)
    if ending(path, endings) not in endings:
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
        kind = ending(path, KINDS)
        if kind in (".csv", ".tsv"):
            columns, separator = Table("", list(rows)).columns, "\t" if kind == ".tsv" else ","
            file.write(_csv_line(columns, separator))
            file.writelines(_csv_line([row.get(column) for column in columns], separator) for row in rows)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_lines(path: str | Path, texts: Sequence[str]) -> None:
    """Writes texts into a text file, each as one line whatever line breaks it has, as a whole or not at all."""
    with replacing(path) as partial:
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


def _csv_line(values: Sequence[Any], separator: str) -> str:
    line = io.StringIO()
    writer = csv.writer(line, delimiter=separator)  # with its own line end, else a "\r" has no quotation marks
    writer.writerow(
        [v if isinstance(v, str) else "" if v is None else json.dumps(v, ensure_ascii=False) for v in values]
    )
    return line.getvalue().removesuffix("\r\n") + "\n"
