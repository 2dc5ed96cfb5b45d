"""The fingerprint: the same for every copy of a backbone in whatever dtype, another for every other backbone."""

import copy
from typing import Any

import pytest
import torch

from modeling_lle import HistoryBank
from modeling_lle.bank.files import BankError
from modeling_lle.bank.fingerprint import _digest, fingerprint, same_backbone
from tests.factories.language_models import make_language_model
from tests.factories.texts import make_ids, make_texts, make_word_tokenizer

RECURRENCES = ("lstm", "gru", "qrnn")


def trained(model: Any, rate: float = 1e-3) -> Any:
    """The model after one step of training."""
    other = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(other.parameters(), lr=rate)
    other(make_ids(4, 12), labels=make_ids(4, 12)).loss.backward()
    optimizer.step()
    return other


@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_every_copy_is_the_same_backbone(recurrence: str) -> None:
    model = make_language_model(recurrence=recurrence)
    copies = [model]
    for dtypes in ([torch.float16], [torch.bfloat16], [torch.float64], [torch.float16, torch.bfloat16]):
        copies.append(copy.deepcopy(model))
        for dtype in dtypes:
            copies[-1].to(dtype)
    assert all(same_backbone(fingerprint(one), other) for one in copies for other in copies)


@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_another_backbone_is_none_of_them(recurrence: str) -> None:
    model = make_language_model(recurrence=recurrence)
    other, larger = make_language_model(recurrence=recurrence, hidden_size=8), copy.deepcopy(model)
    with torch.no_grad():
        larger.model.embed_tokens.weight *= 1.02
    for different in (trained(model), trained(model).half(), other, larger):
        assert not same_backbone(fingerprint(model), different)
        assert not same_backbone(fingerprint(different), model)


def test_a_bank_serves_its_model_in_every_dtype() -> None:
    """Both ways; rounded twice, as a float16 copy is where it is compared in bfloat16."""
    tokenizer, model = make_word_tokenizer(), make_language_model()
    for encoder, reader in ((model, copy.deepcopy(model).half()), (copy.deepcopy(model).half(), model)):
        bank = HistoryBank.temporary(fingerprint(encoder), encoder.key_size, encoder.config.vocab_size)
        reader.attach_history(bank, tokenizer=tokenizer)
    with pytest.raises(BankError, match="another backbone"):
        trained(model).attach_history(bank)


def test_an_old_fingerprint_is_that_of_its_model_in_float32_and_bfloat16() -> None:
    model = make_language_model()
    old = _digest(model)
    assert len(old) == 64
    bank = HistoryBank.temporary(old, model.key_size, model.config.vocab_size)
    assert same_backbone(old, copy.deepcopy(model).bfloat16())
    assert not same_backbone(old, trained(model))
    model.attach_history(bank, tokenizer=make_word_tokenizer())
    assert bank.add(make_texts(2, 3)) > 0


@pytest.mark.parametrize(
    "given", ["", "synthetic", "projections-1:x", "projections-1:x:!!", "projections-9::", "\ud800"]
)
def test_what_is_no_fingerprint(given: str) -> None:
    assert not same_backbone(given, make_language_model())


def test_weights_that_are_not_finite_or_zero() -> None:
    model = make_language_model()
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    assert same_backbone(fingerprint(model), copy.deepcopy(model).half())
    with torch.no_grad():
        model.model.embed_tokens.weight[0, 0] = torch.nan
    assert not same_backbone(fingerprint(model), model)  # its keys are nothing to compare with
