"""Glossaries: terms with the translations that a client wants, found in a source and checked in a translation.

Notable: nothing is known of the grammar of a language. A term of the source may have a usual ending ("files",
"entries"); one of a translation is any word that has its stem, as inflected words and compounds do ("Dateien",
"Systemdatei"), accents apart ("Häuser" of "Haus").
"""

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..common.words import find_words, words
from .languages import match_language
from .placeholders import plain_words
from .rows import numbered_rows
from .tables import check_input
from .units import Format, Unit, read_xml_units

ENDINGS = (".csv", ".tsv", ".tbx")
_TBX = Format(
    units=("conceptEntry", "termEntry"),
    languages=("langSec", "langSet"),
    texts=("term", "termNote", "administrativeStatus"),
    noun="entry",
)
_STATUS = "administrativeStatus"
_UNWANTED = re.compile("deprecated|superseded", re.IGNORECASE)
_INFLECTED = {"de": (("e", ""), ("n", ""), ("en", ""), ("s", ""), ("es", ""))}  # endings, and what they stand for
_OFTEN_INFLECTED = (("s", ""), ("es", ""), ("ies", "y"))
_LEAST = 2  # letters of a word beside its ending
_ACCENTS = re.compile("[\u0300-\u036f]")
_LEMMA = re.compile(r"(?<=\w{4})e?n$|(?<=\w{5})[aeo]$")  # endings of a lemma that its other forms lack
_SHORT = 4  # letters; shorter words, which many others hold, stand alone or with an ending
_ENDING = "(?:e?s|e[nmr]?|ern|n)?"


@dataclass(frozen=True)
class Term:
    """A term and its translations.

    Attributes:
        source: The term.
        targets: Its translations, of which any is right; the first is preferred.
    """

    source: str
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Occurrence:
    """A place where a term stands.

    Attributes:
        term: The term.
        start, end: Its first character, and the one after its last.
    """

    term: Term
    start: int
    end: int


@dataclass(frozen=True)
class TermUse:
    """Whether a translation follows the glossary in one place.

    Attributes:
        source: The term of the source.
        target: Its translation that was used; the preferred one if none was.
        found: Whether one was used.
    """

    source: str
    target: str
    found: bool


class Glossary:
    """Terms by their words.

    Args:
        terms: The terms; of those with the same words the translations are joined, in order.
        source_language: Language of the source, by which its endings are known; None: those of English.
    """

    def __init__(self, terms: Iterable[Term], source_language: str | None = None) -> None:
        by_words: dict[tuple[str, ...], Term] = {}
        for term in terms:
            key = tuple(word.casefold() for word in words(term.source))
            if not key or not term.targets or not all(target.strip() for target in term.targets):
                raise ValueError(f"the term {term.source!r} has {term.targets!r} as translations: give words for both")
            known = by_words.get(key, Term(term.source, ()))
            by_words[key] = Term(known.source, tuple(dict.fromkeys((*known.targets, *term.targets))))
        self.terms = list(by_words.values())
        self._by_words = by_words
        self._longest = max(map(len, by_words), default=0)
        language = re.split("[-_]", (source_language or "en").lower())[0]
        self._endings = _INFLECTED.get(language, _OFTEN_INFLECTED)

    def __len__(self) -> int:
        return len(self.terms)

    def find(self, text: str) -> list[Occurrence]:
        """Where terms stand in a text, in order; of overlapping ones the longest.

        >>> glossary = Glossary([Term("file", ("Datei",)), Term("file system", ("Dateisystem",))])
        >>> [own.term.source for own in glossary.find("Files of the &file systems, not of profile {file}")]
        ['file', 'file system']
        """
        plain, places = plain_words(text)
        own = list(find_words(plain))
        key, found, place = [word[0].casefold() for word in own], [], 0
        while place < len(own):
            for length in range(min(self._longest, len(own) - place), 0, -1):
                term = self._term(key[place : place + length])
                if term is not None:
                    last = places[own[place + length - 1].end() - 1]
                    found.append(Occurrence(term, places[own[place].start()], last + 1))
                    break
            else:
                length = 1
            place += length
        return found

    def _term(self, key: Sequence[str]) -> Term | None:
        """The term with these words, whose last one may have an ending."""
        *before, last = key
        forms = [last]
        for ending, instead in self._endings:
            if last.endswith(ending) and len(last) >= len(ending) + _LEAST:
                forms.append(last.removesuffix(ending) + instead)
        return next((self._by_words[own] for form in forms if (own := (*before, form)) in self._by_words), None)


def load_glossary(
    source: str | Path, *, source_language: str | None = None, target_language: str | None = None
) -> Glossary:
    """Reads a glossary.

    Args:
        source: A table (.csv, .tsv) with a column for each language, or the columns `source` and `target`, other
            columns being ignored; or a TBX file (.tbx), of version 2 (`termEntry`) or 3 (`conceptEntry`), in which
            deprecated and superseded terms are left out.
        source_language, target_language: Such as "en" and "de", which match variants such as "en-US"; TBX needs them.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file has another ending or is unreadable, a side is blank, or a language is missing; the
            message names the line.
    """
    path = Path(source)
    check_input(path, ENDINGS)
    languages = (source_language, target_language)
    rows = _of_tbx(path, languages) if path.suffix.lower() == ".tbx" else _of_table(path, languages)
    if not rows:
        raise ValueError(f"{str(path)!r} has no terms: give a line for each, with the term and its translation")
    return Glossary((Term(term, (target,)) for term, target in rows), source_language)


