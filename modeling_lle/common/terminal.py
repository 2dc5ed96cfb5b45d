"""What the command line shows: text from data, models and banks cannot steer the terminal.

Notable: escape codes in a source or a label could hide, move or recolour what stands around them, or write into the
clipboard; they are shown as JSON writes them, so that JSON stays what it is.
"""

import logging
import re

import typer

# C0 and C1 controls, line and paragraph separators, what changes the direction of text, halves of surrogate pairs.
_CONTROLS = "\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_CONTROL = re.compile(f"[{_CONTROLS}]")
_CONTROL_IN_LINES = re.compile(f"(?![\n\t])[{_CONTROLS}]")


def printable(text: str) -> str:
    """A text for one line of the terminal, every control character of it as JSON writes it."""
    return _CONTROL.sub(_escaped, text)


def printable_lines(text: str) -> str:
    """As `printable`, for a text that may have several lines."""
    return _CONTROL_IN_LINES.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(match[0], f"\\u{ord(match[0]):04x}")


def say(text: str, err: bool = False) -> None:
    """Shows a text without colours, on the standard output or, with `err`, on that of errors."""
    typer.echo(printable_lines(text), err=err)


class Formatter(logging.Formatter):
    """The lines of a log, printable."""

    def format(self, record: logging.LogRecord) -> str:
        """As the base class."""
        return printable_lines(super().format(record))
