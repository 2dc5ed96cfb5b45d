"""The files of the split that is read, and the rows in them, each with its file and line.

Notable: text stays on the disk and tables in memory. A table that has a column `file` or `line` keeps its own.
"""

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, IterableDataset, Value

from ..bank.places import FILE, LINE, PROVENANCE, ROW_IN_FILE
from .gather import TEXT, Taken
from .lines import FEATURES, load_lines
from .rows import check_column, numbered_rows, read_lines, read_utf8

_PART = 50_000  # rows converted to Arrow at once


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The files of a split.

    Attributes:
        files: The files.
        split: Name of the split.
        part: Slice, such as "[:10%]", or "".
        where: Name of the source in messages.
    """

    files: list[Taken]
    split: str
    part: str
    where: str

    @property
    def place(self) -> str:
        """Name of the split in messages."""
        return f"the split {self.split!r} of {self.where}"

    @property
    def kinds(self) -> list[str]:
        """The different kinds of the files, in the order in which they are read."""
        return list(dict.fromkeys(file.kind for file in self.files))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields the rows of tables, unsliced."""
        return _read([_plain(file) for file in self.files], "line", None)

    def ranges(self, count: int) -> list[range]:
        """Ranges of the slice in `count` rows; raises a ValueError if it is empty."""
        if not count:
            raise ValueError(f"there is no text in {self.place}: its files have no rows")
        if not self.part:
            return [range(count)]
        split = self.split + self.part
        try:
            parts = datasets.ReadInstruction.from_spec(split).to_absolute({self.split: count})
        except (AssertionError, ValueError) as error:
            raise ValueError(f"cannot slice {self.where} by {split!r}: {error}") from error
        ranges = [range(part.from_, part.to) for part in parts if part.from_ < part.to]
        if not ranges:
            taken = f"it takes none of the {count} rows of {self.split!r}"
            raise ValueError(f"there is no text in {split!r} of {self.where}: {taken}")
        return ranges

    def load(self, text_column: str, sample_by: str, streaming: bool, cache_dir: str | Path | None) -> Any:
        """The rows: of files of one kind with all columns, of several kinds with texts and their places only.

        Args:
            text_column: Column of the text in tables, and of lines beside tables.
            sample_by: Whether a row of plain text is a line or a document.
            streaming: Whether to read while iterating.
            cache_dir: As in `load_texts`.
        """
        if streaming:
            if self.part:
                raise ValueError(f"streamed rows cannot be sliced: leave out {self.part} or streaming")
            only = text_column if len(self.kinds) > 1 else None
            given = {"files": [_plain(file) for file in self.files], "sample_by": sample_by, "only": only}
            streamed = IterableDataset.from_generator(_read, gen_kwargs=given)
            self._describe(streamed.info)
            return streamed
        parts = [self._load(kind, text_column, sample_by, cache_dir) for kind in self.kinds]
        if len(parts) > 1:
            parts = [_alike(part, text_column, self.where) for part in parts]
        loaded = datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]
        ranges = self.ranges(len(loaded))
        return datasets.concatenate_datasets([loaded.select(part) for part in ranges]) if self.part else loaded

    def _describe(self, info: datasets.DatasetInfo) -> None:
        """Notes the number of rows if files of Parquet know it, else the bytes, by which a reader can estimate it."""
        if self.kinds == ["parquet"]:
            with contextlib.suppress(pa.ArrowException):  # a damaged file is named when it is read
                rows = sum(pq.read_metadata(file.path).num_rows for file in self.files)
                info.splits = datasets.SplitDict({"train": datasets.SplitInfo("train", num_examples=rows)})
        else:
            info.dataset_size = sum(file.path.stat().st_size for file in self.files)

    def _load(self, kind: str, text_column: str, sample_by: str, cache_dir: str | Path | None) -> Dataset:
        """The rows of the files of a kind."""
        files = [file for file in self.files if file.kind == kind]
        try:
            if kind == TEXT:
                return load_lines(files, sample_by == "document", self.split, cache_dir)
            if kind == "parquet":
                return _load_parquet(files, self.split, cache_dir)
        except (datasets.exceptions.DatasetGenerationError, pa.ArrowException) as error:
            if kind == TEXT:
                for file in files:
                    read_utf8(file.path, repr(str(file.path)))  # names the file and the place
            reason = str(error.__cause__ or error).strip()
            raise ValueError(f"cannot read {self.place}: {reason}") from error
        except ValueError as error:
            if "corresponds to no data" not in str(error):
                raise
            raise ValueError(f"there is no text in {self.place}: its files have no rows") from error
        return _in_memory(dataclasses.replace(self, files=files), kind == "json", text_column)


