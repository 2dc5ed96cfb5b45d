"""The rule against a plain reference, and the properties that it promises."""

import copy
import math
from itertools import pairwise
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modeling_lle import LLECache, LLEForCausalLM
from modeling_lle.history import rule as rule_module
from modeling_lle.history.rule import (
    Recall,
    base_features,
    base_prediction,
    gate,
    kernel,
    log_age,
    mixed_distribution,
    mixed_log_prob,
    recall_stream,
)
from modeling_lle.history.stream import Stream
from modeling_lle.models import sources as sources_module
from tests.factories.language_models import STREAM_PARAMETERS, make_language_model
from tests.factories.texts import VOCAB, make_ids, make_repetitive_segments

WINDOWS = [0, 1, 2, 7, 100]


@torch.no_grad()
def reference(model: LLEForCausalLM, ids: Tensor, mask: Tensor) -> Tensor:
    """The rule written plainly: P(y | h) at every position, (B, T, V); NaN at padding."""
    numbers, (B, T) = model.config.stream, ids.shape
    states = model.model(ids, mask.long(), use_cache=False).last_hidden_state
    result = torch.full((B, T, VOCAB), math.nan)
    for b in range(B):
        entries: list[tuple[Tensor, int]] = []
        key = None
        for t in range(T):
            if not mask[b, t]:
                continue
            if key is not None:
                entries.append((key, int(ids[b, t])))
            h = key = states[b, t] / states[b, t].norm()
            p = model.lm_head(states[b, t]).softmax(-1)
            usable = entries[max(0, len(entries) - numbers.window) :]
            result[b, t] = p
            if not usable:
                continue
            scores = torch.stack(
                [
                    numbers.sharpness * (h @ k - 1) - numbers.recency * math.log(age)
                    for age, (k, _) in zip(range(len(usable), 0, -1), usable, strict=True)
                ]
            )
            bias, of_mass, of_entropy, of_max = numbers.gate
            entropy, mass = -(p * p.log()).sum(), scores.logsumexp(0)
            share = torch.sigmoid(bias + of_mass * mass + of_entropy * entropy + of_max * p.max().log())
            result[b, t] = (1 - share) * p
            for weight, (_, outcome) in zip(scores.softmax(0), usable, strict=True):
                result[b, t, outcome] += share * weight
    return result


@torch.no_grad()
def predict(model: LLEForCausalLM, ids: Tensor, mask: Tensor | None, cuts: list[int], block: int = 128) -> Tensor:
    """P(y | h) (B, T, V) from segments that end at `cuts`, in blocks of `block` positions."""
    cache, logits = LLECache(model.config.stream.window), []
    with mock.patch.object(sources_module, "BLOCK", block):
        for part in segments(ids.shape[1], cuts):
            own = None if mask is None else mask[:, part].long()
            logits.append(model(ids[:, part], own, past_key_values=cache).logits)
    return torch.cat(logits, dim=1).softmax(-1)


def segments(length: int, cuts: list[int]) -> list[slice]:
    bounds = sorted({0, *(cut for cut in cuts if cut < length), length})
    return [slice(low, high) for low, high in pairwise(bounds)]


