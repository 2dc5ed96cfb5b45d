"""The peers that LLE is measured against are distributions, causal, and what their papers say."""

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("faiss")

from modeling_lle import LLECache

pytest.importorskip("numba")
from scripts.benchmark.peers import (
    Datastore,
    DynamicEvaluation,
    NearestNeighbours,
    NeuralCache,
    mixture,
    read,
    root_mean_squares,
)
from scripts.benchmark.peers import dynamic_evaluation as dynamic
from tests.factories.language_models import make_language_model
from tests.factories.texts import VOCAB, make_ids

TRAIN = make_ids(1, 700, seed=5)[0].numpy()
THETA, SHARE, WINDOW, NEIGHBOURS, TEMPERATURE = 0.7, 0.3, 9, 20, 0.8
RATES = {"sgd": (0.5, 0.05), "rms": (0.002, 0.1)}


def text(length: int, seed: int = 1) -> np.ndarray:
    return make_ids(1, length, seed)[0].numpy()


@functools.cache
def means() -> Any:
    """What the training text says of the gradients of `make_model()`."""
    return root_mean_squares(make_language_model(), TRAIN, 2)


@functools.cache
def datastore() -> Datastore:
    """The training text as `make_model()` encodes it."""
    return Datastore(make_language_model(), TRAIN, NEIGHBOURS)


def make_dynamic(model: Any, kind: str) -> DynamicEvaluation:
    return DynamicEvaluation(model, *RATES[kind], root_mean_squares(model, TRAIN, 2) if kind == "rms" else None)


def make_cache(window: int = WINDOW) -> NeuralCache:
    return NeuralCache(6, window, THETA, SHARE)


METHODS: dict[str, Callable[[Any, np.ndarray], Any]] = {
    "base": lambda model, ids: (segment.base for segment in read(model, ids)),
    "cache": lambda model, ids: make_cache().read(read(model, ids)),
    "neighbours": lambda model, ids: NearestNeighbours(datastore(), TEMPERATURE, SHARE).read(read(model, ids)),
    "sgd": lambda model, ids: (segment.base for segment in make_dynamic(model, "sgd").read(ids)),
    "rms": lambda model, ids: (segment.base for segment in DynamicEvaluation(model, *RATES["rms"], means()).read(ids)),
    "rms + cache": lambda model, ids: make_cache().read(
        mixture.joined(DynamicEvaluation(model, *RATES["rms"], means()).read(ids), 12)
    ),
}


def log_probs(method: str, model: Any, ids: np.ndarray) -> Tensor:
    return torch.cat(list(METHODS[method](model, ids)))


