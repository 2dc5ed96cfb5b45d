"""Sentence pairs from the Hub, files or memory.

Notable: the result always has the columns `source` and `target`, texts are unchanged. A row that lacks a side is an
error, as it would be trained on or recalled as a translation.
"""

import dataclasses
import glob
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict, Value

from ..bank.places import PROVENANCE
from .gather import TABLES, Taken
from .languages import match_language
from .rows import check_column, read_utf8, split_lines
from .sources import Source, Split, choose, describe, local_files, open_columns
from .tables import read_table
from .tmx import read_units

_KINDS = {**TABLES, ".tmx": "tmx", ".po": "po", ".mo": "mo"}
_TRANSLATION = "translation"  # column of the Hub with mappings from languages to texts

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class _Pairs:
    """Pairs that were read, and faults of the others."""

    skip_broken: bool
    sources: list[str] = dataclasses.field(default_factory=list)
    targets: list[str] = dataclasses.field(default_factory=list)
    places: list[Mapping[str, Any]] = dataclasses.field(default_factory=list)
    broken: list[str] = dataclasses.field(default_factory=list)

    def add(self, source: Any, target: Any, place: str, columns: Mapping[str, Any]) -> None:
        """Adds a pair if neither side is missing or blank.

        Args:
            source, target: The sides.
            place: Where it is, for messages.
            columns: Where it is: its `file`, `line` or `row_in_file`, as far as they are known.
        """
        for side, text in (("source", source), ("target", target)):
            if not isinstance(text, str) or not text.strip():
                wrong = "missing" if text is None else "blank" if isinstance(text, str) else f"{text!r:.80}, no string"
                self.refuse(f"the {side} in {place} is {wrong}")
                return
        self.sources.append(source)
        self.targets.append(target)
        self.places.append(columns)

    def dataset(self) -> Dataset:
        """The pairs as a table."""
        columns: dict[str, list[Any]] = {"source": self.sources, "target": self.targets}
        for name in PROVENANCE:
            values = [place.get(name) for place in self.places]
            columns |= {name: values} if any(value is not None for value in values) else {}
        texts = ("source", "target", "file")
        features = Features({name: Value("string" if name in texts else "int32") for name in columns})
        return Dataset.from_dict(columns, features=features)

    def refuse(self, wrong: str) -> None:
        """Records a fault; raises a ValueError unless faults are skipped."""
        if not self.skip_broken:
            raise ValueError(f"{wrong}: fix it, or skip faulty pairs with skip_broken=True")
        self.broken.append(wrong)


@dataclasses.dataclass(frozen=True)
class _Naming:
    """Languages of both sides, and their columns if given."""

    languages: tuple[str, str]
    columns: tuple[str | None, str | None]


