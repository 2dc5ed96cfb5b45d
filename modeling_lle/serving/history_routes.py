"""`/v1/history` and `/v1/explain`: teaching, forgetting, listing, and why a prediction is what it is."""

import itertools
from typing import Annotated, Any

import torch
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field, model_validator

from ..history.explanation import as_values
from ..tasks import CLASSIFICATION, LANGUAGE, TRANSLATION, Task
from .errors import invalid
from .schemas import Strict, Top
from .served import Served
from .state import Shared, Tenant, called, threaded

router = APIRouter(tags=["history"])
PAGE = 1000
Name = Annotated[str | None, Field(min_length=1, max_length=256)]
Value = str | int | float | bool | None
Label = str | float | bool | list[str]
Space = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^/\x00-\x1f]+$")]


class Text(Strict):
    """A text, with columns that are kept with it."""

    text: Annotated[str, Field(min_length=1)]
    columns: Annotated[dict[str, Value], Field(default_factory=dict)]


class Example(Strict):
    """A labelled text."""

    text: Annotated[str, Field(min_length=1)]
    label: Label


class Pair(Strict):
    """A sentence and its translation."""

    source: Annotated[str, Field(min_length=1)]
    target: Annotated[str, Field(min_length=1)]


class Lesson(Strict):
    """What is taught: texts to a language model, examples to a classifier, or pairs to a translator."""

    texts: Annotated[list[str | Text] | None, Field(min_length=1)] = None
    examples: Annotated[list[Example] | None, Field(min_length=1)] = None
    pairs: Annotated[list[Pair] | None, Field(min_length=1)] = None
    source: Annotated[Name, Field(description="By which it can be forgotten.")] = None
    namespace: Space = "default"
    new_labels: Annotated[bool, Field(description="Whether labels may be new.")] = False
    relabel: Annotated[bool, Field(description="Whether known texts get the new label.")] = False

    @model_validator(mode="after")
    def _one_kind(self) -> "Lesson":
        if sum(given is not None for given in (self.texts, self.examples, self.pairs)) != 1:
            raise ValueError("give one of texts, examples and pairs")
        return self

    def rows(self, task: Task) -> list[dict[str, Any]]:
        """The rows as the entry kind of a task takes them; raises a ServingError if they are of another task."""
        kinds: dict[str, tuple[str, Any]] = {
            LANGUAGE.name: ("texts", self.texts),
            CLASSIFICATION.name: ("examples", self.examples),
            TRANSLATION.name: ("pairs", self.pairs),
        }
        name, rows = kinds[task.name]
        if rows is None:
            raise invalid(f"{task.noun} is taught {name}")
        if task == LANGUAGE:
            return [{"text": row} if isinstance(row, str) else {**row.columns, "text": row.text} for row in rows]
        return [row.model_dump() for row in rows]


class Taught(BaseModel):
    """What was added: entries, of classifiers examples; and all that can be recalled now."""

    added: int
    entries: int
    source: str
    namespace: str


class Forgetting(Strict):
    """What is taken back: the entries for which all that is given holds."""

    ids: Annotated[list[int] | None, Field(min_length=1)] = None
    source: Name = None
    namespace: Space | None = None
    texts: Annotated[list[str] | None, Field(min_length=1)] = None
    label: Label | None = None


class Forgotten(BaseModel):
    """Entries that were taken back, and those that can be recalled now."""

    forgotten: int
    entries: int


class Source(BaseModel):
    """What was taught under one name."""

    namespace: str
    source: str
    documents: int
    entries: int


class Row(BaseModel):
    """A text, example or pair that was taught, and the ids of its entries."""

    ids: list[int]
    namespace: str
    source: str
    row: int
    text: str
    label: str | None = None
    translation: str | None = None
    columns: dict[str, Any]


class History(BaseModel):
    """What a tenant has taught a model."""

    entries: int
    sources: list[Source]
    data: list[Row]
    next: Annotated[int | None, Field(description="The offset of the next page; null on the last one.")]


class ExplainRequest(Strict):
    """A text whose prediction is to be explained."""

    input: Annotated[str, Field(min_length=1)]
    history_top: Top = 3


