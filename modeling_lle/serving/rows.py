"""Rows: texts that a language model goes on with, and who takes what is generated."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..history.attachment import Attachment
from ..history.cache import LLECache
from ..models.streaming import Choice

UNREAD = torch.zeros(1, 0, dtype=torch.long)  # stands for the text of a row whose choice does not look at it


@dataclasses.dataclass(frozen=True)
class Score:
    """The log probability of a token, and of the most probable ones at its place.

    Attributes:
        logprob: Its log probability.
        top: The ids of the most probable tokens, and their log probabilities, descending.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()

    def first(self, number: int) -> "Score":
        """With so many of the most probable tokens."""
        return self if len(self.top) <= number else Score(self.logprob, self.top[:number])


class Listener(Protocol):
    """Who takes what is generated; called in the thread of the model."""

    @property
    def dropped(self) -> bool:
        """Whether nobody waits for it."""
        ...

    def prompt(self, scores: Sequence[Score | None]) -> None:
        """Takes the scores of the tokens of the prompt, None for the first of a text."""
        ...

    def token(self, token: int, score: Score | None) -> bool:
        """Takes a token; returns whether it was the last one that is wanted."""
        ...

    def done(self, reason: str, cache: LLECache | None) -> None:
        """Takes why it ended, "stop" or "length", and the cache if the row keeps it."""
        ...

    def failed(self, error: Exception) -> None:
        """Takes an error, the end of the row."""
        ...


@dataclasses.dataclass(eq=False)
class Row:
    """A text to go on with.

    Attributes:
        tokens: Tokens to read first, at least one.
        choose, ends, number: How and how many tokens are chosen, and which end the row, as `model.choice` gives them.
        listener: Who takes what is generated.
        attachment: The bank to recall from, pinned, or None.
        use_history: As in `LLEForCausalLM.forward`.
        cache: The cache of the text before the tokens, which is changed; None: they begin a text.
        keeps_cache: Whether the cache is handed over at the end.
        top: How many of the most probable tokens are told at each place; None: no scores.
        scores_prompt: Whether the tokens that are read first are scored, too.
    """

    tokens: list[int]
    choose: Choice
    ends: frozenset[int]
    number: int
    listener: Listener
    attachment: Attachment | None = None
    use_history: bool | None = None
    cache: LLECache | None = None
    keeps_cache: bool = False
    top: int | None = None
    scores_prompt: bool = False
    made: int = 0
    last: int = -1
    finished: bool = False
    text: Tensor = UNREAD

    def failed(self, error: Exception) -> None:
        """Ends the row with an error."""
        self.listener.failed(error)
