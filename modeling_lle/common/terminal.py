"""Output of the command line, in which text from data, models and banks cannot control the terminal.

Notable: escape codes in a source or a label could hide, move or recolour other text, or write to the clipboard; they
are escaped as in JSON, so that JSON output is unchanged.
"""

import logging
import re

import typer

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


class Formatter(logging.Formatter):
    """Formats log lines as printable text."""

    def format(self, record: logging.LogRecord) -> str:
        """As the base class."""
        return printable_lines(super().format(record))
