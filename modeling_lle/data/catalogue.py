"""Gettext catalogues: PO files entry by entry, completed with no other byte changed, and compiled MO files.

Notable: a PO file is kept as its lines, since polib would wrap and order it anew; it would also stop at the first
fault, and take a text without its closing quotation mark for a whole one.
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
from .tables import check_input, check_output

try:
    import polib
except ImportError as error:
    raise ImportError('PO and MO files need polib: pip install "modeling_lle[translation]"') from error

ENDINGS = (".po", ".pot")
_COMMENT = re.compile(rb'#(?!~\s*[m"])')  # after #~ there may be a statement, which is obsolete
_KEYWORD = re.compile(rb"(?:#~\s*)?(msgctxt|msgid_plural|msgid|msgstr|)")
_STRING = r'"(?:[^"\\]|\\.)*"'
_STATEMENT = re.compile(
    rf"(#~\s*)?(?P<keyword>msgctxt|msgid_plural|msgid|msgstr(?:\[\d\])?)?\s*(?P<strings>(?:{_STRING}\s*)*)"
)
_ESCAPE = re.compile(r"(?P<bytes>(?:\\[0-7]{1,3}|\\x[0-9A-Fa-f]+)+)|\\(?P<character>.)")
_CHARACTERS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", '"': '"'}
_FORMS = re.compile(r"^Plural-Forms:.*\bnplurals\s*=\s*([1-9])\b", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Entry:
    """An entry of a PO file.

    Attributes:
        line: Where its msgid stands, counted from 1.
        context: Its msgctxt; None without one.
        texts: Its msgid and, if it has one, its msgid_plural.
        translations: Its msgstr, or its msgstr[0], msgstr[1] and so on; empty where it is not translated.
        flags: Its flags, such as "fuzzy".
        obsolete: Whether it is kept as a comment only.
        flags_at: The place of its first line of flags among the lines of the file; None without one.
        head_at: The place of its first line that is no comment, or of the previous msgid before it.
        translations_at: The places of the first line of each translation, and of the one after its last.
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
        """Whether it holds what is said about the file."""
        return self.texts[0] == "" and self.context is None

    @property
    def in_use(self) -> bool:
        """Whether it is neither the header nor obsolete nor fuzzy."""
        return not (self.is_header or self.obsolete or "fuzzy" in self.flags)


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """A PO file.

    Attributes:
        path: The file.
        encoding: What its header names; UTF-8 if it names none.
        lines: Its lines as they are, with their ends.
        entries: Its entries in their order, with the header and the obsolete ones.
        broken: What is wrong with those that could not be read.
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

    def forms(self, entry: Entry) -> tuple[str, ...]:
        """The translations of an entry, in the number of plural forms that the header names, if it does."""
        if len(entry.texts) == 1:
            return entry.translations
        header = next((entry.translations[0] for entry in self.entries if entry.is_header), "")
        named = _FORMS.search(header)
        number = int(named[1]) if named else len(entry.translations)
        return (*entry.translations, *[""] * number)[:number]


def read_catalogue(path: str | Path, *, skip_broken: bool = False) -> Catalogue:
    """Reads a PO file, or a template (.pot).

    Args:
        path: The file.
        skip_broken: Whether entries with faults are only named in the result.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is of another kind or, unless `skip_broken`, an entry has a fault: the message names the line.
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
                raise ValueError(f"{broken[0]}: mend it") from None
        else:
            entries += [entry] if entry else []
    return Catalogue(path, encoding, lines, tuple(entries), tuple(broken))


def write_catalogue(
    catalogue: Catalogue,
    translations: Sequence[Sequence[str] | None],
    path: str | Path | None = None,
    *,
    fuzzy: bool = True,
) -> None:
    """Writes a PO file with translations filled in, as a whole or not at all; nothing else in it changes.

    A translation begins and ends with a line break where its text does, as gettext demands. Of a plural entry, the
    first form gets the translation of the msgid and all others that of the msgid_plural; forms that are translated
    stay, and if the language has but one form, it gets that of the msgid_plural.

    Args:
        catalogue: The file as it was read.
        translations: For each of `catalogue.untranslated`, the translation of each of its `texts`. None leaves an
            entry as it is, and so does a blank translation.
        path: The file to write; None replaces the one that was read.
        fuzzy: Whether to mark what is filled in as fuzzy, for a translator to review.

    Raises:
        ValueError: The translations do not fit the entries or cannot be written in the file's encoding, or the file
            to replace is no longer what was read.
    """
    target = catalogue.path if path is None else Path(path)
    check_output(target, ENDINGS)
    entries = catalogue.untranslated
    if len(translations) != len(entries):
        raise ValueError(
            f"there are {len(translations)} translations for the {len(entries)} entries of catalogue.untranslated: "
            "give one for each, None for what is to stay as it is"
        )
    lines = list(catalogue.lines)
    end = _line_end(lines[0]) if lines else b""
    open_ended = bool(lines) and not _line_end(lines[-1])
    if open_ended:
        lines[-1] += end
    for entry, given in zip(reversed(entries), reversed(translations), strict=True):  # so that places stay right
        if given is not None:
            _fill(lines, entry, catalogue, given, fuzzy)
    content = b"".join(lines)
    if path is None and target.read_bytes() != b"".join(catalogue.lines):
        raise ValueError(f"{str(target)!r} has changed since it was read: read it again")
    with replacing(target) as partial:
        partial.write_bytes(content.removesuffix(end) if open_ended else content)
        shutil.copymode(catalogue.path, partial)


