"""Tiny language models with random weights, large enough to tell right from wrong."""

from typing import Any

import torch
from torch import Tensor

from modeling_lle import LLEConfig, LLEForCausalLM
from tests.factories.texts import VOCAB

# Every value differs from its default, so that none can be left out unnoticed.
STREAM_PARAMETERS = {"sharpness": 5.0, "recency": 0.5, "gate": [-0.7, 0.4, 0.3, -0.2]}
BANK_PARAMETERS = {"neighbours": 4, "sharpness": 6.0, "gate": [-0.5, 0.2, 0.1, -0.3]}


def make_language_model(
    window: int = 7, recurrence: str = "lstm", stack: str = "plain", **values: Any
) -> LLEForCausalLM:
    """A language model in evaluation mode; the same arguments give the same weights. `history` adds sections."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 6, "num_hidden_layers": 2, "initializer_range": 1.0}
    stream = {"window": window, **STREAM_PARAMETERS}
    history = {"stream": stream, "bank": BANK_PARAMETERS, **values.pop("history", {})}
    config = LLEConfig(recurrence=recurrence, stack=stack, history=history, **{**sizes, **values})
    return LLEForCausalLM(config).eval()


def read_segments(model: LLEForCausalLM, *segments: Tensor, **options: Any) -> Tensor:
    """Logits (B, T, V) of a text that is read in segments, one after another, with one cache."""
    cache, logits = None, []
    for ids in segments:
        output = model(ids, past_key_values=cache, use_cache=True, **options)
        cache = output.past_key_values
        logits.append(output.logits)
    return torch.cat(logits, dim=1)
