"""Output of the command line, in which text from data, models and banks cannot control the terminal.

Notable: escape codes in a source or a label could hide, move or recolour other text, or write to the clipboard; they
are escaped as in JSON, so that JSON output is unchanged.
"""

import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from tqdm import tqdm

# C0 and C1 controls, line and paragraph separators, marks of text direction, lone surrogates.
_CONTROLS = "\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_CONTROL = re.compile(f"[{_CONTROLS}]")
_CONTROL_IN_LINES = re.compile(f"(?![\n\t])[{_CONTROLS}]")


def printable(text: str) -> str:
    """Returns a text for one line of the terminal, with control characters escaped as in JSON."""
    return _CONTROL.sub(_escaped, text)


def printable_lines(text: str) -> str:
    """Returns a text as `printable` does, but keeps line breaks and tabs."""
    return _CONTROL_IN_LINES.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(match[0], f"\\u{ord(match[0]):04x}")


def say(text: str, err: bool = False) -> None:
    """Prints a text without colours to standard output, or with `err` to standard error."""
    typer.echo(printable_lines(text), err=err)


def counted(number: float, noun: str, plural: str | None = None) -> str:
    """A number with its noun.

    Args:
        number: Whole number.
        noun: Noun in the singular, perhaps with adjectives before it.
        plural: Noun in the plural; None: the noun with "s".

    Example:
        >>> counted(1, "text"), counted(2000, "text"), counted(0, "entry", "entries")
        ('1 text', '2,000 texts', '0 entries')
    """
    return f"{number:,.0f} {noun if number == 1 else plural or noun + 's'}"


def progress(total: int, what: str, unit: str, shown: bool = True) -> "tqdm[Any]":
    """A progress bar on standard error, hidden unless that is a terminal.

    Args:
        total: Number of units.
        what: Name of the work, such as "Classifying".
        unit: Name of a unit in the plural.
        shown: Whether to show it at all.
    """
    from tqdm import tqdm

    return tqdm(total=total, desc=what, unit=f" {unit}", disable=None if shown else True)


class Formatter(logging.Formatter):
    """Formats log lines as printable text.

    Args:
        pattern: As in the base class.
        reword: Rewords each line.
    """

    def __init__(self, pattern: str, reword: Callable[[str], str] = str) -> None:
        super().__init__(pattern)
        self.reword = reword

    def format(self, record: logging.LogRecord) -> str:
        """As the base class."""
        return printable_lines(self.reword(super().format(record)))