@pytest.fixture(params=["whole", "short"])
def segments(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text is read at once, or in segments of four."""
    if request.param == "short":
        monkeypatch.setattr("scripts.benchmark.inputs.SEGMENT", 4)


@pytest.mark.usefixtures("segments")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("length", [2, 3, 7, 30])
def test_sums_to_one(method: str, length: int) -> None:
    model, ids = make_language_model(), text(length)
    total = 0.0
    for token in range(VOCAB):
        ids[-1] = token
        total += float(log_probs(method, model, ids)[-1].exp())
    assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.usefixtures("segments")
@pytest.mark.parametrize("method", METHODS)
def test_sees_only_what_came_before(method: str) -> None:
    model, ids = make_language_model(), text(30)
    whole = log_probs(method, model, ids)
    assert len(whole) == 29
    for first in (5, 6, 17):
        other = np.concatenate([ids[:first], text(30 - first, seed=9)])
        changed = log_probs(method, model, other)
        torch.testing.assert_close(changed[: first - 1], whole[: first - 1], atol=1e-6, rtol=0)
        assert not torch.allclose(changed, whole)


def states_and_base(model: Any, ids: np.ndarray) -> tuple[Tensor, Tensor]:
    """States (N, D) and log p (N, V) of a text, read at once."""
    with torch.no_grad():
        tokens = torch.from_numpy(ids)[None]
        states = model.model(tokens, use_cache=False).last_hidden_state[0]
        return states, model.lm_head(states).log_softmax(-1)


@pytest.mark.usefixtures("segments")
@pytest.mark.parametrize("window", [1, 5, 100])
def test_neural_cache_is_the_papers(window: int) -> None:
    model, ids = make_language_model(), text(25)
    states, base = states_and_base(model, ids)
    expected = []
    for t in range(24):
        cached = torch.zeros(VOCAB)
        for i in range(max(0, t - window), t):
            cached[ids[i + 1]] += math.exp(THETA * float(states[t] @ states[i]))
        p = base[t].exp()
        mixed = (1 - SHARE) * p + SHARE * cached / cached.sum() if t else p
        expected.append(float(mixed[ids[t + 1]].log()))
    cache = make_cache(window)
    measured = torch.cat(list(cache.read(read(model, ids))))
    torch.testing.assert_close(measured, torch.tensor(expected), atol=1e-5, rtol=0)
    assert cache.bytes == min(window, 24) * (6 * 4 + 8)


def test_nearest_neighbours_are_the_papers() -> None:
    model, ids = make_language_model(), text(25)
    keys = states_and_base(model, TRAIN)[0][:-1].half().float()
    states, base = states_and_base(model, ids)
    expected = []
    for t in range(24):
        distance = (keys - states[t]).square().sum(1)
        nearest = distance.topk(NEIGHBOURS, largest=False).indices
        weights = (-distance[nearest] / TEMPERATURE).softmax(0)
        recalled = torch.zeros(VOCAB).index_add_(0, torch.from_numpy(TRAIN)[nearest + 1], weights)
        expected.append(float(((1 - SHARE) * base[t].exp() + SHARE * recalled)[ids[t + 1]].log()))
    torch.testing.assert_close(log_probs("neighbours", model, ids), torch.tensor(expected), atol=2e-3, rtol=0)


def plain_dynamic_evaluation(model: Any, ids: np.ndarray, rate: float, decay: float, rms: list[Tensor] | None) -> Any:
    """As the authors' code does it: whole gradients by `backward`, and one weight after the other."""
    model, trained = copy.deepcopy(model), [weight.detach().clone() for weight in model.parameters()]
    cache, tokens, result = LLECache(), torch.from_numpy(ids), []
    mean = None if rms is None else sum(part.mean() for part in rms) / len(rms)
    for start in range(0, len(ids) - 1, 5):
        read, targets = tokens[start : start + 5][: len(ids) - 1 - start], tokens[start + 1 : start + 6]
        logits = model(read[None], past_key_values=cache.detach(), use_history=False).logits[0]
        nats = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        result.append(-nats.detach())
        model.zero_grad()
        nats.mean().backward()
        with torch.no_grad():
            for place, (weight, first) in enumerate(zip(model.parameters(), trained, strict=True)):
                if rms is None:
                    weight += decay * (first - weight) - rate * weight.grad
                else:
                    pull = (rms[place] / mean).clamp(max=1 / decay)
                    weight += decay * pull * (first - weight) - rate * weight.grad / (rms[place] + 2e-5)
    return torch.cat(result), model


@pytest.mark.parametrize("kind", RATES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stack": "residual", "intermediate_size": 8},
        {"recurrence": "qrnn"},
        {"recurrence": "gru", "tie_word_embeddings": False},
    ],
)
def test_dynamic_evaluation_is_the_papers(kind: str, options: dict[str, Any]) -> None:
    model, ids = make_language_model(**options), text(33)
    before = copy.deepcopy(model.state_dict())
    peer = make_dynamic(model, kind)
    measured = torch.cat([segment.base for segment in peer.read(ids)])
    expected, changed = plain_dynamic_evaluation(model, ids, *RATES[kind], peer.rms)
    torch.testing.assert_close(measured, expected, atol=1e-4, rtol=1e-4)
    for name, weight in peer.model.state_dict().items():
        torch.testing.assert_close(weight, changed.state_dict()[name], atol=1e-4, rtol=1e-3)
        assert not torch.equal(weight, before[name])
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert not torch.allclose(measured, log_probs("base", model, ids), atol=0.01)


