"""What every head promises, whatever its backbone and history: padding, order of outputs, precisions, threads, files.

Equal means to rounding: no tolerance depends on the instruction set.
"""

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conformance.subjects import SUBJECTS, TEXTS, Side, Subject

every_head = pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
generators = pytest.mark.parametrize(
    "subject",
    [subject for subject in SUBJECTS if subject.kind in ("next tokens", "translations")],
    ids=lambda subject: subject.name,
)
ROWS = range(len(TEXTS))


def close(got: Any, want: Any, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)


def states(subject: Subject, output: Any) -> tuple[Tensor, ...]:
    """The hidden states of what the labels are predicted from."""
    return output.decoder_hidden_states if subject.kind == "translations" else output.hidden_states


@every_head
@pytest.mark.parametrize("side", ["left", "right", "split"])
@torch.no_grad()
def test_a_padded_batch_gives_what_its_texts_give_alone(subject: Subject, side: Side) -> None:
    model, together = subject.make(), subject.batch(ROWS, side)
    got = model(**together, output_hidden_states=True)
    logits = subject.real(together, got.logits)
    hidden = [subject.real(together, layer) for layer in states(subject, got)]
    total = items = 0.0
    for row in ROWS:
        alone = subject.batch([row])
        want = model(**alone, output_hidden_states=True)
        close(logits[row], subject.real(alone, want.logits)[0])
        for layer, own in zip(hidden, states(subject, want), strict=True):
            close(layer[row], subject.real(alone, own)[0])
        count = subject.items(alone["labels"])
        total, items = total + float(want.loss) * count, items + count
    close(float(got.loss), total / items)


@every_head
@torch.no_grad()
def test_the_loss_comes_first_and_then_the_logits(subject: Subject) -> None:
    model, batch = subject.make(), subject.batch(ROWS)
    named, flat = model(**batch), model(**batch, return_dict=False)
    assert list(named)[:2] == ["loss", "logits"]
    assert isinstance(flat, tuple)
    assert torch.equal(flat[0], named.loss)
    assert torch.equal(flat[1], named.logits)
    unlabelled = model(**subject.unlabelled(model, batch))
    assert unlabelled.loss is None
    for got, want in zip(subject.real(batch, unlabelled[0]), subject.real(batch, named.logits), strict=True):
        close(got, want)


@every_head
@torch.no_grad()
def test_there_is_a_hidden_state_for_the_embeddings_and_for_every_layer(subject: Subject) -> None:
    model, batch = subject.make(), subject.batch(ROWS, "left")
    output = model(**batch, output_hidden_states=True)
    layers = states(subject, output)
    assert len(layers) == model.config.num_hidden_layers + 1
    read = batch["labels"] if subject.kind == "translations" else batch["input_ids"]
    assert {layer.shape[:2] for layer in layers} == {read.shape}
    if subject.kind != "translations":
        last = model.model(batch["input_ids"], batch["attention_mask"], use_cache=False).last_hidden_state
        close(subject.real(batch, layers[-1]), subject.real(batch, last))


@every_head
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_a_model_in_half_precision_is_near_the_model(subject: Subject, dtype: torch.dtype) -> None:
    model, batch = subject.make(), subject.batch(ROWS, "left")
    want = model(**batch, use_history=False)
    got = model.to(dtype)(**batch, use_history=False)
    for own, due in zip(subject.real(batch, got.logits), subject.real(batch, want.logits), strict=True):
        torch.testing.assert_close(own.float(), due, atol=0.25, rtol=0.1)
    assert model(**batch).loss.isfinite()


@every_head
def test_threads_do_not_see_each_other(subject: Subject) -> None:
    model, batches = subject.make(), [subject.batch([row]) for row in ROWS]

    @torch.no_grad()
    def logits_of(number: int) -> Tensor:
        return model(**batches[number % len(batches)]).logits

    want = [logits_of(number) for number in range(len(batches))]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(logits_of, range(12)))
    for number, logits in enumerate(got):
        assert torch.equal(logits, want[number % len(batches)])


@every_head
@torch.no_grad()
def test_what_a_saved_model_says_does_not_depend_on_further_attributes(subject: Subject, tmp_path: Path) -> None:
    model, batch = subject.make(), subject.batch(ROWS)
    want = model(**batch, use_history=False).logits
    model.config.decoder_start_token_id = 3
    model.config.note = {"made": "by hand"}
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.config.note == {"made": "by hand"}
    assert torch.equal(again(**batch, use_history=False).logits, want)


@every_head
def test_a_misspelt_argument_is_named(subject: Subject) -> None:
    with pytest.raises(TypeError, match=r"use_histroy.*use_history"):
        subject.make()(**subject.batch([0]), use_histroy=False)


@every_head
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_labels_that_do_not_fit_are_refused(subject: Subject, training: bool) -> None:
    model, batch = subject.make().train(training), subject.batch(ROWS)
    labels = batch["labels"]
    if subject.kind != "translations":  # there the labels say how long a translation is
        for wrong in (labels[:2], torch.cat([labels, labels])):
            with pytest.raises(ValueError, match=r"labels.*\("):
                model(**{**batch, "labels": wrong})
    for wrong in (-1, 1000):
        with pytest.raises(ValueError, match=str(wrong)):
            model(**{**batch, "labels": torch.where(torch.arange(labels.numel()).view_as(labels) == 0, wrong, labels)})


@generators
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_gives_each_text_what_it_gets_alone(subject: Subject, beams: int) -> None:
    model, together = subject.make(), subject.batch(ROWS, "left")
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "num_beams": beams, "do_sample": False}

    def generate(batch: dict[str, Tensor]) -> Tensor:
        return model.generate(batch["input_ids"], attention_mask=batch["attention_mask"], **options)[:, -5:]

    got = generate(together)
    for row in ROWS:
        assert torch.equal(got[row], generate(subject.batch([row]))[0])


@generators
@torch.no_grad()
def test_a_text_read_in_steps_and_chunks_is_the_text_read_at_once(subject: Subject) -> None:
    model, batch = subject.make(), subject.batch([0])
    whole = subject.unlabelled(model, batch)
    name = "decoder_input_ids" if subject.kind == "translations" else "input_ids"
    ids = whole[name]
    rest = {key: value for key, value in whole.items() if key not in (name, "decoder_attention_mask")}
    want = model(**whole).logits
    if subject.kind == "next tokens":
        rest = {}
    for size in (1, 2):
        cache, parts = None, []
        for part in ids.split(size, dim=1):
            output = model(**rest, **{name: part}, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            parts.append(output.logits)
        close(torch.cat(parts, dim=1), want)


@generators
def test_the_prediction_sums_to_one_and_does_not_see_what_it_predicts(subject: Subject) -> None:
    model, batch = subject.make(), subject.batch([0])
    whole = subject.unlabelled(model, batch)
    name = "decoder_input_ids" if subject.kind == "translations" else "input_ids"
    with torch.no_grad():
        before = model(**whole).logits
        close(before.log_softmax(-1).exp().sum(-1), torch.ones(before.shape[:2]))
        changed = {**whole, name: whole[name].clone()}
        changed[name][:, -1] = (changed[name][:, -1] + 1) % 6 + 2
        after = model(**changed).logits
    close(after[:, :-1], before[:, :-1])


@every_head
def test_a_copy_is_a_model_of_its_own(subject: Subject) -> None:
    model, batch = subject.make(), subject.batch(ROWS)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        want = model(**batch).logits
        for parameter in copied.parameters():
            parameter.zero_()
        assert torch.equal(model(**batch).logits, want)
