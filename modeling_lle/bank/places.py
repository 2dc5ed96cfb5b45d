"""Where entries come from, as it is shown: file and line if the bank knows them, else source and row.

Notable: a document keeps the line in which it begins; that of an entry within it is counted by the line breaks among
the tokens before the entry.
"""

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

FILE, LINE, ROW_IN_FILE = "file", "line", "row_in_file"  # columns of documents; lines and rows are counted from 1
PROVENANCE = (FILE, LINE, ROW_IN_FILE)


def place_of(source: str, row: int, columns: Mapping[str, Any], further: int = 0) -> str:
    """Where a document, or a line of it, comes from.

    Args:
        source, row: Where it was added.
        columns: Its other columns.
        further: How many lines after the first one of the document.

    Returns:
        "file:line"; "file, row 7" if rows of the file have no lines; "source:row" if the file is unknown.
    """
    file, number = columns.get(FILE), columns.get(ROW_IN_FILE)
    in_file = f"{file}, row {number}" if isinstance(file, str) and isinstance(number, int) else None
    return line_of(columns, further) or in_file or f"{source}:{row}"


def line_of(columns: Mapping[str, Any], further: int = 0) -> str | None:
    """The "file:line" of a document, or of a line of it that is `further` lines after its first; None if unknown."""
    file, line = columns.get(FILE), columns.get(LINE)
    return f"{file}:{line + further}" if isinstance(file, str) and isinstance(line, int) else None


def provenance(row: Mapping[str, Any]) -> dict[str, Any]:
    """Where a row comes from, if it says so: `file` is a string, `line` or `row_in_file` a whole number."""
    values = {name: row[name] for name in PROVENANCE if name in row}
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name == FILE and isinstance(value, str):
            found[name] = value
        elif name != FILE and isinstance(value, Integral) and not isinstance(value, bool):
            found[name] = int(value)
    return found


class LineBreaks:
    """Counts the line breaks that tokens stand for.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._counts = torch.zeros(0, dtype=torch.int32)  # of each token id, -1 where it was not asked for

    def count(self, tokens: Tensor) -> int:
        """Line breaks among tokens (T,) integer; 0 if one of them was forgotten, as it may have been a line break."""
        if not len(tokens) or bool((tokens < 0).any()):
            return 0
        longer = int(tokens.max()) + 1 - len(self._counts)
        if longer > 0:
            self._counts = torch.cat([self._counts, self._counts.new_full((longer,), -1)])
        counts = self._counts[tokens]
        new = tokens[counts < 0].unique()
        if len(new):
            breaks = [self._of(token) for token in new.tolist()]
            self._counts[new] = torch.tensor(breaks, dtype=torch.int32)
            counts = self._counts[tokens]
        return int(counts.sum())

    def _of(self, token: int) -> int:
        if token == self._tokenizer.eos_token_id:  # word tokenizers write it for a line break
            broken = self._tokenizer("a\na", add_special_tokens=False, return_attention_mask=False)["input_ids"]
            return int(token in broken)
        return str(self._tokenizer.decode([token])).count("\n")
