"""Generation: a row of a language model, and the request that waits for its text in another thread."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from ..history.cache import LLECache
from .rows import Score
from .writer import Writer


@dataclass
class Delta:
    """A part of what was generated.

    Attributes:
        text: New text.
        tokens, scores: New tokens with their scores, which may be ahead of the text.
        prompt: The scores of the prompt, if they were asked for, once.
        reason: Why it ended, at the end.
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    scores: list[Score | None] = field(default_factory=list)
    prompt: list[Score | None] | None = None
    reason: str | None = None


class Mailbox:
    """Where the thread of a model puts what a request waits for; it wakes the loop once for all that lies there.

    Must be made in the loop of the server.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parts: deque[tuple[int, Delta | Exception]] = deque()
        self._filled = asyncio.Event()
        self._is_waking = False

    def put(self, number: int, part: Delta | Exception) -> None:
        """Puts a part of a generation; called in the thread of a model."""
        self._parts.append((number, part))
        if not self._is_waking:
            self._is_waking = True
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._is_waking = False  # before the parts are taken: one that is put from now on wakes again
        self._filled.set()

    async def get(self) -> list[tuple[int, Delta | Exception]]:
        """All parts that wait, at least one, with the numbers of their generations, or an error of one of them."""
        while not self._parts:
            self._filled.clear()
            await self._filled.wait()
        return [self._parts.popleft() for _ in range(len(self._parts))]


class Generation:
    """Takes what a row generates, in the thread of the model; the `Listener` of rows.py.

    Args:
        mailbox, number: Where the parts go, and under which number.
        tokenizer: The tokenizer of the worker's thread.
        prompt: The tokens before.
        stops: Strings that end the text.
        ends: Tokens that end the text, and are no part of it.
        is_streamed: Whether each token is told as it comes; else all of them at the end.

    Attributes:
        dropped: Whether nobody waits any more; set by the request.
        tokens: What was generated, complete at the end.
        cache: The cache at the end, if the row keeps it.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        number: int,
        tokenizer: PreTrainedTokenizerBase,
        prompt: Sequence[int],
        stops: Sequence[str] = (),
        ends: frozenset[int] = frozenset(),
        is_streamed: bool = True,
    ) -> None:
        self.dropped = False
        self.tokens: list[int] = []
        self.cache: LLECache | None = None
        self._mailbox, self._number = mailbox, number
        self._writer, self._ends = Writer(tokenizer, prompt, stops), ends
        self._is_streamed, self._writes = is_streamed, is_streamed or bool(stops)
        self._next = Delta()

    def prompt(self, scores: Sequence[Score | None]) -> None:
        """Takes the scores of the prompt."""
        self._mailbox.put(self._number, Delta(prompt=list(scores)))

    def token(self, token: int, score: Score | None) -> bool:
        """Takes a token; returns whether a stop string has ended the text."""
        self.tokens.append(token)
        self._next.tokens.append(token)
        self._next.scores.append(score)
        if token not in self._ends:
            self._writer.take(token)
        if self._writes:
            self._next.text += self._writer.sure()
        if self._is_streamed:
            self._send()
        return self._writer.stopped

    def done(self, reason: str, cache: LLECache | None) -> None:
        """Takes the end."""
        self.cache = cache
        self._next.text += self._writer.finish()
        self._next.reason = reason
        self._send()

    def failed(self, error: Exception) -> None:
        """Takes an error."""
        self._mailbox.put(self._number, error)

    def _send(self) -> None:
        self._mailbox.put(self._number, self._next)
        self._next = Delta()
