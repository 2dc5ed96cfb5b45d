"""Measuring classifiers: each metric against plain arithmetic, new labels, what is refused, and what is not fit."""

import math
from typing import Any

import pytest
import torch
from datasets import Dataset

from modeling_lle.evaluation import evaluate_classifier, format_classification
from tests.factories.classifiers import make_classifier, make_taught_classifier
from tests.factories.texts import WORD_TOKENIZER, encode_texts


def rows(texts: list[Any], labels: list[Any]) -> Dataset:
    return Dataset.from_dict({"text": texts, "label": labels})


def test_base_and_history_against_plain_arithmetic() -> None:
    model, texts, labels = make_taught_classifier(30)
    texts, labels = [*texts, "a h a", "c"], [*labels, "label-1", "label-2"]
    seen = evaluate_classifier(model.train(), WORD_TOKENIZER, rows(texts, labels), batch_size=4)
    assert model.training
    metrics = seen.metrics()
    model.eval()
    for prefix, use_history in (("base_", False), ("", True)):
        log_probs = torch.cat(
            [model(**encode_texts(text), use_history=use_history).logits for text in texts]
        ).log_softmax(-1)
        right = torch.tensor([int(label[-1]) for label in labels])
        assert metrics[f"{prefix}accuracy"] == pytest.approx((log_probs.argmax(-1) == right).float().mean().item())
        assert metrics[f"{prefix}loss"] == pytest.approx(
            torch.nn.functional.nll_loss(log_probs, right).item(), abs=1e-5
        )
    assert metrics["accuracy"] > metrics["base_accuracy"]
    assert metrics["texts"] == len(texts)
    assert sum(row["texts"] for row in seen.breakdown()) == len(texts)
    assert {"base_recall", "history_recall"} < set(seen.breakdown()[0])
    assert not {"taught_classes_accuracy", "out_of_scope_recall"} & set(metrics)
    assert "history" in format_classification(metrics)


def test_without_a_bank_both_are_the_base() -> None:
    metrics = evaluate_classifier(
        make_classifier(), WORD_TOKENIZER, rows(["a", "b c"], ["label-0", "label-1"])
    ).metrics()
    for name in ("accuracy", "macro_f1", "ece", "loss"):
        assert metrics[name] == metrics[f"base_{name}"]
    assert "history" not in format_classification(metrics)


def test_labels_that_only_the_bank_knows() -> None:
    model, texts, labels = make_taught_classifier(
        30, history={"bank": {"sharpness": 60.0, "gate": [6.0, 0.0, 0.0, 0.0]}}
    )
    model.learn(["h h h h", "g g g g"], ["new", "newer"], new_labels=True)
    data = rows([*texts, "h h h h", "g g g g"], [*labels, "new", "newer"])
    seen = evaluate_classifier(model, WORD_TOKENIZER, data)
    metrics = seen.metrics()
    assert metrics["taught_classes_accuracy"] == 1
    base, history = (
        [name == label for name, label in zip(seen.predictions[side], labels, strict=False)]
        for side in seen.predictions
    )
    assert metrics["old_classes_drop"] == pytest.approx((sum(base) - sum(history)) / len(labels))
    assert math.isfinite(metrics["base_loss"])
    only = evaluate_classifier(model, WORD_TOKENIZER, rows(["h h h h"], ["new"])).metrics()
    assert "base_loss" not in only
    assert "Labels that only the bank knows" in format_classification(metrics)


def test_what_is_refused() -> None:
    model, texts, labels = make_taught_classifier(30)
    model.config.classifier.out_of_scope.weights = [0.0, -1.0, 0.0, 0.0]
    data = rows([*texts, "<unk> <unk> <pad>", "<pad>"], [*labels, "oos", "oos"])
    seen = evaluate_classifier(model, WORD_TOKENIZER, data)
    assert seen.accepted.all()  # no threshold refuses nothing
    assert seen.metrics()["out_of_scope_recall"] == 0
    assert "no threshold" in format_classification(seen.metrics())
    model.config.classifier.out_of_scope.threshold = float(sorted(seen.scores)[-3])
    seen = evaluate_classifier(model, WORD_TOKENIZER, data)
    metrics = seen.metrics()
    refused = [name == "oos" for name in seen.decisions]
    assert sum(refused) == 3
    assert metrics["out_of_scope_recall"] == sum(refused[-2:]) / 2
    assert metrics["out_of_scope_precision"] == pytest.approx(sum(refused[-2:]) / 3)
    whole = evaluate_classifier(model, WORD_TOKENIZER, rows(texts, labels)).metrics()
    assert metrics["accuracy"] == whole["accuracy"]  # of the texts in scope, as if none was refused
    assert metrics["in_scope_accuracy"] <= metrics["accuracy"]


def test_a_model_with_a_label_of_its_own_for_what_is_out_of_scope() -> None:
    model = make_classifier(id2label={0: "a", 1: "oos"})
    model.learn(["a a", "h h"], ["a", "oos"], WORD_TOKENIZER)
    seen = evaluate_classifier(model, WORD_TOKENIZER, rows(["a a", "h h"], ["a", "oos"]))
    found = [name == "oos" for name in seen.predictions["history"]]
    assert seen.metrics()["out_of_scope_recall"] == found[1]
    assert seen.metrics()["texts"] == 2


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        (["a", " "], ["label-0", "label-0"], "the text in row 1 of the data set is blank: remove the row"),
        (["a", None], ["label-0", "label-0"], "the text in row 1 of the data set is missing"),
        (["a"], [None], "the label in row 0 of the data set is missing"),
        (["a"], [["label-0"]], "the label in row 0 of the data set is .*, not a class name"),
        (["a", "b"], ["label-0", "strange"], r"knows the label 'strange' \(row 1; 1 such labels\)"),
        (["a"], ["oos"], "every text has the label 'oos'"),
    ],
)
def test_what_cannot_be_measured(texts: list[Any], labels: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_classifier(make_classifier(), WORD_TOKENIZER, rows(texts, labels))


def test_weights_that_are_not_finite() -> None:
    model = make_classifier()
    torch.nn.init.constant_(model.classifier.weight, float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        evaluate_classifier(model, WORD_TOKENIZER, rows(["a"], ["label-0"]))
