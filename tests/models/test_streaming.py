"""`model.stream` gives the tokens of `generate`, one by one, whatever is on; and refuses what is not for one text."""

from typing import Any

import pytest
import torch
from torch import Tensor

from modeling_lle import HistoryBank, LLECache, LLEForCausalLM
from modeling_lle.kernels import available
from tests.factories.language_models import make_language_model
from tests.factories.texts import VOCAB, WORD_TOKENIZER, make_ids

NEW = 12
SAMPLE = {"do_sample": True, "temperature": 0.7, "top_k": 7, "top_p": 0.8}
WAYS = {
    "greedy": {"do_sample": False},
    "sample": SAMPLE,
    "nucleus": {"do_sample": True, "top_k": 0, "top_p": 0.6},
    "penalty": {"do_sample": False, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
}


def generated(model: LLEForCausalLM, ids: Tensor, **options: Any) -> list[int]:
    torch.manual_seed(3)
    own = {"max_new_tokens": NEW, "attention_mask": torch.ones_like(ids), **options}
    return model.generate(ids, **own)[0, ids.shape[1] :].tolist()


def streamed(model: LLEForCausalLM, ids: Tensor, **options: Any) -> list[int]:
    return list(model.stream(ids, seed=3, **{"max_new_tokens": NEW, **options}))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("window", [0, 9])
def test_its_tokens_are_those_of_generate(way: str, window: int) -> None:
    model, ids = make_language_model(window), make_ids(1, 20)
    options = {"eos_token_id": None, **WAYS[way]}
    assert streamed(model, ids, **options) == generated(model, ids, **options)


@pytest.mark.parametrize("recurrence", ["lstm", "gru", "qrnn"])
@pytest.mark.parametrize("stack", ["plain", "residual"])
def test_every_backbone_goes_on_from_its_state(recurrence: str, stack: str) -> None:
    model, ids = make_language_model(9, recurrence, stack), make_ids(1, 20)
    whole = streamed(model, ids, eos_token_id=None, **SAMPLE)
    assert whole == generated(model, ids, eos_token_id=None, **SAMPLE)
    with torch.no_grad():
        text = torch.cat([ids, torch.tensor([whole])], dim=1)
        last = model(text, generated=NEW).logits[0, -1]
        (next_token,) = model.stream(text[:, :-1], max_new_tokens=1, do_sample=False)
    assert last.isfinite().all()
    assert 0 <= next_token < VOCAB


@pytest.mark.parametrize("case", ["bank", "update", "hook", "without numba", "own output", "no history", "bfloat16"])
def test_what_takes_part_in_generate_takes_part(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids, calls = make_language_model(9), make_ids(1, 20), []
    options: dict[str, Any] = {"do_sample": False, "eos_token_id": None}
    if case == "bank":
        options["history"] = HistoryBank.build(model, WORD_TOKENIZER, ["a b a c", "b a b b"])
    elif case == "update":
        model.collect_update_statistics([{"input_ids": ids, "shift_labels": ids.roll(-1, 1)}])
        model.config.overlay.scope = "head"
    elif case == "hook":
        model.model.register_forward_hook(lambda *_: calls.append(1))
    elif case == "without numba":
        monkeypatch.setattr(available, "installed", lambda package: False)
    elif case == "own output":
        model.config.stream.generated = True
    elif case == "no history":
        options["use_history"] = False
    elif case == "bfloat16":
        model.to(torch.bfloat16)
    assert streamed(model, ids, **options) == generated(model, ids, **options)
    assert len(calls) == (2 * NEW if case == "hook" else 0)


def test_a_cache_goes_on_at_any_token() -> None:
    model, ids, options = make_language_model(9), make_ids(1, 20), {"do_sample": False, "eos_token_id": None}
    whole = generated(model, ids, **options)
    cache = LLECache(9)
    begun = model.stream(ids, max_new_tokens=NEW, past_key_values=cache, **options)
    first = [next(begun) for _ in range(4)]
    begun.close()
    assert cache.seen_tokens == 23
    assert cache.unread is not None
    assert cache.stream is not None
    text = torch.cat([ids, torch.tensor([first])], dim=1)
    rest = list(model.stream(text, max_new_tokens=NEW - 4, past_key_values=cache, **options))
    assert first + rest == whole
    assert cache.stream.count.tolist() == [19]  # own output makes no entries


def test_an_end_token_ends_it_and_defaults_are_those_of_generate() -> None:
    model, ids = make_language_model(9), make_ids(1, 20)
    whole = generated(model, ids, do_sample=False, eos_token_id=None)
    model.generation_config.eos_token_id = [whole[4], VOCAB - 1]
    model.generation_config.do_sample = False
    model.generation_config.max_length = 28
    want = generated(model, ids, max_new_tokens=None)
    assert list(model.stream(ids[0])) == list(model.stream(ids[0].tolist())) == want
    assert len(want) <= 5


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        ([], {}, "the prompt holds no token: begin it with the tokenizer's bos_token"),
        ([[1, 2], [3, 4]], {}, r"stream makes one text, of tokens \(T,\) or \(1, T\), got \(2, 2\)"),
        ([1, VOCAB], {}, f"token id {VOCAB} does not fit the model's vocabulary"),
        ([1, 2], {"num_beams": 2, "max_new_tokens": 1}, r"stream\(\) cannot do beam_search: leave it out, or call generate\(\)"),
        ([1, 2], {"num_return_sequences": 2, "do_sample": True, "max_new_tokens": 1}, "cannot do num_return_sequences=2"),
        ([1, 2], {"max_length": 2}, "max_length"),
        ([1, 2], {"temprature": 2.0, "max_new_tokens": 1}, "unexpected keyword argument 'temprature'"),
    ],
)
def test_bad_input_is_refused_before_the_first_token(ids: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make_language_model().stream(torch.tensor(ids, dtype=torch.long), **options)