def _fill(lines: list[bytes], entry: Entry, catalogue: Catalogue, given: Sequence[str], fuzzy: bool) -> None:
    """Puts the translations of an entry in their places among the lines, the last one first."""
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
    """Writes one translation in the place of an empty one or, where there is none, after the last one."""
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
            f"the translation {text!r:.80} cannot be written as {catalogue.encoding}, which {str(catalogue.path)!r} "
            f"has: convert the file, for instance with msgconv --to-code=UTF-8"
        ) from error
    first, *rest = quoted if len(quoted) == 1 else [b'""' + end, *quoted]
    lines[start:stop] = [before + first, *rest]


def _parts(text: str) -> list[str]:
    """The lines of a text, with the line breaks."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _line_end(line: bytes) -> bytes:
    return line[len(line.rstrip(b"\r\n")) :]


class _FaultError(ValueError):
    """What is wrong with an entry, and at which place among the lines."""

    def __init__(self, place: int, wrong: str) -> None:
        super().__init__(wrong)
        self.place = place


def _plain(line: bytes) -> bytes:
    return line.removeprefix(codecs.BOM_UTF8).strip()


def _keyword(line: bytes) -> str | None:
    """The keyword of a statement, "" for one that goes on or is none; None for a comment and for a blank line."""
    plain = _plain(line)
    match = None if not plain or _COMMENT.match(plain) else _KEYWORD.match(plain)
    return match[1].decode() if match else None


def _blocks(lines: Sequence[bytes]) -> Iterator[range]:
    """The places of the lines of each entry and of the comments before it, whatever faults it has."""
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
    """The entry of a block; None if it has but comments."""
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
                f"is none of a PO file, perhaps it has two keywords, or lacks a quotation mark: {line!r:.80}",
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
    """A text without its escapes, which are those of C; numbers stand for bytes of the file's encoding."""

    def character(match: re.Match[str]) -> str:
        if match["bytes"] is None:
            return _CHARACTERS.get(match["character"], match[0])
        digits = re.findall(r"\\(?:x([0-9A-Fa-f]+)|([0-7]+))", match["bytes"])
        codes = [int(hexadecimal, 16) if hexadecimal else int(octal, 8) for hexadecimal, octal in digits]
        try:
            return bytes(codes).decode(encoding)
        except ValueError as error:
            raise _FaultError(
                place, f"has the escape {match['bytes']}, no character of {encoding}: {error}"
            ) from error

    return _ESCAPE.sub(character, text)


def _decode(line: bytes, encoding: str, place: int) -> str:
    try:
        return _plain(line).decode(encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise _FaultError(place, f"is not {encoding}, which the header should name: {error}") from error


def _keys_of_translations(texts: dict[str, str], places: dict[str, tuple[int, int]]) -> list[str]:
    """The keywords of the translations of an entry, in their order, if it is whole."""
    found = [key for key in texts if key.startswith("msgstr")]
    keys = [f"msgstr[{form}]" for form in range(len(found))] if "msgid_plural" in texts else ["msgstr"]
    if "msgid" not in texts or not found or keys != found:
        raise _FaultError(
            min(places.values())[0],
            "begins an entry that should have msgid and msgstr, or msgid, msgid_plural, msgstr[0] and so on, but has: "
            + ", ".join(texts),
        )
    return keys


def read_compiled(path: Path) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The entries of an MO file but its header: the msgid, with a msgid_plural if there is one, and its translations.

    Raises:
        ValueError: The file is none, or was cut off.
    """
    try:
        with path.open("rb") as file:
            gettext.GNUTranslations(file)  # polib would take what is left of a file that was cut off for the whole
        entries = polib.mofile(str(path))
    except (OSError, ValueError, LookupError, struct.error) as error:
        raise ValueError(
            f"{str(path)!r} is no proper MO file, perhaps it was not copied as a whole: make it again with msgfmt "
            f"({error})"
        ) from error
    return [
        ((entry.msgid, entry.msgid_plural), tuple(text for _, text in sorted(entry.msgstr_plural.items())))
        if entry.msgid_plural
        else ((entry.msgid,), (entry.msgstr,))
        for entry in entries
    ]
