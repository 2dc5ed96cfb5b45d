"""Sentence pairs from the Hub, files or memory.

Notable: whatever holds the pairs, the result has the columns `source` and `target`, and no text is changed. A row that
lacks one side is an error, since whoever trains on it or searches it would get it as a translation.
"""

import dataclasses
import glob
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict, Value

from .rows import read_utf8, split_lines
from .sources import KINDS, Source, check_column, describe, local_files, one_kind, open_table, pick_split
from .tables import read_table
from .tmx import read_units

_KINDS = {
    **{ending: "parquet" if ending == ".parquet" else "table" for ending in KINDS if ending != ".txt"},
    **{".tmx": "tmx", ".po": "po", ".mo": "mo"},
}
_TRANSLATION = "translation"  # the column that the Hub has mappings from languages to texts in

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class _Pairs:
    """The pairs that were read, and what was wrong with the others."""

    skip_broken: bool
    sources: list[str] = dataclasses.field(default_factory=list)
    targets: list[str] = dataclasses.field(default_factory=list)
    broken: list[str] = dataclasses.field(default_factory=list)

    def add(self, source: Any, target: Any, place: str) -> None:
        """Takes a pair, if both sides are texts that are not blank."""
        for side, text in (("source", source), ("target", target)):
            if not isinstance(text, str) or not text.strip():
                wrong = "missing" if text is None else "blank" if isinstance(text, str) else f"{text!r:.80}, no string"
                self.refuse(f"the {side} in {place} is {wrong}")
                return
        self.sources.append(source)
        self.targets.append(target)

    def refuse(self, wrong: str) -> None:
        """Counts what is broken, or raises a ValueError if that is not skipped."""
        if not self.skip_broken:
            raise ValueError(f"{wrong}: mend it, or leave out what is broken with skip_broken=True")
        self.broken.append(wrong)


@dataclasses.dataclass(frozen=True)
class _Naming:
    """How the two sides are called: by their languages, and by columns where these are given."""

    languages: tuple[str, str]
    columns: tuple[str | None, str | None]


def load_pairs(
    source: Source,
    *,
    source_language: str,
    target_language: str,
    name: str | None = None,
    split: str | None = None,
    source_column: str | None = None,
    target_column: str | None = None,
    skip_broken: bool = False,
    cache_dir: str | Path | None = None,
) -> Dataset:
    """Loads one split of a data set of sentences with their translations.

    A language such as "en" also means "en-US" and "en_GB" where there is no "en" itself.

    Args:
        source: A name on the Hub; a file, folder or glob; a mapping from splits to such paths; or a data set in
            memory. Read are files of lines that are named by their languages (train.en and train.de: each line of one
            is the translation of that line of the other), tables (.tsv, .csv, .json, .jsonl, .parquet), translation
            memories (.tmx) and gettext catalogues (.po, .mo; these do not say what language a text is in). Splits are
            found in names as in `load_texts`.
        source_language: Language to translate from, such as "en".
        target_language: Language to translate to, such as "de".
        name: Configuration of a data set on the Hub.
        split: As in `load_texts`.
        source_column: Column of the source in a table. None takes the one that is called as the language or, where
            neither language has one, "source". A column `translation` of mappings from languages to texts goes first.
        target_column: Likewise "target".
        skip_broken: Whether to leave out rows that lack a side, and units and entries that cannot be read. They are
            counted in a warning in the log; otherwise they are an error.
        cache_dir: As in `load_texts`; only a data set on the Hub is kept there.

    Returns:
        The columns `source` and `target` (strings), in the order of the files. What a catalogue has not translated,
        or only roughly ("fuzzy"), and what is obsolete in it, is not among them; a plural entry gives a pair of its
        singular and one of its plural with the second form.

    Raises:
        FileNotFoundError: `source` is neither on this machine nor on the Hub.
        ValueError: The split, language or column does not exist (the message lists those that do), something cannot
            be read or, unless `skip_broken`, a row lacks a side.
    """
    if source_language == target_language:
        raise ValueError(f"both languages are {source_language!r}: name two")
    where = describe(source)
    naming = _Naming((source_language, target_language), (source_column, target_column))
    pairs = _Pairs(skip_broken)
    kinds = {**{f".{language}": "lines" for language in naming.languages}, **_KINDS}
    in_memory = isinstance(source, (Dataset, DatasetDict, IterableDataset, IterableDatasetDict))
    files = None if in_memory else local_files(source, kinds)
    if files is None:
        rows = open_table(source, name=name, split=split, cache_dir=cache_dir)
        _read_columns(rows.column_names, lambda column: rows[column][:], naming, where, pairs)
    else:
        picked = pick_split(split, files, where)
        kind = one_kind(files[picked], kinds, f"the split {picked!r} of {where}")
        if kind == "lines":
            _read_lines(files[picked], naming.languages, pairs)
        else:
            for file in files[picked]:
                _READERS[kind](file, naming, pairs)
    if pairs.broken:
        total = len(pairs.broken) + len(pairs.sources)
        logger.warning(
            "%d of %d pairs of %s are left out, the first because %s", len(pairs.broken), total, where, pairs.broken[0]
        )
    if not pairs.sources:
        raise ValueError(f"there is no pair in {where}: nothing in it has both sides")
    features = Features({"source": Value("string"), "target": Value("string")})
    return Dataset.from_dict({"source": pairs.sources, "target": pairs.targets}, features=features)


