"""The pipelines of classifiers: labels and examples of the bank that a call names, in batches, of texts and tokens."""

from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForTokenClassification, pipeline

from modeling_lle.history.attachment import Attachment
from tests.factories.classifiers import make_classifier, make_taught_classifier
from tests.factories.texts import VOCAB, WORD_TOKENIZER, encode_texts

TEXTS = ["a b c", "d e", "g h"]


def make_tagger() -> tuple[Any, Attachment]:
    """A classifier of tokens with no bank attached, and one that says that c is new."""
    model = make_classifier(of_tokens=True, labels=2)
    model.learn([["c", "d"]], [["new", "label-1"]], WORD_TOKENIZER, new_labels=True)
    history = model.history
    model.detach_history()
    return pipeline("token-classification", model=model, tokenizer=WORD_TOKENIZER), history


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


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("strategy", ["none", "simple", "first", "max", "average"])
@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_tokens_get_labels_that_only_the_bank_knows(strategy: str, batch_size: int) -> None:
    tag, history = make_tagger()
    key = "entity" if strategy == "none" else "entity_group"
    options = {"aggregation_strategy": strategy, "batch_size": batch_size}
    found = tag(["c d", "c"], history=history, **options)
    names = {"none": ["new", "label-1"]}.get(strategy, ["new", "1"])  # what is before "-" is taken for a prefix
    assert [[entity[key] for entity in entities] for entities in found] == [names, names[:1]]
    assert not any(entity[key] == "new" for entities in tag(["c d", "c"], **options) for entity in entities)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_tokens_are_explained_one_by_one(batch_size: int) -> None:
    tag, history = make_tagger()
    found = tag(["c d", "c"], history=history, return_history=True, batch_size=batch_size)
    for entity in (entity for entities in found for entity in entities):
        (explained,) = entity["history"]
        assert (explained["text"], explained["prob"]) == (entity["entity"], pytest.approx(entity["score"], abs=1e-5))
        assert explained["causes"][0]["columns"]["text"] == "c d"
        assert (explained["causes"][0]["before"], explained["causes"][0]["outcome"]) == ("", entity["entity"])
    with pytest.raises(ValueError, match="leave aggregation_strategy out"):
        tag("c", history=history, return_history=True, aggregation_strategy="simple")


def test_other_models_have_no_history_to_tell() -> None:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=VOCAB, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    tag = pipeline("token-classification", model=BertForTokenClassification(config), tokenizer=WORD_TOKENIZER)
    assert len(tag("a b")) == 2
    with pytest.raises(TypeError, match="a history needs an LLE classifier; this is a BertForTokenClassification"):
        tag("a b", return_history=True)
