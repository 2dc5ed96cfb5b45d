"""What a call of a language model asks for, and what it returns.

Shapes: B batch, T time, D width, V vocabulary, K positions that are kept.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.utils import ModelOutput

from ..bank.protocol import Bank
from ..history.attachment import Attachment
from ..history.cache import LLECache
from ..history.prediction import HistoryOutput


@dataclass
class LLECausalLMOutput(ModelOutput):
    """Output of `LLEForCausalLM`.

    Attributes:
        loss: Scalar float32, nats per target, when labels were given.
        logits: (B, K, V); log P(y | h) float32 with history, the output layer's values without. None when they were
            not asked for.
        past_key_values: The cache, when `use_cache`.
        hidden_states: With `output_hidden_states`, the states of every layer, (B, T, D) each.
        history: With `output_history`, what was recalled.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: LLECache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    history: HistoryOutput | None = None


@dataclass(frozen=True)
class Call:
    """The arguments of `forward` that say how to predict."""

    use_cache: bool | None
    use_history: bool | None
    history: Attachment | Bank | None
    output_history: bool
    return_logits: bool | None
    logits_to_keep: int | Tensor
    generated: int | Tensor
    options: dict[str, Any]
