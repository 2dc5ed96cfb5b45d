import math
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch

from modeling_lle.evaluation import LanguageModelMetric


@pytest.fixture
def metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LanguageModelMetric:
    def no_network(*args: object, **kwargs: object) -> None:
        raise AssertionError("the metric needs no network")

    monkeypatch.setattr("socket.socket.connect", no_network)
    return LanguageModelMetric(cache_dir=str(tmp_path))


@pytest.mark.parametrize("container", [list, np.array, torch.tensor])
def test_values(metric: LanguageModelMetric, container: type) -> None:
    assert isinstance(metric, evaluate.Metric)
    values = metric.compute(nats=container([1.0, 2.0, 3.0]), words=2, bytes=9)
    expected = {"ppl": math.exp(2), "word_ppl": math.exp(3), "bits_per_byte": 6 / math.log(2) / 9}
    assert values == pytest.approx(expected)


def test_batches_and_single_tokens_add_up(metric: LanguageModelMetric) -> None:
    metric.add_batch(nats=[1.0, 2.0])
    metric.add(nats=6.0)
    assert metric.compute() == pytest.approx({"ppl": math.exp(3)})
    assert metric.compute(nats=[1.0]) == pytest.approx({"ppl": math.e})  # the object starts again


def test_combines_with_other_metrics(metric: LanguageModelMetric) -> None:
    assert evaluate.combine([metric]).compute(nats=[2.0]) == pytest.approx({"ppl": math.exp(2)})


def test_huge_nats_do_not_overflow(metric: LanguageModelMetric) -> None:
    assert metric.compute(nats=[900.0, 900.0], words=1)["word_ppl"] < math.inf


def test_documentation_reaches_the_methods(metric: LanguageModelMetric) -> None:
    assert "bits_per_byte" in (metric.compute.__doc__ or "")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"nats": []}, "no tokens"),
        ({"nats": [1.0, math.nan]}, "nats of token 1 are nan"),
        ({"nats": [math.inf]}, "nats of token 0 are inf"),
        ({"nats": [1.0], "words": 0}, "words must be at least 1, got 0"),
        ({"nats": [1.0], "bytes": -1}, "bytes must be at least 1, got -1"),
    ],
)
def test_errors(metric: LanguageModelMetric, inputs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metric.compute(**inputs)
