"""Decoding: a language model generates many rows at a time, each of which comes and goes when it likes.

Notable: a row is read alone, in segments, and joins the others for the tokens that follow; the rows of one step share
an attachment, so that nothing of one tenant is recalled for another. A row's tokens do not depend on its company: the
numbers differ by rounding only, and each row has its own draws.
Shapes: B rows, T tokens, V vocabulary.
"""

import dataclasses
import logging
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..history.attachment import Attachment
from ..history.cache import LLECache
from ..models.causal import LLEForCausalLM
from ..models.streaming import Choice

logger = logging.getLogger(__name__)

SEGMENT = 256  # tokens of a prompt that are read at once
LOWEST = -9999.0  # stands for minus infinity, which JSON cannot say


@dataclasses.dataclass(frozen=True)
class Score:
    """The log probability of a token, and of the most probable ones at its place.

    Attributes:
        logprob: Its log probability.
        top: The ids of the most probable tokens, and their log probabilities, descending.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


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
    read: int = 0
    made: int = 0
    last: int = -1
    finished: bool = False
    text: Tensor | None = None
    scores: list[Score | None] = dataclasses.field(default_factory=list)

    def failed(self, error: Exception) -> None:
        """Ends the row with an error."""
        self.listener.failed(error)


class _Group:
    """Rows that recall from one state of one bank; `cache` holds those of them that have joined."""

    def __init__(self, attachment: Attachment | None, use_history: bool | None) -> None:
        self.attachment, self.use_history = attachment, use_history
        self.rows: list[Row] = []
        self.cache: LLECache | None = None

    def join(self, row: Row) -> None:
        assert row.cache is not None
        self.cache = row.cache if self.cache is None else LLECache.joined([self.cache, row.cache])
        row.cache = None
        self.rows.append(row)

    def leave(self, places: Sequence[int]) -> None:
        """Removes the rows at some places."""
        kept = [place for place in range(len(self.rows)) if place not in places]
        self.rows = [self.rows[place] for place in kept]
        if not kept:
            self.cache = None
        elif len(places):
            assert self.cache is not None
            self.cache.batch_select_indices(torch.tensor(kept))

    def take(self, place: int) -> LLECache:
        """A copy of the cache of a row."""
        assert self.cache is not None
        own = LLECache.joined([self.cache])
        own.batch_select_indices(torch.tensor([place]))
        return own


class Decoder:
    """Generates the rows of a language model; used in one thread.

    Args:
        model: The model, in evaluation mode.
    """

    def __init__(self, model: LLEForCausalLM) -> None:
        self.model = model
        config = model.config
        # The test-time update has weights of its own for each text, and caches of attention grow with it.
        self._joins = config.wrapped is None and config.overlay.scope == "none"
        self._reading: deque[Row] = deque()
        self._groups: dict[Any, _Group] = {}

    @property
    def rows(self) -> int:
        """Rows that are being read or generated."""
        return len(self._reading) + sum(len(group.rows) for group in self._groups.values())

    def admit(self, row: Row) -> None:
        """Takes a row in."""
        self._reading.append(row)

    def stop(self, error: Exception) -> None:
        """Ends all rows with an error."""
        for row in [*self._reading, *(row for group in self._groups.values() for row in group.rows)]:
            row.failed(error)
        self._reading.clear()
        self._groups.clear()

    def turn(self) -> None:
        """Reads a segment of one row, and generates a token of each row that has been read."""
        if self._reading:
            row = self._reading.popleft()
            self._guarded([row], self._read, row)
        for key, group in list(self._groups.items()):
            group.leave([place for place, row in enumerate(group.rows) if row.listener.dropped])
            if group.rows:
                self._guarded(group.rows, self._step, group)
            if not group.rows:
                del self._groups[key]

    def _guarded(self, rows: list[Row], work: Any, argument: Any) -> None:
        """Runs a part of the work; if it fails, its rows do."""
        try:
            work(argument)
        except Exception as error:
            for row in list(rows):
                row.failed(error)
            rows.clear()

    def _forward(self, ids: Tensor, row: "Row | _Group", generated: int, keep: int) -> Tensor:
        """Reads tokens (B, T); returns the logits of the last `keep` positions, of all for 0."""
        output = self.model(
            ids.to(self.model.device),
            past_key_values=row.cache,
            use_cache=True,
            use_history=row.use_history,
            history=row.attachment,
            generated=generated,
            logits_to_keep=keep,
        )
        row.cache = output.past_key_values
        return output.logits

    def _read(self, row: Row) -> None:
        """Reads a segment; after the last one the first token is chosen."""
        if row.listener.dropped:
            return
        part = row.tokens[row.read : row.read + SEGMENT]
        logits = self._forward(torch.tensor([part]), row, 0, 0 if row.scores_prompt else 1)
        row.read += len(part)
        if row.scores_prompt:
            self._score_prompt(row, logits[0])
        if row.read < len(row.tokens):
            self._reading.append(row)
            return
        if row.scores_prompt:
            row.listener.prompt(row.scores)
        if row.choose.reads_text:
            row.text = torch.tensor([row.tokens])
        if row.number == 0:
            self._end(row, "length", row.cache)
            return
        if self._choose(row, logits[:, -1]):
            self._end(row, "stop" if self._stopped(row) else "length", row.cache)
            return
        key: Any = row if not self._joins else (self._state_of(row.attachment), row.use_history)
        group = self._groups.setdefault(key, _Group(row.attachment, row.use_history))
        group.join(row)

    def _state_of(self, attachment: Attachment | None) -> Any:
        return None if attachment is None else (id(attachment.snapshot()), attachment.namespaces)

    def _score_prompt(self, row: Row, logits: Tensor) -> None:
        """Scores the tokens after each of the positions (T, V) that have just been read, but the last one's."""
        if not row.scores:
            row.scores.append(None)
        following = row.tokens[len(row.scores) : row.read + 1]
        row.scores += self._scores(logits[: len(following)], following, row.top or 0)

    def _scores(self, logits: Tensor, tokens: list[int], top: int) -> list[Score]:
        """The scores of tokens by logits (T, V)."""
        if not tokens:
            return []
        logs = logits.float().log_softmax(-1)
        own = logs.gather(1, torch.tensor(tokens, device=logs.device)[:, None])[:, 0].clamp(min=LOWEST).tolist()
        if not top:
            return [Score(value) for value in own]
        best = logs.clamp(min=LOWEST).topk(min(top, logs.shape[1]))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [
            Score(value, tuple(zip(ids, values, strict=True))) for value, (ids, values) in zip(own, pairs, strict=True)
        ]

    def _step(self, group: _Group) -> None:
        """Reads the last token of each row, and chooses the next one."""
        last = torch.tensor([[row.last] for row in group.rows])
        logits = self._forward(last, group, 1, 1)[:, -1]
        ended: list[int] = []
        for place, row in enumerate(group.rows):
            try:
                if self._choose(row, logits[place : place + 1]):
                    cache = group.take(place) if row.keeps_cache else None
                    self._end(row, "stop" if self._stopped(row) else "length", cache)
                    ended.append(place)
            except Exception as error:  # of one row, which takes no other with it
                row.failed(error)
                ended.append(place)
        group.leave(ended)

    def _choose(self, row: Row, logits: Tensor) -> bool:
        """Chooses the next token by logits (1, V); returns whether it is the last one."""
        token = row.choose(row.text if row.text is not None else logits.new_zeros(1, 0).long(), logits.clone())
        score = None if row.top is None else self._scores(logits, [token], row.top)[0]
        if row.text is not None:
            row.text = torch.cat([row.text, torch.tensor([[token]])], dim=1)
        row.last, row.made = token, row.made + 1
        row.finished = row.listener.token(token, score)
        return row.finished or token in row.ends or row.made >= row.number

    def _stopped(self, row: Row) -> bool:
        return row.finished or row.last in row.ends

    def _end(self, row: Row, reason: str, cache: LLECache | None) -> None:
        """Hands over the end of a row; the cache knows its last token as its own, and not read."""
        if cache is not None and row.made:
            cache.unread = torch.tensor([row.last])
        row.listener.done(reason, cache if row.keeps_cache else None)
