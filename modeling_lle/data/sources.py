"""Sources of rows: the Hub, files or memory, and their splits.

Notable: all errors about missing sources, splits and columns are raised here.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import datasets
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from ..bank.places import PROVENANCE, provenance
from ..common.paths import may_be_on_hub, not_found
from .chosen import Chosen, names
from .gather import TABLES, Files, LeftOut, Taken, reasons, survey
from .splits import SPLITS, pick_split

Rows: TypeAlias = Dataset | IterableDataset
RowsBySplit: TypeAlias = DatasetDict | IterableDatasetDict
Source: TypeAlias = Files | Mapping[str, Files] | Rows | RowsBySplit
Split: TypeAlias = str | Sequence[str] | None

_IN_MEMORY = (Dataset, IterableDataset, DatasetDict, IterableDatasetDict)

logger = logging.getLogger(__name__)


def describe(source: Source) -> str:
    """Name of a source in messages."""
    if isinstance(source, (str, Path)):
        return repr(str(source))
    if isinstance(source, (*_IN_MEMORY, Mapping)):
        return "the data set"
    return ", ".join(repr(str(path)) for path in source)


def open_rows(
    source: Source,
    *,
    name: str | None,
    split: Split,
    text_column: str,
    sample_by: str = "line",
    streaming: bool = False,
    cache_dir: str | Path | None = None,
) -> Rows:
    """Rows of one split, columns unchanged; arguments and errors as in `load_texts`."""
    where = describe(source)
    if isinstance(source, _IN_MEMORY):
        return _in_memory(source, split, where)
    files = local_files(source, text_column)
    if files is None:
        return _load_from_hub(str(source), name, split, streaming, cache_dir)
    return choose(files, split, where).load(text_column, sample_by, streaming, cache_dir)


def _in_memory(source: Rows | RowsBySplit, split: Split, where: str) -> Rows:
    if isinstance(source, (Dataset, IterableDataset)):
        if isinstance(split, str):
            raise ValueError(f"the data set has no splits, so {split!r} cannot be chosen: give a DatasetDict")
        return source
    return source[pick_split(split, source, where)]


@dataclasses.dataclass(frozen=True)
class Columns:
    """Columns of a split.

    Attributes:
        names: Column names.
        values: Returns the values of a column.
        features: Features known to `datasets`, such as class names.
        places: For each row its `file` and `line`, or `row_in_file`, as far as they are known.
    """

    names: list[str]
    values: Callable[[str], list[Any]]
    features: Mapping[str, Any]
    places: list[dict[str, Any]]


def open_columns(
    source: Source,
    *,
    name: str | None,
    split: Split,
    files: Mapping[str, list[Taken]] | None = None,
    cache_dir: str | Path | None = None,
) -> Columns:
    """Columns of one split of a source of tables, all rows at once; values are as written, even of mixed types.

    Args:
        source, name, split, cache_dir: As in `load_texts`.
        files: Result of `local_files`, for a source of files.

    Raises:
        TypeError: The rows are streamed.
    """
    where = describe(source)
    chosen = None if files is None else choose(files, split, where)
    if chosen is not None and "parquet" not in chosen.kinds:
        rows = list(chosen.rows())
        rows = [rows[row] for part in chosen.ranges(len(rows)) for row in part]
        return Columns(
            names(rows), lambda column: [row.get(column) for row in rows], {}, [provenance(row) for row in rows]
        )
    if chosen is not None and len(chosen.kinds) > 1:
        raise ValueError(
            f'{chosen.place} mixes Parquet files with others: choose one kind with a glob such as "folder/*.parquet"'
        )
    if chosen is not None:
        table = chosen.load("", "line", False, cache_dir)
    elif isinstance(source, _IN_MEMORY):
        table = _in_memory(source, split, where)
    else:
        table = _load_from_hub(str(source), name, split, False, cache_dir)
    if isinstance(table, IterableDataset):
        raise TypeError("streamed rows must be loaded into memory first: Dataset.from_list(list(rows))")
    table = table.with_format(None)
    known = {column: table[column][:] for column in PROVENANCE if column in table.column_names}
    places = [provenance(dict(zip(known, values, strict=True))) for values in zip(*known.values(), strict=True)]
    return Columns(
        table.column_names, lambda column: table[column][:], table.features, places or [{} for _ in range(len(table))]
    )


def local_files(
    source: Files | Mapping[str, Files],
    text_column: str | None = None,
    kinds: Mapping[str, str] = TABLES,
    text: bool = True,
) -> dict[str, list[Taken]] | None:
    """The files of each split; None for a name on the Hub. What is left out is logged, once.

    Args:
        source: Files, folders or globs, or a mapping from splits to them.
        text_column, kinds, text: As in `survey`.

    Returns:
        Splits as `find_splits` finds them, or one, "train", of all files.
    """
    if isinstance(source, Mapping):
        return {
            SPLITS.get(split, split): _survey(given, text_column, kinds, text)[0] for split, given in source.items()
        }
    if isinstance(source, (str, Path)) and may_be_on_hub(source, kinds):
        return None
    taken, splits = _survey(source, text_column, kinds, text)
    by_path = {file.path: file for file in taken}
    return {split: [by_path[path] for path in paths] for split, paths in splits.items()} or {"train": taken}


def _survey(
    source: Files, text_column: str | None, kinds: Mapping[str, str], text: bool
) -> tuple[list[Taken], dict[str, list[Path]]]:
    found = survey(source, text_column, kinds, text)
    warn_of_left_out(describe(source), found.left_out)
    return found.taken, found.splits


def warn_of_left_out(where: str, left_out: Sequence[LeftOut]) -> None:
    """Logs which files are left out, and why."""
    if left_out:
        count = "1 file" if len(left_out) == 1 else f"{len(left_out)} files"
        _warn_once(f"{count} of {where} {'is' if len(left_out) == 1 else 'are'} left out: {reasons(left_out)}")


@functools.lru_cache(maxsize=100)
def _warn_once(message: str) -> None:
    """Logs a warning, unless it was logged before: each split of a source looks through all its files."""
    logger.warning("%s", message)


def choose(files: Mapping[str, list[Taken]], split: Split, where: str) -> Chosen:
    """The files of the split that is meant, which may be a slice; raises a ValueError if there is none."""
    wanted, bracket, rest = split.partition("[") if isinstance(split, str) else ("", "", "")
    named = wanted or (None if isinstance(split, str) else split)
    if list(files) == ["train"] and wanted and SPLITS.get(wanted, wanted) != "train":
        raise ValueError(
            f"{where} has no split {wanted!r}: it is one text, or one table. Leave out the split (--split) to read "
            "all of it"
        )
    picked = pick_split(named, files, where)
    return Chosen(files[picked], picked, bracket + rest, where)


def _load_from_hub(source: str, name: str | None, split: Split, streaming: bool, cache_dir: str | Path | None) -> Rows:
    one = split if isinstance(split, str) else None
    try:
        loaded = datasets.load_dataset(source, name, split=one, streaming=streaming, cache_dir=cache_dir)
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(f"{not_found(source)}, and the Hub does not provide it: {error}") from error
    if isinstance(loaded, (DatasetDict, IterableDatasetDict)):
        return loaded[pick_split(split, loaded, repr(source))]
    return loaded
