"""`/languages`, `/translate`, `/suggest` and `/{source}/{target}/unit/{text}`: translators, as clients of
LibreTranslate and of tmserver expect them."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials
from pydantic import BaseModel, Field, ValidationError

from ..entries.pairs import Memory
from ..history.attachment import Attachment
from .errors import ServingError, invalid
from .schemas import ReturnHistory, Strict, Top, UseHistory
from .served import Served
from .state import Shared, Tenant, bearer, called, count, done_by, owner, threaded
from .worker import Task, chunks

router = APIRouter(tags=["translators"])
Code = Annotated[str, Field(min_length=1, max_length=35)]
Key = Annotated[str | None, Field(max_length=512, description="The key, if it is not in the header.")]
Body = TypeVar("Body", bound=BaseModel)
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
UNITS = 10  # that are told of a text


class TranslateRequest(Strict):
    """A text, or several, to translate."""

    q: str | list[str]
    source: Code
    target: Code
    format: Literal["text"] = "text"
    alternatives: Annotated[int, Field(ge=0, le=10)] = 0
    api_key: Key = None
    use_history: UseHistory = None
    return_history: ReturnHistory = False
    history_top: Top = 3


class SuggestRequest(Strict):
    """A sentence and its translation, which is taught."""

    q: Annotated[str, Field(min_length=1)]
    s: Annotated[str, Field(min_length=1)]
    source: Code
    target: Code
    api_key: Key = None


class Detected(BaseModel):
    """The language of a text, for the source "auto": that of the translator."""

    confidence: float
    language: str


class Translated(BaseModel):
    """A translation, or several."""

    translatedText: str | list[str]  # noqa: N815
    alternatives: list[str] | list[list[str]] | None = None
    detectedLanguage: Detected | list[Detected] | None = None  # noqa: N815
    history: Any = None


class Suggested(BaseModel):
    """A pair was taught."""

    success: bool


class Language(BaseModel):
    """A language, and those that it is translated to."""

    code: str
    name: str
    targets: list[str]


class TMLanguages(BaseModel):
    """The languages of the memories."""

    sourceLanguages: list[str]  # noqa: N815
    targetLanguages: list[str]  # noqa: N815


class Unit(BaseModel):
    """A pair of the memory, and how like the text its source is, in percent."""

    source: str
    target: str
    quality: float


def _form(model: type[BaseModel]) -> dict[str, Any]:
    schema = {"schema": model.model_json_schema()}
    content = {"application/json": schema, "application/x-www-form-urlencoded": schema}
    return {"requestBody": {"required": True, "content": content}}


def _body(model: type[Body]) -> Callable[..., Any]:
    """A dependency that reads JSON or a form; raises as FastAPI does."""

    async def read(request: Request) -> Body:
        data = await request.body()
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        try:
            if kind == "application/x-www-form-urlencoded":
                try:
                    fields = parse_qs(data.decode(), keep_blank_values=True, max_num_fields=2000)
                except ValueError:
                    raise invalid("the form is not in UTF-8, or has too many fields") from None
                values = {name: own if len(own) > 1 else own[0] for name, own in fields.items()}
                return model.model_validate(values)
            if kind != "application/json":
                raise ServingError(415, "unsupported_media_type", "send JSON: Content-Type: application/json")
            return model.model_validate_json(data)
        except ValidationError as error:
            raise RequestValidationError(error.errors(include_input=False, include_context=False)) from None

    return read


def _tenant(request: Request, given: HTTPAuthorizationCredentials | None, key: str | None) -> str:
    return owner(request, key if given is None else given.credentials)


@router.get("/languages", response_model=list[Language])
async def languages(serving: Shared) -> Any:
    """The languages that can be translated."""
    targets: dict[str, list[str]] = {}
    for served in serving.models.of.values():
        if served.languages is not None:
            targets.setdefault(served.languages[0], []).append(served.languages[1])
    return [Language(code=code, name=code, targets=own) for code, own in targets.items()]


@router.get("/languages/", response_model=TMLanguages, include_in_schema=False)
async def memory_languages(serving: Shared, tenant: Tenant) -> Any:
    """The languages of the memories, as tmserver lists them."""
    pairs = [served.languages for served in serving.models.of.values() if served.languages is not None]
    sources, targets = (list(dict.fromkeys(pair[side] for pair in pairs)) for side in (0, 1))
    return TMLanguages(sourceLanguages=sources, targetLanguages=targets)


@router.post(
    "/translate",
    response_model=Translated,
    response_model_exclude_none=True,
    openapi_extra=_form(TranslateRequest),
)
async def translate(
    body: Annotated[Any, Depends(_body(TranslateRequest))], request: Request, serving: Shared, given: Credentials
) -> Any:
    """Translates a text, or several."""
    tenant = _tenant(request, given, body.api_key)
    served = serving.models.translator(body.source, body.target)
    texts = [body.q] if isinstance(body.q, str) else list(body.q)
    if len(texts) > served.limits.inputs:
        raise invalid(f"at most {served.limits.inputs} texts can be sent at a time: send several requests")
    lengths = await threaded(request, lambda: _lengths(served, texts))
    uses = body.use_history is not False
    attachment = await threaded(request, lambda: served.histories.attachment(tenant)) if uses else None
    run = _Translate(served, attachment, body.alternatives + 1, body.return_history, body.history_top)
    state = None if attachment is None else id(attachment.snapshot())
    key = (state, body.alternatives, body.return_history, body.history_top)
    parts = chunks(texts, served.worker.batch)
    records = await done_by(request, served.worker, *(Task(part, run, key) for part in parts)) if texts else []
    count(request, serving, served, sum(lengths), 0)
    return _translated(body, served, records)


def _lengths(served: Served, texts: list[str]) -> list[int]:
    lengths = [len(served.encode(text)) for text in texts]
    served.check_length(max(lengths, default=0), "a text")
    return lengths


def _translated(body: TranslateRequest, served: Served, records: list[list[dict[str, Any]]]) -> Translated:
    alone = isinstance(body.q, str)

    def shown(values: list[Any]) -> Any:
        return values[0] if alone else values

    found = Translated(translatedText=shown([own[0]["translation_text"] for own in records]))
    if body.alternatives:
        found.alternatives = shown([[other["translation_text"] for other in own[1:]] for own in records])
    if body.source == "auto" and served.languages is not None:
        found.detectedLanguage = shown([Detected(confidence=100.0, language=served.languages[0])] * len(records))
    if body.return_history:
        names = ("base_share", "history", "tokens")
        found.history = shown([{name: own[0][name] for name in names} for own in records])
    return found


class _Translate:
    """Translates texts by one state of a memory, which it keeps alive."""

    def __init__(
        self, served: Served, attachment: Attachment | None, count: int, return_history: bool, top: int
    ) -> None:
        self.served = served
        self.options: dict[str, Any] = {"history": attachment, "batch_size": served.limits.batch}
        if count > 1:
            self.options |= {"num_return_sequences": count, "num_beams": max(count, 4)}
        if return_history:
            self.options |= {"return_history": True, "history_top": top}

    def __call__(self, texts: list[str]) -> list[list[dict[str, Any]]]:
        records: list[Any] = self.served.pipeline(texts, **self.options)
        return [own if isinstance(own, list) else [own] for own in records]


@router.post("/suggest", response_model=Suggested, openapi_extra=_form(SuggestRequest))
async def suggest(
    body: Annotated[Any, Depends(_body(SuggestRequest))], request: Request, serving: Shared, given: Credentials
) -> Any:
    """Teaches a sentence pair to the memory of the tenant; what is answered is on the disk."""
    tenant = _tenant(request, given, body.api_key)
    served = serving.models.translator(body.source, body.target)
    await threaded(request, lambda: _lengths(served, [body.q, body.s]))
    rows, histories = [{"source": body.q, "target": body.s}], served.histories
    await called(request, served.teacher, lambda: histories.teach(tenant, rows, "suggest", "default"))
    return Suggested(success=True)


@router.get("/{source}/{target}/unit/{text:path}", response_model=list[Unit])
async def unit(source: str, target: str, text: str, request: Request, serving: Shared, tenant: Tenant) -> Any:
    """The pairs of the memory that are most like a text, as tmserver gives them."""
    served = serving.models.translator(source, target)
    await threaded(request, lambda: _lengths(served, [text]))

    def look() -> list[Unit]:
        attachment = served.histories.attachment(tenant)
        found = [] if attachment is None else Memory.of(attachment).matches(text, UNITS)
        return [Unit(source=own.text, target=own.translation, quality=round(100 * own.score, 2)) for own in found]

    return await called(request, served.worker, look)
