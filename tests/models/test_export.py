"""Compilers and exporters: what they trace gives what the model gives; what cannot be traced is refused by name."""

from typing import Any
from unittest import mock

import pytest
import torch
from torch.export import Dim, export

from modeling_lle import HistoryBank
from tests.factories.classifiers import make_classifier, make_taught_classifier
from tests.factories.language_models import make_language_model
from tests.factories.texts import make_ids, make_word_tokenizer

RECURRENCES = ["lstm", "gru", "qrnn"]
every_recurrence = pytest.mark.parametrize("recurrence", RECURRENCES)
IDS = make_ids(2, 6)
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
PLAIN = {"use_cache": False, "use_history": False}


def close(got: Any, want: Any) -> None:
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_a_language_model_with_a_stream_exports_with_a_mask_and_for_any_batch_and_length() -> None:
    model = make_language_model(7)
    free = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    shapes = {"input_ids": free, "attention_mask": free, **dict.fromkeys(PLAIN)}
    exported = export(model, (IDS, MASK), PLAIN, dynamic_shapes=shapes).module()
    for ids, mask in ((IDS, MASK), (make_ids(3, 9), torch.ones(3, 9, dtype=torch.long))):
        close(exported(ids, mask, **PLAIN).logits[mask.bool()], model(ids, mask, **PLAIN).logits[mask.bool()])


@pytest.mark.slow
@every_recurrence
@torch.no_grad()
def test_every_model_exports_with_a_mask_and_for_any_batch_and_length(recurrence: str) -> None:
    free = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    shapes = {"input_ids": free, "attention_mask": free}
    for model, given in (
        (make_language_model(0, recurrence, "residual"), PLAIN),
        (make_classifier(recurrence=recurrence, classifier={"pooling": ["last", "mean", "max", "attention"]}), {}),
        (make_classifier(of_tokens=True, recurrence=recurrence, classifier={"members": 2}), {}),
    ):
        exported = export(model, (IDS, MASK), given, dynamic_shapes={**shapes, **dict.fromkeys(given)}).module()
        for ids, mask in ((IDS, MASK), (make_ids(3, 9), torch.ones(3, 9, dtype=torch.long))):
            got, want = exported(ids, mask, **given).logits, model(ids, mask, **given).logits
            close(*((got, want) if got.dim() == 2 else (got[mask.bool()], want[mask.bool()])))


@pytest.mark.parametrize("traced", [False, pytest.param(True, marks=pytest.mark.slow)])
@torch.no_grad()
def test_what_cannot_be_exported_is_refused_by_name(traced: bool) -> None:
    bank = HistoryBank.build(make_language_model(0), make_word_tokenizer(), ["a b c d"])
    with_bank = make_language_model(0)
    with_bank.attach_history(bank)
    taught, _, _ = make_taught_classifier()
    for model, given, wrong in (
        (make_language_model(7), {"use_cache": False}, "what a history recalls: export with use_history=False"),
        (with_bank, {"use_cache": False}, "what a history recalls: export with use_history=False"),
        (make_language_model(0), {}, "an LLECache: export with use_cache=False"),
        (taught, {}, "what a bank recalls: export with use_history=False"),
    ):
        exporting = mock.patch.object(torch.compiler, "is_exporting", return_value=True)
        with pytest.raises(ValueError, match=f"torch.export cannot trace {wrong}"), exporting:
            export(model, (IDS,), given) if traced else model(IDS, **given)


@pytest.mark.slow
@every_recurrence
def test_one_graph_trains_and_predicts(recurrence: str) -> None:
    torch.compiler.reset()
    model = make_language_model(0, recurrence, "residual")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        got = compiled(IDS, attention_mask=MASK, **PLAIN).logits
        close(got[MASK.bool()], model(IDS, attention_mask=MASK, **PLAIN).logits[MASK.bool()])
    model.train()
    found, want = (read(IDS, attention_mask=MASK, labels=IDS, **PLAIN).loss for read in (compiled, model))
    close(found, want)
    parameters = list(model.parameters())
    close(torch.autograd.grad(found, parameters), torch.autograd.grad(want, parameters))


@pytest.mark.slow
def test_one_graph_trains_with_every_dropout() -> None:
    torch.compiler.reset()
    kinds = ("embedding", "token", "input", "hidden", "output", "weight")
    model = make_language_model(0, **{f"{kind}_dropout": 0.3 for kind in kinds}).train()
    loss = torch.compile(model, fullgraph=True, backend="aot_eager")(IDS, labels=IDS, **PLAIN).loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
