"""Where rows come from: the Hub, files or memory, and what their splits are called.

Notable: everything that is said about a source which does not exist, or has no such split or column, is said here.
"""

import difflib
import glob
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import datasets
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

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
# Only an empty field is a missing one: pandas would also take the words null, None, NA and nan for that.
_CSV: dict[str, Any] = {"keep_default_na": False, "na_values": [""]}
_PANDAS_INDEX = "__index_level_0__"
_BUILDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("text", {}),
    "csv": ("csv", _CSV),
    "tsv": ("csv", {"sep": "\t", **_CSV}),
    "json": ("json", {}),
    "parquet": ("parquet", {}),
}


def describe(source: Source) -> str:
    """What messages call a source."""
    return repr(str(source)) if isinstance(source, (str, Path)) else "the data set"


def open_rows(
    source: Source,
    *,
    name: str | None,
    split: str | None,
    sample_by: str = "line",
    streaming: bool = False,
    cache_dir: str | Path | None = None,
) -> Rows:
    """The rows of one split, their columns as they are; the arguments and errors are those of `load_texts`."""
    where = describe(source)
    if isinstance(source, (Dataset, IterableDataset)):
        if split is not None:
            raise ValueError(f"the data set has no splits, so {split!r} cannot be chosen: give a DatasetDict")
        return source
    if isinstance(source, (DatasetDict, IterableDatasetDict)):
        return source[pick_split(split, source, where)]
    files = local_files(source)
    if files is not None:
        return _load_files(files, split, where, sample_by, streaming, cache_dir)
    return _load_from_hub(str(source), name, split, streaming, cache_dir)


def open_table(source: Source, *, name: str | None, split: str | None, cache_dir: str | Path | None = None) -> Dataset:
    """As `open_rows`, for what needs all rows at once; raises a TypeError if they are streamed."""
    rows = open_rows(source, name=name, split=split, cache_dir=cache_dir)
    if isinstance(rows, IterableDataset):
        raise TypeError("streamed rows must be taken into memory first: Dataset.from_list(list(rows))")
    return rows.with_format(None)


def check_column(column: str, columns: Iterable[str], where: str) -> None:
    """Raises a ValueError, with the near name if there is one, unless `column` is one of `columns`."""
    names = list(columns)
    if column not in names:
        near = difflib.get_close_matches(column, names, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"{where} has no column {column!r}{hint}; its columns are: {', '.join(names)}")


def pick_split(split: str | None, available: Iterable[str], where: str) -> str:
    """The split of `available` that is meant by `split`."""
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
    """The files of every split whose names end with one of `endings`; None for what is a name on the Hub."""
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
    return bool(re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", text)) and Path(text).suffix not in endings


def _expand(pattern: str | Path, endings: Collection[str]) -> list[Path]:
    """The files that a path, folder or glob stands for, sorted; raises a FileNotFoundError when there are none."""
    path = Path(pattern).expanduser()
    if path.is_file():
        if path.suffix not in endings:
            raise ValueError(f"cannot read {str(path)!r}: its name should end with one of {', '.join(endings)}")
        return [path]
    pattern = str(path / "**" / "*") if path.is_dir() else str(path)
    candidates = map(Path, glob.iglob(pattern, recursive=True))
    files = sorted(file for file in candidates if file.suffix in endings and file.is_file())
    if not files:
        raise FileNotFoundError(_not_found(path, endings))
    return files


def _not_found(path: Path, endings: Collection[str] = KINDS) -> str:
    """What to say about a path without files: where it stops to exist, and the near names there."""
    if path.is_dir() or glob.has_magic(str(path)):
        return f"{str(path)!r} holds no file whose name ends with one of {', '.join(endings)}"
    missing = path.absolute()
    while not missing.parent.exists():
        missing = missing.parent
    near = difflib.get_close_matches(missing.name, [entry.name for entry in missing.parent.iterdir()], n=3)
    hint = f"; near names there: {', '.join(near)}" if near else ""
    return f"there is no {str(path)!r}: {str(missing.parent)!r} holds no {missing.name!r}{hint}"


def one_kind(files: Iterable[Path], kinds: Mapping[str, str], where: str) -> str:
    """The kind that all files have by the endings of their names; raises a ValueError where they have several."""
    found = {kinds[file.suffix]: file.suffix for file in files}
    if len(found) > 1:
        raise ValueError(
            f"{where} mixes files of the kinds {', '.join(sorted(found))}: "
            f'choose one kind with a glob such as "folder/*{found[min(found)]}"'
        )
    return found.popitem()[0]


def _load_files(
    files: dict[str, list[Path]],
    split: str | None,
    where: str,
    sample_by: str,
    streaming: bool,
    cache_dir: str | Path | None,
) -> Rows:
    wanted, bracket, rows = (split or "").partition("[")
    picked = pick_split(wanted or None, files, where)
    kind = one_kind(files[picked], KINDS, f"the split {picked!r} of {where}")
    if not any(file.stat().st_size for file in files[picked]):
        raise ValueError(f"there is no text in the split {picked!r} of {where}: its files are empty")
    builder, options = _BUILDERS[kind]
    if builder == "text":
        options = {"sample_by": sample_by}
    try:
        loaded = datasets.load_dataset(
            builder,
            data_files={picked: [str(file) for file in files[picked]]},
            split=picked + bracket + rows,
            streaming=streaming,
            cache_dir=cache_dir,
            **options,
        )
    except datasets.exceptions.DatasetGenerationError as error:
        reason = str(error.__cause__ or error).strip()
        raise ValueError(f"cannot read the split {picked!r} of {where}: {reason}") from error
    except ValueError as error:
        if "corresponds to no data" not in str(error):
            raise
        raise ValueError(f"there is no text in the split {picked!r} of {where}: its files have no rows") from error
    if builder == "csv" and _PANDAS_INDEX in (loaded.column_names or ()):
        raise ValueError(
            f"the rows of {where} have more fields than its header has names: "
            "put quotation marks around fields that hold the separator"
        )
    return loaded


def _load_from_hub(
    source: str, name: str | None, split: str | None, streaming: bool, cache_dir: str | Path | None
) -> Rows:
    try:
        loaded = datasets.load_dataset(source, name, split=split, streaming=streaming, cache_dir=cache_dir)
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(f"{_not_found(Path(source))}; nor can it be had from the Hub: {error}") from error
    if isinstance(loaded, (DatasetDict, IterableDatasetDict)):
        return loaded[pick_split(None, loaded, repr(source))]
    return loaded
