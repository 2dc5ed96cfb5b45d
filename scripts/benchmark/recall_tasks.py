"""Tasks of exact recall, made of random tokens, and a look-up across natural text.

Notable: every token that is asked for stands earlier in its row, and no model can guess it. Shapes: R rows, T time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FIRST_NAMES, DIGITS, NAMES_IN_USE = 16, 10, 16
DIGITS_OF_A_NUMBER = 4
ASKED, ASKED_OF_BOOKS = 1024, 256  # tokens that a task asks for at least, in several rows if one asks for fewer


@dataclass(frozen=True)
class RecallTask:
    """Rows of text, and which of their tokens are to be recalled.

    Attributes:
        name: "copy", "pairs, N between" or "phone book".
        size: Tokens of the string, pairs, or tokens between book and questions.
        tokens: (R, T) int64.
        asked: (R, T) bool.
    """

    name: str
    size: int
    tokens: Tensor
    asked: Tensor


def _rows(asked: int, least: int) -> int:
    return max(1, -(-least // asked))


def _distinct(types: Tensor, rows: int, number: int, generator: torch.Generator) -> Tensor:
    """Distinct types of each row, (R, number)."""
    if number > len(types):
        raise ValueError(f"a vocabulary of {len(types)} types has no {number} different ones")
    return torch.stack([types[torch.randperm(len(types), generator=generator)[:number]] for _ in range(rows)])


def _shuffled(rows: int, number: int, generator: torch.Generator) -> Tensor:
    return torch.stack([torch.randperm(number, generator=generator) for _ in range(rows)])


def copy(types: Tensor, size: int, generator: torch.Generator) -> RecallTask:
    """A random string of `size` tokens, twice; all tokens of the second one but the first are asked for."""
    rows = _rows(size - 1, ASKED)
    string = types[torch.randint(len(types), (rows, size), generator=generator)]
    separator = _distinct(types, rows, 1, generator)
    tokens = torch.cat([separator, string, separator, string], dim=1)
    asked = torch.zeros(tokens.shape, dtype=torch.bool)
    asked[:, size + 3 :] = True
    return RecallTask("copy", size, tokens, asked)


def pairs(types: Tensor, size: int, between: int, generator: torch.Generator) -> RecallTask:
    """`size` pairs of key and value, the same tokens `between` in all pairs, then each key, whose value is asked."""
    rows = _rows(size, ASKED)
    chosen = _distinct(types, rows, 2 * size + between, generator)
    middle = chosen[:, None, 2 * size :].expand(-1, size, -1)
    told = torch.cat([chosen[:, :size, None], middle, chosen[:, size : 2 * size, None]], dim=2)
    order = _shuffled(rows, size, generator)[..., None].expand(told.shape)
    tokens = torch.cat([told, told.gather(1, order)], dim=1)
    asked = torch.zeros(tokens.shape, dtype=torch.bool)
    asked[:, size:, -1] = True
    return RecallTask(f"pairs, {between} between", size, tokens.flatten(1), asked.flatten(1))


def phone_book(types: Tensor, size: int, text: Tensor, generator: torch.Generator) -> RecallTask:
    """A book of two names and a number a line, `size` tokens of natural text, and some of the names again.

    First and second names, and digits, occur in several lines, so that no part of a name is enough.

    Args:
        types: The types that names and digits are drawn from.
        size: Tokens between the book and the questions.
        text: (n,) int64, natural text.
        generator: Of the draws.
    """
    lines = 2 * NAMES_IN_USE
    rows = _rows(NAMES_IN_USE * DIGITS_OF_A_NUMBER, ASKED_OF_BOOKS)
    chosen = _distinct(types, rows, 2 * FIRST_NAMES + DIGITS + 1, generator)
    names = _distinct(torch.arange(FIRST_NAMES**2), rows, lines, generator)
    first, second = chosen.gather(1, names // FIRST_NAMES), chosen.gather(1, FIRST_NAMES + names % FIRST_NAMES)
    drawn = torch.randint(DIGITS, (rows, lines * DIGITS_OF_A_NUMBER), generator=generator)
    numbers = chosen.gather(1, 2 * FIRST_NAMES + drawn).view(rows, lines, DIGITS_OF_A_NUMBER)
    end = chosen[:, None, -1:].expand(-1, lines, -1)
    book = torch.cat([first[..., None], second[..., None], numbers, end], dim=2)
    order = _shuffled(rows, lines, generator)[:, :NAMES_IN_USE, None].expand(-1, -1, book.shape[2])
    questions = book.gather(1, order)
    asked = torch.zeros(questions.shape, dtype=torch.bool)
    asked[..., 2:-1] = True
    starts = torch.randint(len(text) - size + 1, (rows,), generator=generator).tolist()
    between = torch.stack([text[start : start + size] for start in starts])
    tokens = torch.cat([book.flatten(1), between, questions.flatten(1)], dim=1)
    before = torch.zeros(rows, tokens.shape[1] - asked.flatten(1).shape[1], dtype=torch.bool)
    return RecallTask("phone book", size, tokens, torch.cat([before, asked.flatten(1)], dim=1))


def make_tasks(
    types: Tensor, text: Tensor, copies: Sequence[int], numbers: Sequence[int], distances: Sequence[int], seed: int
) -> list[RecallTask]:
    """All tasks: copies, pairs with 0, 1 and 3 tokens between, and phone books.

    Args:
        types: (n,) int64, the types that random tokens are drawn from.
        text: (n,) int64, natural text.
        copies: Lengths of the strings.
        numbers: Numbers of pairs.
        distances: Tokens between phone books and questions.
        seed: Of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    return [
        *(copy(types, size, generator) for size in copies),
        *(pairs(types, size, between, generator) for between in (0, 1, 3) for size in numbers),
        *(phone_book(types, size, text, generator) for size in distances),
    ]