@pytest.mark.parametrize("kind", RATES)
def test_without_a_rate_nothing_changes(kind: str) -> None:
    model, ids = make_language_model(), text(33)
    peer = DynamicEvaluation(model, 0.0, 0.3, make_dynamic(model, kind).rms)
    measured = torch.cat([segment.base for segment in peer.read(ids)])
    torch.testing.assert_close(measured, log_probs("base", model, ids), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", RATES)
def test_decay_pulls_back_to_the_trained_weights(kind: str) -> None:
    model = make_language_model()
    peer = DynamicEvaluation(model, 0.0, 0.25, make_dynamic(model, kind).rms)
    with torch.no_grad():
        for weight in peer.model.parameters():
            weight += 1
    consumed = sum(1 for _ in peer.read(text(16)))
    mean = 1.0 if peer.rms is None else sum(float(part.mean()) for part in peer.rms) / len(peer.rms)
    for place, (weight, trained) in enumerate(zip(peer.model.parameters(), model.parameters(), strict=True)):
        pull = torch.full_like(weight, 0.25) if peer.rms is None else (0.25 * peer.rms[place] / mean).clamp(max=1)
        torch.testing.assert_close(weight - trained, (1 - pull) ** consumed, atol=1e-5, rtol=0)


def test_root_mean_squares_are_of_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic, "ROWS", 3)
    model, ids = make_language_model(), text(3 * 20 + 1)
    measured = root_mean_squares(model, ids, batches=2)
    cache, squares = LLECache(), [torch.zeros_like(weight) for weight in model.parameters()]
    rows, targets = (torch.from_numpy(part).view(3, 20) for part in (ids[:-1], ids[1:]))
    for start in (0, 5):
        part = slice(start, start + 5)
        model.zero_grad()
        output = model(rows[:, part], shift_labels=targets[:, part], past_key_values=cache.detach(), use_history=False)
        output.loss.backward()
        for square, weight in zip(squares, model.parameters(), strict=True):
            square += weight.grad.square() / 2
    for one, other in zip(measured, squares, strict=True):
        torch.testing.assert_close(one, other.sqrt(), atol=1e-5, rtol=1e-4)


def test_tuning_finds_what_is_best() -> None:
    ids = np.tile(text(12), 12)  # repeats itself, so that there is something to recall
    model = make_language_model()
    plain = float(log_probs("base", model, ids).mean())
    cache = NeuralCache.tuned(read(model, ids), windows=(3, 30))
    assert cache.window == 30
    assert not len(cache.keys)
    best = float(torch.cat(list(cache.read(read(model, ids)))).mean())
    assert best > plain + 0.5
    for theta, share in ((cache.theta * 2, cache.share), (cache.theta, cache.share - 0.1)):
        other = NeuralCache(6, cache.window, theta, share)
        assert float(torch.cat(list(other.read(read(model, ids)))).mean()) < best
    peer = NearestNeighbours.tuned(Datastore(model, np.tile(text(12), 60), NEIGHBOURS), read(model, ids))
    assert float(torch.cat(list(peer.read(read(model, ids)))).mean()) > plain + 0.5


@pytest.mark.slow
def test_rates_are_searched_until_no_neighbour_is_better() -> None:
    ids, model = np.tile(text(12), 6), make_language_model()
    peer, segments = DynamicEvaluation.tuned(model, ids, most=100)
    found = float(torch.cat([segment.base for segment in segments]).mean())
    for rate, decay in ((1.5, 1), (1 / 1.5, 1), (1, 1.5), (1, 1 / 1.5)):
        other = DynamicEvaluation(model, peer.rate * rate, peer.decay * decay)
        assert float(torch.cat([segment.base for segment in other.read(ids)]).mean()) <= found + dynamic.TOLERANCE
    start, _ = DynamicEvaluation.tuned(model, ids, most=1)
    assert (start.rate, start.decay) == dynamic.BEGINNING[0]
    assert (peer.rate, peer.decay) != dynamic.BEGINNING[0]
