"""What completions and chats share: rows for prompts, in a session or not, and what becomes of them."""

import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fastapi import Request

from ..history.attachment import Attachment
from ..history.cache import LLECache
from ..pipelines.text_generation import generated_history
from .errors import invalid
from .generation import Delta, Generation, Mailbox
from .rows import Row
from .schemas import Sampling, Usage
from .served import Served
from .state import Serving, called, count, threaded, waited

GREEDY = 1e-3  # a temperature up to which the likeliest token is taken: smaller ones overflow


@dataclass(frozen=True)
class Wish:
    """What is generated after each prompt.

    Attributes:
        sampling: The request.
        new_tokens: Tokens to generate at most.
        top: How many of the most probable tokens are told at each place; None: no scores.
        scores_prompt: Whether the prompt is scored, too.
        session: The session to go on with.
    """

    sampling: Sampling
    new_tokens: int
    top: int | None = None
    scores_prompt: bool = False
    session: str | None = None

    @property
    def stops(self) -> list[str]:
        """Strings that end the text."""
        given = self.sampling.stop
        return [stop for stop in ([given] if isinstance(given, str) else given or []) if stop]


class Job:
    """The rows of a request.

    Args:
        served: The model.
        tenant: Whose history and sessions they use.
        wish: What is generated.
        prompts: The tokens of each prompt.
    """

    def __init__(self, served: Served, tenant: str, wish: Wish, prompts: Sequence[Sequence[int]]) -> None:
        self.served, self.tenant, self.wish = served, tenant, wish
        self.prompts = [list(prompt) for prompt in prompts]
        self.copies = wish.sampling.n or 1
        self.attachment: Attachment | None = None
        self.generations: list[Generation] = []
        self.session_tokens = 0
        self._mailbox = Mailbox()
        self._in_session = False

    async def start(self, request: Request) -> None:
        """Checks everything, and adds the rows to the queue of the model; `end` must follow."""
        self._check()
        cache, pending = self._begin_session()
        rows = await threaded(request, lambda: self._rows(cache, pending))
        self.served.worker.generate(*rows)

    def _check(self) -> None:
        served, wish = self.served, self.wish
        if len(self.prompts) * self.copies > served.limits.inputs:
            raise invalid(f"at most {served.limits.inputs} texts can be asked for at a time: send several requests")
        if wish.new_tokens > served.limits.new_tokens:
            raise invalid(f"max_tokens is {wish.new_tokens}, and {served.limits.new_tokens} are allowed")
        if wish.session is not None and (len(self.prompts) != 1 or self.copies != 1):
            raise invalid("a session goes on with one prompt, and n=1")
        if wish.session is not None and wish.sampling.return_history:
            raise invalid("the history of a session's text cannot be told: leave out return_history or session")
        if wish.session is not None and served.model.config.overlay.scope != "none":
            raise invalid("a model with the test-time update keeps no sessions: send the whole text")
        size = served.model.config.vocab_size
        for prompt in self.prompts:
            served.check_length(len(prompt))
            if prompt and not 0 <= min(prompt) <= max(prompt) < size:
                raise invalid(f"a token id is outside of the vocabulary, 0 to {size - 1}")

    def _begin_session(self) -> tuple[LLECache | None, list[int]]:
        """The cache of the session, and its last token, which has not been read."""
        if self.wish.session is None:
            return None, []
        cache, self.session_tokens = self.served.sessions.begin(self.tenant, self.wish.session)
        self._in_session = True
        pending = [] if cache is None or cache.unread is None else cache.unread.tolist()
        return cache, pending

    def _rows(self, cache: LLECache | None, pending: list[int]) -> list[Row]:
        wish, served = self.wish, self.served
        if wish.sampling.use_history is not False:
            self.attachment = served.histories.attachment(self.tenant)
        start = served.tokenizer.bos_token_id
        start = served.tokenizer.eos_token_id if start is None else start
        rows = []
        for number, prompt in enumerate(self.prompts):
            if not prompt and not pending:
                if start is None:
                    raise invalid("the prompt is empty")
                prompt.append(start)
            for copy in range(self.copies):
                rows.append(self._row(number * self.copies + copy, [*pending, *prompt], copy, cache))
        return rows

    def _row(self, number: int, tokens: list[int], copy: int, cache: LLECache | None) -> Row:
        wish, served, sampling = self.wish, self.served, self.wish.sampling
        seed = secrets.randbits(62) if sampling.seed is None else sampling.seed + copy
        generator = torch.Generator().manual_seed(seed)
        options: dict[str, Any] = {"do_sample": False}
        temperature = 1.0 if sampling.temperature is None else sampling.temperature
        if temperature > GREEDY:
            options = {"do_sample": True, "temperature": temperature, "top_k": sampling.top_k or 0}
            options["top_p"] = 1.0 if sampling.top_p is None else sampling.top_p
        try:
            choose, ends = served.choice(tokens, max(wish.new_tokens, 1), generator, **options)
        except ValueError as error:
            raise invalid(str(error)) from None
        given = (self._mailbox, number, served.tokenizer, tokens, wish.stops, ends)
        generation = Generation(*given, is_streamed=bool(sampling.stream))
        self.generations.append(generation)
        return Row(
            tokens,
            choose,
            ends,
            wish.new_tokens,
            generation,
            self.attachment,
            sampling.use_history,
            cache,
            keeps_cache=self._in_session,
            top=wish.top,
            scores_prompt=wish.scores_prompt,
        )

    async def parts(self, request: Request) -> AsyncIterator[tuple[int, Delta]]:
        """Yields what is generated, with the number of its text."""
        left = len(self.generations)
        while left:
            for number, part in await waited(request, self._mailbox.get()):
                if isinstance(part, Exception):
                    raise part
                left -= part.reason is not None
                yield number, part

    def end(self, finished: bool) -> None:
        """Ends the request; the session takes in what was read and generated if it is finished."""
        for generation in self.generations:
            generation.dropped = True
        if self._in_session and self.wish.session is not None:
            self._in_session = False
            cache = self.generations[0].cache if finished and self.generations else None
            if cache is not None:
                self.session_tokens += len(self.prompts[0]) + len(self.generations[0].tokens)
            self.served.sessions.end(self.tenant, self.wish.session, cache, self.session_tokens)

    async def histories(self, request: Request) -> list[list[dict[str, Any]] | None]:
        """What moved each text, as the pipelines tell it; None for each if that was not asked for."""
        sampling, served = self.wish.sampling, self.served
        if not sampling.return_history:
            return [None] * len(self.generations)
        found: list[list[dict[str, Any]] | None] = []
        for number, generation in enumerate(self.generations):
            text = torch.tensor([*self.prompts[number // self.copies], *generation.tokens])
            made = len(generation.tokens)

            def told(text: torch.Tensor = text, made: int = made) -> list[dict[str, Any]]:
                own = (served.language_model, served.tokenizer, text, made, self.attachment, sampling.history_top)
                return generated_history(*own)

            found.append(await called(request, served.worker, told) if made else [])
        return found

    def usage(self, serving: Serving, request: Request) -> Usage:
        """The tokens that were read and generated, which are counted."""
        read, made = sum(map(len, self.prompts)), sum(len(own.tokens) for own in self.generations)
        count(request, serving, self.served, read, made)
        return Usage(prompt_tokens=read, completion_tokens=made, total_tokens=read + made)


@contextlib.asynccontextmanager
async def started(job: Job, request: Request) -> AsyncIterator[Job]:
    """A job from its start to its end."""
    finished = False
    try:
        await job.start(request)
        yield job
        finished = True
    finally:
        job.end(finished)
