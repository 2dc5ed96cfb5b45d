"""Sources of rows: the Hub, files or memory, and their splits.

Notable: all errors about missing sources, splits and columns are raised here.
"""

import dataclasses
import difflib
import glob
import itertools
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import pyarrow
from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict, Value

from .rows import cannot_read, ending, read_lines, read_rows, read_utf8

Rows: TypeAlias = Dataset | IterableDataset
RowsBySplit: TypeAlias = DatasetDict | IterableDatasetDict
Files: TypeAlias = str | Path | Sequence[str | Path]
Source: TypeAlias = str | Path | Mapping[str, Files] | Rows | RowsBySplit

SPLITS = {
    "train": "train",
    "training": "train",
    "valid": "validation",
    "validation": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
KINDS = {".txt": "text", ".csv": "csv", ".tsv": "tsv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_PART = 50_000  # rows converted to Arrow at once


def describe(source: Source) -> str:
    """Name of a source in messages."""
    return repr(str(source)) if isinstance(source, (str, Path)) else "the data set"


def open_rows(
    source: Source,
    *,
    name: str | None,
    split: str | None,
    text_column: str | None = None,
    sample_by: str = "line",
    streaming: bool = False,
    cache_dir: str | Path | None = None,
) -> Rows:
    """Rows of one split, columns unchanged; arguments and errors as in `load_texts`."""
    where = describe(source)
    if isinstance(source, (Dataset, IterableDataset)):
        if split is not None:
            raise ValueError(f"the data set has no splits, so {split!r} cannot be chosen: give a DatasetDict")
        return source
    if isinstance(source, (DatasetDict, IterableDatasetDict)):
        return source[pick_split(split, source, where)]
    files = local_files(source)
    if files is not None:
        return _load_files(_Chosen.of(files, split, where), text_column, sample_by, streaming, cache_dir)
    return _load_from_hub(str(source), name, split, streaming, cache_dir)


def open_table(source: Source, *, name: str | None, split: str | None, cache_dir: str | Path | None = None) -> Dataset:
    """As `open_rows`, with all rows at once; raises a TypeError if they are streamed."""
    rows = open_rows(source, name=name, split=split, cache_dir=cache_dir)
    if isinstance(rows, IterableDataset):
        raise TypeError("streamed rows must be loaded into memory first: Dataset.from_list(list(rows))")
    return rows.with_format(None)


@dataclasses.dataclass(frozen=True)
class Columns:
    """Columns of a split.

    Attributes:
        names: Column names.
        values: Returns the values of a column.
        features: Features known to `datasets`, such as class names.
    """

    names: list[str]
    values: Callable[[str], list[Any]]
    features: Mapping[str, Any]


def open_columns(source: Source, *, name: str | None, split: str | None) -> Columns:
    """As `open_table`; values of tables are as written, even of mixed types in a column."""
    in_memory = isinstance(source, (Dataset, IterableDataset, DatasetDict, IterableDatasetDict))
    files = None if in_memory else local_files(source)
    chosen = None if files is None else _Chosen.of(files, split, describe(source))
    if chosen is None or chosen.kind in ("text", "parquet"):
        table = open_table(source, name=name, split=split)
        return Columns(table.column_names, lambda column: table[column][:], table.features)
    rows = list(chosen.rows())
    rows = [rows[row] for part in chosen.ranges(len(rows)) for row in part]
    return Columns(_names(rows), lambda column: [row.get(column) for row in rows], {})


def check_column(column: str, columns: Iterable[str], where: str) -> None:
    """Raises a ValueError, with the nearest name, unless `column` is one of `columns`."""
    names = list(columns)
    if column not in names:
        near = difflib.get_close_matches(column, names, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"{where} has no column {column!r}{hint}; its columns are: {', '.join(names)}")


def pick_split(split: str | None, available: Iterable[str], where: str) -> str:
    """The split of `available` that `split` names."""
    names = list(available)
    if split is None:
        if len(names) == 1:
            return names[0]
        raise ValueError(f"{where} has several splits, name one of them: {', '.join(names)}")
    for candidate in (split, SPLITS.get(split)):
        if candidate in names:
            return candidate
    raise ValueError(f"{where} has no split {split!r}; it has: {', '.join(names)}")


def local_files(
    source: str | Path | Mapping[str, Files], endings: Collection[str] = KINDS
) -> dict[str, list[Path]] | None:
    """Files of each split with one of the `endings`; None for a name on the Hub."""
    if isinstance(source, Mapping):
        return {
            SPLITS.get(split, split): [path for pattern in _as_list(given) for path in _expand(pattern, endings)]
            for split, given in source.items()
        }
    path = Path(source).expanduser()
    if not path.exists() and not glob.has_magic(str(source)) and _may_be_on_hub(source, endings):
        return None
    files = _expand(source, endings)
    root = path if path.is_dir() else Path()
    named: dict[str, list[Path]] = {}
    for file in files:
        place = file.relative_to(root).as_posix() if path.is_dir() else file.name
        words = re.split(r"[^a-z]+", place.lower())
        split = next((SPLITS[word] for word in words if word in SPLITS), None)
        if split:
            named.setdefault(split, []).append(file)
    return named or {"train": files}


def _as_list(files: Files) -> Sequence[str | Path]:
    return [files] if isinstance(files, (str, Path)) else files


def _may_be_on_hub(source: str | Path, endings: Collection[str]) -> bool:
    text = str(source)
    return bool(re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", text)) and ending(Path(text), endings) not in endings


def _expand(pattern: str | Path, endings: Collection[str]) -> list[Path]:
    """Sorted files of a path, folder or glob; raises a FileNotFoundError if there are none."""
    path = Path(pattern).expanduser()
    if path.is_file():
        if ending(path, endings) not in endings:
            raise cannot_read(path, endings)
        return [path]
    pattern = str(path / "**" / "*") if path.is_dir() else str(path)
    candidates = map(Path, glob.iglob(pattern, recursive=True))
    files = sorted(file for file in candidates if ending(file, endings) in endings and file.is_file())
    if not files:
        raise FileNotFoundError(_not_found(path, endings))
    return files


def _not_found(path: Path, endings: Collection[str] = KINDS) -> str:
    """Message for a path without files: the first missing part, and near names beside it."""
    if path.is_dir() or glob.has_magic(str(path)):
        return f"{str(path)!r} holds no file whose name ends with one of {', '.join(endings)}"
    missing = path.absolute()
    while not missing.parent.exists():
        missing = missing.parent
    near = difflib.get_close_matches(missing.name, [entry.name for entry in missing.parent.iterdir()], n=3)
    hint = f"; near names there: {', '.join(near)}" if near else ""
    return f"there is no {str(path)!r}: {str(missing.parent)!r} holds no {missing.name!r}{hint}"


def one_kind(files: Iterable[Path], kinds: Mapping[str, str], where: str) -> str:
    """Common kind of all files by their endings; raises a ValueError if kinds differ."""
    found = {kinds[ending(file, kinds)]: file.suffix for file in files}
    if len(found) > 1:
        raise ValueError(
            f"{where} mixes files of the kinds {', '.join(sorted(found))}: "
            f'choose one kind with a glob such as "folder/*{found[min(found)]}"'
        )
    return found.popitem()[0]


@dataclasses.dataclass(frozen=True)
class _Chosen:
    """The files of a split.

    Attributes:
        files: Files of one kind.
        kind: Their kind.
        split: Name of the split.
        part: Slice, such as "[:10%]", or "".
        where: Name of the source in messages.
    """

    files: list[Path]
    kind: str
    split: str
    part: str
    where: str

    @classmethod
    def of(cls, files: dict[str, list[Path]], split: str | None, where: str) -> "_Chosen":
        wanted, bracket, rest = (split or "").partition("[")
        picked = pick_split(wanted or None, files, where)
        kind = one_kind(files[picked], KINDS, f"the split {picked!r} of {where}")
        chosen = cls(files[picked], kind, picked, bracket + rest, where)
        if not any(file.stat().st_size for file in chosen.files):
            raise ValueError(f"there is no text in {chosen.place}: its files are empty")
        return chosen

    @property
    def place(self) -> str:
        """Name of the split in messages."""
        return f"the split {self.split!r} of {self.where}"

    def rows(self, sample_by: str = "line") -> Iterator[dict[str, Any]]:
        """Yields the rows, unsliced."""
        return _read([str(file) for file in self.files], self.kind, sample_by)

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


def _load_files(
    chosen: _Chosen, text_column: str | None, sample_by: str, streaming: bool, cache_dir: str | Path | None
) -> Rows:
    if chosen.part and streaming:
        raise ValueError(f"streamed rows cannot be sliced: leave out {chosen.part} or streaming")
    if chosen.kind == "parquet" or (chosen.kind == "text" and not streaming):
        loaded = _build(chosen, sample_by, streaming, cache_dir)
    elif streaming:
        given = {"files": [str(file) for file in chosen.files], "kind": chosen.kind, "sample_by": sample_by}
        loaded = IterableDataset.from_generator(_read, gen_kwargs=given)
    else:
        loaded = _in_memory(chosen, text_column)
    if isinstance(loaded, IterableDataset):
        return loaded
    ranges = chosen.ranges(len(loaded))
    return datasets.concatenate_datasets([loaded.select(part) for part in ranges]) if chosen.part else loaded


def _build(chosen: _Chosen, sample_by: str, streaming: bool, cache_dir: str | Path | None) -> Rows:
    """Text or Parquet files read by `datasets`; rows stay on disk."""
    options: dict[str, Any] = {"data_files": {chosen.split: [str(file) for file in chosen.files]}}
    options |= {"split": chosen.split, "streaming": streaming, "cache_dir": cache_dir}
    options |= {"sample_by": sample_by, "encoding": "utf-8-sig"} if chosen.kind == "text" else {}
    try:
        return datasets.load_dataset(chosen.kind, **options)
    except (datasets.exceptions.DatasetGenerationError, pyarrow.ArrowException) as error:
        if chosen.kind == "text":
            for file in chosen.files:
                read_utf8(file, repr(str(file)))  # names the file and the place
        reason = str(error.__cause__ or error).strip()
        raise ValueError(f"cannot read {chosen.place}: {reason}") from error
    except ValueError as error:
        if "corresponds to no data" not in str(error):
            raise
        raise ValueError(f"there is no text in {chosen.place}: its files have no rows") from error


def _read(files: list[str], kind: str, sample_by: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of files in order."""
    for file in files:
        if kind == "text":
            yield from ({"text": text} for text in read_lines(Path(file), whole=sample_by == "document"))
        elif kind == "json":
            yield from read_rows(Path(file))
        else:  # an empty field is missing
            yield from ({name: value or None for name, value in row.items()} for row in read_rows(Path(file)))


def _in_memory(chosen: _Chosen, text_column: str | None) -> Dataset:
    """All rows; JSON is converted at once, as the type of a column may depend on later rows."""
    rows, parts = chosen.rows(), []
    is_json = chosen.kind == "json"
    while part := list(itertools.islice(rows, None if is_json else _PART)):
        columns = {name: [row.get(name) for row in part] for name in _names(part)}
        if text_column in columns:
            check_texts(columns[text_column], text_column, chosen.where)
        if is_json:
            columns = {name: _of_one_kind(values) for name, values in columns.items()}
        features = None if is_json else Features({name: Value("string") for name in columns})
        parts.append(Dataset.from_dict(columns, features=features))
    return datasets.concatenate_datasets(parts) if parts else Dataset.from_dict({})


def _names(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Columns of all rows, in order of occurrence."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _of_one_kind(values: list[Any]) -> list[Any]:
    """Values; if Arrow cannot hold them unchanged, all but strings become JSON."""
    try:
        pyarrow.array(values)
    except (pyarrow.ArrowException, OverflowError, TypeError):
        return [v if isinstance(v, str | None) else json.dumps(v, ensure_ascii=False) for v in values]
    return values


def check_texts(texts: Iterable[Any], column: str, where: str) -> None:
    """Raises a ValueError for the first value that is neither a string nor missing."""
    for row, text in enumerate(texts):
        if not isinstance(text, str | None):
            raise ValueError(f"the column {column!r} of row {row} of {where} is {text!r:.80}, not text")


def _load_from_hub(
    source: str, name: str | None, split: str | None, streaming: bool, cache_dir: str | Path | None
) -> Rows:
    try:
        loaded = datasets.load_dataset(source, name, split=split, streaming=streaming, cache_dir=cache_dir)
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(f"{_not_found(Path(source))}, and the Hub does not provide it: {error}") from error
    if isinstance(loaded, (DatasetDict, IterableDatasetDict)):
        return loaded[pick_split(None, loaded, repr(source))]
    return loaded