def match_language(wanted: str, found: Iterable[str]) -> str | None:
    """The first of the languages that is the wanted one or, if none is, a variety of it, such as "en-US" of "en"."""
    wanted = _plain(wanted)
    names = list(found)
    same = [name for name in names if _plain(name) == wanted]
    varieties = [name for name in names if _plain(name).startswith(f"{wanted}-")]
    return next(iter(same + varieties), None)


def _plain(language: str) -> str:
    return language.lower().replace("_", "-")


def _read_lines(files: Sequence[Path], languages: tuple[str, str], pairs: _Pairs) -> None:
    """Reads files of lines, two of which belong together if only the language at the end of their names differs."""
    for stem in dict.fromkeys(file.with_suffix("") for file in files):
        sides = [stem.with_name(f"{stem.name}.{language}") for language in languages]
        names = [repr(str(side)) for side in sides]
        for side, name, other in zip(sides, names, reversed(names), strict=True):
            if side not in files:
                beside = stem.parent.glob(f"{glob.escape(stem.name)}.*")
                raise FileNotFoundError(
                    f"{other} needs its translations in {name}: give both with a folder or a glob such as "
                    f"'{stem}.*'; languages there: {', '.join(sorted(path.suffix[1:] for path in beside))}"
                )
        lines = [split_lines(read_utf8(side, name)) for side, name in zip(sides, names, strict=True)]
        for number, (source, target) in enumerate(zip(*lines, strict=False), start=1):
            pairs.add(source, target, f"line {number} of {names[0]} and {names[1]}")
        (fewer, shorter), (more, longer) = sorted(zip(map(len, lines), names, strict=True))
        for number in range(fewer + 1, more + 1):
            pairs.refuse(f"line {number} of {longer} has no translation, as {shorter} ends with line {fewer}")


def _read_table(file: Path, naming: _Naming, pairs: _Pairs) -> None:
    table = read_table(str(file))
    _read_columns(table.columns, table.values, naming, table.where, pairs)


def _read_parquet(file: Path, naming: _Naming, pairs: _Pairs) -> None:
    where = repr(str(file))
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"cannot read {where}: {error}") from error
    _read_columns(table.column_names, lambda column: table[column].to_pylist(), naming, where, pairs)


def _read_tmx(file: Path, naming: _Naming, pairs: _Pairs) -> None:
    where = repr(str(file))
    units, broken = read_units(file)
    for wrong in broken:
        pairs.refuse(wrong)
    found = dict.fromkeys(language for unit in units for language in unit.texts)
    for language in naming.languages:
        _pick_language(language, found, where)
    for unit in units:
        keys = [match_language(language, unit.texts) for language in naming.languages]
        source, target = (None if key is None else unit.texts[key] for key in keys)
        pairs.add(source, target, f"the unit in line {unit.line} of {where}")


def _read_po(file: Path, naming: _Naming, pairs: _Pairs) -> None:
    from .catalogue import read_catalogue

    catalogue = read_catalogue(file, skip_broken=True)
    for wrong in catalogue.broken:
        pairs.refuse(wrong)
    for entry in catalogue.entries:
        if entry.in_use:
            _add_translated(entry.texts, entry.translations, pairs)


def _read_mo(file: Path, naming: _Naming, pairs: _Pairs) -> None:
    from .catalogue import read_compiled

    for texts, translations in read_compiled(file):
        _add_translated(texts, translations, pairs)


def _add_translated(texts: Sequence[str], translations: Sequence[str], pairs: _Pairs) -> None:
    """Takes a singular with its translation and a plural with its first form, as far as they are translated."""
    for source, target in zip(texts, translations, strict=False):
        if source.strip() and target.strip():
            pairs.add(source, target, "")


_READERS: dict[str, Callable[[Path, _Naming, _Pairs], None]] = {
    **{"table": _read_table, "parquet": _read_parquet, "tmx": _read_tmx, "po": _read_po, "mo": _read_mo}
}


def _read_columns(
    names: list[str], values: Callable[[str], list[Any]], naming: _Naming, where: str, pairs: _Pairs
) -> None:
    """Reads a table, given the names of its columns and a function that returns the values of one."""
    if _TRANSLATION in names and naming.columns == (None, None):
        mappings = [value if isinstance(value, dict) else {} for value in values(_TRANSLATION)]
        found = dict.fromkeys(language for mapping in mappings for language in mapping)
        keys = [_pick_language(language, found, where) for language in naming.languages]
        sides = [[mapping.get(key) for mapping in mappings] for key in keys]
    else:
        sides = [values(column) for column in _find_columns(names, naming, where)]
    for row, (source, target) in enumerate(zip(*sides, strict=True)):
        pairs.add(source, target, f"row {row} of {where}")


def _find_columns(names: list[str], naming: _Naming, where: str) -> list[str]:
    """The columns of the source and of the target."""
    found = []
    for side, language, given in zip(("source", "target"), naming.languages, naming.columns, strict=True):
        if given is not None:
            check_column(given, names, where)
        column = given or match_language(language, names) or next((n for n in names if n.lower() == side), None)
        if column is None:
            raise ValueError(
                f"{where} has no column called {language!r} or {side!r}: name that of the {side} with {side}_column; "
                f"its columns are: {', '.join(names)}"
            )
        found.append(column)
    return found


def _pick_language(wanted: str, found: Iterable[str], where: str) -> str:
    """As `match_language`; raises a ValueError that lists the languages if there is no such one."""
    names = list(found)
    language = match_language(wanted, names)
    if language is None:
        raise ValueError(f"{where} has nothing in {wanted!r}; its languages are: {', '.join(sorted(names)) or 'none'}")
    return language
