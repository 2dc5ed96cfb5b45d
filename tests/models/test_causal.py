"""The models: what forward takes, what it returns, and what it refuses."""

import math
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel, AutoModelForCausalLM

from modeling_lle import LLECache, LLEForCausalLM, LLEModel
from modeling_lle.backbone.recurrence import RecurrentStack
from modeling_lle.history import loss as loss_module
from modeling_lle.history import prediction as prediction_module
from tests.factories.language_models import make_language_model
from tests.factories.texts import VOCAB, make_ids

stream_on_and_off = pytest.mark.parametrize("history", [True, False], ids=["stream", "plain"])


def close(got: Any, want: Any, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)


@stream_on_and_off
def test_the_loss_is_the_mean_of_the_nats(history: bool) -> None:
    model, ids, targets = make_language_model(), make_ids(2, 9), make_ids(2, 9, 1)
    targets[0, 3:5] = -100
    with torch.no_grad():
        output = model(ids, shift_labels=targets, use_history=history)
    used = targets != -100
    log_probs = output.logits.log_softmax(-1)
    nats = -log_probs.gather(-1, targets.clamp(min=0)[..., None])[..., 0][used]
    close(output.loss, nats.mean())
    with torch.no_grad():
        for count in (3, torch.tensor(3)):
            summed = model(ids, shift_labels=targets, use_history=history, num_items_in_batch=count).loss
            close(summed, nats.sum() / 3)
    scored = model.score(ids, targets, use_history=history)
    close(scored.log_probs[used], -nats)
    assert (scored.log_probs[~used] == 0).all()
    if not history:
        assert (scored.stream_share == 0).all()
        assert torch.equal(scored.log_probs, scored.base_log_probs)


@stream_on_and_off
def test_labels_are_shifted(history: bool) -> None:
    model, ids = make_language_model(), make_ids(2, 9)
    shifted = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], dim=1)
    with torch.no_grad():
        want = model(ids, shift_labels=shifted, use_history=history).loss
        close(model(ids, labels=ids, use_history=history).loss, want)
        close(model(ids, labels=make_ids(2, 9, 7), shift_labels=shifted, use_history=history).loss, want)
        nothing = model(ids, labels=torch.full_like(ids, -100), use_history=history).loss
    assert float(nothing) == 0


@pytest.mark.parametrize("recurrence", ["lstm", "gru", "qrnn"])
@pytest.mark.parametrize("stack", ["plain", "residual"])
def test_the_training_loss_equals_the_evaluation_loss(recurrence: str, stack: str) -> None:
    model, ids = make_language_model(0, recurrence, stack), make_ids(2, 9)
    want = model(ids, labels=ids)
    output = model.train()(ids, labels=ids)
    assert output.logits is None
    close(output.loss, want.loss)
    parameters = list(model.parameters())
    close(torch.autograd.grad(output.loss, parameters), torch.autograd.grad(want.loss, parameters), 1e-4)


@stream_on_and_off
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("logits", [True, False])
def test_every_parameter_gets_its_gradient(history: bool, training: bool, logits: bool) -> None:
    model, ids = make_language_model().train(training), make_ids(2, 9)
    output = model(ids, labels=ids, use_history=history, return_logits=logits)
    assert (output.logits is not None) == logits
    output.loss.backward()
    got = [parameter.grad.clone() for parameter in model.parameters()]
    assert all(gradient.isfinite().all() for gradient in got)
    assert all((gradient != 0).any() for gradient in got)
    model.zero_grad()
    log_probs = model(ids, use_history=history, return_logits=True).logits.log_softmax(-1)
    (-log_probs[:, :-1].gather(-1, ids[:, 1:, None]).mean()).backward()
    close([parameter.grad for parameter in model.parameters()], got, 1e-4)


def test_return_logits() -> None:
    model, ids = make_language_model(), make_ids(2, 5)
    with torch.no_grad():
        assert model(ids, labels=ids, return_logits=False).logits is None
        assert model(ids, labels=ids).logits.shape == (2, 5, VOCAB)
        assert model.train()(ids).logits.shape == (2, 5, VOCAB)
        assert model(ids, labels=ids).logits is None
        assert model(ids, labels=ids, return_logits=True).logits.shape == (2, 5, VOCAB)


def test_training_mode_reads_no_history_unless_asked() -> None:
    model, ids = make_language_model().train(), make_ids(2, 9)
    with torch.no_grad():
        plain, trained, mixed = (model(ids, use_history=history).logits for history in (False, None, True))
    close(plain, trained)
    assert not torch.equal(plain, mixed)
    model.eval().config.use_history = False
    close(model(ids).logits, plain)


