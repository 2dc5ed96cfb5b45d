"""Translators with a memory for each call: threads, states of a bank, explanations."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from modeling_lle import Attachment, HistoryBank, LLEForSeq2SeqLM
from tests.factories.pairs import SUBWORD_PAIRS, SUBWORD_PAIRS_TOKENIZER, encode_pairs, pair_rows
from tests.factories.translators import attach_pairs, make_subword_translator, trust_memory

close = torch.testing.assert_close


def texts(ids: torch.Tensor) -> list[str]:
    return SUBWORD_PAIRS_TOKENIZER.batch_decode(ids, skip_special_tokens=True)


def sources(model: LLEForSeq2SeqLM) -> dict[str, torch.Tensor]:
    return {name: value for name, value in encode_pairs().items() if name != "labels"}


def two_memories(model: LLEForSeq2SeqLM) -> list[Attachment]:
    """Two clients of one bank, whose pairs contradict each other; the model trusts them."""
    trust_memory(model)
    bank = HistoryBank.build(model, SUBWORD_PAIRS_TOKENIZER, pair_rows(), namespace="one")
    swapped = [(text, SUBWORD_PAIRS[row - 1][1]) for row, (text, _) in enumerate(SUBWORD_PAIRS)]
    bank.add(pair_rows(swapped), namespace="two")
    return [Attachment(bank, (name,), SUBWORD_PAIRS_TOKENIZER) for name in ("one", "two")]


def test_threads_with_memories_of_their_own_do_not_see_each_other() -> None:
    model = make_subword_translator()
    memories = two_memories(model)

    def translated(number: int) -> tuple[list[str], torch.Tensor]:
        own = memories[number % 2]
        with torch.no_grad():
            logits = model(**encode_pairs(), history=own).logits
        return texts(
            model.generate(**sources(model), history=own, max_new_tokens=20, num_beams=1 + number % 3)
        ), logits

    alone = [translated(number) for number in range(6)]
    assert alone[0][0] == [target for _, target in SUBWORD_PAIRS]
    assert alone[1][0] == [SUBWORD_PAIRS[row - 1][1] for row in range(len(SUBWORD_PAIRS))]
    with ThreadPoolExecutor(4) as pool:
        for number, (found, logits) in enumerate(pool.map(translated, list(range(6)) * 2)):
            assert found == alone[number % 6][0]
            assert torch.equal(logits, alone[number % 6][1])
    assert model.history is None


@torch.no_grad()
def test_a_memory_of_a_call_overrules_the_one_that_is_attached() -> None:
    model = make_subword_translator()
    one, two = two_memories(model)
    model.attach_history(one.bank, "one", SUBWORD_PAIRS_TOKENIZER)
    attached, other = model(**encode_pairs()).logits, model(**encode_pairs(), history=two).logits
    assert torch.equal(model(**encode_pairs(), history=one).logits, attached)
    assert not torch.equal(other, attached)
    source = model.read_source(sources(model)["input_ids"], sources(model)["attention_mask"], history=two)
    assert torch.equal(model(encoder_outputs=source, labels=encode_pairs()["labels"]).logits, other)
    every = model(**encode_pairs(), history=one.bank).logits  # of all namespaces, with the tokenizer that is attached
    assert not torch.equal(every, attached)
    model.detach_history()
    with pytest.raises(ValueError, match=r"give history=Attachment\(bank, tokenizer=tokenizer\)"):
        model(**encode_pairs(), history=one.bank)


@torch.no_grad()
def test_a_translation_is_of_one_state_of_the_memory() -> None:
    model = make_subword_translator()
    (one, _), given = two_memories(model), sources(model)
    pinned = one.pinned()
    before = model(**encode_pairs(), history=pinned).logits
    one.bank.forget(namespace="one")
    gone = model(**encode_pairs(), history=one).logits  # a namespace that is gone has no pairs
    close(gone, model(**encode_pairs(), use_history=False).logits.log_softmax(-1))
    assert model.calibrate([encode_pairs()], steps=1, history=pinned)["predictions"] > 0
    trust_memory(model)
    assert torch.equal(model(**encode_pairs(), history=pinned).logits, before)
    assert texts(model.generate(**given, history=pinned, max_new_tokens=30))[0] == SUBWORD_PAIRS[0][1]


def test_what_generate_read_without_a_memory_goes_on_without() -> None:
    model = make_subword_translator()
    plain = model.generate(**sources(model), max_new_tokens=8)
    (one, _), step = two_memories(model), model.model.decode

    def decode(*args: Any, **kwargs: Any) -> Any:
        model.history = one  # as another thread may do it
        return step(*args, **kwargs)

    model.model.decode = decode  # type: ignore[method-assign]
    assert torch.equal(model.generate(**sources(model), max_new_tokens=8), plain)


@pytest.mark.parametrize("trusted", [False, True])
def test_an_explanation_adds_up_to_the_change_of_each_token(trusted: bool) -> None:
    model = make_subword_translator()
    attach_pairs(trust_memory(model) if trusted else model)
    given = encode_pairs([SUBWORD_PAIRS[3]])
    ids, mask, labels = (given[name] for name in ("input_ids", "attention_mask", "labels"))
    found = model.explain(ids, mask, labels, top=3)
    with torch.no_grad():
        output, base = model(**given, output_history=True), model(**given, use_history=False).logits.softmax(-1)
    assert [item.target for item in found] == labels[0].tolist()
    assert [item.position for item in found] == list(range(len(labels[0])))
    for place, item in enumerate(found):
        assert item.prob == pytest.approx(float(output.logits[0, place, item.target].exp()), rel=1e-4)
        assert item.base_prob == pytest.approx(float(base[0, place, item.target]), rel=1e-4)
        assert item.base_share == pytest.approx(float(output.history.base_share[0, place]), rel=1e-4, abs=1e-7)
        assert item.prob - item.base_prob == pytest.approx(
            item.rest + sum(own.effect for own in item.causes), abs=1e-6
        )
        assert 0 < len(item.causes) <= 3  # none of an entry whose share is rounded to 0
        for cause in item.causes:
            says = float(cause.outcome == item.target)
            assert cause.effect == pytest.approx(cause.share * (says - item.base_prob), abs=1e-6)
            assert (cause.columns["text"], cause.columns["translation"]) in SUBWORD_PAIRS
            assert str(cause.place).startswith("added-1:")
    assert model.explain(ids[0], None, labels[0], top=3) == found
    assert [len(item.causes) for item in model.explain(ids, mask, labels, top=0)] == [0] * len(found)
    generated = model.explain(ids, mask)
    assert [item.target for item in generated] == model.generate(ids, attention_mask=mask)[0, 1:].tolist()
    assert not model.training
    model.detach_history()
    for item in model.explain(ids, mask, labels):
        assert (item.causes, item.base_share, item.rest) == ([], 1.0, 0.0)
    with pytest.raises(ValueError, match=r"one source sentence, \(N,\) or \(1, N\), got \(4, "):
        model.explain(encode_pairs()["input_ids"])


def test_the_padding_of_a_translation_is_not_explained() -> None:
    model, given = attach_pairs(make_subword_translator()), encode_pairs()
    source = model.read_source(given["input_ids"], given["attention_mask"])
    for pair, own in zip(SUBWORD_PAIRS, model.explained(source, given["labels"]), strict=True):
        alone = encode_pairs([pair])
        assert torch.equal(own.targets, alone["labels"][0])
        (expected,) = model.explained(model.read_source(alone["input_ids"]), alone["labels"])
        close(own.mixed, expected.mixed, rtol=1e-4, atol=1e-5)
        assert own.history.bank_shares is not None
        assert own.history.base_share is not None
        close(own.history.bank_shares.sum(-1) + own.history.base_share, torch.ones(len(own.targets)))
