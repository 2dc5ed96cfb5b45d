"""Exact matches in a bank: what a model with them predicts, in segments, steps and batches, and after forgetting."""

from typing import Any

import pytest
import torch

from modeling_lle import Attachment, HistoryBank, LLECache, LLEForCausalLM
from modeling_lle.bank import suffixes
from modeling_lle.bank.base import BaseBank
from modeling_lle.history.explanation import as_values
from tests.bank.memory_bank import MemoryBank
from tests.factories.language_models import make_language_model, read_segments
from tests.factories.texts import WORD_TOKENIZER, make_ids, make_repetitive_segments, make_texts

NUMBERS = {"longest": 4, "neighbours": 12, "sharpness": 7.0, "gate": [0.3, 0.4, 0.1, -0.2]}
IDS = make_ids(2, 30)


def make_model(window: int = 7, **history: Any) -> LLEForCausalLM:
    return make_language_model(window, history={"bank_matches": NUMBERS, **history})


def make_bank(model: LLEForCausalLM, seed: int = 1, **options: Any) -> HistoryBank:
    return HistoryBank.build(model, WORD_TOKENIZER, make_texts(12, 14, seed), **options)


@pytest.mark.parametrize("window", [0, 7])
@torch.no_grad()
def test_segments_steps_and_padded_batches_predict_the_same(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(window, matches={"window": 20 * window})
    bank = make_bank(model)
    whole = read_segments(model, IDS, history=bank)
    torch.testing.assert_close(whole.exp().sum(-1), torch.ones(2, 30))
    torch.testing.assert_close(read_segments(model, *IDS.split([3, 17, 10], dim=1), history=bank), whole)
    torch.testing.assert_close(read_segments(model, *IDS.split(1, dim=1), history=bank), whole)
    changed = IDS.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % 11
    torch.testing.assert_close(read_segments(model, changed, history=bank)[:, :20], whole[:, :20])
    for left in (True, False):
        padding = torch.zeros(2, 9, dtype=torch.long)
        ids = torch.cat([padding, IDS] if left else [IDS, padding], dim=1)
        real = torch.arange(39) >= 9 if left else torch.arange(39) < 30
        logits = model(ids, attention_mask=real.long().expand(2, -1), history=bank).logits
        torch.testing.assert_close(logits[:, real], whole)
    monkeypatch.setattr(suffixes, "takes_numba", lambda tensor: False)
    torch.testing.assert_close(read_segments(model, IDS, history=bank), whole)
    model.config.bank_matches.longest = 0
    assert (whole - read_segments(model, IDS, history=bank)).abs().max() > 0.1


@torch.no_grad()
def test_shares_and_scores_tell_the_mixture_apart() -> None:
    model, bank = make_model(), make_bank(make_model())
    output = model(IDS, history=bank, output_history=True)
    history = output.history
    parts = (history.shares, history.bank_shares, history.bank_matches_shares)
    total = history.base_share + sum(part.sum(-1) for part in parts)
    torch.testing.assert_close(total, torch.ones(2, 30))
    mixed = history.base_share[..., None] * model(IDS, use_history=False).logits.softmax(-1)
    for name in ("", "bank_", "bank_matches_"):
        mixed.scatter_add_(-1, history[f"{name}outcomes"], history[f"{name}shares"])
    torch.testing.assert_close(mixed.log(), output.logits)
    found = history.bank_matches_lengths > 0
    assert torch.equal(found, history.bank_matches_ids >= 0)
    assert torch.equal(found, history.bank_matches_counts > 0)
    entries = bank.describe(history.bank_matches_ids[found].tolist())
    assert [entry.outcome for entry in entries] == history.bank_matches_outcomes[found].tolist()
    scored = model.score(IDS[:, :-1], IDS[:, 1:], history=bank)
    torch.testing.assert_close(scored.bank_matches_share, history.bank_matches_shares.sum(-1)[:, :-1])
    assert not torch.allclose(scored.bank_matches_log_probs, scored.log_probs)


@torch.no_grad()
@pytest.mark.parametrize("kind", [HistoryBank, MemoryBank])
def test_what_was_forgotten_is_as_if_it_had_never_been_there(kind: type[BaseBank]) -> None:
    model = make_model(bank={"search": "exact"})

    def bank_of(*sources: int) -> Any:
        bank: Any = MemoryBank.create(make_bank(model).fingerprint, model.key_size, model.config.vocab_size)
        bank = bank if kind is MemoryBank else HistoryBank.temporary(bank.fingerprint, bank.width, bank.vocab_size)
        for seed in sources:
            bank.add(make_texts(5, 14, seed), model=model, tokenizer=WORD_TOKENIZER, source=str(seed))
        return bank

    bank, without = bank_of(1, 2, 3), read_segments(model, IDS, history=bank_of(1, 3))
    before = Attachment(bank).pinned()
    with_all = read_segments(model, IDS, history=before)
    assert not torch.equal(with_all, without)
    bank.forget(source="2")
    assert torch.equal(read_segments(model, IDS, history=bank), without)
    assert torch.equal(read_segments(model, IDS, history=before), with_all)  # pinned to the state of then
    number = next(bank.documents()).ids[1]
    bank.forget([number])  # one entry: its token is no context any more
    found = model(IDS, history=bank, output_history=True).history
    assert number not in found.bank_matches_ids
    if isinstance(bank, HistoryBank):
        forgotten = read_segments(model, IDS, history=bank)
        bank.compact()
        assert torch.equal(read_segments(model, IDS, history=bank), forgotten)


@torch.no_grad()
def test_attachments_see_their_own_namespaces_and_entries_that_are_dropped_are_context() -> None:
    model = make_model(0)
    bank = make_bank(model, 1, namespace="ann")
    alone = read_segments(model, IDS, history=bank)
    bank.add(make_texts(12, 14, 2), model=model, tokenizer=WORD_TOKENIZER, namespace="bob")
    both = read_segments(model, IDS, history=bank)
    torch.testing.assert_close(read_segments(model, IDS, history=Attachment(bank, ("ann",))), alone)
    assert not torch.allclose(both, alone)
    assert read_segments(model, IDS, history=Attachment(bank, ("gone",))).isfinite().all()
    thinned, merged = make_bank(model, 1, keep_below=0.1), make_bank(model, 1, merge=True)
    assert 0 < len(thinned) < len(bank)
    (texts,) = thinned.snapshot().kept_texts()
    assert int(texts.sorted(4).depths.max()) == 4  # of more tokens than entries stand in a row
    found = model(IDS, history=merged, output_history=True).history
    assert int(found.bank_matches_counts.sum()) > 0


def test_a_segment_is_sorted_anew_only_where_it_has_changed() -> None:
    model = make_model()
    bank = make_bank(model, 1, namespace="ann")
    (before,) = bank.snapshot().kept_texts()
    bank.add(["a b c"], model=model, tokenizer=WORD_TOKENIZER, namespace="bob")
    after, other = bank.snapshot().kept_texts()
    assert after is before
    bank.forget(ids=[int(other.ids[0])])
    same, changed = bank.snapshot().kept_texts()
    assert same is before
    assert len(changed) == len(other) - 1


@torch.no_grad()
def test_a_text_of_the_bank_is_copied_from_its_first_tokens() -> None:
    model = make_model(0)
    model.config.bank_matches.gate = [9.0, 1.0, 0.0, 0.0]
    model.config.bank_matches.longest, model.config.bank_matches.sharpness = 8, 60.0
    bank = make_bank(model)
    text = max((document.tokens for document in bank.documents()), key=len)
    prompt, options = torch.tensor([text[:4]]), {"max_new_tokens": len(text) - 4, "do_sample": False, "history": bank}
    assert model.generate(prompt, **options)[0].tolist() == text
    assert list(model.stream(prompt, **options)) == text[4:]
    model.config.history.stream.window = 7  # a step by a kernel, of a text that no bank is recalled for
    cache = LLECache.of(model.config.history)
    model.generate(prompt, max_new_tokens=3, do_sample=False, past_key_values=cache, eos_token_id=99)
    assert cache.last is not None
    again = model(torch.tensor([[text[3]]]), past_key_values=cache, history=bank, output_history=True).history
    assert again.bank_matches_lengths.max() >= 1


@torch.no_grad()
def test_a_cache_is_reordered_exported_and_goes_on() -> None:
    model, more, order = make_model(), make_ids(3, 4, seed=9), torch.tensor([2, 0, 0])
    bank, ids = make_bank(model), make_ids(3, 25)
    cache = LLECache.of(model.config.history)
    model(ids, past_key_values=cache, use_history=False)
    other = LLECache.of(model.config.history)
    other.restore({name: tensor.clone() for name, tensor in cache.export().items()})
    want = read_segments(model, torch.cat([ids[order], more], dim=1), history=bank)[:, -4:]
    for own in (cache, other):
        own.reorder_cache(order)
        torch.testing.assert_close(model(more, past_key_values=own, history=bank).logits, want)
    cache.reset()
    assert cache.last is not None
    assert cache.last.tokens is None
    assert LLECache.of(make_language_model().config.history).last is None
    assert model.generate(ids, max_new_tokens=4, num_beams=3, history=bank).shape == (3, 29)


def test_the_numbers_are_fitted_with_the_others() -> None:
    model = make_model()
    bank = make_bank(model)
    found = model.calibrate(make_repetitive_segments(), history=bank)
    assert found["after_nats"] < found["before_nats"]
    assert model.config.bank_matches.gate != NUMBERS["gate"]
    fixed = list(model.config.bank_matches.gate)
    model.calibrate(make_repetitive_segments(), history=bank, fixed=["bank_matches.gate"])
    assert model.config.bank_matches.gate == fixed


@torch.no_grad()
def test_an_explanation_names_entries_lengths_and_counts() -> None:
    model = make_model(0)
    bank = make_bank(model)
    text = torch.tensor(max((document.tokens for document in bank.documents()), key=len))
    explained = model.explain(text, top=50, history=bank)[-1]
    assert sum(cause.effect for cause in explained.causes) + explained.rest == pytest.approx(
        explained.prob - explained.base_prob, abs=1e-5
    )
    causes = [cause for cause in explained.causes if cause.source == "bank_matches"]
    best = max(causes, key=lambda cause: cause.length or 0)
    assert (best.length, best.outcome, best.count) == (4, int(text[-1]), 1)
    assert list(best.before[-4:]) == text[-5:-1].tolist()
    told = [
        cause for cause in as_values([explained], WORD_TOKENIZER)[0]["causes"] if cause["source"] == "bank_matches"
    ]
    assert any(cause["where"].endswith(f"(entry {best.id}), after 4 tokens alike") for cause in told)


def test_embeddings_match_nothing() -> None:
    model = make_model(0)
    with torch.no_grad():
        embedded = model.get_input_embeddings()(IDS)
        output = model(inputs_embeds=embedded, output_history=True, history=make_bank(model))
    assert output.history.bank_matches_lengths.max() == 0
