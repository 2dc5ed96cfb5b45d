"""Gettext catalogues: PO files, read by entry and completed without changing any other byte, and compiled MO files.

Notable: a PO file is kept as its lines. polib would rewrap and reorder them, stop at the first fault, and accept a
string without its closing quotation mark.
"""

import codecs
import dataclasses
import gettext
import re
import shutil
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..common.temporary import replacing
from .languages import match_language
from .tables import check_input, check_output

try:
    import polib
except ImportError as error:
    raise ImportError('PO and MO files need polib: pip install "modeling_lle[translation]"') from error

ENDINGS = (".po", ".pot")
_COMMENT = re.compile(rb'#(?!~\s*[m"])')  # #~ may precede an obsolete statement
_KEYWORD = re.compile(rb"(?:#~\s*)?(msgctxt|msgid_plural|msgid|msgstr|)")
_STRING = r'"(?:[^"\\]|\\.)*"'
_STATEMENT = re.compile(
    rf"(#~\s*)?(?P<keyword>msgctxt|msgid_plural|msgid|msgstr(?:\[\d\])?)?\s*(?P<strings>(?:{_STRING}\s*)*)"
)
_ESCAPE = re.compile(r"(?P<bytes>(?:\\[0-7]{1,3}|\\x[0-9A-Fa-f]+)+)|\\(?P<character>.)")
_CHARACTERS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", '"': '"'}
_FORMS = re.compile(r"^Plural-Forms:.*\bnplurals\s*=\s*([1-9])\b", re.MULTILINE)
_LANGUAGE = re.compile(
    r"^language:[ \t]*([a-z]{2,3}(?:[_-][a-z0-9]+)*)(?:[.@]\S*)?[ \t]*$", re.MULTILINE | re.IGNORECASE
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """An entry of a PO file.

    Attributes:
        line: Line of its msgid, counted from 1.
        context: msgctxt; None without one.
        texts: msgid and, for a plural entry, msgid_plural.
        translations: msgstr, or msgstr[0], msgstr[1] and so on; empty where untranslated.
        flags: Flags, such as "fuzzy".
        obsolete: Whether it is commented out.
        flags_at: Index of its first flags line in the file; None without flags.
        head_at: Index of its first line that is not a comment, or of the previous msgid above it.
        translations_at: For each translation, the index of its first line and of the line after its last.
    """

    line: int
    context: str | None
    texts: tuple[str, ...]
    translations: tuple[str, ...]
    flags: frozenset[str]
    obsolete: bool
    flags_at: int | None
    head_at: int
    translations_at: tuple[tuple[int, int], ...]

    @property
    def is_header(self) -> bool:
        """Whether it is the header, the metadata of the file."""
        return self.texts[0] == "" and self.context is None

    @property
    def in_use(self) -> bool:
        """Whether it is neither header, obsolete nor fuzzy."""
        return not (self.is_header or self.obsolete or "fuzzy" in self.flags)


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """A PO file.

    Attributes:
        path: The file.
        encoding: Encoding named in the header; UTF-8 by default.
        lines: Lines unchanged, with line ends.
        entries: Entries in file order, header and obsolete ones included.
        broken: Faults of the entries that could not be read.
    """

    path: Path
    encoding: str
    lines: tuple[bytes, ...]
    entries: tuple[Entry, ...]
    broken: tuple[str, ...]

    @property
    def untranslated(self) -> list[Entry]:
        """The entries that lack a translation, or one of their plural forms."""
        return [entry for entry in self.entries if entry.in_use and "" in self.forms(entry)]

    @property
    def header(self) -> str:
        """The metadata of the file, a line each; "" without."""
        return next((entry.translations[0] for entry in self.entries if entry.is_header), "")

    def forms(self, entry: Entry) -> tuple[str, ...]:
        """Translations of an entry, one for each plural form if the header states their number."""
        if len(entry.texts) == 1:
            return entry.translations
        named = _FORMS.search(self.header)
        number = int(named[1]) if named else len(entry.translations)
        return (*entry.translations, *[""] * number)[:number]


def read_catalogue(path: str | Path, *, skip_broken: bool = False) -> Catalogue:
    """Reads a PO file, or a template (.pot).

    Args:
        path: The file.
        skip_broken: Whether to skip faulty entries, and list their faults in the result.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file has another ending or, unless `skip_broken`, an entry is faulty (the message names it).
    """
    path = Path(path)
    check_input(path, ENDINGS)
    encoding = polib.detect_encoding(str(path))
    lines = tuple(path.read_bytes().splitlines(keepends=True))
    entries, broken = [], []
    for block in _blocks(lines):
        try:
            entry = _parse(block, lines, encoding)
        except _FaultError as fault:
            broken.append(f"line {fault.place + 1} of {str(path)!r} {fault}")
            if not skip_broken:
                raise ValueError(f"{broken[0]}: fix it") from None
        else:
            entries += [entry] if entry else []
    return Catalogue(path, encoding, lines, tuple(entries), tuple(broken))


def write_catalogue(
    catalogue: Catalogue,
    translations: Sequence[Sequence[str] | None],
    path: str | Path | None = None,
    *,
    fuzzy: bool | Sequence[bool] = True,
) -> None:
    """Writes a PO file with translations filled in, atomically; nothing else in it changes.

    A translation begins and ends with a line break where its text does, as gettext demands. In a plural entry, the
    first form gets the translation of the msgid, all others that of the msgid_plural; if the language has a single
    form, it gets the latter. Existing translations stay.

    Args:
        catalogue: The file as it was read.
        translations: For each of `catalogue.untranslated`, the translation of each of its `texts`. None or a blank
            translation leaves an entry unchanged.
        path: File to write; None: replace the one that was read.
        fuzzy: Whether to mark filled-in translations as fuzzy, for review; or for each entry.

    Raises:
        ValueError: The translations do not match the entries, the file's encoding cannot express them, or the file
            to replace has changed since it was read.
    """
    target = catalogue.path if path is None else Path(path)
    check_output(target, ENDINGS)
    entries = catalogue.untranslated
    if len(translations) != len(entries):
        raise ValueError(
            f"there are {len(translations)} translations for the {len(entries)} entries of catalogue.untranslated: "
            "give one for each, None to leave an entry unchanged"
        )
    lines = list(catalogue.lines)
    end = _line_end(lines[0]) if lines else b""
    open_ended = bool(lines) and not _line_end(lines[-1])
    if open_ended:
        lines[-1] += end
    marks = [fuzzy] * len(entries) if isinstance(fuzzy, bool) else list(fuzzy)
    for entry, given, mark in reversed(list(zip(entries, translations, marks, strict=True))):  # indices stay valid
        if given is not None:
            _fill(lines, entry, catalogue, given, mark)
    content = b"".join(lines)
    if path is None and target.read_bytes() != b"".join(catalogue.lines):
        raise ValueError(f"{str(target)!r} has changed since it was read: read it again")
    with replacing(target) as partial:
        partial.write_bytes(content.removesuffix(end) if open_ended else content)
        shutil.copymode(catalogue.path, partial)


def _fill(lines: list[bytes], entry: Entry, catalogue: Catalogue, given: Sequence[str], fuzzy: bool) -> None:
    """Inserts the translations of an entry into the lines, last one first."""
    if isinstance(given, str) or len(given) != len(entry.texts):
        raise ValueError(
            f"the entry in line {entry.line} of {str(catalogue.path)!r} has {len(entry.texts)} texts: give a list of "
            f"as many translations instead of {given!r:.80}"
        )
    if not all(text.strip() for text in given):
        return
    forms = catalogue.forms(entry)
    texts = [_with_breaks_of(source, text) for source, text in zip(entry.texts, given, strict=True)]
    for form in reversed(range(len(forms))):
        if not forms[form]:
            _put(lines, entry, form, texts[0 if form == 0 and len(forms) > 1 else -1], catalogue)
    if fuzzy and entry.flags_at is not None:
        lines[entry.flags_at] = lines[entry.flags_at].replace(b"#,", b"#, fuzzy,", 1)
    elif fuzzy:
        head = lines[entry.head_at]
        mark = codecs.BOM_UTF8 if head.startswith(codecs.BOM_UTF8) else b""
        lines[entry.head_at : entry.head_at + 1] = [mark + b"#, fuzzy" + _line_end(head), head.removeprefix(mark)]


def _with_breaks_of(source: str, text: str) -> str:
    if source.startswith("\n") != text.startswith("\n"):
        text = "\n" + text if source.startswith("\n") else text.lstrip("\n")
    if source.endswith("\n") != text.endswith("\n"):
        text = text + "\n" if source.endswith("\n") else text.rstrip("\n")
    return text


def _put(lines: list[bytes], entry: Entry, form: int, text: str, catalogue: Catalogue) -> None:
    """Replaces an empty translation or, without one, inserts after the last."""
    if form < len(entry.translations_at):
        start, stop = entry.translations_at[form]
        before = lines[start].partition(b'"')[0]
    else:
        start = stop = entry.translations_at[-1][1]
        before = b"msgstr[%d] " % form
    end = _line_end(lines[stop - 1])
    try:
        quoted = [b'"%b"%b' % (polib.escape(part).encode(catalogue.encoding), end) for part in _parts(text)]
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the translation {text!r:.80} cannot be encoded as {catalogue.encoding}, the encoding of "
            f"{str(catalogue.path)!r}: convert the file, for instance with msgconv --to-code=UTF-8"
        ) from error
    first, *rest = quoted if len(quoted) == 1 else [b'""' + end, *quoted]
    lines[start:stop] = [before + first, *rest]


