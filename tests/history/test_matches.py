"""Exact matches: which are found, in blocks, in steps and in batches, and what a model with them predicts."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_lle import LLECache, LLEForCausalLM
from modeling_lle.history import matches as module
from modeling_lle.history.matches import Matched, Matches
from tests.factories.language_models import make_language_model, read_segments
from tests.factories.texts import make_ids, make_repetitive_segments

MATCHES = {
    "window": 30,
    "longest": 5,
    "neighbours": 6,
    "sharpness": 9.0,
    "recency": 0.2,
    "agreement": 1.5,
    "success": 0.8,
    "gate": [0.3, 0.4, 0.1, -0.2],
}


def make_matching_model(window: int = 7, **values: Any) -> LLEForCausalLM:
    return make_language_model(window, history={"matches": MATCHES, **values.pop("history", {})}, **values)


def by_definition(text: list[tuple[int, bool]], window: int, longest: int, neighbours: int) -> list[tuple[int, ...]]:
    """Lengths, ages and outcomes of the matches of the last token of a text, of which each may be recalled or not."""
    last, found = len(text) - 1, []
    for end in range(max(0, last - window), last):
        length = 0
        while length < longest and end - length >= 0 and text[end - length][0] == text[last - length][0] >= 0:
            length += 1
        if length and text[end + 1][1]:
            found.append((length, last - end, text[end + 1][0]))
    return sorted(match for match in found if match[0] == max(found)[0])[:neighbours]


def sorted_matches(found: Matched, row: int, position: int) -> list[tuple[int, ...]]:
    parts = (part[row, position].tolist() for part in (found.lengths, found.ages, found.outcomes))
    return sorted(match for match in zip(*parts, strict=True) if match[0])


@pytest.mark.parametrize("way", ["kernel", "torch"])
@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 6), st.integers(1, 5)),
    segments=st.lists(st.integers(1, 25), min_size=1, max_size=5),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=40)
def test_the_newest_of_the_longest_are_found(
    way: str, sizes: tuple[int, int, int], segments: list[int], seed: int
) -> None:
    if way == "kernel":
        pytest.importorskip("numba")
    generator = torch.Generator().manual_seed(seed)
    window, longest, neighbours = sizes
    matches: Any = Matches(window, longest)
    texts: list[list[tuple[int, bool]]] = [[], []]
    named: list[list[int]] = [[], []]
    success = [module.BEFORE, module.BEFORE]
    with pytest.MonkeyPatch.context() as patch:
        if way == "torch":
            patch.setattr(module, "takes_numba", lambda tensor: False)
        for length in segments:
            tokens = torch.randint(-1, 3, (2, length), generator=generator)
            usable, mask = (torch.rand(2, 2, length, generator=generator) < 0.8).unbind()
            found = matches.read(tokens, usable, mask, neighbours)
            for row, text in enumerate(texts):
                for position in range(length):
                    expected = []
                    if mask[row, position]:
                        text.append((int(tokens[row, position]), bool(usable[row, position])))
                        expected = by_definition(text, window, longest, neighbours)
                        if named[row] and text[-1][1] and text[-1][0] >= 0:
                            right = named[row].count(text[-1][0]) / len(named[row])
                            success[row] = module.KEPT * success[row] + (1 - module.KEPT) * right
                        named[row] = [outcome for _, _, outcome in expected if outcome >= 0]
                    assert sorted_matches(found, row, position) == expected
                    assert float(found.success[row, position]) == pytest.approx(success[row], abs=1e-5)
    assert matches.count.tolist() == [len(text) for text in texts]


@pytest.mark.parametrize("window", [0, 7])
@torch.no_grad()
def test_blocks_steps_and_padded_batches_predict_the_same(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = make_matching_model(window), make_ids(2, 40)
    whole = read_segments(model, ids)
    torch.testing.assert_close(whole.exp().sum(-1), torch.ones(2, 40))
    assert (whole - read_segments(make_language_model(window), ids)).abs().max() > 0.1  # the matches take part
    torch.testing.assert_close(read_segments(model, *ids.split([3, 17, 20], dim=1)), whole)
    torch.testing.assert_close(read_segments(model, *ids.split(1, dim=1)), whole)
    padded = torch.cat([torch.zeros(2, 9, dtype=torch.long), ids], dim=1)
    batched = model(padded, attention_mask=(torch.arange(49) >= 9).long().expand(2, -1)).logits[:, 9:]
    torch.testing.assert_close(batched, whole)
    monkeypatch.setattr(module, "takes_numba", lambda tensor: False)
    torch.testing.assert_close(read_segments(model, ids), whole)


@torch.no_grad()
def test_a_prediction_does_not_depend_on_what_comes_after_it() -> None:
    model, ids = make_matching_model(), make_ids(1, 30)
    changed = ids.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % 11
    torch.testing.assert_close(model(changed).logits[:, :20], model(ids).logits[:, :20])


@torch.no_grad()
def test_a_long_string_is_copied_from_far_beyond_the_stream() -> None:
    model = make_matching_model(vocab_size=200)
    model.config.matches.window, model.config.matches.gate = 2000, [6.0, 1.0, 0.0, 0.0]
    string = make_ids(1, 100, vocab=200)
    ids = torch.cat([string, make_ids(1, 500, seed=1, vocab=200), string], dim=1)
    scored = model.score(ids[:, :-1], ids[:, 1:])
    assert scored.log_probs[0, -90:].exp().min() > 0.5 > scored.stream_log_probs[0, -90:].exp().mean()
    assert scored.matches_share[0, -90:].min() > 0.5


@torch.no_grad()
def test_a_cache_is_reordered_exported_and_goes_on() -> None:
    model, ids, more = make_matching_model(), make_ids(3, 25), make_ids(3, 4, seed=9)
    cache = LLECache.of(model.config.history)
    model(ids, past_key_values=cache)
    other = LLECache.of(model.config.history)
    other.restore({name: tensor.clone() for name, tensor in cache.export().items()})
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    order = torch.tensor([2, 0, 0])
    want = read_segments(model, torch.cat([ids[order], more], dim=1))[:, -4:]
    torch.testing.assert_close(model(more, past_key_values=cache).logits, want)
    other.batch_select_indices(order)
    torch.testing.assert_close(model(more, past_key_values=other).logits, want)
    cache.reset()
    assert cache.matches is not None
    assert cache.matches.tokens is None


def test_what_was_generated_is_context_but_is_not_recalled() -> None:
    model, prompt = make_matching_model(), make_ids(1, 20)
    text = model.generate(prompt, max_new_tokens=15, do_sample=False)
    assert list(model.stream(prompt, max_new_tokens=15, do_sample=False)) == text[0, 20:].tolist()
    output = model(text, generated=15, output_history=True).history
    places = torch.arange(35)[:, None] + 1 - output.matches_ages[0]  # of the outcomes
    recalled = output.matches_lengths[0] > 0
    assert recalled[25:].any()
    assert places[recalled].max() < 20
    model.config.stream.generated = True
    again = model(text, generated=15, output_history=True).history
    assert (torch.arange(35)[:, None] + 1 - again.matches_ages[0])[again.matches_lengths[0] > 0].max() >= 20
    assert model.generate(prompt, max_new_tokens=5, num_beams=3).shape == (1, 25)


def test_the_numbers_are_fitted_with_the_others() -> None:
    model = make_matching_model()
    found = model.calibrate(make_repetitive_segments())
    assert found["after_nats"] < found["before_nats"]
    assert model.config.matches.gate != MATCHES["gate"]
    assert model.config.matches.agreement != MATCHES["agreement"]
    assert model.config.matches.success != MATCHES["success"]
    assert model.config.stream.gate != make_language_model().config.stream.gate
    model.config.stream.window = 0
    fixed = list(model.config.matches.gate)
    model.calibrate(make_repetitive_segments(), fixed=["matches.gate"])
    assert model.config.matches.gate == fixed


@torch.no_grad()
def test_an_explanation_names_the_matches() -> None:
    model, ids = make_matching_model(), torch.cat([make_ids(1, 12), make_ids(1, 12)], dim=1)
    explained = model.explain(ids, top=50)[-1]
    assert sum(cause.effect for cause in explained.causes) + explained.rest == pytest.approx(
        explained.prob - explained.base_prob, abs=1e-5
    )
    best = max((cause for cause in explained.causes if cause.source == "matches"), key=lambda cause: cause.length or 0)
    assert (best.age, best.length, best.outcome) == (12, 11, int(ids[0, -1]))


def test_embeddings_match_nothing() -> None:
    model, ids = make_matching_model(0), make_ids(2, 12)
    with torch.no_grad():
        output = model(inputs_embeds=model.get_input_embeddings()(ids), output_history=True, use_history=True)
    assert output.history.matches_lengths.max() == 0
    torch.testing.assert_close(output.history.base_share, torch.ones(2, 12))


def test_they_are_off_unless_asked_for() -> None:
    assert LLECache.of(make_language_model().config.history).matches is None
    with pytest.raises(ValueError, match="at least one token"):
        Matches(0, 4)
