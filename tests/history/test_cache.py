"""The cache: rows go where they are sent, memory stays constant, and generation works with the stream on and off."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TextStreamer

from modeling_lle import LLECache, LLEForCausalLM, LLETokenizer
from modeling_lle.history.stream import Stream
from tests.factories.language_models import make_language_model
from tests.factories.texts import make_ids

RECURRENCES = ["lstm", "gru", "qrnn"]
every_recurrence = pytest.mark.parametrize("recurrence", RECURRENCES)
stream_on_and_off = pytest.mark.parametrize("history", [True, False], ids=["stream", "plain"])


@torch.no_grad()
def read(model: LLEForCausalLM, ids: Tensor, cache: LLECache | None = None, mask: Tensor | None = None) -> Any:
    return model(ids, mask, past_key_values=cache, use_cache=True)


def generate(model: LLEForCausalLM, ids: Tensor, **kwargs: Any) -> Any:
    # Without a mask, generate takes every token that equals pad_token_id for padding.
    defaults = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    return model.generate(ids, **{**defaults, **kwargs})


def tensors(cache: LLECache) -> list[Tensor]:
    assert cache.stream is not None
    return [*(cache.state or ()), *(getattr(cache.stream, name) for name in Stream.tensors)]


@every_recurrence
@pytest.mark.parametrize(
    ("change", "rows"),
    [
        (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
        (lambda cache: cache.batch_select_indices(torch.tensor([2, 1])), [2, 1]),
        (lambda cache: cache.batch_select_indices(torch.tensor([True, False, True])), [0, 2]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    ],
    ids=["reorder", "select", "select by mask", "repeat"],
)
def test_rows_go_on_where_they_are_sent(recurrence: str, change: Callable[[LLECache], None], rows: list[int]) -> None:
    model, ids = make_language_model(4, recurrence), make_ids(3, 12)
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, :5] = 0
    cache = read(model, ids[:, :7], mask=mask).past_key_values
    want = read(model, ids[:, 7:], copy.deepcopy(cache)).logits[rows]
    change(cache)
    assert cache.batch_size == len(rows)
    got = read(model, ids[rows, 7:], cache)
    torch.testing.assert_close(got.logits, want)
    assert got.past_key_values is cache
    assert cache.get_seq_length() == 12


def test_copies_are_independent() -> None:
    model, ids = make_language_model(4), make_ids(2, 12)
    cache = read(model, ids[:, :6]).past_key_values
    other = copy.deepcopy(cache)
    want = [tensor.clone() for tensor in tensors(cache)]
    read(model, ids[:, 6:], other)
    assert all(torch.equal(tensor, old) for tensor, old in zip(tensors(cache), want, strict=True))


def test_reset_begins_a_new_text() -> None:
    model, ids = make_language_model(), make_ids(2, 6)
    first = read(model, ids)
    cache = first.past_key_values
    cache.reset()
    assert (cache.seen_tokens, cache.state, cache.batch_size) == (0, None, -1)
    assert torch.equal(read(model, ids, cache).logits, first.logits)
    cache.reset()
    torch.testing.assert_close(read(model, ids[:1], cache).logits, first.logits[:1])


def test_detach_cuts_the_gradient() -> None:
    model, ids = make_language_model(), make_ids(2, 6)
    cache = model(ids, use_cache=True).past_key_values
    assert any(tensor.requires_grad for tensor in cache.state)
    assert not any(tensor.requires_grad for tensor in tensors(cache)[len(cache.state) :])
    assert cache.detach() is cache
    assert not any(tensor.requires_grad for tensor in tensors(cache))
    model(ids, labels=ids, past_key_values=cache).loss.backward()


def test_the_gradient_flows_through_a_carried_state() -> None:
    model, ids = make_language_model().train(), make_ids(2, 8)
    whole = model(ids, shift_labels=make_ids(2, 8, 1)).loss
    want = torch.autograd.grad(whole, model.model.stack.parameters())
    cache = LLECache()
    halves = [
        model(ids[:, part], shift_labels=make_ids(2, 8, 1)[:, part], past_key_values=cache, use_cache=True).loss
        for part in (slice(4), slice(4, 8))
    ]
    got = torch.autograd.grad(sum(halves) / 2, model.model.stack.parameters())
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_crop_is_refused() -> None:
    cache = read(make_language_model(), make_ids(1, 3)).past_key_values
    assert not cache.layers[0].is_croppable
    with pytest.raises(ValueError, match="cannot be cropped"):
        cache.crop(1)


def test_the_layer_is_opaque() -> None:
    with pytest.raises(TypeError, match=r"LLECache\.state"):
        LLECache().layers[0].update_recurrent_state(torch.zeros(1))


def test_another_batch_size_is_refused() -> None:
    model = make_language_model()
    cache = read(model, make_ids(2, 3)).past_key_values
    for rows in (1, 3):
        with pytest.raises(ValueError, match=rf"cache holds 2 rows, the batch has {rows}.*cache\.reset"):
            read(model, make_ids(rows, 3), cache)


@pytest.mark.parametrize("window", [1, 5, 70, 100])
def test_memory_stops_growing_at_the_window(window: int) -> None:
    model, ids = make_language_model(window), make_ids(2, 260)
    cache, slots = LLECache(window), []
    for start in range(0, 260, 13):
        read(model, ids[:, start : start + 13], cache)
        slots.append(cache.stream.keys.shape[1])
        assert cache.stream.outcomes.shape == (2, slots[-1])
    assert max(slots) == slots[-1] == window
    assert slots == sorted(slots)
    assert slots[0] == min(window, 64)
    assert cache.stream.count.tolist() == [259, 259]


def test_steps_write_in_place() -> None:
    model, ids = make_language_model(5), make_ids(1, 40)
    cache = read(model, ids[:, :10]).past_key_values
    place = cache.stream.keys.data_ptr()
    for t in range(10, 40):
        read(model, ids[:, t : t + 1], cache)
    assert cache.stream.keys.data_ptr() == place
    assert cache.stream.keys.shape == (1, 5, 6)


def test_embeddings_leave_no_entries() -> None:
    model, ids = make_language_model(), make_ids(1, 5)
    with torch.no_grad():
        cache = model(inputs_embeds=model.model.embed_tokens(ids), use_cache=True).past_key_values
        assert cache.stream.count.tolist() == [0]
        read(model, ids[:, :1], cache)
    assert cache.stream.count.tolist() == [1]


@pytest.mark.parametrize("training", [False, True])
def test_the_stream_goes_on_while_it_is_not_used(training: bool) -> None:
    model, ids = make_language_model(), make_ids(2, 12)
    want = read(model, ids).logits[:, 8:]
    cache = read(model, ids[:, :4]).past_key_values
    with torch.no_grad():
        if training:
            model.train()(ids[:, 4:8], past_key_values=cache, use_cache=True)
        else:
            plain = model(ids[:, 4:8], past_key_values=cache, use_cache=True, use_history=False)
            torch.testing.assert_close(plain.logits, model(ids[:, :8], use_history=False).logits[:, 4:])
    torch.testing.assert_close(read(model.eval(), ids[:, 8:], cache).logits, want)


@every_recurrence
@stream_on_and_off
def test_greedy_generation_is_what_full_passes_give(recurrence: str, history: bool) -> None:
    model, ids = make_language_model(6, recurrence), make_ids(2, 5)
    want = ids
    for _ in range(8):
        with torch.no_grad():
            logits = model(want, use_history=history, generated=want.shape[1] - 5).logits
        want = torch.cat([want, logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(generate(model, ids, use_history=history), want)
    assert torch.equal(generate(model, ids, use_history=history, use_cache=False), want)


@stream_on_and_off
def test_left_padding_changes_nothing(history: bool) -> None:
    model, ids = make_language_model(6), make_ids(3, 7)
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, :3], mask[2, :6] = 0, 0
    got = generate(model, ids, attention_mask=mask, use_history=history)
    for row in range(3):
        alone = generate(model, ids[row : row + 1, mask[row].bool()], use_history=history)
        assert torch.equal(got[row, 7:], alone[0, -8:])


@stream_on_and_off
@pytest.mark.parametrize("beams", [1, 3])
def test_sampling_and_beams_depend_on_nothing_but_their_rows(history: bool, beams: int) -> None:
    model, ids = make_language_model(6), make_ids(2, 6)
    kwargs = {"num_beams": beams, "use_history": history}
    together = generate(model, ids, **kwargs)
    assert together.shape == (2, 14)
    for row in range(2):
        assert torch.equal(generate(model, ids[row : row + 1], **kwargs)[0], together[row])
    sampled = []
    for _ in range(2):
        torch.manual_seed(1)
        sampled.append(generate(model, ids, do_sample=True, num_return_sequences=3, **{**kwargs, "num_beams": 1}))
    assert sampled[0].shape == (6, 14)
    assert torch.equal(*sampled)


@stream_on_and_off
def test_beam_search_finds_the_scores_of_full_passes(history: bool) -> None:
    model, ids = make_language_model(6), make_ids(1, 6)
    output = generate(
        model,
        ids,
        num_beams=4,
        num_return_sequences=4,
        length_penalty=0.0,
        use_history=history,
        return_dict_in_generate=True,
        output_scores=True,
    )
    sequences = output.sequences
    with torch.no_grad():
        log_probs = model(sequences, use_history=history, generated=8).logits.log_softmax(-1)
    chosen = log_probs[:, 5:-1].gather(-1, sequences[:, 6:, None])[..., 0].sum(1)
    torch.testing.assert_close(output.sequences_scores, chosen, atol=1e-4, rtol=0.0)


@stream_on_and_off
def test_generation_goes_on_from_a_returned_cache(history: bool) -> None:
    model, ids = make_language_model(6), make_ids(2, 5)
    want = generate(model, ids, use_history=history, max_new_tokens=10)
    first = generate(model, ids, use_history=history, max_new_tokens=4, return_dict_in_generate=True)
    cache = first.past_key_values
    assert isinstance(cache, LLECache)
    assert cache.get_seq_length() == 8
    second = generate(model, first.sequences, use_history=history, max_new_tokens=6, past_key_values=cache)
    assert torch.equal(second, want)


def test_generation_after_reading_a_history() -> None:
    model, history, prompt = make_language_model(50), make_ids(1, 30), make_ids(1, 4, 5)
    cache = read(model, history).past_key_values
    got = generate(model, torch.cat([history, prompt], dim=1), past_key_values=cache)
    assert torch.equal(got, generate(model, torch.cat([history, prompt], dim=1)))


def test_generation_from_embeddings() -> None:
    model, ids = make_language_model(6), make_ids(2, 5)
    embeddings = model.model.embed_tokens(ids).detach()
    got = model.generate(
        inputs_embeds=embeddings, max_new_tokens=5, do_sample=False, pad_token_id=0, use_history=False
    )
    assert torch.equal(got, generate(model, ids, max_new_tokens=5, use_history=False)[:, 5:])
    with_stream = model.generate(inputs_embeds=embeddings, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert with_stream.shape == (2, 5)


def test_streaming_generation(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = LLETokenizer.train(["the cat sat on the mat and the dog ran"], kind="word")
    model = make_language_model(6, vocab_size=len(tokenizer))
    inputs = tokenizer("the cat sat", return_tensors="pt")
    output = model.generate(
        **inputs, max_new_tokens=6, do_sample=False, streamer=TextStreamer(tokenizer, skip_prompt=True)
    )
    assert capsys.readouterr().out.split() == tokenizer.decode(output[0, 3:]).split()


@pytest.mark.parametrize("window", [0, 5])
def test_an_exported_cache_goes_on_as_before(window: int) -> None:
    model, ids = make_language_model(5), make_ids(2, 20)
    cache = LLECache(window)
    read(model, ids[:, :9], cache)
    tensors = {name: tensor.clone() for name, tensor in cache.export().items()}
    restored = LLECache(window)
    read(model, ids[:, 3:5], restored)
    restored.restore(tensors)
    got, want = (read(model, ids[:, 9:], one).logits for one in (restored, cache))
    assert torch.equal(got, want)
    restored.restore({})
    assert torch.equal(read(model, ids, restored).logits, read(model, ids, LLECache(window)).logits)


@every_recurrence
def test_joined_caches_go_on_as_each_alone_and_stay_as_they_are(recurrence: str) -> None:
    matches = {"matches": {"window": 300}, "bank_matches": {"longest": 4}}
    model = make_language_model(window=90, recurrence=recurrence, history=matches)
    texts = [make_ids(1, length, seed) for seed, length in enumerate((3, 80, 1))]  # buffers of different sizes
    caches = [read(model, ids).past_key_values for ids in texts]
    before = [{name: own.clone() for name, own in cache.export().items()} for cache in caches]
    following = make_ids(3, 20, 9)
    together = read(model, following, LLECache.joined(caches)).logits
    for row, (cache, due) in enumerate(zip(caches, before, strict=True)):
        assert all(torch.equal(own, due[name]) for name, own in cache.export().items())
        alone = read(model, following[row : row + 1], cache).logits[0]
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [0, 90])
def test_a_selected_cache_goes_on_as_its_rows_and_shares_nothing_with_the_first(window: int) -> None:
    model = make_language_model(window=window, history={"matches": {"window": 30}, "bank_matches": {"longest": 4}})
    cache = read(model, make_ids(3, 9)).past_key_values
    before = {name: own.clone() for name, own in cache.export().items()}
    following, chosen = make_ids(3, 20, 9), torch.tensor([2, 0, 2])
    found = read(model, following[chosen], cache.selected(chosen)).logits
    assert all(torch.equal(own, before[name]) for name, own in cache.export().items())
    torch.testing.assert_close(found, read(model, following, cache).logits[chosen], atol=1e-5, rtol=0)