def _plain(file: Taken) -> tuple[str, str, str]:
    return str(file.path), file.name, file.kind


def _read(files: Sequence[tuple[str, str, str]], sample_by: str, only: str | None) -> Iterator[dict[str, Any]]:
    """Yields the rows of files in order.

    Args:
        files: Path, name and kind of each.
        sample_by: Whether a row of plain text is a line or a document.
        only: The column to keep beside the place of a row, which is that of the text; None: all columns.
    """
    for path, name, kind in files:
        for number, row in _rows_of(Path(path), kind, sample_by):
            place = {FILE: name, (ROW_IN_FILE if kind == "parquet" else LINE): number}
            if only is not None:
                yield {only: row["text" if kind == TEXT else only], FILE: name, LINE: place.get(LINE)}
            else:
                yield row if row.keys() & set(PROVENANCE) else {**row, **place}


def _rows_of(path: Path, kind: str, sample_by: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the rows of a file with their lines or numbers, from 1."""
    if kind == TEXT:
        for line, text in enumerate(read_lines(path, whole=sample_by == "document"), start=1):
            yield line, {"text": text}
    elif kind == "json":
        yield from numbered_rows(path)
    elif kind == "csv":  # an empty field is missing
        for line, row in numbered_rows(path):
            yield line, {name: value or None for name, value in row.items()}
    else:
        try:
            batches = pq.ParquetFile(path).iter_batches()
            yield from enumerate(itertools.chain.from_iterable(batch.to_pylist() for batch in batches), start=1)
        except pa.ArrowException as error:
            raise ValueError(f"cannot read {str(path)!r}: {error}") from error


def _load_parquet(files: Sequence[Taken], split: str, cache_dir: str | Path | None) -> Dataset:
    """Rows that stay on the disk, with the columns `file` and `row_in_file`."""
    given = {split: [str(file.path) for file in files]}
    loaded = datasets.load_dataset("parquet", data_files=given, split=split, cache_dir=cache_dir)
    assert isinstance(loaded, Dataset)
    if set(loaded.column_names) & set(PROVENANCE):
        return loaded
    counts = [pq.read_metadata(file.path).num_rows for file in files]
    names = pa.concat_arrays([pa.repeat(pa.scalar(file.name), n) for file, n in zip(files, counts, strict=True)])
    numbers = np.concatenate([np.arange(1, n + 1, dtype=np.int32) for n in counts])
    places = Dataset(pa.table({FILE: names, ROW_IN_FILE: numbers}))
    return datasets.concatenate_datasets([loaded, places], axis=1)


def _in_memory(chosen: Chosen, is_json: bool, text_column: str | None) -> Dataset:
    """All rows; JSON is converted at once, as the type of a column may depend on later rows."""
    rows, parts = chosen.rows(), []
    while part := list(itertools.islice(rows, None if is_json else _PART)):
        columns = {name: [row.get(name) for row in part] for name in names(part)}
        if text_column in columns:
            check_texts(columns[text_column], text_column, chosen.where)
        if is_json:
            columns = {name: _of_one_kind(values) for name, values in columns.items()}
        kinds = {name: Value("int32" if isinstance(values[0], int) else "string") for name, values in columns.items()}
        parts.append(Dataset.from_dict(columns, features=None if is_json else Features(kinds)))
    return datasets.concatenate_datasets(parts) if parts else Dataset.from_dict({})


def names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Columns of all rows, in order of occurrence."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _of_one_kind(values: list[Any]) -> list[Any]:
    """Values; if Arrow cannot hold them unchanged, all but strings become JSON."""
    try:
        pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError):
        return [v if isinstance(v, str | None) else json.dumps(v, ensure_ascii=False) for v in values]
    return values


def _alike(rows: Dataset, text_column: str, where: str) -> Dataset:
    """Rows with the column of the text and their places only, as rows of text files have them."""
    if text_column != "text" and set(rows.column_names) == set(FEATURES):
        rows = rows.rename_column("text", text_column)
    check_column(text_column, rows.column_names, where)
    for name in (FILE, LINE):
        if name not in rows.column_names:
            rows = rows.add_column(name, [None] * len(rows))
    features = Features({text_column: FEATURES["text"], **{name: FEATURES[name] for name in (FILE, LINE)}})
    return rows.select_columns(list(features)).cast(features)


def check_texts(texts: Iterable[Any], column: str, where: str) -> None:
    """Raises a ValueError for the first value that is neither a string nor missing."""
    for row, text in enumerate(texts):
        if not isinstance(text, str | None):
            raise ValueError(f"the column {column!r} of row {row} of {where} is {text!r:.80}, not text")
