"""Calibration: the one descent, and which parameters it may change."""

import copy

import pytest
import torch
from torch import Tensor

from modeling_lle import HistoryBank, LLECache
from modeling_lle.history.calibration import fit
from tests.factories.language_models import make_language_model
from tests.factories.texts import WORD_TOKENIZER, make_repetitive_segments, make_texts


def bowl(values: Tensor) -> Tensor:
    return (values - torch.tensor([1.0, -2.0, 3.0])).square().sum()


def test_finds_the_minimum_of_a_bowl() -> None:
    found = fit(bowl, torch.zeros(3), 20)
    torch.testing.assert_close(found.values, torch.tensor([1.0, -2.0, 3.0]), atol=1e-4, rtol=0)
    assert (found.before, found.after) == pytest.approx((14.0, 0.0), abs=1e-6)


def test_what_is_fixed_stays() -> None:
    start = torch.tensor([5.0, 5.0, 5.0])
    found = fit(bowl, start, 20, torch.tensor([False, True, False]))
    torch.testing.assert_close(found.values, torch.tensor([1.0, 5.0, 3.0]), atol=1e-4, rtol=0)
    assert torch.equal(start, torch.full((3,), 5.0))


def test_keeps_the_best_values_of_a_loss_that_gets_worse() -> None:
    found = fit(lambda values: values.abs().sqrt().sum(), torch.tensor([0.01, 4.0]), 3)
    assert found.after <= found.before
    assert float(found.values.abs().sqrt().sum()) == pytest.approx(found.after)


@pytest.mark.parametrize(
    ("fixed", "moved"),
    [
        (["sharpness"], {"stream.recency", "stream.gate", "bank.gate"}),
        (["bank.sharpness", "bank.gate"], {"stream.sharpness", "stream.recency", "stream.gate"}),
        (["gate", "recency"], {"stream.sharpness", "bank.sharpness"}),
    ],
)
def test_calibration_leaves_fixed_parameters(fixed: list[str], moved: set[str]) -> None:
    model = make_language_model(30)
    model.attach_history(HistoryBank.build(model, WORD_TOKENIZER, make_texts(6, 8)))
    before = copy.deepcopy(model.config.history)
    model.calibrate(make_repetitive_segments(), fixed=fixed)
    changed = {
        f"{source}.{name}"
        for source in ("stream", "bank")
        for name in ("sharpness", "recency", "gate")
        if getattr(getattr(before, source), name, None) != getattr(getattr(model.config.history, source), name, None)
    }
    assert changed == moved


def test_a_name_that_no_source_has_is_named() -> None:
    with pytest.raises(ValueError, match=r"'sharpnes' \(did you mean 'sharpness'\?\)"):
        make_language_model(30).calibrate(make_repetitive_segments(1), fixed=["sharpnes"])
    with pytest.raises(ValueError, match=r"bank\.gate"):  # no bank is attached
        make_language_model(30).calibrate(make_repetitive_segments(1), fixed=["bank.gate"])


def test_calibration_goes_on_from_a_text_that_was_read() -> None:
    model, (first, *others) = make_language_model(30), make_repetitive_segments(3)
    cache = LLECache(30)
    model.score(**first, past_key_values=cache)
    due = [model.score(**batch, past_key_values=cache).log_probs for batch in others]
    cache.reset()
    model.score(**first, past_key_values=cache)
    metrics = model.calibrate(others, steps=1, past_key_values=cache)
    assert metrics["before_nats"] == pytest.approx(-float(torch.cat(due, dim=1).mean()), rel=1e-4)
    assert cache.seen_tokens == 60
