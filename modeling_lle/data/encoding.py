"""Whether bytes are text in UTF-8, and a guess at the encoding of text that is not."""

import codecs
import re
from pathlib import Path

_CHECKED = 16 * 2**20  # bytes of a file that are checked before it is read
_CHUNK = 2**20
_TOLD = 8  # bytes by which UTF-16 without its mark is told from binary data
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")  # as good as never in a text
_MARKS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_BEYOND_ASCII, _IN_A_ROW = re.compile(rb"[\x80-\xff]"), re.compile(rb"[\x80-\xff]{3,}")
# Encodings of scripts that are not Latin, with the characters that a text in them mostly has beside ASCII.
_SCRIPTS = {
    "cp1251": re.compile("[\u0430-\u044f\u0451]"),
    "cp1253": re.compile("[\u03ac-\u03ce]"),
    "shift_jis": re.compile("[\u3040-\u30ff\u4e00-\u9fff\u3001\u3002]"),
    "euc_kr": re.compile("[\uac00-\ud7a3]"),
    "gb18030": re.compile("[\u4e00-\u9fff\u3000-\u303f\uff00-\uffef]"),
}


def is_utf8(path: Path, zeros: bool = False) -> bool | None:
    """Whether a file is text in UTF-8; None: it holds no text at all but binary data.

    Only the first 16 MiB are checked, so that the size of a file does not matter; readers report faults further on.

    Args:
        path: The file.
        zeros: Whether a text may have zero bytes; else they make it binary data.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    seen = 0
    with path.open("rb") as file:
        while seen < _CHECKED and (chunk := file.read(_CHUNK)):
            seen += len(chunk)
            try:
                if not zeros and b"\0" in chunk:
                    raise ValueError
                decoder.decode(chunk, final=len(chunk) < _CHUNK)
            except ValueError:
                return False if guess_of(path) else None
    return True


def guess_of(path: Path) -> str | None:
    """As `guess_encoding`, of a file that is not UTF-8."""
    with path.open("rb") as file:
        return guess_encoding(file.read(_CHUNK))


def guess_encoding(content: bytes) -> str | None:
    """The likely encoding of text that is not UTF-8, as Python names it; None for binary data.

    >>> [guess_encoding("Füße, Müll".encode(name)) for name in ("cp1252", "utf-16", "utf-16-be")]
    ['cp1252', 'utf-16', 'utf-16-be']
    >>> guess_encoding("Где моя карта?".encode("cp1251"))
    'cp1251'
    """
    for mark, name in _MARKS:
        if content.startswith(mark):
            return name
    even, odd = content[::2].count(0), content[1::2].count(0)
    if len(content) >= _TOLD and max(even, odd) > 0.4 * len(content) / 2 and min(even, odd) < 0.05 * max(even, odd):
        return "utf-16-le" if odd > even else "utf-16-be"
    if len(_CONTROLS.findall(content)) > 0.001 * len(content):
        return None
    in_a_row = sum(len(part) for part in _IN_A_ROW.findall(content))
    if in_a_row > 0.4 * len(_BEYOND_ASCII.findall(content)):  # no accented letters among Latin ones
        shares = {name: _share(content, name, script) for name, script in _SCRIPTS.items()}
        best = max(shares, key=lambda name: shares[name])
        if shares[best] > 0.7:
            return best
    return "latin-1" if _decoded(content, "cp1252") is None else "cp1252"


def _share(content: bytes, encoding: str, script: re.Pattern[str]) -> float:
    """Share of the characters beyond ASCII that belong to a script."""
    text = _decoded(content, encoding) or ""
    beyond = sum(not character.isascii() for character in text)
    return len(script.findall(text)) / max(1, beyond)


def _decoded(content: bytes, encoding: str) -> str | None:
    """The text in an encoding; it may end within a character."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(content)
    except UnicodeDecodeError:
        return None


def fault(content: bytes, error: UnicodeDecodeError) -> str:
    """Why bytes are not UTF-8, for messages, with a guess at what they are."""
    guess = guess_encoding(content[:_CHUNK])
    place = f"{error.reason} at byte {error.start}"
    return f"it looks like {guess}: {place}" if guess else place
