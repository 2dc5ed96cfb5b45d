"""The output layer, fitted by logistic regression."""

import torch

from modeling_lle.training.output_layer import fit_output_layer
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