def load_pairs(
    source: Source,
    *,
    source_language: str,
    target_language: str,
    name: str | None = None,
    split: Split = None,
    source_column: str | None = None,
    target_column: str | None = None,
    skip_broken: bool = False,
    cache_dir: str | Path | None = None,
) -> Dataset:
    """Loads one split of a data set of sentence pairs.

    Without an exact match, a language such as "en" matches variants such as "en-US" and "en_GB".

    Args:
        source: A name on the Hub; a file, folder or glob; a mapping from splits to such paths; or a data set in
            memory. Formats: parallel files of lines named by language (train.en, train.de), tables (.tsv, .csv,
            .json, .jsonl, .parquet), translation memories (.tmx) and gettext catalogues (.po, .mo, whose header may
            state the target language only). Splits are found in names as in `load_texts`.
        source_language: Language to translate from, such as "en".
        target_language: Language to translate to, such as "de".
        name: Configuration of a data set on the Hub.
        split: As in `load_texts`.
        source_column: Source column of a table; None: a column `translation` of mappings from languages to texts,
            else the column named like the language, else "source".
        target_column: Likewise, "target".
        skip_broken: Whether to skip rows that lack a side, and unreadable units and entries, with a warning in the
            log; otherwise they are an error.
        cache_dir: As in `load_texts`; used for data sets on the Hub only.

    Returns:
        The columns `source` and `target` (strings), in file order, and of files `file` and `line` as in
        `load_labelled`: in parallel files those of the source, in catalogues the line of the msgid. Untranslated,
        fuzzy and obsolete entries of a catalogue are left out; a plural entry yields a pair of the singular, and one
        of the plural with the second form.

    Raises:
        FileNotFoundError: `source` is neither on this machine nor on the Hub.
        ValueError: A split, language or column is missing (the message lists those available), a file is unreadable,
            a catalogue is of another language by its header or, unless `skip_broken`, a row lacks a side.
    """
    if source_language == target_language:
        raise ValueError(f"both languages are {source_language!r}: name two")
    where = describe(source)
    naming = _Naming((source_language, target_language), (source_column, target_column))
    pairs = _Pairs(skip_broken)
    kinds = {**{f".{language}": "lines" for language in naming.languages}, **_KINDS}
    in_memory = isinstance(source, (Dataset, DatasetDict, IterableDataset, IterableDatasetDict))
    files = None if in_memory else local_files(source, kinds=kinds, text=False)
    if files is None:
        rows = open_columns(source, name=name, split=split, cache_dir=cache_dir)
        _read_columns(rows.names, rows.values, naming, where, pairs, rows.places)
    else:
        chosen = choose(files, split, where)
        if chosen.part:
            raise ValueError(f"cannot slice {where} by {split!r}: sentence pairs of files are read as a whole")
        lines = [file for file in chosen.files if file.kind == "lines"]
        _read_lines(lines, naming.languages, pairs)
        for file in chosen.files:
            if file.kind != "lines":
                _READERS[file.kind](file, naming, pairs)
    if pairs.broken:
        total = len(pairs.broken) + len(pairs.sources)
        logger.warning(
            "%d of %d pairs of %s are skipped, the first because %s", len(pairs.broken), total, where, pairs.broken[0]
        )
    if not pairs.sources:
        raise ValueError(f"{where} has no pairs with both sides")
    return pairs.dataset()


def _read_lines(files: Sequence[Taken], languages: tuple[str, str], pairs: _Pairs) -> None:
    """Reads parallel files of lines, whose names differ only in the language at the end."""
    called = {file.path: file.name for file in files}
    for stem in dict.fromkeys(path.with_suffix("") for path in called):
        sides = [stem.with_name(f"{stem.name}.{language}") for language in languages]
        names = [repr(str(side)) for side in sides]
        for side, name, other in zip(sides, names, reversed(names), strict=True):
            if side not in called:
                beside = stem.parent.glob(f"{glob.escape(stem.name)}.*")
                raise FileNotFoundError(
                    f"{other} needs its translations in {name}: give both by a folder or a glob such as "
                    f"'{stem}.*'; languages there: {', '.join(sorted(path.suffix[1:] for path in beside))}"
                )
        lines = [split_lines(read_utf8(side, name)) for side, name in zip(sides, names, strict=True)]
        for number, (source, target) in enumerate(zip(*lines, strict=False), start=1):
            place = {"file": called[sides[0]], "line": number}
            pairs.add(source, target, f"line {number} of {names[0]} and {names[1]}", place)
        (fewer, shorter), (more, longer) = sorted(zip(map(len, lines), names, strict=True))
        for number in range(fewer + 1, more + 1):
            pairs.refuse(f"line {number} of {longer} has no translation, as {shorter} ends with line {fewer}")


def _read_table(file: Taken, naming: _Naming, pairs: _Pairs) -> None:
    table = read_table(str(file.path))
    places = [{"file": file.name, "line": line} for line in table.lines]
    _read_columns(table.columns, table.values, naming, table.where, pairs, places)


def _read_parquet(file: Taken, naming: _Naming, pairs: _Pairs) -> None:
    where = repr(str(file.path))
    try:
        table = pq.read_table(file.path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"cannot read {where}: {error}") from error
    places = [{"file": file.name, "row_in_file": row} for row in range(1, len(table) + 1)]
    _read_columns(table.column_names, lambda column: table[column].to_pylist(), naming, where, pairs, places)


