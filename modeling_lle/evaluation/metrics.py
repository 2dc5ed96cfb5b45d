"""Metrics as `evaluate.Metric` objects that need no Hub: make them directly, where others are loaded by name."""

import math
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value

_LARGEST_EXPONENT = 700.0  # beyond it, a float64 overflows


class LanguageModelMetric(evaluate.Metric):
    """Perplexity per token and per word, and bits per byte, of a text.

    The last two do not depend on the tokenizer, so they compare models with different vocabularies.

    Args:
        nats: Minus the log probability that the model gave to each token, (N,) floats, all at once or in batches.
        words: Number of words that these tokens spell, given to `compute`; optional.
        bytes: Number of bytes of their text in UTF-8, given to `compute`; optional.

    Returns:
        `ppl`, the perplexity per token; `word_ppl`, if `words` is given; `bits_per_byte`, if `bytes` is given.

    Example:
        >>> metric = LanguageModelMetric()
        >>> metric.add_batch(nats=[0.0, 2.0])
        >>> metric.add_batch(nats=[1.0, 1.0])
        >>> {name: round(value, 3) for name, value in metric.compute(words=2, bytes=8).items()}
        {'ppl': 2.718, 'word_ppl': 7.389, 'bits_per_byte': 0.721}
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Perplexity per token and per word, and bits per byte, from the nats of each token.",
            citation="",
            inputs_description=type(self).__doc__,
            features=Features({"nats": Value("float64")}),
            format="numpy",
        )

    def _compute(self, nats: np.ndarray, words: int | None = None, bytes: int | None = None) -> dict[str, Any]:
        if len(nats) == 0:
            raise ValueError("there are no tokens to measure: add some nats first")
        total = float(np.sum(nats, dtype=np.float64))
        if not math.isfinite(total):
            wrong = int(np.flatnonzero(~np.isfinite(nats))[0])
            raise ValueError(f"the nats of token {wrong} are {nats[wrong]}: every token needs a positive probability")
        values = {"ppl": _exp(total / len(nats))}
        if words is not None:
            values["word_ppl"] = _exp(total / _positive(words, "words"))
        if bytes is not None:
            values["bits_per_byte"] = total / math.log(2) / _positive(bytes, "bytes")
        return values


def _exp(nats: float) -> float:
    return math.exp(min(nats, _LARGEST_EXPONENT))


def _positive(count: int, name: str) -> int:
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}")
    return count
