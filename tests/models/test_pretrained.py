"""What the models share: a bank is recalled only while the weights are those that made its keys."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from modeling_lle import HistoryBank
from modeling_lle.bank.files import BankError
from tests.factories.classifiers import make_taught_classifier
from tests.factories.language_models import make_language_model
from tests.factories.pairs import make_capitals_pairs, make_capitals_tokenizer
from tests.factories.texts import encode_texts, make_ids, make_texts, make_word_tokenizer
from tests.factories.translators import make_translator

Recalling = tuple[Any, Callable[[], Any], Callable[[], torch.Tensor]]


def language_model() -> Recalling:
    model, tokenizer, ids = make_language_model(), make_word_tokenizer(), make_ids(2, 5)
    model.attach_history(HistoryBank.build(model, tokenizer, make_texts(20, 8)))
    return model, lambda: model(ids), lambda: model(ids, labels=ids).loss


def classifier() -> Recalling:
    model, texts, _ = make_taught_classifier()
    batch = encode_texts(*texts[:3])
    return model, lambda: model(**batch), lambda: model(**batch, labels=torch.tensor([0, 1, 2])).loss


def translator() -> Recalling:
    tokenizer = make_capitals_tokenizer()
    model = make_translator(tokenizer)
    model.attach_history(HistoryBank.build(model, tokenizer, make_capitals_pairs(6)), tokenizer=tokenizer)
    ids = torch.tensor([[3, 4, 5]])
    return model, lambda: model.generate(ids, max_new_tokens=2), lambda: model(ids, labels=ids).loss


@pytest.mark.parametrize("make", [language_model, classifier, translator])
@pytest.mark.parametrize("fused", [True, False])  # a fused optimizer leaves the count of torch as it is
def test_stale_keys_are_not_recalled_after_training(make: Callable[[], Recalling], fused: bool) -> None:
    model, recall, loss = make()
    recall()
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=0.01, fused=fused)
    loss().backward()  # what trains may go on: it recalls nothing
    optimizer.step()
    model.eval()
    for _ in range(2):
        with pytest.raises(BankError, match=r"weights have changed.*build the bank again.*detach_history"):
            recall()
    model.detach_history()
    recall()


@pytest.mark.parametrize("make", [language_model, classifier])
def test_the_weights_are_tested_again_only_when_something_was_written(
    make: Callable[[], Recalling], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, recall, _ = make()
    tested = []
    test = HistoryBank.check_model
    monkeypatch.setattr(HistoryBank, "check_model", lambda bank, own: (tested.append(1), test(bank, own)))
    for change, expected in (
        (lambda: None, 0),
        (lambda: model.train().eval(), 1),
        (lambda: model.load_state_dict(model.state_dict()), 1),
        (lambda: model.to("cpu"), 0),
    ):
        tested.clear()
        change()
        recall()
        recall()
        assert len(tested) == expected
    with torch.no_grad():
        next(model.model.parameters()).mul_(1.5)
    with pytest.raises(BankError, match="weights have changed"):
        recall()


def test_the_output_layer_may_change_beside_a_bank() -> None:
    model, recall, _ = classifier()
    with torch.no_grad():
        model.classifier.weight.mul_(2)
    recall()


def test_nothing_is_taught_beside_stale_keys() -> None:
    model, *_ = classifier()
    with torch.no_grad():
        next(model.model.parameters()).mul_(1.5)
    with pytest.raises(BankError, match="weights have changed"):
        model.learn(["a b"], ["label-0"])


def test_a_model_made_in_inference_mode_recalls() -> None:
    with torch.inference_mode():
        _, recall, _ = language_model()
        recall()
