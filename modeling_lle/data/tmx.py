"""TMX files, the exchange format of translation memories.

Notable: markup within a segment is kept as its text, which is that of the original document. Invalid XML is read unit
by unit, so that only faulty units are lost. Declared entities are refused, as a few lines can expand to gigabytes.
"""

import codecs
import dataclasses
import re
from pathlib import Path
from typing import Any
from xml.parsers import expat

_START, _END = re.compile(rb"<tu(?=[\s>])"), re.compile(rb"</tu\s*>")
_NO_XML = "\x01"  # not a character of XML
_ENCODING = re.compile(rb"""<\?xml[^>]*\bencoding\s*=\s*["']([\w.-]+)""")


@dataclasses.dataclass(frozen=True)
class Unit:
    """A text in several languages.

    Attributes:
        line: First line, counted from 1.
        texts: First text of each language, named as in the file.
    """

    line: int
    texts: dict[str, str]


def read_units(path: Path) -> tuple[list[Unit], list[str]]:
    """Reads a TMX file.

    Returns:
        Units, and faults of unreadable units and of the file around them.

    Raises:
        ValueError: The file declares entities or an unknown encoding.
    """
    content = _as_utf8(path)
    whole = _Parser(path)
    wrong = whole.parse(content)
    if wrong is None:
        return whole.units, whole.broken
    parts = _Parser(path)
    _parse_each(content, parts)
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


def _parse_each(content: bytes, parser: "_Parser") -> None:
    """Parses units separately; a unit ends at the next one at the latest."""
    starts = [match.start() for match in _START.finditer(content)]
    line, counted = 1, 0
    for start, stop in zip(starts, [*starts, len(content)][1:], strict=True):
        line, counted = line + content.count(b"\n", counted, start), start
        end = _END.search(content, start, stop)
        wrong = parser.parse(content[start : end.end()], line) if end else f"{parser.place(line)} has no end"
        if wrong:
            parser.broken.append(wrong)


class _Parser:
    """Collects units from XML.

    Args:
        path: File named in messages.

    Attributes:
        units: Units so far.
        broken: Faults of the others.
    """

    def __init__(self, path: Path) -> None:
        self.units: list[Unit] = []
        self.broken: list[str] = []
        self._path = path

    def place(self, line: int) -> str:
        """Name of a unit in messages."""
        return f"the unit in line {line} of {str(self._path)!r}"

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
        self._text: list[str] | None = None
        try:
            self._parser.Parse(content, True)
        except expat.ExpatError as error:
            line = self._lines_before + error.lineno
            reason = expat.ErrorString(error.code)
            return f"line {line} of {str(self._path)!r} is not valid XML, or not in the declared encoding: {reason}"
        return None

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "tu":
            self._unit = Unit(self._lines_before + self._parser.CurrentLineNumber, {})
        elif name == "tuv":
            self._language = attributes.get("xml:lang", attributes.get("lang"))
            if self._language is None:
                self._wrong = "has a text without a language: it lacks xml:lang"
        elif name == "seg":
            self._text = []

    def _characters(self, text: str) -> None:
        if self._text is not None:
            self._text.append(text)

    def _skipped(self, name: str, is_parameter: bool) -> None:
        self._wrong = f"has the unknown entity {name!r}"

    def _declared(self, name: str, *about: Any) -> None:
        line = self._lines_before + self._parser.CurrentLineNumber
        raise ValueError(f"line {line} of {str(self._path)!r} declares the entity {name!r}: write what it stands for")

    def _end(self, name: str) -> None:
        if name == "seg" and self._text is not None:
            if self._unit is not None and self._language is not None:
                self._unit.texts.setdefault(self._language, "".join(self._text))
            self._text = None
        elif name == "tu" and self._unit is not None:
            if self._wrong is None:
                self.units.append(self._unit)
            else:
                self.broken.append(f"{self.place(self._unit.line)} {self._wrong}")
            self._unit = self._wrong = None
