"""`/predict` and `/info`: classifiers, as clients of Text Embeddings Inference expect them."""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from .. import __version__
from ..history.attachment import Attachment
from ..tasks import CLASSIFICATION
from .errors import ServingError, invalid
from .schemas import Model, ReturnHistory, Strict, Top, UseHistory
from .served import Served
from .state import Shared, Tenant, count, done_by, threaded
from .worker import Task, chunks

router = APIRouter(tags=["classifiers"])


class PredictRequest(Strict):
    """A text, or several, to classify."""

    inputs: str | list[str] | list[Annotated[list[str], Field(min_length=1, max_length=1)]]
    raw_scores: bool = False
    truncate: Annotated[bool, Field(description="Not supported: long texts are refused.")] = False
    truncation_direction: str | None = None
    model: Annotated[Model | None, Field(description="The classifier; without it the first one.")] = None
    use_history: UseHistory = None
    return_history: ReturnHistory = False
    history_top: Top = 3


class Prediction(BaseModel):
    """A label and its score."""

    score: float
    label: str


class PredictionWithHistory(BaseModel):
    """The labels of a text, and what moved the most probable one."""

    labels: list[Prediction]
    history: list[dict[str, Any]]


class ClassifierType(BaseModel):
    """The labels of a classifier, those that were taught included."""

    id2label: dict[str, str]
    label2id: dict[str, int]


class ModelType(BaseModel):
    """What a model does."""

    classifier: ClassifierType


class Info(BaseModel):
    """A classifier, and the limits of the server."""

    model_id: str
    model_sha: str | None = None
    model_dtype: str
    model_type: ModelType
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_client_batch_size: int
    auto_truncate: bool = False
    version: str


Predicted = list[Prediction] | list[list[Prediction]] | PredictionWithHistory | list[PredictionWithHistory]


@router.post("/predict", response_model=Predicted)
async def predict(body: PredictRequest, request: Request, serving: Shared, tenant: Tenant) -> Any:
    """The labels of a text with their scores, the highest first; for a list of texts, a list of them."""
    served = serving.models.first(CLASSIFICATION, body.model)
    alone = isinstance(body.inputs, str)
    given: list[Any] = [body.inputs] if isinstance(body.inputs, str) else list(body.inputs)
    texts = [text if isinstance(text, str) else text[0] for text in given]
    if len(texts) > served.limits.inputs:
        raise ServingError(413, "too_many_inputs", f"at most {served.limits.inputs} texts can be sent at a time")
    if body.truncate:
        raise invalid("texts are not truncated: leave out truncate, and shorten the text")
    if not texts:
        return []
    lengths = await threaded(request, lambda: _lengths(served, texts))
    uses = body.use_history is not False
    attachment = await threaded(request, lambda: served.histories.attachment(tenant)) if uses else None
    run = _Predict(served, attachment, body.raw_scores, body.return_history, body.history_top)
    state = None if attachment is None else id(attachment.snapshot())
    key = (state, body.raw_scores, body.return_history, body.history_top)
    results = await done_by(
        request, served.worker, *(Task(part, run, key) for part in chunks(texts, served.worker.batch))
    )
    count(request, serving, served, sum(lengths), 0)
    return results[0] if alone else results


def _lengths(served: Served, texts: list[str]) -> list[int]:
    lengths = [len(served.encode(text)) for text in texts]
    if not all(lengths):
        raise invalid(f"text {lengths.index(0)} is empty: there is nothing to classify")
    served.check_length(max(lengths), "a text")
    return lengths


class _Predict:
    """Classifies texts by one state of a history, which it keeps alive."""

    def __init__(
        self, served: Served, attachment: Attachment | None, raw_scores: bool, return_history: bool, top: int
    ) -> None:
        self.served = served
        self.options: dict[str, Any] = {"top_k": None, "history": attachment, "batch_size": served.limits.batch}
        self.options |= {"function_to_apply": "none"} if raw_scores else {}
        self.options |= {"return_history": True, "history_top": top} if return_history else {}

    def __call__(self, texts: list[str]) -> list[Any]:
        results: list[Any] = self.served.pipeline(texts, **self.options)
        return results


@router.get("/info", response_model=Info)
async def info(serving: Shared, tenant: Tenant, request: Request, model: str | None = None) -> Any:
    """A classifier, with the labels that this tenant has taught."""
    served = serving.models.first(CLASSIFICATION, model)
    attachment = await threaded(request, lambda: served.histories.attachment(tenant))
    classifier: Any = served.model
    names = classifier.label_names(attachment)
    labels = ClassifierType(
        id2label={str(number): name for number, name in enumerate(names)},
        label2id={name: number for number, name in enumerate(names)},
    )
    limits = served.limits
    return Info(
        model_id=served.name,
        model_dtype="float32",
        model_type=ModelType(classifier=labels),
        max_concurrent_requests=limits.queue,
        max_input_length=limits.prompt_tokens,
        max_batch_tokens=limits.prompt_tokens * limits.batch,
        max_client_batch_size=limits.inputs,
        version=__version__,
    )