def _parts(text: str) -> list[str]:
    """Lines of a text, with line breaks."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _line_end(line: bytes) -> bytes:
    return line[len(line.rstrip(b"\r\n")) :]


class _FaultError(ValueError):
    """Fault of an entry, with the index of its line."""

    def __init__(self, place: int, wrong: str) -> None:
        super().__init__(wrong)
        self.place = place


def _plain(line: bytes) -> bytes:
    return line.removeprefix(codecs.BOM_UTF8).strip()


def _keyword(line: bytes) -> str | None:
    """Keyword of a statement; "" for a continued or unknown one; None for a comment or blank line."""
    plain = _plain(line)
    match = None if not plain or _COMMENT.match(plain) else _KEYWORD.match(plain)
    return match[1].decode() if match else None


def _blocks(lines: Sequence[bytes]) -> Iterator[range]:
    """Line ranges of the entries, comments above included; faulty entries too."""
    start = 0
    seen: set[str] = set()
    for place, line in enumerate(lines):
        keyword = _keyword(line)
        begins = _plain(line) and keyword in (None, "msgctxt") and seen
        if begins or (keyword == "msgid" and seen & {"msgid", "msgstr"}):
            yield range(start, place)
            start, seen = place, set()
        if keyword is not None:
            seen.add(keyword)
    yield range(start, len(lines))


def _parse(block: range, lines: Sequence[bytes], encoding: str) -> Entry | None:
    """Entry of a block; None if it has only comments."""
    texts: dict[str, str] = {}
    places: dict[str, tuple[int, int]] = {}
    flags: list[str] = []
    flags_at = head_at = None
    keyword, obsolete = "", False
    for place in block:
        line = _decode(lines[place], encoding, place)
        if line.startswith("#|") or _keyword(lines[place]) is not None:
            head_at = place if head_at is None else head_at
        if _keyword(lines[place]) is None:
            named = [flag.strip() for flag in line[2:].split(",")] if line.startswith("#,") else []
            flags_at = place if any(named) and flags_at is None else flags_at
            flags += named
            continue
        match = _STATEMENT.fullmatch(line)
        if match is None:
            raise _FaultError(
                place,
                f"is not valid PO (two keywords, or a missing quotation mark?): {line!r:.80}",
            )
        keyword = match["keyword"] or keyword
        if not keyword or (match["keyword"] and keyword in places):
            raise _FaultError(place, f"is out of place: {line!r:.80}")
        obsolete = obsolete or line.startswith("#")
        strings = re.findall(_STRING, match["strings"])
        if strings:
            own = "".join(_unescape(string[1:-1], encoding, place) for string in strings)
            texts[keyword] = texts.get(keyword, "") + own
        places[keyword] = (places.get(keyword, (place, place))[0], place + 1)
    for keyword, (place, _) in places.items():
        if keyword not in texts:
            raise _FaultError(place, f"has no text after {keyword}")
    if head_at is None or not texts:
        return None
    keys = _keys_of_translations(texts, places)
    return Entry(
        line=places["msgid"][0] + 1,
        context=texts.get("msgctxt"),
        texts=tuple(texts[key] for key in ("msgid", "msgid_plural") if key in texts),
        translations=tuple(texts[key] for key in keys),
        flags=frozenset(flags),
        obsolete=obsolete,
        flags_at=flags_at,
        head_at=head_at,
        translations_at=tuple(places[key] for key in keys),
    )


def _unescape(text: str, encoding: str, place: int) -> str:
    """Decodes C escapes; numeric ones are bytes in the encoding of the file."""

    def character(match: re.Match[str]) -> str:
        if match["bytes"] is None:
            return _CHARACTERS.get(match["character"], match[0])
        digits = re.findall(r"\\(?:x([0-9A-Fa-f]+)|([0-7]+))", match["bytes"])
        codes = [int(hexadecimal, 16) if hexadecimal else int(octal, 8) for hexadecimal, octal in digits]
        try:
            return bytes(codes).decode(encoding)
        except ValueError as error:
            raise _FaultError(
                place, f"has the escape {match['bytes']}, which is not valid {encoding}: {error}"
            ) from error

    return _ESCAPE.sub(character, text)


def _decode(line: bytes, encoding: str, place: int) -> str:
    try:
        return _plain(line).decode(encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise _FaultError(place, f"is not {encoding}, the encoding of the header: {error}") from error


def _keys_of_translations(texts: dict[str, str], places: dict[str, tuple[int, int]]) -> list[str]:
    """Keywords of the translations of an entry, in order; raises an error if it is incomplete."""
    found = [key for key in texts if key.startswith("msgstr")]
    keys = [f"msgstr[{form}]" for form in range(len(found))] if "msgid_plural" in texts else ["msgstr"]
    if "msgid" not in texts or not found or keys != found:
        raise _FaultError(
            min(places.values())[0],
            "begins an entry that should have msgid and msgstr, or msgid, msgid_plural, msgstr[0] and so on, but has: "
            + ", ".join(texts),
        )
    return keys


@dataclasses.dataclass(frozen=True)
class Compiled:
    """An MO file.

    Attributes:
        header: Its metadata, as that of a `Catalogue`.
        entries: msgid, msgid_plural if any, and the translations of each entry.
    """

    header: str
    entries: list[tuple[tuple[str, ...], tuple[str, ...]]]


def read_compiled(path: Path) -> Compiled:
    """Reads an MO file.

    Raises:
        ValueError: The file is invalid or truncated, or has texts in another encoding than its header says.
    """
    where = repr(str(path))
    try:
        with path.open("rb") as file:
            checked = gettext.GNUTranslations(file)  # polib would accept a truncated file
        entries = polib.mofile(str(path))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where} has the text {error.object[:40]!r}, which is not {error.encoding}, the encoding of its header: "
            "make it again with msgfmt from a PO file in one encoding"
        ) from error
    except (OSError, ValueError, LookupError, struct.error) as error:
        raise ValueError(
            f"{where} is not a valid MO file, perhaps truncated: make it again with msgfmt ({error})"
        ) from error
    header = "".join(f"{name}: {value}\n" for name, value in checked.info().items())
    return Compiled(
        header,
        [
            ((entry.msgid, entry.msgid_plural), tuple(text for _, text in sorted(entry.msgstr_plural.items())))
            if entry.msgid_plural
            else ((entry.msgid,), (entry.msgstr,))
            for entry in entries
        ],
    )


def check_language(header: str, wanted: str, path: str | Path) -> None:
    """Raises a ValueError if the header of a catalogue names another language than the one to translate to.

    A header without a language, or with a word that is no code, says nothing.
    """
    named = _LANGUAGE.search(header)
    language = named[1] if named else None
    if language is not None and match_language(wanted, [language]) is None:
        raise ValueError(
            f"{str(path)!r} is a catalogue of {language!r} by its header, and the target language is {wanted!r}: "
            f"leave it out, give {language} as target_language, or mend the line Language of its header"
        )
