"""Decoding: a language model generates many rows at a time, each of which comes and goes when it likes.

Notable: prompts are read in batches, in segments (prompts.py); their rows join the others for the tokens that follow.
The rows of a batch share an attachment, so that nothing of one tenant is recalled for another. A row's tokens do not
depend on its company: the numbers differ by rounding only, and each row has its own draws.
Shapes: B rows, T tokens, V vocabulary.
"""

import contextlib
from collections import deque
from collections.abc import Hashable, Iterator, Sequence

import torch
from torch import Tensor

from ..history.cache import LLECache
from ..models.causal import LLEForCausalLM
from ..models.streaming import Steps
from .prompts import Prompt, add, read, take
from .rows import Row, Score

PACE = 8  # positions of a segment that take about as long to read as a token of each row
LOWEST = -9999.0  # stands for minus infinity, which JSON cannot say


class _Group:
    """Rows that recall from one state of one bank; `cache` holds those of them that have joined."""

    def __init__(self, model: LLEForCausalLM, row: Row) -> None:
        self.rows: list[Row] = []
        self.cache: LLECache | None = None
        self.steps = Steps(model, row.use_history, row.attachment)

    def join(self, rows: Sequence[Row], cache: LLECache) -> None:
        """Takes rows in, whose cache is from now on that of the group."""
        self.cache = cache if self.cache is None else LLECache.joined([self.cache, cache])
        self.rows += rows

    def keep(self, places: Sequence[int]) -> None:
        """Removes the rows that are not at these places."""
        if len(places) == len(self.rows):
            return
        self.rows = [self.rows[place] for place in places]
        if not places:
            self.cache = None
        elif self.cache is not None:
            self.cache.batch_select_indices(torch.tensor(places))


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
        self._prompts: deque[Prompt] = deque()
        self._pause = 0  # tokens of each row until the next segment
        self._groups: dict[Hashable, _Group] = {}

    @property
    def rows(self) -> int:
        """Rows whose prompts are being read, or which are being generated."""
        return len(self._all)

    @property
    def _all(self) -> list[Row]:
        waiting = [row for prompt in self._prompts for row in prompt.rows]
        return waiting + [row for group in self._groups.values() for row in group.rows]

    def admit(self, row: Row) -> None:
        """Takes a row in."""
        scores = (row.scores_prompt, row.top if row.scores_prompt else None)
        add(Prompt([row], (self._key(row), *scores), row.cache), self._prompts)

    def _key(self, row: Row) -> Hashable:
        """Rows with the same key are generated together."""
        if not self._joins:
            return row
        state = None if row.attachment is None else (id(row.attachment.snapshot()), row.attachment.namespaces)
        return state, row.use_history

    def stop(self, error: Exception) -> None:
        """Ends all rows with an error."""
        for row in self._all:
            row.failed(error)
        self._prompts.clear()
        self._groups.clear()

    def turn(self) -> None:
        """Reads a segment of the first prompts, and generates a token of each row whose prompt has been read.

        Where rows are being generated they get half of the time, while prompts gather to be read together.
        """
        for prompt in self._prompts:
            prompt.rows = [row for row in prompt.rows if not row.listener.dropped]
        self._prompts = deque(prompt for prompt in self._prompts if prompt.rows)
        self._pause -= 1
        if self._prompts and (self._pause <= 0 or not self._groups):
            batch = take(self._prompts, self.model.config.vocab_size)
            self._pause = max(len(prompt.segment) for prompt in batch) // PACE
            self._read(batch)
        for key, group in list(self._groups.items()):
            group.keep([place for place, row in enumerate(group.rows) if not row.listener.dropped])
            if group.rows:
                self._step(group)
            if not group.rows:
                del self._groups[key]

    def _read(self, batch: list[Prompt]) -> None:
        """Reads a segment of each prompt; after the last one the first token of its rows is chosen."""
        try:
            logits, cache = read(self.model, batch)
        except Exception as error:
            if len(batch) > 1:  # one of them may be to blame
                for prompt in batch:
                    self._read([prompt])
                return
            for row in batch[0].rows:
                row.failed(error)
            return
        begun: list[tuple[Row, int]] = []
        for place, prompt in enumerate(batch):
            length = len(prompt.segment)
            prompt.read += length
            if prompt.rows[0].scores_prompt:
                self._score(prompt, logits[place, -length:])
            if prompt.is_read:
                begun += [(row, place) for row in prompt.rows if self._begin(row, prompt, cache, place)]
            else:
                prompt.cache = cache if len(batch) == 1 else cache.selected(torch.tensor([place]))
                self._prompts.append(prompt)
        places = [place for _, place in begun]
        kept = self._go_on([row for row, _ in begun], places, logits[:, -1], cache)
        if kept:
            first = begun[kept[0]][0]
            key, own = self._key(first), cache.selected(torch.tensor([places[number] for number in kept]))
            if key not in self._groups:
                self._groups[key] = _Group(self.model, first)
            self._groups[key].join([begun[number][0] for number in kept], own)

    def _score(self, prompt: Prompt, logits: Tensor) -> None:
        """Scores the tokens after each of the positions (T, V) that have just been read, but the last one's."""
        if not prompt.scores:
            prompt.scores.append(None)
        following = prompt.tokens[len(prompt.scores) : prompt.read + 1]
        prompt.scores += self._scores(logits[: len(following)], following, prompt.rows[0].top or 0)

    def _begin(self, row: Row, prompt: Prompt, cache: LLECache, place: int) -> bool:
        """Tells a row that its prompt has been read; returns whether tokens follow."""
        with _alone(row):
            if row.scores_prompt:
                row.listener.prompt(prompt.scores)
            if row.choose.reads_text:
                row.text = torch.tensor([row.tokens])
            if row.number:
                return True
            self._end(row, cache, place)
        return False

    def _step(self, group: _Group) -> None:
        """Reads the last token of each row, and chooses the next one."""
        assert group.cache is not None
        try:
            last = torch.tensor([[row.last] for row in group.rows], device=self.model.device)
            logits = group.steps.read(last, group.cache)
        except Exception as error:
            for row in group.rows:
                row.failed(error)
            group.keep([])
            return
        group.keep(self._go_on(group.rows, range(len(group.rows)), logits, group.cache))

    def _go_on(self, rows: Sequence[Row], places: Sequence[int], logits: Tensor, cache: LLECache) -> list[int]:
        """Chooses the next token of some rows.

        Args:
            rows: The rows.
            places: The place of each in the logits and in the cache.
            logits: (B, V), after the last token of each row; `cache` likewise.
            cache: See `logits`.

        Returns:
            The numbers of the rows that go on; the others have ended.
        """
        likeliest = logits.argmax(-1).tolist() if any(row.choose.is_greedy for row in rows) else []
        chosen: dict[int, int] = {}
        for number, (row, place) in enumerate(zip(rows, places, strict=True)):
            with _alone(row):
                own = logits[place : place + 1]
                chosen[number] = likeliest[place] if row.choose.is_greedy else row.choose(row.text, own.clone())
        scored = [number for number in chosen if rows[number].top is not None]
        tops = [rows[number].top or 0 for number in scored]
        found = self._scores(
            logits[[places[number] for number in scored]], [chosen[number] for number in scored], max(tops, default=0)
        )
        scores = {number: own.first(top) for number, own, top in zip(scored, found, tops, strict=True)}
        kept = []
        for number, token in chosen.items():
            with _alone(rows[number]):
                if self._take(rows[number], token, scores.get(number)):
                    self._end(rows[number], cache, places[number])
                else:
                    kept.append(number)
        return kept

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

    def _take(self, row: Row, token: int, score: Score | None) -> bool:
        """Gives a row its next token; returns whether it is the last one."""
        if row.choose.reads_text:
            row.text = torch.cat([row.text, torch.tensor([[token]])], dim=1)
        row.last, row.made = token, row.made + 1
        row.finished = row.listener.token(token, score)
        return row.finished or token in row.ends or row.made >= row.number

    def _end(self, row: Row, cache: LLECache, place: int) -> None:
        """Hands over the end of a row; the cache that it keeps knows its last token as its own, and not read."""
        own = cache.selected(torch.tensor([place])) if row.keeps_cache else None
        if own is not None and row.made:
            own.unread = torch.tensor([row.last])
        row.listener.done("stop" if row.finished or row.last in row.ends else "length", own)


@contextlib.contextmanager
def _alone(row: Row) -> Iterator[None]:
    """An error in this context ends the row, and no other."""
    try:
        yield
    except Exception as error:
        row.failed(error)
