"""The output layer, fitted by logistic regression, and its temperature."""

import pytest
import torch

from modeling_lle.training.output_layer import fit_output_layer, fit_scale, scale_output_layer
from tests.factories.classifiers import make_classifier
from tests.factories.texts import encode_texts, make_texts

PENALTY = 0.1


def test_the_output_layer_is_at_the_minimum_and_the_states_are_as_before() -> None:
    model = make_classifier(classifier={"members": 2}, output_dropout=0.5).train()
    texts = list(dict.fromkeys(make_texts(20, 5, seed=3)))
    batch = {**encode_texts(*texts), "labels": torch.arange(len(texts)) % 3}
    before = model.pooled(batch["input_ids"], batch["attention_mask"]).detach()
    fit_output_layer(model, [{name: value[:9] for name, value in batch.items()}], PENALTY)
    fit_output_layer(
        model, [{name: value[rows] for name, value in batch.items()} for rows in (slice(9), slice(9, None))], PENALTY
    )
    assert model.training
    states = model.pooled(batch["input_ids"], batch["attention_mask"]).detach()
    torch.testing.assert_close(states, before)
    x = states / 2  # of two members
    norm = x.norm(dim=1).square().mean().sqrt()
    weight = (model.classifier.weight.detach() * norm).requires_grad_()
    bias = model.classifier.bias.detach().clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(x / norm @ weight.T + bias, batch["labels"], reduction="sum")
    (loss + PENALTY / 2 * weight.square().sum()).backward()
    assert weight.grad.abs().max() < 1e-2
    assert bias.grad.abs().max() < 1e-2
    torch.testing.assert_close(model.eval()(**batch, use_history=False).loss * len(texts), loss.detach())


@pytest.mark.parametrize("before", [0.2, 5.0])
def test_the_scale_is_the_best_one_whatever_it_was_before(before: float) -> None:
    model = make_classifier().train()
    texts = list(dict.fromkeys(make_texts(20, 5, seed=3)))
    given = encode_texts(*texts)
    with torch.no_grad():
        said = model.eval()(**given, use_history=False).logits
        wrong = torch.arange(len(texts)) % 4 == 0  # so that the best scale is finite
        batch = {**given, "labels": torch.where(wrong, (said.argmax(-1) + 1) % 3, said.argmax(-1))}
        scale_output_layer(model.train(), before)
        scale = fit_scale(model, [batch])
        assert model.training
        losses = {}
        for factor in (0.9, 1.0, 1.1):
            scale_output_layer(model, scale * factor)
            losses[factor] = float(model.eval()(**batch, use_history=False).loss)
            scale_output_layer(model, 1 / (scale * factor))
    assert min(losses, key=lambda factor: losses[factor]) == 1.0
    found = torch.nn.functional.cross_entropy(said * before * scale, batch["labels"])
    assert losses[1.0] == pytest.approx(float(found), abs=1e-5)


def test_the_scale_is_within_bounds_where_all_texts_are_right() -> None:
    model = make_classifier()
    given = encode_texts("a b c", "d e")
    labels = model(**given, use_history=False).logits.argmax(-1)
    assert 1 < fit_scale(model, [{**given, "labels": labels}]) <= 21