def test_penalties_are_part_of_the_training_loss() -> None:
    model = make_language_model(0, activation_penalty=2.0, smoothness_penalty=3.0).train()
    ids = make_ids(2, 9)
    states = model.model(ids, use_cache=False).last_hidden_state
    penalty = 2 * states.square().mean() + 3 * states.diff(dim=1).square().mean()
    with_penalties = model(ids, labels=ids)
    close(with_penalties.loss, model.eval()(ids, labels=ids).loss + penalty)
    one = make_ids(2, 1)
    assert model.train()(one, shift_labels=one).loss.isfinite()


@stream_on_and_off
@pytest.mark.parametrize("block", [3, 128])
def test_logits_to_keep(history: bool, block: int) -> None:
    model, ids = make_language_model(), make_ids(2, 10)
    with torch.no_grad(), mock.patch.object(prediction_module, "BLOCK", block):
        full = model(ids, use_history=history)
        for keep in (0, 1, 4, 10, 11):
            output = model(ids, use_history=history, logits_to_keep=keep, use_cache=True)
            close(output.logits, full.logits[:, -keep:] if keep else full.logits)
            if history:
                assert output.past_key_values.stream.count.tolist() == [9, 9]
        index = torch.tensor([7, 2])
        close(model(ids, use_history=history, logits_to_keep=index).logits, full.logits[:, index])
        close(model(ids, labels=ids, use_history=history, logits_to_keep=2).logits, full.logits[:, -2:])


def test_a_prompt_is_predicted_at_its_end_only() -> None:
    model, seen = make_language_model(), list[int]()
    predictions = model.predictions

    def counted(*args: Any, **options: Any) -> Any:
        for prediction in predictions(*args, **options):
            seen.append(prediction.positions.stop - prediction.positions.start)
            yield prediction

    with torch.no_grad(), mock.patch.object(model, "predictions", counted):
        model(make_ids(2, 10), logits_to_keep=1)
    assert seen == [1]


def test_embeddings_instead_of_tokens() -> None:
    model, ids = make_language_model(), make_ids(2, 6)
    with torch.no_grad():
        embeddings = model.model.embed_tokens(ids)
        close(model(inputs_embeds=embeddings, use_history=False).logits, model(ids, use_history=False).logits)
        close(model(inputs_embeds=embeddings).logits, model(ids, use_history=False).logits.log_softmax(-1))
    for kwargs in ({}, {"input_ids": ids, "inputs_embeds": embeddings}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            model(**kwargs)


@stream_on_and_off
def test_masks(history: bool) -> None:
    model, ids = make_language_model(), make_ids(2, 8)
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[1, :3] = 0
    with torch.no_grad():
        want = model(ids, mask, use_history=history).logits
        close(want[1:, 3:], model(ids[1:, 3:], use_history=history).logits)
        close(model(ids, {"linear_attention": mask}, use_history=history).logits, want)
        close(
            model(ids, {"linear_attention": None}, use_history=history).logits, model(ids, use_history=history).logits
        )
        close(model(ids, mask.bool(), use_history=history).logits, want)
        cache = model(ids[:, :5], mask[:, :5], use_cache=True, use_history=history).past_key_values
        rest = model(ids[:, 5:], mask, past_key_values=cache, use_history=history).logits
    close(rest, want[:, 5:])


@stream_on_and_off
def test_a_row_of_padding_is_refused(history: bool) -> None:
    model, ids = make_language_model(), make_ids(3, 4)
    mask = torch.ones(3, 4, dtype=torch.long)
    mask[1] = 0
    for given_mask in (mask, {"linear_attention": mask}):
        with pytest.raises(ValueError, match=r"row 1 of the batch holds only padding.*bos_token"):
            model(ids, given_mask, use_history=history)
    with pytest.raises(ValueError, match="row 1 of the batch holds only padding"):
        model.generate(ids, attention_mask=mask, max_new_tokens=2, pad_token_id=0)
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        assert model(ids, mask, past_key_values=cache).logits.isfinite().all()
    assert model.train()(ids, mask, labels=ids).loss.isfinite()


def test_a_mask_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="attention_mask covers 3 positions of a segment of 4"):
        make_language_model()(make_ids(2, 4), torch.ones(2, 3))


@pytest.mark.parametrize("wrong", [VOCAB, 10**6, -1])
def test_a_token_out_of_range_is_named(wrong: int) -> None:
    model, ids = make_language_model(), make_ids(2, 4)
    ids[1, 2] = wrong
    with pytest.raises(ValueError, match=rf"token id {wrong} does not fit the model's vocabulary of {VOCAB}"):
        model(ids)


