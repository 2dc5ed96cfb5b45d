"""What the pipelines of texts and of tokens share: labels whose names come with the outputs of the model."""

import copy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

from transformers import Pipeline, PreTrainedModel

from ..bank.protocol import Bank
from ..history.attachment import Attachment

PipelineType = TypeVar("PipelineType", bound=Pipeline)


def history_options(model: PreTrainedModel, asked: bool, history: Attachment | Bank | None) -> dict[str, Any]:
    """The argument of `_forward` that a call's `history` makes.

    Raises:
        TypeError: It is `asked` for a history, and the model has none.
    """
    if (asked or history is not None) and not hasattr(model, "label_names"):
        raise TypeError(f"a history needs an LLE classifier; this is a {type(model).__name__}")
    return {} if history is None else {"history": Attachment.of(history)}


def with_labels(pipeline: PipelineType, names: Sequence[str]) -> PipelineType:
    """A pipeline that calls the labels by these names, whatever the configuration of its model says."""
    own, given = copy.copy(pipeline), pipeline.model.config
    config = SimpleNamespace(id2label=dict(enumerate(names)), num_labels=len(names), problem_type=given.problem_type)
    own.model = SimpleNamespace(config=config)  # type: ignore[assignment]
    return own


def only(value: Any) -> Any:
    """The value of a text, alone or as what a batch was taken apart into."""
    return value[0] if isinstance(value, list) else value
