"""Attachments: the bank that a call recalls from, and many of them beside each other on one model."""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import pipeline

from modeling_lle import Attachment, HistoryBank, LLEForCausalLM
from modeling_lle.bank.manifest import BankError
from tests.factories.language_models import make_language_model
from tests.factories.texts import WORD_TOKENIZER, make_ids, make_texts

IDS = make_ids(2, 9)


def make_bank(model: LLEForCausalLM, seed: int, **options: str) -> HistoryBank:
    return HistoryBank.build(model, WORD_TOKENIZER, make_texts(8, 9, seed), **options)


def logits(model: LLEForCausalLM, **given: object) -> Tensor:
    with torch.no_grad():
        return model(IDS, **given).logits


def test_a_call_recalls_from_its_own_bank_and_leaves_the_default() -> None:
    model = make_language_model()
    one, two = make_bank(model, 1), make_bank(model, 2)
    model.attach_history(one)
    expected = {bank: logits(model, history=bank) for bank in (one, two)}
    assert torch.equal(logits(model), expected[one])
    assert not torch.allclose(expected[one], expected[two])
    assert torch.equal(logits(model, history=Attachment(two)), expected[two])
    model.attach_history(two)
    assert torch.equal(logits(model), expected[two])
    model.detach_history()
    assert torch.equal(logits(model, history=one), expected[one])
    assert torch.equal(logits(model, history=one, use_history=False), logits(model, use_history=False))


def test_generation_score_explanation_and_pipeline_take_a_bank() -> None:
    model = make_language_model()
    bank = make_bank(model, 1)
    model.attach_history(bank)
    prompt = "a b c"
    generate = pipeline("text-generation", model=model, tokenizer=WORD_TOKENIZER)
    options = {"max_new_tokens": 6, "do_sample": False, "return_history": True}
    expected = (
        model.generate(IDS, max_new_tokens=5, do_sample=False),
        model.score(IDS[:, :-1], IDS[:, 1:]).log_probs,
        model.explain(IDS[0]),
        generate(prompt, **options),
    )
    model.detach_history()
    own = (
        model.generate(IDS, max_new_tokens=5, do_sample=False, history=bank),
        model.score(IDS[:, :-1], IDS[:, 1:], history=bank).log_probs,
        model.explain(IDS[0], history=bank),
        generate(prompt, history=bank, **options),
    )
    assert torch.equal(own[0], expected[0])
    assert torch.equal(own[1], expected[1])
    assert own[2:] == expected[2:]
    assert any(cause.source == "bank" for item in own[2] for cause in item.causes)


def test_a_namespace_that_is_gone_has_nothing_to_recall() -> None:
    model = make_language_model()
    bank = make_bank(model, 1, namespace="mine")
    bank.add(make_texts(5, 7, seed=3), namespace="other")
    attachment = Attachment(bank, "mine")
    assert attachment.namespaces == ("mine",)
    before = logits(model, history=attachment)
    bank.forget(namespace="mine")
    without = logits(model, history=attachment)
    assert not torch.allclose(without, before)
    torch.testing.assert_close(without, logits(model))
    torch.testing.assert_close(logits(model, history=Attachment(bank, ["nobody"])), without)
    with pytest.raises(BankError, match="nobody"):
        model.attach_history(bank, "nobody")


def test_a_pinned_attachment_keeps_its_state() -> None:
    model = make_language_model()
    bank = make_bank(model, 1)
    pinned = Attachment(bank).pinned()
    before = logits(model, history=pinned)
    ids = [number for document in bank.documents() for number in document.ids]
    bank.forget(ids[: len(ids) // 2])
    assert torch.equal(logits(model, history=pinned), before)
    assert pinned.pinned() is pinned
    assert not torch.allclose(logits(model, history=bank), before)


def test_a_bank_of_another_model_is_refused_in_the_call() -> None:
    bank = make_bank(make_language_model(recurrence="gru"), 1)
    model = make_language_model()
    with pytest.raises(BankError, match="another backbone"):
        logits(model, history=bank)
    with pytest.raises(BankError, match="another backbone"):
        model.generate(IDS, max_new_tokens=2, history=bank)
    with pytest.raises(TypeError, match="give an Attachment, a bank, or None"):
        logits(model, history="my-bank")


def test_stale_keys_are_noticed_for_every_bank_that_a_call_brings() -> None:
    model = make_language_model()
    one, two = make_bank(model, 1), make_bank(model, 2)
    for bank in (one, two):
        logits(model, history=bank)
    with torch.no_grad():
        next(model.model.stack.parameters()).mul_(1.1)
    for bank in (one, two):
        with pytest.raises(BankError, match="the weights have changed"):
            logits(model, history=bank)


def test_a_bank_of_other_outcomes_is_refused_though_its_keys_fit() -> None:
    model = make_language_model()
    bank = make_bank(model, 1)
    labels = HistoryBank.temporary(bank.fingerprint, bank.width, bank.vocab_size, labels=())
    logits(model, history=bank)
    with pytest.raises(BankError, match="holds labels"):
        logits(model, history=labels)


def test_what_is_derived_is_made_once_for_a_state_and_its_namespaces() -> None:
    bank = make_bank(make_language_model(), 1)
    made: list[int] = []

    def make(state: object) -> int:
        made.append(len(made))
        return made[-1]

    assert [Attachment(bank).derived("key", make), Attachment(bank).derived("key", make)] == [0, 0]
    assert Attachment(bank, ["default"]).derived("key", make) == 1
    bank.forget([0])
    assert Attachment(bank).derived("key", make) == 2


def test_threads_with_their_own_attachments_do_not_see_each_other() -> None:
    model = make_language_model()
    banks = [make_bank(model, seed) for seed in range(3)]
    calls: list[Callable[[HistoryBank], Tensor]] = [
        lambda bank: logits(model, history=bank),
        lambda bank: model.generate(IDS, max_new_tokens=4, do_sample=False, history=Attachment(bank)),
    ]
    expected = [[call(bank) for call in calls] for bank in banks]
    wrong: list[str] = []

    def work(number: int) -> None:
        for _ in range(8):
            for call, due in zip(calls, expected[number], strict=True):
                if not torch.equal(call(banks[number]), due):
                    wrong.append(f"bank {number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
