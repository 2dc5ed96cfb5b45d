"""The text classification pipeline: labels, those that only the bank knows, the examples that moved them, refusals."""

from typing import Any

import pytest
from transformers import pipeline

import modeling_lle
from tests.factories.classifiers import make_classifier, make_taught_classifier
from tests.factories.texts import WORD_TOKENIZER

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
    first = record["history"][0]
    assert (first["text"], first["label"]) == (texts[0], labels[0])
    assert len(record["history"]) <= 2
    assert record["base_share"] + sum(item["share"] for item in record["history"]) <= 1 + 1e-5


def test_without_a_bank_the_base_has_all_shares() -> None:
    (record,) = make_pipeline(make_classifier())(["a b"], return_history=True)
    assert (record["base_share"], record["history"]) == (1.0, [])


@pytest.mark.parametrize("threshold", [1e-9, 0.999])
def test_a_text_that_no_label_fits_is_refused(threshold: float) -> None:
    model, texts, _ = make_taught_classifier()
    model.config.classifier.out_of_scope.threshold = threshold
    (record,) = make_pipeline(model)([texts[0]], out_of_scope=True)
    assert (record["label"] == "out_of_scope") == (record["out_of_scope"] >= threshold)
