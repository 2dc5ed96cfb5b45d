"""Own output: it makes no entries and teaches nothing unless asked, however it is generated and continued."""

from typing import Any

import pytest
import torch
from torch import Tensor

from modeling_lle import LLECache, LLEForCausalLM
from tests.factories.language_models import make_language_model
from tests.factories.texts import WORD_TOKENIZER, make_ids

NEW = 6
PROMPTS = {"alone": [5], "padded": [5, 2]}


def make_batch(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Prompts of these lengths, padded on the left, and their mask."""
    width = max(lengths)
    mask = torch.stack([torch.arange(width) >= width - length for length in lengths]).long()
    return make_ids(len(lengths), width), mask


def generate(model: LLEForCausalLM, ids: Tensor, mask: Tensor | None = None, **options: Any) -> Any:
    mask = torch.ones_like(ids) if mask is None else mask
    defaults = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    given = {**defaults, **options, "return_dict_in_generate": True, "output_logits": True}
    return model.generate(ids, attention_mask=mask, **given)


@torch.no_grad()
def logits_of(model: LLEForCausalLM, ids: Tensor, **options: Any) -> Tensor:
    return model(ids, **options).logits


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("lengths", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize(
    ("options", "copies"),
    [({}, 1), ({"num_beams": 3}, 3), ({"do_sample": True, "num_return_sequences": 2}, 2)],
    ids=["greedy", "beams", "samples"],
)
def test_own_output_makes_entries_only_if_asked(
    options: dict[str, Any], copies: int, lengths: list[int], asked: bool
) -> None:
    model, (ids, mask) = make_language_model(50), make_batch(lengths)
    model.config.stream.generated = asked
    cache = generate(model, ids, mask, **options).past_key_values
    assert cache.seen_tokens == ids.shape[1] + NEW - 1
    more = NEW - 1 if asked else 0
    assert cache.stream.count.tolist() == [length - 1 + more for length in lengths for _ in range(copies)]


def test_each_token_has_the_probability_of_the_entries_of_the_prompt() -> None:
    model, ids = make_language_model(50), make_ids(2, 9)
    output = generate(model, ids)
    logits = torch.stack(output.logits, dim=1)
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(2, NEW))
    for generated in (NEW, torch.arange(9 + NEW).expand(2, -1) >= 9):
        again = logits_of(model, output.sequences, generated=generated)
        torch.testing.assert_close(logits, again[:, 8:-1])
    assert (logits - logits_of(model, output.sequences)[:, 8:-1]).abs().max() > 0.01


def test_the_next_turn_makes_entries() -> None:
    model, ids, more = make_language_model(50), make_ids(2, 5), make_ids(2, 4, seed=7)
    first = generate(model, ids)
    text = torch.cat([first.sequences, more], dim=1)
    second = generate(model, text, past_key_values=first.past_key_values)
    assert second.past_key_values.stream.count.tolist() == [4 + 4] * 2
    generated = torch.zeros(text.shape, dtype=torch.bool)
    generated[:, 5 : 5 + NEW] = True
    torch.testing.assert_close(second.logits[0], logits_of(model, text, generated=generated)[:, -1])
    whole = generate(model, text, generated=generated)  # without the cache, a mask says the same
    assert torch.equal(whole.sequences, second.sequences)
    assert torch.equal(generate(model, text, generated=generated, use_cache=False).sequences, second.sequences)


def test_a_turn_may_leave_out_what_was_not_read() -> None:
    model, ids = make_language_model(50), make_ids(2, 5)
    first = generate(model, ids)
    last = first.sequences[:, -1:]
    new = torch.cat([last[:1], (last[1:] + 1) % 11])  # the first row repeats it, the second goes on without
    cache = first.past_key_values
    logits_of(model, new, past_key_values=cache, use_cache=True)
    assert cache.stream.count.tolist() == [4, 5]
    logits_of(model, new, past_key_values=cache, use_cache=True)
    assert cache.stream.count.tolist() == [5, 6]


def test_a_cache_that_was_passed_in_knows_what_was_not_read() -> None:
    model, ids = make_language_model(50), make_ids(1, 5)
    cache = LLECache(50)
    sequence = model.generate(ids, past_key_values=cache, max_new_tokens=3, do_sample=False, pad_token_id=0)
    restored = LLECache(50)
    restored.restore(cache.export())
    for own in (cache, restored):
        logits_of(model, sequence[:, -1:], past_key_values=own, use_cache=True)
        assert own.stream is not None
        assert own.stream.count.tolist() == [4]
        assert own.unread is None


def test_score_and_explain_know_own_output() -> None:
    model, ids = make_language_model(50), make_ids(1, 7)
    output = generate(model, ids)
    text = output.sequences
    chosen = torch.stack(output.logits, dim=1).gather(-1, text[:, 7:, None])[0, :, 0].exp()
    explained = model.explain(text, top=100, generated=NEW)[6:]
    torch.testing.assert_close(torch.tensor([item.prob for item in explained]), chosen)
    for item in explained:
        for cause in item.causes:
            assert cause.age is not None
            at = item.position - cause.age
            assert 1 <= at < 7
            assert int(text[0, at]) == cause.outcome
    cache = output.past_key_values
    model.score(text[:, -1:], make_ids(1, 1), past_key_values=cache, use_history=False)
    assert cache.stream.count.tolist() == [6]


def test_a_mask_that_does_not_cover_the_segment_is_refused() -> None:
    with pytest.raises(ValueError, match=r"generated is \(1, 3\) for a segment of \(1, 5\)"):
        make_language_model()(make_ids(1, 5), generated=torch.zeros(1, 3, dtype=torch.bool))


def test_generate_takes_a_tokenizer_as_transformers_serve_gives_it() -> None:
    model, ids = (
        make_language_model(),
        WORD_TOKENIZER("a b c", return_tensors="pt", add_special_tokens=False)["input_ids"],
    )
    options = {"max_new_tokens": 4, "do_sample": False}
    plain = model.generate(ids, **options)
    assert model.generate(ids, tokenizer=WORD_TOKENIZER, **options).equal(plain)