def check_terms(translation: str, terms: Sequence[Term]) -> list[TermUse]:
    """Whether a translation uses each term, in their order; each word of it counts for one term.

    >>> file = Term("file", ("Datei", "File"))
    >>> [use.found for use in check_terms("Zwei Dateien im Ordner", [file, file])]
    [True, False]
    """
    text = _folded(plain_words(translation)[0])
    taken = [False] * len(text)
    used: dict[int, str] = {}
    longest_first = sorted(range(len(terms)), key=lambda number: -len(terms[number].targets[0]))
    for number in longest_first:
        for target in terms[number].targets:
            free = (match.span() for match in _pattern(target).finditer(text))
            span = next(((start, end) for start, end in free if not any(taken[start:end])), None)
            if span is not None:
                taken[slice(*span)] = [True] * (span[1] - span[0])
                used[number] = target
                break
    return [
        TermUse(term.source, used.get(number, term.targets[0]), number in used) for number, term in enumerate(terms)
    ]


def _folded(text: str) -> str:
    """A text without case and accents."""
    return _ACCENTS.sub("", unicodedata.normalize("NFKD", text.casefold()))


@functools.lru_cache(maxsize=4096)
def _pattern(target: str) -> re.Pattern[str]:
    """Finds a term in a folded text: its stem, and of several words what lies between."""
    pattern = joined = ""
    for place, word in enumerate(words(_folded(target))):
        stem = _LEMMA.sub("", word)
        if word.lower() == word.upper():  # neither case nor endings, as in scripts without spaces
            part, between = re.escape(word), r"\s*"
        elif len(word) < _SHORT:
            part, between = rf"(?<!\w){re.escape(word)}{_ENDING}(?!\w)", r"\W*"
        else:
            part = (r"(?<!\w)" if place else "") + re.escape(stem) + (r"(?=\w)" if stem != word else "")
            between = r"\w*\W*"
        pattern += joined + part
        joined = between
    return re.compile(pattern)


def _of_table(path: Path, languages: tuple[str | None, str | None]) -> list[tuple[str, str]]:
    """Terms and translations of a table."""
    where, rows = repr(str(path)), list(numbered_rows(path))
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    columns = []
    for side, language in zip(("source", "target"), languages, strict=True):
        named = None if language is None else match_language(language, names)
        column = named or next((name for name in names if name.lower() == side), None)
        if rows and column is None:
            wanted = repr(side) if language is None else f"{language!r} or {side!r}"
            raise ValueError(
                f"line 1 of {where} names no column {wanted}: call the column of the {side} so; its columns are: "
                f"{', '.join(names)}"
            )
        columns.append(column)
    found = []
    for line, row in rows:
        sides = [row.get(column) if column else None for column in columns]
        for side, text in zip(("term", "translation"), sides, strict=True):
            if text is None or not text.strip():
                raise ValueError(f"line {line} of {where} has no {side}: fill it in, or remove the line")
        found.append((str(sides[0]).strip(), str(sides[1]).strip()))
    return found


def _of_tbx(path: Path, languages: tuple[str | None, str | None]) -> list[tuple[str, str]]:
    """Terms and translations of a TBX file; entries without one of the languages have none."""
    where = repr(str(path))
    source_language, target_language = languages
    if source_language is None or target_language is None:
        raise ValueError(f"the terms of {where} are named by language: give source_language and target_language")
    entries, broken = read_xml_units(path, _TBX)
    if broken:
        raise ValueError(f"{broken[0]}: fix it")
    found = list(dict.fromkeys(text.language for entry in entries for text in entry.texts))
    sides = (source_language, target_language)
    for language in sides:
        if match_language(language, found) is None:
            raise ValueError(
                f"{where} has no term in {language!r}; its languages are: {', '.join(sorted(found)) or 'none'}"
            )
    pairs = []
    for entry in entries:
        own = _wanted_terms(entry)
        terms, targets = (own.get(match_language(language, own) or "", []) for language in sides)
        for term in (*terms, *targets):
            if not words(term):
                line = f"line {entry.line} of {where}"
                raise ValueError(f"the entry in {line} has a blank term: fill it in, or remove the entry")
        pairs += [(term, target) for term in terms for target in targets]
    return pairs


def _wanted_terms(entry: Unit) -> dict[str, list[str]]:
    """The terms of each language of an entry, without those that should not be used."""
    terms: dict[str, list[str]] = {}
    for text in entry.texts:
        own = terms.setdefault(text.language, [])
        if text.kind == _STATUS and _UNWANTED.search(text.text) and own:
            own.pop()
        elif text.kind == "term":
            own.append(" ".join(text.text.split()))
    return terms
