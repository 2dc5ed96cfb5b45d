"""`/v1/chat/completions`, for language models whose tokenizer has a chat template."""

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from ..tasks import LANGUAGE
from .completing import Job, Wish, started
from .completions import STREAMED, streamed
from .errors import ServingError, invalid
from .rows import Score
from .schemas import Answer, Chat, ChatChoice, ChatLogprobs, ChatRequest, ContentLogprob, TokenLogprob
from .served import Served
from .state import Serving, Shared, Tenant, threaded

router = APIRouter(tags=["language models"])
NEW_TOKENS = 512  # without max_tokens


@router.post("/v1/chat/completions", response_model=Chat, responses=STREAMED)
async def chat(body: ChatRequest, request: Request, serving: Shared, tenant: Tenant) -> Any:
    """Goes on with a chat."""
    served = serving.models.get(body.model, LANGUAGE)
    if served.tokenizer.chat_template is None:
        raise ServingError(400, "no_chat_template", f"{served.name} has no chat template: use /v1/completions")
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs needs logprobs=true")
    prompt = await threaded(request, lambda: _prompt(served, body))
    most = min(NEW_TOKENS, served.limits.new_tokens)
    wish = Wish(
        body,
        body.max_completion_tokens or body.max_tokens or most,
        (body.top_logprobs or 0) if body.logprobs else None,
    )
    answer = _Answer(Job(served, tenant, wish, [prompt]), body)
    if not body.stream:
        return JSONResponse(await answer.whole(request, serving))
    return await streamed(answer.events(request, serving), request)


def _prompt(served: Served, body: ChatRequest) -> list[int]:
    """The tokens of the messages."""
    messages: list[Any] = [
        {
            "role": own.role,
            "content": own.content
            if isinstance(own.content, str | None)
            else "".join(part.text for part in own.content),
            **({} if own.name is None else {"name": own.name}),
        }
        for own in body.messages
    ]
    with served.own_tokenizer() as tokenizer:
        try:
            text: Any = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template may refuse anything, by jinja's errors
            raise invalid(f"the chat template refuses these messages: {str(error)[:200]}") from None
        return list(tokenizer(str(text), add_special_tokens=False, verbose=False)["input_ids"])


class _Answer:
    """Makes the answer to a chat of what is generated."""

    def __init__(self, job: Job, body: ChatRequest) -> None:
        self.job, self.body = job, body
        self.id, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())

    async def whole(self, request: Request, serving: Serving) -> dict[str, Any]:
        """The answer."""
        job = self.job
        texts, reasons = ["" for _ in range(job.copies)], ["" for _ in range(job.copies)]
        tokens: list[list[int]] = [[] for _ in range(job.copies)]
        scores: list[list[Score | None]] = [[] for _ in range(job.copies)]
        async with started(job, request):
            async for number, delta in job.parts(request):
                texts[number] += delta.text
                tokens[number] += delta.tokens
                scores[number] += delta.scores
                reasons[number] = delta.reason or reasons[number]
            histories = await job.histories(request)
            choices = [
                ChatChoice(
                    index=number,
                    message=Answer(role="assistant", content=text),
                    logprobs=self._logprobs(tokens[number], scores[number]),
                    finish_reason=reasons[number],
                    history=histories[number],
                )
                for number, text in enumerate(texts)
            ]
            return self._chat(choices, "chat.completion", job.usage(serving, request))

    async def events(self, request: Request, serving: Serving) -> AsyncIterator[dict[str, Any]]:
        """Yields the answer in parts."""
        job, kind = self.job, "chat.completion.chunk"
        async with started(job, request):
            for number in range(job.copies):
                yield self._chat([ChatChoice(index=number, delta=Answer(role="assistant", content=""))], kind)
            reasons = ["" for _ in range(job.copies)]
            async for number, delta in job.parts(request):
                reasons[number] = delta.reason or reasons[number]
                logprobs = self._logprobs(delta.tokens, delta.scores)
                if delta.text or (logprobs is not None and delta.tokens):
                    yield self._chat(
                        [ChatChoice(index=number, delta=Answer(content=delta.text), logprobs=logprobs)], kind
                    )
            for number, history in enumerate(await job.histories(request)):
                last = ChatChoice(index=number, delta=Answer(), finish_reason=reasons[number], history=history)
                yield self._chat([last], kind)
            usage, options = job.usage(serving, request), self.body.stream_options
            if options is not None and options.include_usage:
                yield self._chat([], kind, usage)

    def _logprobs(self, tokens: Sequence[int], scores: Sequence[Score | None]) -> ChatLogprobs | None:
        if not self.body.logprobs:
            return None

        def named(token: int, logprob: float) -> dict[str, Any]:
            text = str(tokenizer.decode([token]))
            return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

        with self.job.served.own_tokenizer() as tokenizer:
            content = [
                ContentLogprob(
                    **named(token, score.logprob), top_logprobs=[TokenLogprob(**named(*pair)) for pair in score.top]
                )
                for token, score in zip(tokens, scores, strict=True)
                if score is not None
            ]
        return ChatLogprobs(content=content)

    def _chat(self, choices: list[ChatChoice], kind: Any, usage: Any = None) -> dict[str, Any]:
        about: dict[str, Any] = {"id": self.id, "created": self.created, "model": self.job.served.name, "object": kind}
        full = Chat(**about, choices=choices, usage=usage).model_dump()
        for choice in full["choices"]:
            for name in ("message", "delta", "history"):
                if choice[name] is None:
                    del choice[name]
            if "delta" in choice:
                choice["delta"] = {name: value for name, value in choice["delta"].items() if value is not None}
        return {name: value for name, value in full.items() if value is not None}
