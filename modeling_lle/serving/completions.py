"""`/v1/models`, `/v1/completions` and the tokenizer, as OpenAI's clients and lm-evaluation-harness expect them."""

import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse

from ..tasks import LANGUAGE
from .completing import Job, Wish, started
from .errors import ServingError, invalid, shaped
from .generation import Delta
from .rows import Score
from .schemas import (
    Choice,
    Completion,
    CompletionRequest,
    Detokenized,
    DetokenizeRequest,
    Logprobs,
    ModelInfo,
    ModelList,
    SessionInfo,
    TokenizeRequest,
    TokenizerInfo,
    Tokens,
)
from .served import Served
from .state import Serving, Shared, Tenant, threaded
from .writer import pieces

router = APIRouter(tags=["language models"])
STARTED = int(time.time())
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "An answer, or its events."}
}


@router.get("/v1/models", response_model=ModelList)
async def models(serving: Shared, tenant: Tenant) -> Any:
    """The models of the server."""
    return ModelList(data=[_about(served) for served in serving.models.of.values()])


@router.get("/v1/models/{name}", response_model=ModelInfo)
async def model(name: str, serving: Shared, tenant: Tenant) -> Any:
    """A model of the server."""
    return _about(serving.models.get(name))


def _about(served: Served) -> ModelInfo:
    return ModelInfo(id=served.name, created=STARTED, task=served.task.name)


@router.post("/v1/completions", response_model=Completion, response_model_exclude_none=False, responses=STREAMED)
async def completions(body: CompletionRequest, request: Request, serving: Shared, tenant: Tenant) -> Any:
    """Goes on with a text, or with several."""
    served = serving.models.get(body.model, LANGUAGE)
    if body.best_of not in (None, body.n or 1):
        raise invalid("best_of is not supported: leave it out")
    prompts, texts = await threaded(request, lambda: _prompts(body, served))
    wish = Wish(
        body,
        16 if body.max_tokens is None else body.max_tokens,
        body.logprobs,
        scores_prompt=bool(body.echo) and body.logprobs is not None,
        session=body.session,
    )
    job = Job(served, tenant, wish, prompts)
    answer = _Answer(job, body, texts)
    if not body.stream:
        async with started(job, request):
            async for number, delta in job.parts(request):
                answer.take(number, delta)
            return JSONResponse(await answer.whole(request, serving))
    return await streamed(answer.events(request, serving), request)


async def streamed(events: AsyncIterator[dict[str, Any]], request: Request) -> StreamingResponse:
    """Server-sent events; an error before the first of them is an ordinary one."""
    first = await anext(events)

    async def lines() -> AsyncIterator[str]:
        try:
            yield f"data: {json.dumps(first)}\n\n"
            async for event in events:
                yield f"data: {json.dumps(event)}\n\n"
            yield "data: [DONE]\n\n"
        except Exception as error:
            own = (
                error if isinstance(error, ServingError) else ServingError(500, "internal_error", "the server failed")
            )
            request.state.failed = own.code
            yield f"data: {json.dumps(shaped(own, request.url.path)[1])}\n\n"
        finally:
            await events.aclose()  # type: ignore[attr-defined]

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


def _prompts(body: CompletionRequest, served: Served) -> tuple[list[list[int]], list[str | None]]:
    """The tokens of the prompts, and their texts where texts were given."""
    given: Any = "" if body.prompt is None else body.prompt
    if isinstance(given, str):
        given = [given]
    if not given:
        raise invalid("the list of prompts is empty")
    if isinstance(given[0], int):
        given = [given]
    if len(given) > served.limits.inputs:
        raise invalid(f"at most {served.limits.inputs} prompts can be sent at a time: send several requests")
    if isinstance(given[0], str):
        return [served.encode(text) for text in given], list(given)
    return [list(tokens) for tokens in given], [None] * len(given)


