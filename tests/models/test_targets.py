"""What is predicted: the mask decides, the labels are checked, and every head says what is wrong with them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modeling_lle.history.loss import check_targets, linear_cross_entropy
from modeling_lle.models.targets import next_labels
from tests.factories.classifiers import make_classifier
from tests.factories.language_models import make_language_model
from tests.factories.pairs import make_capitals_tokenizer
from tests.factories.texts import VOCAB, make_ids
from tests.factories.translators import make_translator

LENGTHS = (7, 4, 1)
TRAINING = {"training": {"window": 7, "other_rows": False}}


def padded(side: str) -> tuple[list[Tensor], Tensor, Tensor]:
    """Texts (1, T) of several lengths, and the same as one batch: tokens, and the mask; "holes": padding anywhere."""
    texts = [make_ids(1, length, seed) for seed, length in enumerate(LENGTHS)]
    ids, mask = make_ids(len(texts), 9, 50), torch.zeros(len(texts), 9, dtype=torch.long)
    for row, text in enumerate(texts):
        length = text.shape[1]
        places = {"left": range(9 - length, 9), "right": range(length), "holes": range(row, 9)}[side]
        places = torch.tensor(sorted({*places} - {row + 2})[:length] if side == "holes" else list(places))
        ids[row, places], mask[row, places] = text[0], 1
    return texts, ids, mask


@pytest.mark.parametrize("side", ["left", "right", "holes"])
@pytest.mark.parametrize("how", ["plain", "stream", "learned"])
def test_the_loss_of_a_padded_batch_is_that_of_its_rows_alone(side: str, how: str) -> None:
    model = make_language_model(history=TRAINING).train(how == "learned")
    texts, ids, mask = padded(side)
    given = {"use_history": how != "plain"}
    with torch.no_grad():
        nats = sum(float(model(text, labels=text, num_items_in_batch=1, **given).loss) for text in texts)
        together = model(ids, attention_mask=mask, labels=ids, **given).loss
    assert float(together) == pytest.approx(nats / sum(length - 1 for length in LENGTHS), abs=1e-5)


def test_left_padding_is_no_target_of_score_and_calibration() -> None:
    model, (texts, ids, mask) = make_language_model(), padded("left")
    targets = torch.cat([ids[:, 1:], make_ids(3, 1)], dim=1)
    scored = model.score(ids, targets, mask)
    assert (scored.log_probs[mask == 0] == 0).all()
    for row, text in enumerate(texts):
        alone = model.score(text, targets[row : row + 1, -text.shape[1] :])
        torch.testing.assert_close(scored.log_probs[row, -text.shape[1] :], alone.log_probs[0])
    fitted = model.calibrate([{"input_ids": ids, "shift_labels": targets, "attention_mask": mask}], steps=1)
    assert fitted["predictions"] == sum(LENGTHS)


@given(rows=st.integers(1, 3), length=st.integers(1, 9), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_the_next_label_is_that_of_the_next_real_position(rows: int, length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels, mask = make_ids(rows, length, seed), torch.rand(rows, length, generator=generator) < 0.6
    got = next_labels(labels, mask)
    for row in range(rows):
        real = mask[row].nonzero()[:, 0].tolist()
        want = dict(zip(real, labels[row, real[1:]].tolist(), strict=False))
        assert got[row].tolist() == [want.get(place, -100) for place in range(length)]


@pytest.mark.parametrize("with_mask", [True, False])
def test_the_trainers_count_gives_the_mean_on_left_padding_too(with_mask: bool) -> None:
    """It counts labels[:, 1:], so the first token of a row after padding, which nothing predicts."""
    model, (_, ids, mask) = make_language_model(0), padded("left")
    labels = ids.masked_fill(mask == 0, -100)
    if not with_mask:
        ids, labels, mask = ids[:1, 2:], labels[:1, 2:], None  # type: ignore[assignment]
    count = (labels[:, 1:] != -100).sum()
    with torch.no_grad():
        mean = model(ids, mask, labels=labels).loss
        torch.testing.assert_close(model(ids, mask, labels=labels, num_items_in_batch=count).loss, mean)
        torch.testing.assert_close(model(ids, mask, labels=labels, num_items_in_batch=2 * count).loss, mean / 2)


@pytest.mark.parametrize("padding", ["right", "left", None])
def test_parts_of_a_batch_add_up_to_the_whole_with_penalties(padding: str | None) -> None:
    """As the Trainer accumulates gradients: each part is divided by the labels of all."""
    model = make_language_model(0, activation_penalty=2.0, smoothness_penalty=3.0).train()
    ids, mask = make_ids(4, 6), torch.ones(4, 6, dtype=torch.long)
    if padding:
        mask[1::2, slice(0, 2) if padding == "left" else slice(-2, None)] = 0
    labels = ids.masked_fill(mask == 0, -100)
    whole = model(ids, mask, labels=labels).loss
    want = torch.autograd.grad(whole, list(model.parameters()))
    count = (labels[:, 1:] != -100).sum()
    parts = [model(ids[p], mask[p], labels=labels[p], num_items_in_batch=count).loss for p in (slice(2), slice(2, 4))]
    torch.testing.assert_close(sum(parts), whole)
    got = torch.autograd.grad(sum(parts), list(model.parameters()))  # type: ignore[arg-type]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_penalties_do_not_see_padding() -> None:
    model = make_language_model(0, activation_penalty=2.0, smoothness_penalty=3.0).train()
    ids, mask = make_ids(1, 6), torch.tensor([[1, 1, 1, 1, 0, 0]])
    alone = model(ids[:, :4], labels=ids[:, :4]).loss
    torch.testing.assert_close(model(ids, mask, labels=ids).loss, alone)


def causal(labels: Tensor, name: str = "labels", training: bool = False, **values: Any) -> Any:
    return make_language_model(**values).train(training)(make_ids(1, 5), **{name: labels})


def translator(labels: Tensor) -> Any:
    return make_translator(make_capitals_tokenizer(), vocab_size=VOCAB)(make_ids(1, 5), labels=labels)


def tokens(labels: Tensor) -> Any:
    return make_classifier(VOCAB, of_tokens=True)(make_ids(1, 5), labels=labels)


HEADS: dict[str, Callable[[Tensor], Any]] = {
    "evaluation": causal,
    "training": lambda labels: causal(labels, training=True),
    "plain": lambda labels: causal(labels, window=0),
    "shifted": lambda labels: causal(labels, "shift_labels"),
    "history": lambda labels: causal(labels, training=True, history=TRAINING),
    "score": lambda labels: make_language_model().score(make_ids(1, 5), labels),
    "calibration": lambda labels: make_language_model().calibrate(
        [{"input_ids": make_ids(1, 5), "shift_labels": labels}]
    ),
    "translator": translator,
    "token classifier": tokens,
    "loss": lambda labels: linear_cross_entropy(torch.rand(1, 5, 3), torch.rand(VOCAB, 3), None, labels),
}
WRONG = [
    (make_ids(1, 6), r"\(1, 6\).*\(1, 5\)"),
    (make_ids(1, 2), r"\(1, 2\).*\(1, 5\)"),
    (make_ids(2, 5), r"\(2, 5\).*\(1, 5\)"),
    (make_ids(5, 1), r"\(5, 1\).*\(1, 5\)"),
    (torch.zeros(1, 5), r"torch.float32.*int64"),
    (torch.zeros(1, 5, dtype=torch.bool), r"torch.bool.*int64"),
    (torch.tensor([[1, 2, -1, 3, 4]]), r"-1 at \(0, 2\).*0 to 10.*-100"),
    (torch.tensor([[1, 2, 3, VOCAB, 4]]), rf"{VOCAB} at \(0, 3\).*0 to 10"),
]


@pytest.mark.parametrize("head", HEADS)
def test_every_head_says_what_is_wrong_with_labels(head: str) -> None:
    for labels, message in WRONG:
        if head == "translator" and r"\(1, 5\)" in message:
            continue  # a target is as long as it likes, and a source may have several
        with pytest.raises(ValueError, match=message):
            HEADS[head](labels)
    HEADS[head](torch.tensor([[1, 2, -100, VOCAB - 1, 0]], dtype=torch.int32))


def test_targets_that_cannot_be_shared_among_the_sources_are_refused() -> None:
    model = make_translator(make_capitals_tokenizer(), vocab_size=VOCAB)
    with pytest.raises(ValueError, match="3 targets cannot belong to 2 sources"):
        model(make_ids(2, 5), labels=make_ids(3, 2))
    assert model(make_ids(2, 5), labels=make_ids(4, 2)).logits.shape == (4, 2, VOCAB)


@torch.no_grad()
def test_empty_labels_and_other_integers_are_fine() -> None:
    assert check_targets(torch.zeros(0, 3, dtype=torch.int16), (0, 3), 4).dtype == torch.int64
    for model in (make_language_model(), make_language_model().train(), make_language_model(history=TRAINING).train()):
        ids = make_ids(2, 1)
        assert float(model(ids, labels=ids).loss) == 0
        assert float(model(ids, shift_labels=torch.full_like(ids, -100)).loss) == 0
        for empty in (ids[:0], ids[:, :0]):
            with pytest.raises(ValueError, match=r"no row|no token"):
                model(empty, labels=empty)
            with pytest.raises(ValueError, match=r"no row|no token"):
                model.score(empty, empty)


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("multi_label_classification", torch.zeros(2, 2)),
        ("multi_label_classification", torch.zeros(3, 2)),
        ("regression", torch.zeros(3)),
        ("single_label_classification", torch.zeros(2, 1, dtype=torch.long)),
    ],
)
def test_labels_of_texts_have_the_shape_of_the_predictions(kind: str, labels: Tensor) -> None:
    count = 1 if kind == "regression" else 3
    with pytest.raises(ValueError, match=rf"\({', '.join(map(str, labels.shape))},?\)"):
        make_classifier(count, problem_type=kind)(make_ids(2, 4), labels=labels)


def test_statistics_of_an_update_leave_out_what_is_no_target() -> None:
    model, ids, targets = make_language_model(), make_ids(1, 6), make_ids(1, 6, 1)
    targets[0, -1] = -100
    model.collect_update_statistics([{"input_ids": ids, "shift_labels": targets}])
    got = model.update_statistics
    model.collect_update_statistics([{"input_ids": ids[:, :-1], "shift_labels": targets[:, :-1]}])
    assert got is not None
    torch.testing.assert_close(got, model.update_statistics)
    with pytest.raises(ValueError, match="-1 at"):
        model.collect_update_statistics([{"input_ids": ids, "shift_labels": targets.clamp(min=-1)}])