@stream_on_and_off
@pytest.mark.parametrize("training", [True, False])
def test_a_label_out_of_range_is_refused(history: bool, training: bool) -> None:
    model, ids = make_language_model().train(training), make_ids(2, 4)
    with pytest.raises((ValueError, RuntimeError), match=str(VOCAB)):
        model(ids, shift_labels=torch.full_like(ids, VOCAB), use_history=history)


@given(
    window=st.sampled_from([1, 3, 50]),
    block=st.sampled_from([1, 4, 128]),
    length=st.integers(1, 12),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=30)
def test_output_history_explains_every_probability(window: int, block: int, length: int, seed: int) -> None:
    model, ids = make_language_model(window), make_ids(2, length + 5, seed)
    with torch.no_grad(), mock.patch.object(prediction_module, "BLOCK", block):
        cache = model(ids[:, :5], use_cache=True).past_key_values
        output = model(ids[:, 5:], past_key_values=cache, output_history=True)
        plain = model(ids, use_history=False).logits[:, 5:].softmax(-1)
    history = output.history
    close(history.base_share + history.shares.sum(-1), torch.ones(2, length))
    rebuilt = history.base_share[..., None] * plain
    rebuilt = rebuilt.scatter_add(-1, history.outcomes, history.shares)
    close(rebuilt, output.logits.exp())
    row, position, entry = history.shares.nonzero(as_tuple=True)
    ages = history.ages[row, position, entry]
    assert ages.min() == 1
    assert ages.max() == min(window, length + 4)
    assert torch.equal(history.outcomes[row, position, entry], ids[row, position + 5 - ages + 1])
    assert ((history.shares > 0).sum(-1) == torch.arange(5, 5 + length).clamp(max=window)).all()


def test_output_history_of_one_step_is_not_overwritten_later() -> None:
    model, ids = make_language_model(2), make_ids(1, 8)
    with torch.no_grad():
        cache = model(ids[:, :4], use_cache=True).past_key_values
        history = model(ids[:, 4:5], past_key_values=cache, output_history=True).history
        before = [value.clone() for value in history.to_tuple()]
        model(ids[:, 5:], past_key_values=cache)
    assert all(torch.equal(value, old) for value, old in zip(history.to_tuple(), before, strict=True))


def test_without_history_there_is_nothing_to_output() -> None:
    assert make_language_model()(make_ids(1, 3), output_history=True, use_history=False).history is None


@pytest.mark.parametrize("recurrence", ["lstm", "qrnn"])
def test_gradient_checkpointing_changes_no_gradient(recurrence: str) -> None:
    model, ids = make_language_model(0, recurrence, hidden_dropout=0.3).train(), make_ids(2, 9)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        torch.manual_seed(1)
        gradients.append(torch.autograd.grad(model(ids, labels=ids, use_cache=False).loss, list(model.parameters())))
    close(gradients[1], gradients[0])


def test_dropout_acts_in_training_only() -> None:
    names = ("embedding_dropout", "input_dropout", "hidden_dropout", "output_dropout", "weight_dropout")
    plain, ids = make_language_model(), make_ids(2, 9)
    for name in names:
        model = make_language_model(**{name: 0.5})
        close(model(ids).logits, plain(ids).logits)
        losses = {model.train()(ids, labels=ids).loss.item() for _ in range(3)}
        assert len(losses) > 1, name


def test_embedding_dropout_drops_types() -> None:
    model = make_language_model(embedding_dropout=0.5).train()
    ids = torch.arange(VOCAB).repeat(2, 2)
    with mock.patch.object(RecurrentStack, "forward", lambda self, x, state, mask, **_: (x, state)):
        states = model.model(ids, use_cache=False).last_hidden_state
    factor = (states / model.model.embed_tokens(ids)).detach()
    assert set(factor.round(decimals=4).unique().tolist()) == {0.0, 2.0}
    assert torch.equal(factor[:, :VOCAB], factor[:, VOCAB:])
    assert torch.equal(factor[0], factor[1])


def test_hidden_states() -> None:
    model, ids = make_language_model(num_hidden_layers=3), make_ids(2, 4)
    output = model(ids, output_hidden_states=True)
    states = model.model(ids, use_cache=False).last_hidden_state
    assert {tuple(state.shape) for state in output.hidden_states} == {(2, 4, 6)}
    close(output.hidden_states[-1], states)
    assert model(ids).hidden_states is None
    as_tuple = model(ids, return_dict=False, use_cache=False)
    close(as_tuple[0], model(ids).logits)


