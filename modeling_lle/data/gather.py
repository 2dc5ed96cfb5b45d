"""The files of a source: which hold text or rows, which are left out and why, and which splits they make.

Notable: any file that is text in UTF-8 counts, whatever the ending of its name. In a folder or a glob, other files are
left out and named; a single file that cannot be read is an error.
"""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from ..common.paths import not_found
from .encoding import guess_of, is_utf8
from .rows import PACKED, cannot_read, ending, first_columns, read_utf8
from .splits import find_splits

Files: TypeAlias = str | Path | Sequence[str | Path]

TEXT = "text"  # the kind of a file of plain text
TABLES = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_BY_TOOLS = ("__pycache__", "node_modules")
_IN_UTF8 = (TEXT, "csv", "json")  # others name their encoding, or have a partner that would miss them
_SHOWN = 3  # names of each reason, and kinds of files, in a summary


@dataclass(frozen=True)
class Taken:
    """A file that is read.

    Attributes:
        path: The file.
        name: How it is called in what is read from it: its place below the folder that was given, or as it was given.
        kind: "text", "csv" (.tsv too), "json" or "parquet".
        bytes: Its size.
    """

    path: Path
    name: str
    kind: str
    bytes: int


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that is not read.

    Attributes:
        path: The file or folder.
        reason: Why, such as "binary"; several files have it in common.
        detail: What else is known of this one, such as the encoding that it looks like.
    """

    path: Path
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Survey:
    """What a source holds.

    Attributes:
        taken: The files that are read, in order.
        left_out: Those that are not.
        splits: The files of each split, if their names make splits; else empty, and all files are one text.
    """

    taken: list[Taken]
    left_out: list[LeftOut]
    splits: dict[str, list[Path]]

    def summary(self) -> list[str]:
        """What was taken and what was left out, in a few lines."""
        endings = Counter(file.path.suffix.lower() or "no ending" for file in self.taken)
        kinds = [f"{count} {name}" for name, count in endings.most_common(_SHOWN)]
        others = len(self.taken) - sum(count for _, count in endings.most_common(_SHOWN))
        kinds += [f"{others} others"] if others else []
        lines = [f"{_files(len(self.taken))} taken: {', '.join(kinds)}"]
        if self.splits:
            lines.append(f"splits: {', '.join(f'{name} ({_files(len(own))})' for name, own in self.splits.items())}")
        return [*lines, f"{len(self.left_out)} left out: {reasons(self.left_out)}"] if self.left_out else lines


def _files(count: int) -> str:
    return f"{count} file{'' if count == 1 else 's'}"


def reasons(left_out: Sequence[LeftOut]) -> str:
    """Why files are left out, with their numbers and first names: "2 binary (a.png, b.png), 1 empty (c.txt)"."""
    parts = []
    for reason, count in Counter(item.reason for item in left_out).most_common():
        own = [item for item in left_out if item.reason == reason]
        names = [f"{item.path.name}{f': {item.detail}' if item.detail else ''}" for item in own[:_SHOWN]]
        parts.append(f"{count} {reason} ({', '.join([*names, *(['...'] if len(own) > _SHOWN else [])])})")
    return ", ".join(parts)


def survey(
    sources: Files, text_column: str | None = None, kinds: Mapping[str, str] = TABLES, text: bool = True
) -> Survey:
    """Looks through files, folders and globs.

    Args:
        sources: A file, folder or glob, or several of them.
        text_column: Column that tables must have; None: any table counts.
        kinds: Kinds of files by the endings of their names.
        text: Whether files with other endings count if they are text.

    Raises:
        FileNotFoundError: A path does not exist (the message has near names), or holds no file to read.
        ValueError: A single file that was given cannot be read.
    """
    look = _Look(text_column, kinds, text)
    given = [sources] if isinstance(sources, (str, Path)) else list(sources)
    for source in given:
        look.at(source)
    if not look.taken:
        where = ", ".join(repr(str(source)) for source in given)
        which = "that is text in UTF-8" if text else f"whose name ends with one of {', '.join(kinds)}"
        why = f": {len(look.left_out)} left out, {reasons(look.left_out)}" if look.left_out else ""
        raise FileNotFoundError(f"{where} holds no file {which}{why}")
    sizes = {file.path: file.bytes for file in look.taken}
    splits, others = find_splits(look.places, sizes)
    left_out = look.left_out + [LeftOut(path, "of no split") for path in others]
    of_none = set(others)
    taken = [file for file in look.taken if file.path not in of_none]
    return Survey(taken, left_out, splits)


class _Look:
    """Collects files.

    Args:
        text_column, kinds, text: As in `survey`.

    Attributes:
        taken, left_out: As in `Survey`.
        places: The place of each file that is taken below the folder that was given.
    """

    def __init__(self, text_column: str | None, kinds: Mapping[str, str], text: bool) -> None:
        self.taken: list[Taken] = []
        self.left_out: list[LeftOut] = []
        self.places: dict[Path, PurePath] = {}
        self._column, self._kinds, self._text = text_column, kinds, text
        self._folders: set[str] = set()  # real paths, against links in circles

    def at(self, source: str | Path) -> None:
        """Looks at a file, folder or glob."""
        path = Path(source).expanduser()
        if path.is_file():
            self._add(path, PurePath(path.name), str(source), alone=True)
        elif path.is_dir():
            for file in self._walk(path):
                place = file.relative_to(path)
                self._add(file, place, place.as_posix(), alone=False)
        elif glob.has_magic(str(source)) and not path.exists():
            found = sorted(Path(name) for name in glob.iglob(str(path), recursive=True))
            if not found:
                raise FileNotFoundError(f"no file matches {str(source)!r}")
            for file in found:
                if file.is_file():
                    self._add(file, PurePath(file.name), file.as_posix(), alone=False)
        else:
            raise FileNotFoundError(not_found(path))

    def _walk(self, folder: Path) -> Iterator[Path]:
        """Yields the files of a folder and its folders in order of their names, and notes what is passed by."""
        real = os.path.realpath(folder)
        if real in self._folders:
            return
        self._folders.add(real)
        try:
            inside = sorted(folder.iterdir())
        except OSError as error:
            self.left_out.append(LeftOut(folder, "not readable", error.strerror or ""))
            return
        for path in inside:
            if path.name.startswith("."):
                self.left_out.append(LeftOut(path, "hidden"))
            elif path.is_dir() and path.name in _BY_TOOLS:
                self.left_out.append(LeftOut(path, "made by tools"))
            elif path.is_dir():
                yield from self._walk(path)
            else:
                yield path

    def _add(self, path: Path, place: PurePath, name: str, alone: bool) -> None:
        """Takes a file, or leaves it out; raises an error instead if it was given alone."""
        if path in self.places:
            return
        kind = self._kinds.get(ending(path, self._kinds), TEXT)
        try:
            if kind == "json" and self._text and first_columns(path) is None:
                kind = TEXT  # such as package.json
            wrong = self._wrong(path, kind)
            if wrong and alone:
                raise self._error(wrong)
            wrong = wrong or (None if alone else self._unfit(path, kind))
        except OSError as error:
            if alone:
                raise
            wrong = LeftOut(path, "not readable", error.strerror or "")
        if wrong:
            self.left_out.append(wrong)
        else:
            self.taken.append(Taken(path, name, kind, path.stat().st_size))
            self.places[path] = place

    def _wrong(self, path: Path, kind: str) -> LeftOut | None:
        """Why a file cannot be read."""
        if kind == TEXT and path.suffix.lower() in PACKED:
            return LeftOut(path, "packed")
        if kind == TEXT and not self._text:
            return LeftOut(path, "of another kind")
        if kind in (TEXT, *TABLES.values()) and not path.stat().st_size:
            return LeftOut(path, "empty")  # while parallel files may have nothing to say, together
        found = is_utf8(path, zeros=kind != TEXT) if kind in _IN_UTF8 else True
        if found is None:
            return LeftOut(path, "binary")
        return None if found else LeftOut(path, "not UTF-8", f"it looks like {guess_of(path)}")

    def _unfit(self, path: Path, kind: str) -> LeftOut | None:
        """Why a file of a folder does not belong to the others; a single file is read, which reports faults."""
        columns: Sequence[str] | None = None
        if kind == "parquet":
            try:
                columns = pq.read_schema(path).names
            except pa.ArrowException:
                return LeftOut(path, "not valid Parquet")
        elif kind in ("csv", "json") and self._column is not None:
            columns = first_columns(path)
        if columns and self._column is not None and self._column not in columns:
            return LeftOut(path, f"without a column {self._column!r}", f"it has {', '.join(columns[:_SHOWN])}")
        return None

    def _error(self, wrong: LeftOut) -> ValueError:
        """Error for a single file that cannot be read."""
        path = wrong.path
        if wrong.reason == "empty":
            return ValueError(f"there is no text in {str(path)!r}: it is empty")
        if wrong.reason == "not UTF-8":
            try:
                read_utf8(path, repr(str(path)))
            except ValueError as error:
                return error
        return cannot_read(path, self._kinds, self._text)
