"""Tiny classifiers of texts and of tokens with random weights."""

from typing import Any

import torch

from modeling_lle import LLEConfig, LLEForSequenceClassification, LLEForTokenClassification
from tests.factories.texts import VOCAB, WORD_TOKENIZER, make_texts


def make_classifier(labels: int = 3, of_tokens: bool = False, **values: Any) -> Any:
    """A classifier in evaluation mode with the labels label-0, label-1, ..."""
    torch.manual_seed(0)
    names = {number: f"label-{number}" for number in range(labels)}
    sizes = {"vocab_size": VOCAB, "hidden_size": 6, "initializer_range": 1.0, "bidirectional": True, "pad_token_id": 1}
    config = LLEConfig(**{**sizes, "id2label": names, **values})
    return (LLEForTokenClassification if of_tokens else LLEForSequenceClassification)(config).eval()


def make_taught_classifier(count: int = 12, **values: Any) -> tuple[Any, list[str], list[str]]:
    """A classifier with a bank of random texts, those texts, and their labels."""
    model = make_classifier(**values)
    texts = list(dict.fromkeys(make_texts(count, 5, seed=3)))
    labels = [f"label-{len(text) % 3}" for text in texts]
    assert model.learn(texts, labels, WORD_TOKENIZER) == len(texts)
    return model, texts, labels