class _Text:
    """What has been generated of one text."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.tokens: list[int] = []
        self.scores: list[Score | None] = []
        self.reason: str | None = None
        self.offset = 0


class _Answer:
    """Makes the answer to a completion of what is generated."""

    def __init__(self, job: Job, body: CompletionRequest, texts: Sequence[str | None]) -> None:
        self.job, self.body, self._given = job, body, texts
        self.id, self.created = f"cmpl-{uuid.uuid4().hex}", int(time.time())
        self.texts = [_Text() for _ in range(len(job.prompts) * job.copies)]

    def take(self, number: int, delta: Delta) -> None:
        """Takes a part of a text."""
        text = self.texts[number]
        if delta.prompt is not None:
            start = len(delta.prompt) - len(self._prompt(number))  # in a session, its last token is read again
            text.tokens += self._prompt(number)
            text.scores += delta.prompt[start:]
        text.parts.append(delta.text)
        text.tokens += delta.tokens
        text.scores += delta.scores
        text.reason = delta.reason or text.reason

    def _prompt(self, number: int) -> list[int]:
        return self.job.prompts[number // self.job.copies]

    def _echo(self, number: int) -> str:
        """The text of a prompt, if it is to be repeated."""
        if not self.body.echo:
            return ""
        given = self._given[number // self.job.copies]
        with self.job.served.own_tokenizer() as tokenizer:
            return str(tokenizer.decode(self._prompt(number))) if given is None else given

    def _logprobs(self, tokens: list[int], scores: list[Score | None], offset: int) -> Logprobs | None:
        if self.body.logprobs is None:
            return None
        with self.job.served.own_tokenizer() as tokenizer:
            names = pieces(tokenizer, tokens)
            own = {id for score in scores if score is not None for id, _ in score.top}
            texts = {id: str(tokenizer.decode([id])) for id in own}
        offsets = []
        for name in names:
            offsets.append(offset)
            offset += len(name)
        tops: list[dict[str, float] | None] = []
        for token, name, score in zip(tokens, names, scores, strict=True):
            top: dict[str, float] = {}
            for id, logprob in () if score is None else score.top:
                top.setdefault(name if id == token else texts[id], logprob)  # of one text the most probable token
            if score is not None:
                top.setdefault(name, score.logprob)
            tops.append(None if score is None else top)
        logprobs = [None if score is None else score.logprob for score in scores]
        return Logprobs(tokens=names, token_logprobs=logprobs, top_logprobs=tops, text_offset=offsets)

    async def whole(self, request: Request, serving: Serving) -> dict[str, Any]:
        """The answer."""
        job = self.job
        histories = await job.histories(request)

        def choices() -> list[Choice]:
            return [
                Choice(
                    index=number,
                    text=self._echo(number) + "".join(text.parts),
                    logprobs=self._logprobs(text.tokens, text.scores, 0),
                    finish_reason=text.reason,
                    history=histories[number],
                )
                for number, text in enumerate(self.texts)
            ]

        found = await threaded(request, choices)
        return self._completion(found, job.usage(serving, request), self._session())

    def _session(self) -> SessionInfo | None:
        job = self.job
        if job.wish.session is None:
            return None
        tokens = job.session_tokens + len(job.prompts[0]) + len(job.generations[0].tokens)
        return SessionInfo(id=job.wish.session, tokens=tokens)

    def _completion(self, choices: list[Choice], usage: Any = None, session: Any = None) -> dict[str, Any]:
        about: dict[str, Any] = {"id": self.id, "created": self.created, "model": self.job.served.name}
        full = Completion(**about, choices=choices, usage=usage, session=session).model_dump()
        for choice in full["choices"]:
            if choice["history"] is None:
                del choice["history"]
        return {name: value for name, value in full.items() if name == "choices" or value is not None}

    async def events(self, request: Request, serving: Serving) -> AsyncIterator[dict[str, Any]]:
        """Yields the answer in parts."""
        async with started(self.job, request):
            for number in range(len(self.texts)) if self.body.echo and self.body.logprobs is None else ():
                yield self._completion([Choice(index=number, text=self._echo(number))])
            async for number, delta in self.job.parts(request):
                text = self.texts[number]
                before = len(text.tokens)
                self.take(number, delta)
                if delta.reason is not None:
                    if delta.text:
                        yield self._completion([Choice(index=number, text=delta.text)])
                    continue
                echoed = self._echo(number) if delta.prompt is not None else ""
                if not (delta.text or echoed or delta.tokens):
                    continue
                tokens, scores = text.tokens[before:], text.scores[before:]
                logprobs = self._logprobs(tokens, scores, text.offset)
                text.offset += 0 if logprobs is None else sum(map(len, logprobs.tokens))
                if delta.text or echoed or logprobs is not None:
                    yield self._completion([Choice(index=number, text=echoed + delta.text, logprobs=logprobs)])
            histories = await self.job.histories(request)
            for number, text in enumerate(self.texts):
                last = Choice(index=number, text="", finish_reason=text.reason, history=histories[number])
                yield self._completion([last], session=self._session())
            usage, options = self.job.usage(serving, request), self.body.stream_options
            if options is not None and options.include_usage:
                yield self._completion([], usage)


@router.post("/tokenize", response_model=Tokens)
async def tokenize(body: TokenizeRequest, request: Request, serving: Shared, tenant: Tenant) -> Any:
    """Token ids of a text."""
    served = _tokenizing(serving, body.model)
    text = body.prompt if body.inputs is None else body.inputs
    if text is None:
        raise invalid("give a text as prompt or inputs")
    tokens = await threaded(request, lambda: served.encode(text, body.add_special_tokens))
    return Tokens(tokens=tokens, count=len(tokens))


@router.post("/detokenize", response_model=Detokenized)
async def detokenize(body: DetokenizeRequest, request: Request, serving: Shared, tenant: Tenant) -> Any:
    """The text of tokens."""
    served = _tokenizing(serving, body.model)
    size = len(served.tokenizer)
    if any(not 0 <= token < size for token in body.tokens):
        raise invalid(f"a token id is outside of the vocabulary, 0 to {size - 1}")

    def decode() -> str:
        with served.own_tokenizer() as tokenizer:
            return str(tokenizer.decode(body.tokens))

    return Detokenized(prompt=await threaded(request, decode))


@router.get("/tokenizer_info", response_model=TokenizerInfo)
async def tokenizer_info(serving: Shared, tenant: Tenant, model: str | None = None) -> Any:
    """The special tokens of a language model."""
    tokenizer: Any = _tokenizing(serving, model).tokenizer
    names = ("eos_token", "bos_token", "pad_token", "chat_template")
    return TokenizerInfo(**{name: getattr(tokenizer, name, None) for name in names})


def _tokenizing(serving: Serving, name: str | None) -> Served:
    """The model with a name; without one the first language model, or else the first model."""
    if name is not None:
        return serving.models.get(name)
    every = list(serving.models.of.values())
    return next((served for served in every if served.task == LANGUAGE), every[0])
