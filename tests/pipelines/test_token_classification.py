"""The token classification pipeline: labels and examples of the bank that a call names, in batches."""

from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForTokenClassification, pipeline

from modeling_lle.history.attachment import Attachment
from tests.factories.classifiers import make_classifier
from tests.factories.texts import VOCAB, WORD_TOKENIZER


def make_tagger() -> tuple[Any, Attachment]:
    """A classifier of tokens with no bank attached, and one that says that c is new."""
    model = make_classifier(of_tokens=True, labels=2)
    model.learn([["c", "d"]], [["new", "label-1"]], WORD_TOKENIZER, new_labels=True)
    history = model.history
    model.detach_history()
    return pipeline("token-classification", model=model, tokenizer=WORD_TOKENIZER), history


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