def make_mask(kind: str, rows: int, length: int, seed: int) -> Tensor:
    """(rows, length) bool, with at least one True in each row."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(rows, length, dtype=torch.bool)
    starts = torch.randint(length, (rows,), generator=generator)
    if kind == "left":
        mask = torch.arange(length) >= starts[:, None]
    elif kind == "right":
        mask = torch.arange(length) <= starts[:, None]
    elif kind == "holes":
        mask = torch.rand(rows, length, generator=generator) < 0.6
        mask[:, 0] = True
    return mask


situations = {
    "window": st.sampled_from(WINDOWS),
    "block": st.sampled_from([1, 2, 3, 128]),
    "rows": st.integers(1, 3),
    "length": st.integers(1, 12),
    "cuts": st.lists(st.integers(1, 11), max_size=4),
    "seed": st.integers(0, 99),
}
MODEL = make_language_model()


def with_window(window: int) -> LLEForCausalLM:
    MODEL.config.stream.window = window
    return MODEL


@given(**situations, kind=st.sampled_from(["none", "right", "holes"]))
@settings(deadline=None, max_examples=80)
def test_any_split_equals_the_reference(
    window: int, block: int, rows: int, length: int, cuts: list[int], seed: int, kind: str
) -> None:
    model, ids, mask = with_window(window), make_ids(rows, length, seed), make_mask(kind, rows, length, seed)
    got = predict(model, ids, None if kind == "none" else mask, cuts, block)
    torch.testing.assert_close(got.sum(-1), torch.ones(rows, length), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(got[mask], reference(model, ids, mask)[mask], atol=2e-5, rtol=1e-4)


@given(**situations, kind=st.sampled_from(["left", "holes"]))
@settings(deadline=None, max_examples=40)
def test_scores_equal_the_reference(
    window: int, block: int, rows: int, length: int, cuts: list[int], seed: int, kind: str
) -> None:
    model, ids, mask = with_window(window), make_ids(rows, length, seed), make_mask(kind, rows, length, seed)
    targets = make_ids(rows, length, seed + 1).masked_fill(~mask, -100)
    cache, parts = None, []
    with mock.patch.object(sources_module, "BLOCK", block):
        for part in segments(length, cuts):
            parts.append(model.score(ids[:, part], targets[:, part], mask[:, part].long(), cache))
            cache = parts[-1].past_key_values
    got, base, share = (
        torch.cat([getattr(part, name) for part in parts], dim=1)
        for name in ("log_probs", "base_log_probs", "stream_share")
    )
    want = reference(model, ids, mask).gather(-1, targets.clamp(min=0)[..., None])[..., 0].log()
    torch.testing.assert_close(got[mask], want[mask], atol=1e-4, rtol=1e-4)
    assert (got[~mask] == 0).all()
    assert (base[~mask] == 0).all()
    assert ((share >= 0) & (share <= 1)).all()


@given(rows=situations["rows"], length=situations["length"], seed=situations["seed"], block=situations["block"])
@settings(deadline=None, max_examples=20)
def test_left_padding_equals_the_reference(rows: int, length: int, seed: int, block: int) -> None:
    model, ids, mask = with_window(3), make_ids(rows, length, seed), make_mask("left", rows, length, seed)
    got = predict(model, ids, mask, [], block)
    torch.testing.assert_close(got.sum(-1), torch.ones(rows, length), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(got[mask], reference(model, ids, mask)[mask], atol=2e-5, rtol=1e-4)


@given(**situations, position=st.integers(0, 10))
@settings(deadline=None, max_examples=40)
def test_the_target_is_not_seen(
    window: int, block: int, rows: int, length: int, cuts: list[int], seed: int, position: int
) -> None:
    model, ids = with_window(window), make_ids(rows, length, seed)
    other = ids.clone()
    other[:, position + 1 :] = (ids + 1 + make_ids(rows, length, seed + 1, VOCAB - 1))[:, position + 1 :] % VOCAB
    one, two = (predict(model, tokens, None, cuts, block)[:, : position + 1] for tokens in (ids, other))
    torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-6)
    labels = [torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=0) for tokens in (ids, other)]
    for column in ("stream_share", "base_log_probs", "log_probs"):
        one, two = (getattr(model.score(tokens, labels[0]), column)[:, :position] for tokens in (ids, other))
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-6)


@given(**{name: situations[name] for name in ("window", "rows", "length", "seed")})
@settings(deadline=None, max_examples=20)
def test_a_carried_cache_does_not_tell_what_comes(window: int, rows: int, length: int, seed: int) -> None:
    model, ids = with_window(window), make_ids(rows, length + 3, seed)
    with torch.no_grad():
        cache = model(ids[:, :length], use_cache=True).past_key_values
        after, other = ids[:, length:], (ids[:, length:] + 1) % VOCAB
        other[:, 0] = after[:, 0]
        one, two = (model(part, past_key_values=copy.deepcopy(cache)).logits[:, 0] for part in (after, other))
    torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("stack", ["plain", "residual"])
@pytest.mark.parametrize("recurrence", ["lstm", "gru", "qrnn"])
def test_stepwise_equals_the_full_pass(recurrence: str, stack: str) -> None:
    model, ids = make_language_model(5, recurrence, stack), make_ids(2, 20)
    with torch.no_grad():
        full = model(ids).logits
        cache, steps = None, []
        for t in range(ids.shape[1]):
            output = model(ids[:, t : t + 1], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            steps.append(output.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), full, atol=1e-4, rtol=0.0)


def test_a_row_without_entries_is_the_base() -> None:
    model, ids = make_language_model(), make_ids(2, 4)
    mask = torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1]])
    with torch.no_grad():
        output = model(ids, mask, output_history=True)
        plain = model(ids, mask, use_history=False)
    assert output.logits.isfinite().all()
    assert (output.history.base_share[0] == 1).all()
    assert (output.history.base_share[1, 1:] < 1).all()
    torch.testing.assert_close(output.logits[0, 3], plain.logits[0, 3].log_softmax(-1))
    assert (output.history.shares[0] == 0).all()


def test_kernel() -> None:
    similarity, age = torch.tensor([1.0, 0.5, -1.0]), torch.tensor([1, 2, 4])
    got = kernel(similarity, log_age(age), 3.0, 0.5)
    torch.testing.assert_close(got, torch.tensor([0.0, -1.5 - 0.5 * math.log(2), -6.0 - 0.5 * math.log(4)]))
    assert (got <= 0).all()
    torch.testing.assert_close(kernel(similarity, None, 3.0), 3 * (similarity - 1))
    assert kernel(similarity.bfloat16(), log_age(age), 3.0, 0.5).dtype == torch.float32


def test_gate() -> None:
    features = torch.tensor([[[0.5, -1.0]]])
    none, some = torch.full((1, 1), -math.inf), torch.tensor([[-2.0]])
    logit = 0.1 + 0.2 * -2.0 + 0.3 * 0.5 + 0.4 * -1.0
    shares = gate([some], features, [[0.1, 0.2, 0.3, 0.4]]).exp()
    torch.testing.assert_close(shares[0, 0, 1], torch.tensor(logit).sigmoid())
    assert gate([none], features, [[0.1, 0.2, 0.3, 0.4]]).exp().tolist() == [[[1.0, 0.0]]]
    two = gate([some, none], features, [[0.1, 0.2, 0.3, 0.4], [5.0, 1.0, 1.0, 1.0]]).exp()
    torch.testing.assert_close(two[..., :2], shares)
    three = gate([some, some], features, [[0.0] * 4, [math.log(2), 0.0, 0.0, 0.0]]).exp()
    torch.testing.assert_close(three[0, 0], torch.tensor([0.25, 0.25, 0.5]))


@pytest.mark.parametrize("shape", [(1, 1, 5), (2, 3, 64), (1, 2, 1000)])
@pytest.mark.parametrize("numba", [True, False])
def test_base_prediction(shape: tuple[int, ...], numba: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modeling_lle.kernels.available.installed", lambda name: numba)
    logits = 5 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = logits.double().log_softmax(-1)
    log_probs, features = base_prediction(logits.clone())
    torch.testing.assert_close(log_probs.double(), expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(features.double(), base_features(expected), atol=2e-5, rtol=1e-5)


def test_base_prediction_keeps_what_a_gradient_needs() -> None:
    logits = torch.randn(2, 3, 70, requires_grad=True)
    base_prediction(logits)[0].sum().backward()
    assert logits.grad is not None


def test_base_prediction_hands_on_nan() -> None:
    logits = torch.zeros(1, 2, 130)
    logits[0, 1, 77] = torch.nan
    log_probs, features = base_prediction(logits)
    assert log_probs[0, 0].isfinite().all()
    assert log_probs[0, 1].isnan().all()
    assert features[0, 1].isnan().all()


@pytest.mark.parametrize("window", [1, 7, 200])
def test_fused_recall_is_the_kernel_and_the_softmax(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    stream = Stream(window)
    mask = torch.rand(2, 300) > 0.2
    for block in stream.read(torch.randn(2, 300, 8), torch.randint(9, (2, 300)), mask, 64):
        fused = recall_stream(block, 9.0, 0.4)
        scores = kernel(block.similarity(), log_age(block.age), 9.0, 0.4)
        plain = Recall.from_scores(scores, block.valid, block.outcomes)
        torch.testing.assert_close(fused.weights, plain.weights, atol=2e-6, rtol=2e-5)
        torch.testing.assert_close(fused.mass, plain.mass, atol=1e-5, rtol=1e-5)


def test_base_features() -> None:
    entropy, highest = base_features(torch.tensor([0.5, 0.25, 0.25]).log())
    assert float(entropy) == pytest.approx(1.5 * math.log(2))
    assert float(highest) == pytest.approx(-math.log(2))


def test_recall_of_nothing() -> None:
    empty = Recall.from_scores(torch.zeros(2, 3, 0), torch.zeros(2, 3, 0, dtype=torch.bool), torch.zeros(2, 0).long())
    assert (empty.mass == -math.inf).all()
    assert (empty.probability(torch.zeros(2, 3).long()) == 0).all()
    unusable = Recall.from_scores(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4).bool(), torch.zeros(2, 4).long())
    assert (unusable.weights == 0).all()


def mixture(numbers: Tensor, similarity: Tensor, age: Tensor, base: Tensor, outcomes: Tensor) -> Tensor:
    """log P of the targets 0 and of all outcomes by the functions of the rule."""
    valid = torch.ones(similarity.shape, dtype=torch.bool)
    recall = Recall.from_scores(kernel(similarity, log_age(age), numbers[0], numbers[1]), valid, outcomes)
    shares = gate([recall.mass], base_features(base), [numbers[2:]])
    targets = torch.zeros(base.shape[:2], dtype=torch.long)
    one = mixed_log_prob(base[..., 0], [recall.probability(targets)], shares)
    return torch.cat([one[..., None], mixed_distribution(base.clone(), [recall], shares)], dim=-1)


def test_gradients_of_the_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(2, 3, 5, generator=generator).log_softmax(-1)
    similarity, age = torch.rand(2, 3, 4, generator=generator), torch.arange(1, 5).expand(2, 3, 4)
    outcomes = make_ids(2, 4, vocab=5)
    numbers = torch.tensor([4.0, 0.3, -0.5, 0.2, 0.1, -0.1], requires_grad=True)
    values = mixture(numbers, similarity, age, base, outcomes)
    torch.testing.assert_close(values[..., 0], values[..., 1])
    torch.testing.assert_close(values[..., 1:].exp().sum(-1), torch.ones(2, 3))
    (gradient,) = torch.autograd.grad(values[..., 0].sum(), numbers)
    step = 1e-2
    for index in range(6):
        change = torch.zeros(6)
        change[index] = step
        with torch.no_grad():
            up, down = (mixture(numbers + s * change, similarity, age, base, outcomes)[..., 0].sum() for s in (1, -1))
        assert float(gradient[index]) == pytest.approx(float(up - down) / (2 * step), abs=2e-3)


def test_few_recalled_outcomes_are_mixed_in_as_many_are(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(2, 3, 90, generator=generator).mul(5).log_softmax(-1)
    recalls = []
    for entries in (4, 6):
        scores = torch.randn(2, 3, entries, generator=generator)
        valid = torch.rand(2, 3, entries, generator=generator) > 0.3
        valid[0, 0] = False  # a position that has none
        recalls.append(Recall.from_scores(scores, valid, torch.randint(5, (2, entries), generator=generator)))
    shares = gate([recall.mass for recall in recalls], base_features(base), [[-0.5, 0.2, 0.1, -0.1]] * 2)
    found = mixed_distribution(base.clone(), recalls, shares)
    monkeypatch.setattr(rule_module, "FEW", math.inf)
    torch.testing.assert_close(found, mixed_distribution(base.clone(), recalls, shares), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2, 3))


def perplexity(model: LLEForCausalLM, batches: list[dict[str, Tensor]], column: str = "log_probs") -> float:
    cache, nats = LLECache(model.config.stream.window), []
    for batch in batches:
        output = model.score(**batch, past_key_values=cache)
        nats.append(getattr(output, column))
    return math.exp(-float(torch.cat(nats, dim=1).mean()))


def test_calibration_improves_what_score_measures() -> None:
    model, batches = make_language_model(30), make_repetitive_segments()
    before = perplexity(model, batches)
    metrics = model.calibrate(batches)
    assert metrics["predictions"] == 240
    found = {side: math.exp(metrics[f"{side}_nats"]) for side in ("base", "before", "after")}
    assert found["base"] == pytest.approx(perplexity(model, batches, "base_log_probs"), rel=1e-4)
    assert found["before"] == pytest.approx(before, rel=1e-4)
    assert found["after"] == pytest.approx(perplexity(model, batches), rel=1e-4)
    assert found["after"] < 0.9 * before
    numbers = model.config.stream
    assert numbers.sharpness != STREAM_PARAMETERS["sharpness"]
    assert numbers.recency != STREAM_PARAMETERS["recency"]
    assert all(isinstance(number, float) for number in numbers.gate)
    best = found["after"]
    for factor in (0.9, 1.1):
        model.config.stream.sharpness *= factor
        assert perplexity(model, batches) > 0.9995 * best
        model.config.stream.sharpness /= factor


def test_uncalibrated_defaults_help() -> None:
    model, batches = make_language_model(30), make_repetitive_segments()
    model.config.history = None
    assert perplexity(model, batches) < 0.95 * perplexity(model, batches, "base_log_probs")


def test_calibration_is_stored(tmp_path: Any) -> None:
    model = make_language_model(30)
    model.calibrate(make_repetitive_segments())
    model.save_pretrained(tmp_path)
    assert LLEForCausalLM.from_pretrained(tmp_path).config.stream == model.config.stream


def test_calibration_on_a_part_of_the_text_is_repeatable() -> None:
    numbers = []
    for _ in range(2):
        model = make_language_model(30)
        assert model.calibrate(make_repetitive_segments(), max_predictions=50)["predictions"] <= 70
        numbers.append(model.config.stream)
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("training", [True, False])
def test_calibration_leaves_the_mode(training: bool) -> None:
    model = make_language_model(30, hidden_dropout=0.5).train(training)
    model.calibrate(make_repetitive_segments(2), steps=2)
    assert model.training == training
    assert model.model.training == training
    with pytest.raises(KeyError):
        model.calibrate([{"input_ids": make_ids(1, 3)}])
    assert model.training == training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("batches", [[], [{"input_ids": make_ids(1, 1), "shift_labels": torch.tensor([[-100]])}]])
def test_calibration_without_text(batches: list[dict[str, Tensor]]) -> None:
    with pytest.raises(ValueError, match="the batches hold none"):
        make_language_model().calibrate(batches)
