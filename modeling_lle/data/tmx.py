"""TMX files, the exchange format of translation memories; faults and entities as in units.py."""

import dataclasses
from pathlib import Path

from .units import Format, read_xml_units

_FORMAT = Format(units=("tu",), languages=("tuv",), texts=("seg",))


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
    units, broken = read_xml_units(path, _FORMAT)
    firsts = [{text.language: text.text for text in reversed(unit.texts)} for unit in units]
    return [
        Unit(unit.line, {language: own[language] for language in dict.fromkeys(text.language for text in unit.texts)})
        for unit, own in zip(units, firsts, strict=True)
    ], broken
