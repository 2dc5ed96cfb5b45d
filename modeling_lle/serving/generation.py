"""Generation: a row of a language model, and the request that waits for its text in another thread."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from ..history.cache import LLECache
from .decoding import Score
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
    """Where the threads of models put what a request waits for.

    Must be made in the loop of the server.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[int, Delta | Exception]] = asyncio.Queue()

    def put(self, number: int, part: Delta | Exception) -> None:
        """Puts a part of a generation; called in any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (number, part))

    async def get(self) -> tuple[int, Delta]:
        """The next part, with the number of its generation; raises the error of a generation."""
        number, part = await self._queue.get()
        if isinstance(part, Exception):
            raise part
        return number, part


class Generation:
    """Takes what a row generates, in the thread of the model; the `Listener` of decoding.py.

    Args:
        mailbox, number: Where the parts go, and under which number.
        tokenizer: The tokenizer of the worker's thread.
        prompt: The tokens before.
        stops: Strings that end the text.
        ends: Tokens that end the text, and are no part of it.

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
    ) -> None:
        self.dropped = False
        self.tokens: list[int] = []
        self.cache: LLECache | None = None
        self._mailbox, self._number = mailbox, number
        self._writer, self._ends = Writer(tokenizer, prompt, stops), ends

    def prompt(self, scores: Sequence[Score | None]) -> None:
        """Takes the scores of the prompt."""
        self._mailbox.put(self._number, Delta(prompt=list(scores)))

    def token(self, token: int, score: Score | None) -> bool:
        """Takes a token; returns whether a stop string has ended the text."""
        self.tokens.append(token)
        text = "" if token in self._ends else self._writer.push(token)
        self._mailbox.put(self._number, Delta(text, [token], [score]))
        return self._writer.stopped

    def done(self, reason: str, cache: LLECache | None) -> None:
        """Takes the end."""
        self.cache = cache
        self._mailbox.put(self._number, Delta(self._writer.finish(), reason=reason))

    def failed(self, error: Exception) -> None:
        """Takes an error."""
        self._mailbox.put(self._number, error)
