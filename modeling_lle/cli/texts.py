"""A text that a command reads: given as it is, or in a file. Heavy imports are deferred until a command runs."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..common.paths import names_file, not_found

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_text(given: str) -> str:
    """A text, or what a file of text holds.

    Raises:
        FileNotFoundError: It is the name of a file that does not exist.
        IsADirectoryError: It is a folder.
        ValueError: The file is not UTF-8.
    """
    from ..data.rows import read_utf8

    if not names_file(given):
        return given
    path = Path(given)
    if not path.exists():
        raise FileNotFoundError(not_found(path))
    if path.is_dir():
        raise IsADirectoryError(f"{given!r} is a folder: give a text, or a file of text")
    return read_utf8(path, repr(given))


def encode_whole(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Tokens of a text read as in training: by word tokenizers, which have no line breaks, line by line."""
    from ..data.text import encode_texts

    text = text.rstrip("\n")
    rows = [text] if tokenizer("\n", add_special_tokens=False)["input_ids"] else text.splitlines()
    return [token for row in encode_texts(rows, tokenizer) for token in row]
