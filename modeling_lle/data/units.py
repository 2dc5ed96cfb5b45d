"""Units of the XML files of translators, with their texts by language: TMX and TBX.

Notable: markup within a text is kept as its text. Invalid XML is read unit by unit, so that only faulty units are
lost. Declared entities are refused, as a few lines can expand to gigabytes.
"""

import codecs
import dataclasses
import re
from pathlib import Path
from typing import Any
from xml.parsers import expat

_NO_XML = "\x01"  # not a character of XML
_ENCODING = re.compile(rb"""<\?xml[^>]*\bencoding\s*=\s*["']([\w.-]+)""")


@dataclasses.dataclass(frozen=True)
class Format:
    """Names of the elements of a format; prefixes of XML namespaces do not count.

    Attributes:
        units: Elements that are units.
        languages: Elements of one language within a unit.
        texts: Elements with the texts of a language.
        noun: A unit, in messages.
    """

    units: tuple[str, ...]
    languages: tuple[str, ...]
    texts: tuple[str, ...]
    noun: str = "unit"


@dataclasses.dataclass(frozen=True)
class Text:
    """A text of a unit.

    Attributes:
        language: Its language, named as in the file.
        kind: The attribute `type` of its element, or the name of the element.
        text: The text.
    """

    language: str
    kind: str
    text: str


@dataclasses.dataclass(frozen=True)
class Unit:
    """Texts that belong together.

    Attributes:
        line: First line, counted from 1.
        texts: The texts in file order.
    """

    line: int
    texts: list[Text]


def read_xml_units(path: Path, form: Format) -> tuple[list[Unit], list[str]]:
    """Reads the units of an XML file.

    Returns:
        Units, and faults of unreadable units and of the file around them.

    Raises:
        ValueError: The file declares entities or an unknown encoding.
    """
    content = _as_utf8(path)
    whole = _Parser(path, form)
    wrong = whole.parse(content)
    if wrong is None:
        return whole.units, whole.broken
    parts = _Parser(path, form)
    _parse_each(content, parts, form)
    return parts.units, parts.broken or [wrong]


def _as_utf8(path: Path) -> bytes:
    """Bytes of an XML file, converted from its declared encoding to UTF-8."""
    content = path.read_bytes()
    declared = _ENCODING.match(content.removeprefix(codecs.BOM_UTF8))
    encoding = declared[1].decode().lower() if declared else "utf-8"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif encoding in ("utf-8", "utf-16"):  # UTF-16 declared in single bytes cannot be true
        return content
    try:
        text = content.decode(encoding, errors="replace")
    except LookupError as error:
        raise ValueError(f"cannot read {str(path)!r}: {error}: save it as UTF-8") from error
    return text.replace("\ufffd", _NO_XML).encode()  # a unit with faulty bytes is refused


def _parse_each(content: bytes, parser: "_Parser", form: Format) -> None:
    """Parses units separately; a unit ends at the next one at the latest."""
    names = "|".join(form.units).encode()
    begin, finish = re.compile(rb"<(?:\w+:)?(?:%b)(?=[\s>])" % names), re.compile(rb"</(?:\w+:)?(?:%b)\s*>" % names)
    starts = [match.start() for match in begin.finditer(content)]
    line, counted = 1, 0
    for start, stop in zip(starts, [*starts, len(content)][1:], strict=True):
        line, counted = line + content.count(b"\n", counted, start), start
        end = finish.search(content, start, stop)
        wrong = parser.parse(content[start : end.end()], line) if end else f"{parser.place(line)} has no end"
        if wrong:
            parser.broken.append(wrong)


class _Parser:
    """Collects units from XML.

    Args:
        path: File named in messages.
        form: Names of its elements.

    Attributes:
        units: Units so far.
        broken: Faults of the others.
    """

    def __init__(self, path: Path, form: Format) -> None:
        self.units: list[Unit] = []
        self.broken: list[str] = []
        self._path, self._form = path, form

    def place(self, line: int) -> str:
        """Name of a unit in messages."""
        return f"the {self._form.noun} in line {line} of {str(self._path)!r}"

    def parse(self, content: bytes, first_line: int = 1) -> str | None:
        """Collects the units of a document, or a single unit; returns the fault if it is not valid XML."""
        self._parser = expat.ParserCreate("utf-8")
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters
        self._parser.SkippedEntityHandler = self._skipped
        self._parser.EntityDeclHandler = self._declared
        self._lines_before = first_line - 1
        self._unit: Unit | None = None
        self._wrong: str | None = None
        self._language: str | None = None
        self._kind = ""
        self._text: list[str] | None = None
        try:
            self._parser.Parse(content, True)
        except expat.ExpatError as error:
            line = self._lines_before + error.lineno
            reason = expat.ErrorString(error.code)
            return f"line {line} of {str(self._path)!r} is not valid XML, or not in the declared encoding: {reason}"
        return None

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        name = name.rpartition(":")[2]
        if name in self._form.units:
            self._unit = Unit(self._lines_before + self._parser.CurrentLineNumber, [])
        elif name in self._form.languages:
            self._language = attributes.get("xml:lang", attributes.get("lang"))
            if self._language is None:
                self._wrong = "has a text without a language: it lacks xml:lang"
        elif name in self._form.texts:
            self._kind, self._text = attributes.get("type", name), []

    def _characters(self, text: str) -> None:
        if self._text is not None:
            self._text.append(text)

    def _skipped(self, name: str, is_parameter: bool) -> None:
        self._wrong = f"has the unknown entity {name!r}"

    def _declared(self, name: str, *about: Any) -> None:
        line = self._lines_before + self._parser.CurrentLineNumber
        raise ValueError(f"line {line} of {str(self._path)!r} declares the entity {name!r}: write what it stands for")

    def _end(self, name: str) -> None:
        name = name.rpartition(":")[2]
        if name in self._form.texts and self._text is not None:
            if self._unit is not None and self._language is not None:
                self._unit.texts.append(Text(self._language, self._kind, "".join(self._text)))
            self._text = None
        elif name in self._form.languages:
            self._language = None
        elif name in self._form.units and self._unit is not None:
            if self._wrong is None:
                self.units.append(self._unit)
            else:
                self.broken.append(f"{self.place(self._unit.line)} {self._wrong}")
            self._unit = self._wrong = None