def _read_tmx(file: Taken, naming: _Naming, pairs: _Pairs) -> None:
    where = repr(str(file.path))
    units, broken = read_units(file.path)
    for wrong in broken:
        pairs.refuse(wrong)
    found = dict.fromkeys(language for unit in units for language in unit.texts)
    for language in naming.languages:
        _pick_language(language, found, where)
    for unit in units:
        keys = [match_language(language, unit.texts) for language in naming.languages]
        source, target = (None if key is None else unit.texts[key] for key in keys)
        pairs.add(source, target, f"the unit in line {unit.line} of {where}", {"file": file.name, "line": unit.line})


def _read_po(file: Taken, naming: _Naming, pairs: _Pairs) -> None:
    from .catalogue import check_language, read_catalogue

    catalogue = read_catalogue(file.path, skip_broken=True)
    check_language(catalogue.header, naming.languages[1], file.path)
    for wrong in catalogue.broken:
        pairs.refuse(wrong)
    for entry in catalogue.entries:
        if entry.in_use:
            _add_translated(entry.texts, entry.translations, pairs, {"file": file.name, "line": entry.line})


def _read_mo(file: Taken, naming: _Naming, pairs: _Pairs) -> None:
    from .catalogue import check_language, read_compiled

    compiled = read_compiled(file.path)
    check_language(compiled.header, naming.languages[1], file.path)
    for texts, translations in compiled.entries:
        _add_translated(texts, translations, pairs, {"file": file.name})


def _add_translated(
    texts: Sequence[str], translations: Sequence[str], pairs: _Pairs, columns: Mapping[str, Any]
) -> None:
    """Adds the singular, and the plural with the second form, if translated."""
    for source, target in zip(texts, translations, strict=False):
        if source.strip() and target.strip():
            pairs.add(source, target, "", columns)


_READERS: dict[str, Callable[[Taken, _Naming, _Pairs], None]] = {
    **{"csv": _read_table, "json": _read_table, "parquet": _read_parquet},
    **{"tmx": _read_tmx, "po": _read_po, "mo": _read_mo},
}


def _read_columns(
    names: list[str],
    values: Callable[[str], list[Any]],
    naming: _Naming,
    where: str,
    pairs: _Pairs,
    places: Sequence[Mapping[str, Any]],
) -> None:
    """Reads a table: its column names, a function that returns the values of a column, and where its rows are."""
    if _TRANSLATION in names and naming.columns == (None, None):
        mappings = [value if isinstance(value, dict) else {} for value in values(_TRANSLATION)]
        found = dict.fromkeys(language for mapping in mappings for language in mapping)
        keys = [_pick_language(language, found, where) for language in naming.languages]
        sides = [[mapping.get(key) for mapping in mappings] for key in keys]
    else:
        sides = [values(column) for column in _find_columns(names, naming, where)]
    for row, (source, target, place) in enumerate(zip(*sides, places, strict=True)):
        pairs.add(source, target, f"row {row} of {where}", place)


def _find_columns(names: list[str], naming: _Naming, where: str) -> list[str]:
    """Source column and target column."""
    found = []
    for side, language, given in zip(("source", "target"), naming.languages, naming.columns, strict=True):
        if given is not None:
            check_column(given, names, where)
        column = given or match_language(language, names) or next((n for n in names if n.lower() == side), None)
        if column is None:
            raise ValueError(
                f"{where} has no column {language!r} or {side!r}: name the {side} column with {side}_column; "
                f"its columns are: {', '.join(names)}"
            )
        found.append(column)
    return found


def _pick_language(wanted: str, found: Iterable[str], where: str) -> str:
    """As `match_language`; raises a ValueError that lists the languages if none matches."""
    names = list(found)
    language = match_language(wanted, names)
    if language is None:
        known = ", ".join(sorted(names)) or "none"
        raise ValueError(f"{where} has no text in {wanted!r}; its languages are: {known}")
    return language
