"""Classifiers and the history of a call: tenants in threads, exact explanations, teaching within namespaces."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from transformers import pipeline

from modeling_lle.bank.files import BankError
from modeling_lle.history.attachment import Attachment
from tests.factories.classifiers import make_classifier, make_taught_classifier
from tests.factories.texts import WORD_TOKENIZER, encode_texts, make_texts

MULTI = "multi_label_classification"
TEXTS = ["a b c", "d e", "g h"]


def make_tenants() -> tuple[Any, list[Attachment]]:
    """A classifier with no bank attached, and tenants: two of them share a bank, and each has a label of its own."""
    model = make_classifier()
    model.learn(["g h", "a"], ["ann's", "label-1"], WORD_TOKENIZER, new_labels=True, namespace="ann")
    model.learn(["g h", "b"], ["bob's", "label-2"], new_labels=True, namespace="bob")
    shared = model.history_bank
    model.detach_history()
    model.learn(["g h"], ["carl's"], WORD_TOKENIZER, new_labels=True)
    alone = Attachment(model.history_bank)
    model.detach_history()
    return model, [Attachment(shared, ("ann",)), Attachment(shared, ("bob",)), alone]


def test_tenants_in_threads_see_nothing_of_each_other() -> None:
    model, tenants = make_tenants()
    classify, batch = pipeline("text-classification", model=model, tokenizer=WORD_TOKENIZER), encode_texts(*TEXTS)
    config = model.config.to_dict()

    @torch.no_grad()
    def ask(tenant: Attachment | None) -> Any:
        output = model(**batch, history=tenant)
        return output.label_names, output.logits.tolist(), classify(TEXTS, history=tenant, top_k=None)

    due = [ask(tenant) for tenant in (*tenants, None)]
    own = ["ann's", "bob's", "carl's"]
    assert [names[3:] for names, _, _ in due] == [(name,) for name in own] + [()]
    assert [found[2][0]["label"] for _, _, found in due[:3]] == own
    end = time.monotonic() + 0.3

    def hammer(number: int) -> None:
        while time.monotonic() < end:
            assert ask((*tenants, None)[number]) == due[number]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(hammer, range(4)))
    assert model.config.to_dict() == config


def test_what_a_tenant_is_taught_and_takes_back_is_its_own() -> None:
    model, (ann, bob, _) = make_tenants()
    with pytest.raises(ValueError, match="is new"):
        model.learn(["c"], ["bob's"], WORD_TOKENIZER, history=ann)
    before = model(**encode_texts(*TEXTS), history=bob).logits
    assert model.learn(["c"], ["label-0"], WORD_TOKENIZER, history=ann) == 1
    with pytest.raises(BankError, match="no example with the text 'b'"):
        model.forget(["b"], history=ann)
    assert model.forget(["g h"], history=ann) == 1
    assert (model.label_names(ann), model.label_names(bob)[3:]) == (model.trained_labels, ("bob's",))
    assert torch.equal(model(**encode_texts(*TEXTS), history=bob).logits, before)
    assert model.history is None
    with pytest.raises(ValueError, match="nothing to forget: give texts"):
        model.forget(history=ann)
    both = Attachment(ann.bank, ("ann", "bob"))
    with pytest.raises(ValueError, match="namespaces ann, bob: say which"):
        model.learn(["h"], ["label-0"], WORD_TOKENIZER, history=both)
    assert model.forget(label="bob's", history=both) == 1
    with pytest.raises(BankError, match="no such example in the namespaces ann, bob"):
        model.forget(source="carl", history=both)


def test_a_pinned_attachment_does_not_see_what_comes_later() -> None:
    model, texts, _ = make_taught_classifier()
    pinned, batch = model.history.pinned(), encode_texts(*texts[:2])
    before = model(**batch).logits
    model.learn(["h h h"], ["new"], new_labels=True)
    assert model(**batch, history=pinned).label_names == model.label_names(pinned) == model.trained_labels
    assert torch.equal(model(**batch, history=pinned).logits, before)
    assert model(**batch).label_names == model.label_names() == (*model.trained_labels, "new")


def lessons(kind: str, new: bool) -> tuple[Any, list[Any]]:
    """A classifier of a kind, and labels for three texts."""
    if kind == "regression":
        return make_classifier(labels=1), [1.5, -2.0, 40.0]
    if kind == MULTI:
        return make_classifier(problem_type=MULTI), [["label-0", "new" if new else "label-1"], [], ["label-2"]]
    return make_classifier(), ["label-0", "new" if new else "label-1", "label-2"]


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("kind", ["single", MULTI, "regression"])
def test_the_effects_of_an_explanation_add_up(kind: str, new: bool) -> None:
    model, labels = lessons(kind, new)
    model.learn(TEXTS, labels, WORD_TOKENIZER, new_labels=new)
    batch = encode_texts("a b d", "g", "h h")
    with torch.no_grad():
        plain, output = model(**batch, use_history=False), model(**batch, output_history=True)
    total = output.history.base_share + output.history.bank_shares.sum(-1)
    torch.testing.assert_close(total, torch.ones(3))
    values = {"single": lambda x: x.softmax(-1), MULTI: torch.sigmoid, "regression": lambda x: x}[kind]
    mixed, base = values(output.logits), values(plain.logits)
    base = torch.nn.functional.pad(base, (0, mixed.shape[1] - base.shape[1]))
    for label, name in enumerate(output.label_names):
        explained = model.explain(**batch, targets=torch.full((3,), label), top=99)
        assert [(item.position, item.target, item.name) for item in explained] == [(n, label, name) for n in range(3)]
        for row, item in enumerate(explained):
            assert item.prob == pytest.approx(float(mixed[row, label]), abs=1e-5)
            assert item.base_prob == pytest.approx(float(base[row, label]), abs=1e-5)
            assert item.prob - item.base_prob == pytest.approx(sum(cause.effect for cause in item.causes), abs=2e-5)
            assert item.base_share + sum(cause.share for cause in item.causes) == pytest.approx(1, abs=1e-5)
            assert {cause.columns["text"] for cause in item.causes} <= set(TEXTS)
    assert [item.target for item in model.explain(**batch)] == output.logits.argmax(-1).tolist()


def test_without_a_bank_the_base_explains_itself() -> None:
    model = make_classifier()
    (item,) = model.explain(**encode_texts("a b"))
    assert (item.base_share, item.causes, item.rest) == (1.0, [], 0.0)
    assert item.prob == item.base_prob == pytest.approx(model(**encode_texts("a b")).logits.softmax(-1).max().item())


def make_taught_tagger() -> Any:
    model = make_classifier(of_tokens=True, labels=2)
    words = [["a", "b", "c"], ["d", "e"]]
    model.learn(words, [["label-0", None, "new"], [None, "label-1"]], WORD_TOKENIZER, new_labels=True)
    return model


def test_explanations_of_tokens_leave_padding_out() -> None:
    model, batch = make_taught_tagger(), encode_texts("a c e", "d")
    items = model.explain(**batch, top=99)
    assert [item.position for item in items] == [0, 1, 2, 2]  # the tokenizer pads on the left
    probabilities = model(**batch).logits.softmax(-1)[batch["attention_mask"].bool()]
    for item, due in zip(items, probabilities, strict=True):
        assert item.prob == pytest.approx(float(due.max()), abs=1e-5)
        assert item.prob - item.base_prob == pytest.approx(sum(cause.effect for cause in item.causes), abs=2e-5)
    targets = torch.tensor([[-100, 2, -100], [0, -100, 1]])
    chosen = model.explain(**batch, targets=targets, top=1)
    assert [(item.position, item.name) for item in chosen] == [(1, "new"), (2, "label-1")]
    assert chosen[0].causes[0].name == "new"


def test_the_score_of_none_of_these_is_a_number_at_padding_too() -> None:
    model, batch = make_taught_tagger(), encode_texts("a c e", "d")
    output = model(**batch, output_out_of_scope=True)
    assert output.logits.shape[-1] == 3
    assert output.out_of_scope.isfinite().all()
    assert output.scope_features.isfinite().all()


def test_calibration_takes_a_sample_and_leaves_what_is_fixed() -> None:
    model, texts, labels = make_taught_classifier(40)
    history = model.history
    model.detach_history()
    held = [
        {**encode_texts(text + " a"), "labels": torch.tensor([int(label[-1])])}
        for text, label in zip(texts, labels, strict=True)
    ]
    numbers = model.config.bank
    before = numbers.sharpness, list(numbers.gate)
    options = {"fixed": ["bank.sharpness"], "max_predictions": 10, "steps": 5, "history": history}
    measured = model.calibrate(held, **options)
    assert (measured["predictions"], numbers.sharpness) == (10, before[0])
    assert numbers.gate != before[1]
    assert set(measured) == {"predictions", "base_nats", "before_nats", "after_nats"}


def test_calibration_lowers_the_loss() -> None:
    model, texts, labels = make_taught_classifier(40)
    held = [
        {**encode_texts(text + " a"), "labels": torch.tensor([int(label[-1])])}
        for text, label in zip(texts, labels, strict=True)
    ]
    measured = model.calibrate(held)
    assert measured["predictions"] == len(held)
    assert measured["after_nats"] < measured["before_nats"]
    numbers, own = model.config.bank, model.config.classifier
    before = numbers.sharpness, own.background, numbers.gate
    numbers.gate = [0.0, 0.0, 0.0, 0.0]
    model.calibrate(held, fixed=["sharpness", "background"])
    assert (numbers.sharpness, own.background) == before[:2]
    assert numbers.gate != [0.0, 0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="did you mean 'sharpness'"):
        model.calibrate(held, fixed=["sharpnes"])
    with pytest.raises(ValueError, match="no bank is attached"):
        make_classifier().calibrate(held)


def test_a_few_texts_do_not_set_a_gate_without_bounds() -> None:
    model, texts, labels = make_taught_classifier(40)
    held = [{**encode_texts(texts[row]), "labels": torch.tensor([int(labels[row][-1])])} for row in range(4)]
    model.calibrate(held, steps=200)  # the bank is always right
    assert max(map(abs, model.config.bank.gate)) < 30


@pytest.mark.parametrize(("count", "hides"), [(2, False), (3, True), (4, True), (5, True)])
def test_calibration_also_predicts_labels_that_are_hidden_from_the_base(count: int, hides: bool) -> None:
    model, texts = make_classifier(labels=count), list(dict.fromkeys(make_texts(30, 5, seed=3)))
    numbers = [row % count for row in range(len(texts))]
    model.learn(texts, [f"label-{number}" for number in numbers], WORD_TOKENIZER)
    held = [{**encode_texts(f"{text} a"), "labels": torch.tensor([n])} for text, n in zip(texts, numbers, strict=True)]
    with torch.no_grad():
        plain = float(torch.stack([model(**batch).loss for batch in held]).mean())
    measured = model.calibrate(held, steps=1)["before_nats"]
    assert (abs(measured - plain) > 1e-3) is hides


def test_calibration_on_labels_that_only_the_bank_knows() -> None:
    model, texts, labels = make_taught_classifier(40)
    held = [
        {**encode_texts(text), "labels": torch.tensor([int(label[-1])])}
        for text, label in zip(texts, labels, strict=True)
    ]
    base = model.calibrate(held)["base_nats"]
    model.learn(["h h h h"], ["new"], new_labels=True)
    measured = model.calibrate([*held, {**encode_texts("h h h"), "labels": torch.tensor([3])}])
    assert measured["predictions"] == len(held) + 1
    assert measured["base_nats"] == pytest.approx(base)
    several = make_classifier(problem_type="multi_label_classification")
    several.learn(["a b", "c"], [["label-0", "new"], []], WORD_TOKENIZER, new_labels=True)
    measured = several.calibrate([{**encode_texts("a b a"), "labels": torch.tensor([[1.0, 0.0, 0.0, 1.0]])}])
    assert measured["after_nats"] <= measured["before_nats"]
