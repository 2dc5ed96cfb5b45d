"""The text classification pipeline: labels, those that only the bank knows, the examples that moved them, refusals."""

from typing import Any

import pytest
from transformers import pipeline

import modeling_lle
from tests.factories.classifiers import make_classifier, make_taught_classifier
from tests.factories.texts import WORD_TOKENIZER, encode_texts

TRUSTED = {"bank": {"sharpness": 50.0, "gate": [20.0, 0.0, 0.0, 0.0]}}


def make_pipeline(model: Any) -> Any:
    return pipeline("text-classification", model=model, tokenizer=WORD_TOKENIZER)


def test_the_pipeline_is_that_of_the_package() -> None:
    assert type(make_pipeline(make_classifier())) is modeling_lle.LLETextClassificationPipeline


def test_a_label_that_only_the_bank_knows_is_named() -> None:
    model, _, _ = make_taught_classifier(history=TRUSTED)
    model.learn(["h h h"], ["new"], WORD_TOKENIZER, new_labels=True)
    classify = make_pipeline(model)
    assert classify("h h h")[0]["label"] == "new"
    assert {item["label"] for item in classify("h h h", top_k=None)} == {"label-0", "label-1", "label-2", "new"}


def test_the_history_names_the_examples_and_their_shares() -> None:
    model, texts, labels = make_taught_classifier(history=TRUSTED)
    (record,) = make_pipeline(model)([texts[0]], return_history=True, history_top=2)
    (explained,) = record["history"]
    causes = explained["causes"]
    assert causes[0]["columns"] == {"text": texts[0], "label": labels[0]}
    assert len(causes) <= 2
    assert explained["base_share"] + sum(cause["share"] for cause in causes) <= 1 + 1e-5


def test_without_a_bank_the_base_has_all_shares() -> None:
    (record,) = make_pipeline(make_classifier())(["a b"], return_history=True)
    (explained,) = record["history"]
    assert (explained["base_share"], explained["causes"], explained["rest"]) == (1.0, [], 0.0)


@pytest.mark.parametrize("threshold", [1e-9, 0.999])
def test_a_text_that_no_label_fits_is_refused(threshold: float) -> None:
    model, texts, _ = make_taught_classifier()
    model.config.classifier.out_of_scope.threshold = threshold
    (record,) = make_pipeline(model)([texts[0]], out_of_scope=True)
    assert (record["label"] == "out_of_scope") == (record["out_of_scope"] >= threshold)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_texts_are_explained_by_the_examples_that_moved_them(batch_size: int) -> None:
    model, known, labels = make_taught_classifier()
    model.learn(["h h h"], ["new"], new_labels=True)
    history = model.history
    model.detach_history()
    classify = pipeline("text-classification", model=model, tokenizer=WORD_TOKENIZER)
    options = {"history": history, "return_history": True, "history_top": 99, "batch_size": batch_size}
    results = classify([known[0], "h h h", known[1]], **options)
    for result, text, label in zip(results, (known[0], "h h h"), (labels[0], "new"), strict=False):
        (explained,) = result["history"]
        assert (explained["text"], explained["prob"]) == (result["label"], pytest.approx(result["score"], abs=1e-5))
        effects = sum(cause["effect"] for cause in explained["causes"])
        assert explained["prob"] - explained["base_prob"] == pytest.approx(effects, abs=2e-5)
        own = [cause for cause in explained["causes"] if cause["columns"]["text"] == text]
        assert [(cause["outcome"], cause["columns"]["label"]) for cause in own] == [(label, label)]
    assert {item["label"] for item in classify("h h h", top_k=None)} == set(model.trained_labels)
    several = classify("h h h", history=history, top_k=2, return_history=True)
    assert list(several) == ["labels", "history"]
    raw = classify("h h h", history=history, top_k=1, function_to_apply="none")
    assert raw[0]["score"] == pytest.approx(
        float(model(**encode_texts("h h h"), history=history).logits.max()), abs=1e-5
    )
