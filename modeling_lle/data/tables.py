"""Reading and writing of text files, CSV, TSV and JSON lines.

Notable: columns survive reading and writing unchanged; files are written atomically. Rows are counted from 0.
"""

import csv
import difflib
import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.checks import check_unicode
from ..common.paths import looks_like_file
from ..common.temporary import replacing
from .encoding import is_utf8
from .rows import TABLES, cannot_read, check_column, ending, numbered_rows, read_utf8, split_lines

KINDS = (".txt", *TABLES)  # of the files that are written; any text file is read
_LINE_BREAKS = re.compile(r"[\r\n]+")


@dataclass(frozen=True)
class Table:
    """Rows in order.

    Attributes:
        where: Name of the table in messages.
        rows: Mappings from columns to values; a text file or a single text has only the text column.
        file: Name of the file; None for a text.
        lines: The line of the file in which each row begins, counted from 1; empty for a text.
    """

    where: str
    rows: list[dict[str, Any]]
    file: str | None = None
    lines: list[int] = field(default_factory=list)

    @property
    def places(self) -> list[dict[str, Any]]:
        """For each row its `file` and `line`; nothing for a text."""
        return [{"file": self.file, "line": line} for line in self.lines] if self.lines else [{} for _ in self.rows]

    @property
    def columns(self) -> list[str]:
        """Columns of all rows, in order of occurrence."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def values(self, column: str) -> list[Any]:
        """Values of a column, None where absent; raises a ValueError if no row has it."""
        check_column(column, self.columns, self.where)
        return [row.get(column) for row in self.rows]

    def texts(self, column: str) -> list[str]:
        """Texts of a column; raises a ValueError for the first that is blank or not a string."""
        texts = self.values(column)
        for row, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                wrong = "missing" if text is None else "blank" if isinstance(text, str) else f"{text!r:.80}, no string"
                raise ValueError(f"the text in row {row} of {self.where} is {wrong}: remove the row")
        return texts


def read_table(given: str, text_column: str = "text") -> Table:
    """Reads a file; an argument that is not a file is a text itself.

    Args:
        given: Name of a file, or a text. JSON files hold one object per line or a list of objects; any file that is
            no table (.csv, .tsv, .json, .jsonl) is read as text, one per line.
        text_column: Column name for text files and single texts.

    Raises:
        FileNotFoundError: It looks like a file name, but there is no such file.
        ValueError: The file is binary, empty, not UTF-8 or unreadable, or a text is not valid Unicode.
    """
    if not os.path.exists(given) and not looks_like_file(given):
        check_unicode(given, "the text")
        return Table("the text", [{text_column: given}])
    path = Path(given)
    where = repr(str(path))
    check_input(path, None)
    if ending(path, TABLES) in TABLES:
        numbered = list(numbered_rows(path))
    elif is_utf8(path) is None:
        raise cannot_read(path, TABLES, text=True)
    else:
        texts = split_lines(read_utf8(path, where))
        numbered = [(line, {text_column: text}) for line, text in enumerate(texts, start=1)]
    if not numbered:
        raise ValueError(
            f"there is no text in {where}: it {'has no rows' if read_utf8(path, where).strip() else 'is empty'}"
        )
    return Table(where, [row for _, row in numbered], str(given), [line for line, _ in numbered])


def check_input(path: Path, endings: Sequence[str] | None) -> None:
    """Raises an error unless the file exists and has one of the `endings`; None: any."""
    where = repr(str(path))
    if not path.exists():
        near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.glob("*")], n=1)
        raise FileNotFoundError(f"there is no file {where}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    if not path.is_file() or (endings is not None and ending(path, endings) not in endings):
        raise cannot_read(path, endings or TABLES, text=endings is None)


def check_output(path: str | Path, endings: Sequence[str] = KINDS[1:]) -> None:
    """Raises an error unless the file can be written and has one of the `endings`; call it before long work."""
    path = Path(path)
    if ending(path, endings) not in endings:
        raise ValueError(f"cannot write {str(path)!r}: its name should end with one of {', '.join(endings)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}; make it first")
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {str(path)!r}: it is a folder")


def write_table(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows as CSV, TSV or JSON lines, by the ending of the name, atomically.

    Args:
        path: File, replaced if it exists; its folder must exist.
        rows: As in a `Table`. In CSV, None is an empty field; values other than strings are written as JSON.
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
    """Writes texts to a text file atomically, one per line; line breaks within become spaces."""
    with replacing(path) as partial:
        partial.write_bytes("".join(_LINE_BREAKS.sub(" ", text) + "\n" for text in texts).encode())


def free_names(wanted: Sequence[str], taken: Sequence[str], where: str) -> dict[str, str]:
    """Names of new columns; a taken name is prefixed by "predicted_".

    Raises:
        ValueError: The prefixed name is taken, too.
    """
    names = {name: f"predicted_{name}" if name in taken else name for name in wanted}
    for name, new in names.items():
        if new in taken:
            raise ValueError(f"{where} has the columns {name!r} and {new!r} already: rename one of them")
    return names


def _csv_line(values: Sequence[Any], separator: str) -> str:
    line = io.StringIO()
    writer = csv.writer(line, delimiter=separator)  # with its default line end, else "\r" is not quoted
    writer.writerow(
        [v if isinstance(v, str) else "" if v is None else json.dumps(v, ensure_ascii=False) for v in values]
    )
    return line.getvalue().removesuffix("\r\n") + "\n"