def test_use_cache() -> None:
    model, ids = make_language_model(4), make_ids(2, 6)
    assert isinstance(model(ids).past_key_values, LLECache)
    assert model(ids, use_cache=False).past_key_values is None
    assert model(ids, use_cache=False, use_history=False).past_key_values is None
    assert model.model(ids).past_key_values.window == 4
    assert model.model(ids, use_cache=False).past_key_values is None
    given_cache = LLECache(4)
    assert model(ids, past_key_values=given_cache, use_cache=False).past_key_values is None
    assert given_cache.seen_tokens == 6
    model.config.use_cache = False
    assert model(ids).past_key_values is None


def test_a_cache_without_a_stream_reads_no_history() -> None:
    model, ids = make_language_model(), make_ids(2, 6)
    close(model(ids, past_key_values=LLECache()).logits, model(ids, use_history=False).logits)


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest floating tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else [output]:
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self.elements = max(self.elements, tensor.numel())
        return output


@stream_on_and_off
def test_the_loss_never_builds_all_logits(history: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    vocab, length = 400, 40
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", 10 * vocab)
    monkeypatch.setattr(prediction_module, "BLOCK_ELEMENTS", 10 * vocab)
    model, ids = make_language_model(vocab_size=vocab, hidden_size=4), make_ids(2, length)
    with Largest() as largest:
        loss = model(ids, labels=ids, use_history=history, return_logits=False).loss
        if not history:
            loss.backward()
    assert largest.elements <= 10 * vocab


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_precisions(dtype: torch.dtype) -> None:
    model, ids = make_language_model(), make_ids(2, 20)
    want = model(ids, labels=ids)
    got = model.to(dtype)(ids, labels=ids)
    assert got.logits.dtype == torch.float32
    close(got.logits.exp().sum(-1), torch.ones(2, 20))
    close(got.loss.float(), want.loss, 0.05)
    assert got.past_key_values.stream.keys.dtype == dtype
    assert model.generate(ids, max_new_tokens=3, pad_token_id=0, do_sample=False).shape == (2, 23)


def test_bfloat16_autocast() -> None:
    model, ids = make_language_model(), make_ids(2, 20)
    want = model(ids, labels=ids)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(ids, labels=ids)
        trained = model.train()(ids, labels=ids)
        again = model.eval()(ids[:, :1], past_key_values=got.past_key_values)
    close(got.loss, want.loss, 0.05)
    assert again.logits.isfinite().all()
    trained.loss.backward()


@pytest.mark.parametrize("recurrence", ["lstm", "gru", "qrnn"])
def test_saving_and_loading(recurrence: str, tmp_path: Path) -> None:
    model, ids = make_language_model(5, recurrence, "residual"), make_ids(2, 9)
    model.save_pretrained(tmp_path)
    again = LLEForCausalLM.from_pretrained(tmp_path)
    assert not again.training
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is LLEForCausalLM
    backbone = AutoModel.from_pretrained(tmp_path)
    assert type(backbone) is LLEModel
    close(backbone(ids).last_hidden_state, model.model(ids).last_hidden_state)


def test_initialisation() -> None:
    model = make_language_model(initializer_range=0.01, tie_word_embeddings=False)
    for weight in (model.model.embed_tokens.weight, model.lm_head.weight):
        assert 0.009 < float(weight.detach().abs().max()) <= 0.01
    assert (model.lm_head.bias == 0).all()
    ids = make_ids(2, 9)
    assert model(ids, labels=ids, use_history=False).loss.item() == pytest.approx(math.log(VOCAB), abs=0.01)


def test_the_history_adds_no_parameter() -> None:
    assert make_language_model(100).num_parameters() == make_language_model(0).num_parameters()


def test_score_continues_a_text() -> None:
    model, ids, targets = make_language_model(5), make_ids(2, 12), make_ids(2, 12, 1)
    whole = model.score(ids, targets)
    first = model.score(ids[:, :5], targets[:, :5])
    second = model.score(ids[:, 5:], targets[:, 5:], past_key_values=first.past_key_values)
    for name in ("log_probs", "base_log_probs", "stream_share"):
        close(torch.cat([getattr(first, name), getattr(second, name)], dim=1), getattr(whole, name))
    assert not whole.log_probs.requires_grad
    off = model.score(
        ids[:, 5:],
        targets[:, 5:],
        past_key_values=model.score(ids[:, :5], targets[:, :5]).past_key_values,
        use_history=False,
    )
    close(off.log_probs, whole.base_log_probs[:, 5:])
    assert (off.stream_share == 0).all()