class Explained(BaseModel):
    """For each token of a text, the label, or each token of a translation: what moved it, and by how much."""

    model: str
    history: list[dict[str, Any]]


@router.post("/v1/history/{model}", response_model=Taught)
async def teach(model: str, body: Lesson, request: Request, serving: Shared, tenant: Tenant) -> Any:
    """Teaches a model; what is answered is on the disk."""
    served = serving.models.get(model)
    rows = body.rows(served.task)
    if len(rows) > served.limits.inputs:
        raise invalid(f"at most {served.limits.inputs} rows can be taught at a time: send several requests")
    options = {}
    if served.task == CLASSIFICATION:
        options = {"new_labels": body.new_labels, "relabel": body.relabel}
    elif body.new_labels or body.relabel:
        raise invalid("only classifiers have labels")
    await threaded(request, lambda: _check_rows(served, rows))
    histories = served.histories
    return await called(
        request,
        served.teacher,
        lambda: histories.teach(tenant, rows, body.source, body.namespace, **options),
    )


def _check_rows(served: Served, rows: list[dict[str, Any]]) -> None:
    total = 0
    for row in rows:
        lengths = [len(served.encode(row[side])) for side in ("text", "source", "target") if side in row]
        total += sum(lengths)
        if served.task != LANGUAGE:
            served.check_length(max(lengths), "a text")
    if total > 16 * served.limits.prompt_tokens:
        raise invalid(
            f"at most {16 * served.limits.prompt_tokens:,} tokens can be taught at a time: send several requests"
        )


@router.delete("/v1/history/{model}", response_model=Forgotten)
async def forget(model: str, body: Forgetting, request: Request, serving: Shared, tenant: Tenant) -> Any:
    """Takes back what was taught: from the answer on, every prediction is as if it had never been."""
    served = serving.models.get(model)
    given = body.model_dump()
    return await called(request, served.teacher, lambda: served.histories.forget(tenant, **given))


@router.get("/v1/history/{model}", response_model=History)
async def history(
    model: str,
    request: Request,
    serving: Shared,
    tenant: Tenant,
    limit: Annotated[int, Query(ge=0, le=PAGE)] = 100,
    offset: Annotated[int, Query(ge=0, lt=2**31)] = 0,
    source: Annotated[str | None, Query(max_length=256)] = None,
    namespace: Annotated[str | None, Query(max_length=128)] = None,
    search: Annotated[
        str | None, Query(max_length=1000, description="A part of a text, label or translation.")
    ] = None,
) -> Any:
    """What was taught: its size, and the texts, examples or pairs, the oldest first."""
    served = serving.models.get(model)

    def read() -> History:
        found = served.histories.documents(tenant, source, namespace, search)
        page = list(itertools.islice(found, offset, offset + limit + 1)) if limit else []
        following = offset + limit if len(page) > limit else None
        size = served.histories.size(tenant)
        return History(**size, data=[Row(**row) for row in page[:limit]], next=following)

    return await threaded(request, read)


@router.post("/v1/explain/{model}", response_model=Explained)
async def explain(model: str, body: ExplainRequest, request: Request, serving: Shared, tenant: Tenant) -> Any:
    """Why a prediction is what it is: the entries that moved it, and by exactly how much."""
    served = serving.models.get(model)
    tokens = await threaded(request, lambda: served.encode(body.input))
    served.check_length(len(tokens), "the text")
    if not tokens:
        raise invalid("there is nothing to explain: the text has no token")
    told = await called(request, served.worker, lambda: _explained(served, tenant, tokens, body.history_top))
    return Explained(model=model, history=told)


def _explained(served: Served, tenant: str, tokens: list[int], top: int) -> list[dict[str, Any]]:
    """The explanations, in the thread of the model."""
    attachment, own = served.histories.attachment(tenant), served.model
    options: dict[str, Any] = {"top": top, "history": attachment}
    tokenizer: Any = served.tokenizer
    if served.task == LANGUAGE:  # a text begins after the end of another one
        text = torch.tensor([tokenizer.eos_token_id, *tokens])
        return as_values(served.language_model.explain(text, **options), tokenizer)
    ids = torch.tensor([tokens])
    explained: Any = own
    return as_values(explained.explain(ids, torch.ones_like(ids), **options), tokenizer)
