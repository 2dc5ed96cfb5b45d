"""Classifiers from a few examples of each label."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from modeling_lle import HistoryBank, teach
from modeling_lle.embeddings.sources import load_embeddings
from modeling_lle.training import make_recipe
from modeling_lle.training.few import FEW
from tests.factories.embeddings import TEXTS, make_wordllama

CONFIGS = Path(__file__).parents[2] / "configs" / "classification"
EXAMPLES = [f"{place} {text}" for text in TEXTS[:3] for place in ("here", "there", "where", "now", "then")]
LABELS = [label for label in ("sat", "saw", "mat") for _ in range(5)]


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the embeddings of a tiny wordllama."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wordllama", raising=False)
    make_wordllama(tmp_path)


def test_a_taught_classifier_answers_learns_and_is_saved_whole(few: None, tmp_path: Path) -> None:
    classifier = teach(EXAMPLES, LABELS)
    model: Any = classifier.model
    assert [answer["label"] for answer in classifier(EXAMPLES)] == LABELS
    assert len(model.history_bank) == len(EXAMPLES)  # also those that were held out
    found = classifier("here a dog saw the cat", return_history=True)
    assert found[0]["history"][0]["causes"]
    begun = load_embeddings("wordllama")
    assert len(classifier.tokenizer) == len(begun.tokenizer)
    assert torch.equal(model.get_input_embeddings().weight, begun.matrix)
    model.save_pretrained(tmp_path / "saved", save_history=True)
    loaded: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    loaded.attach_history(HistoryBank.from_pretrained(tmp_path / "saved"))
    given = AutoTokenizer.from_pretrained(tmp_path / "saved")(EXAMPLES[:2], return_tensors="pt", padding=True)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**given).logits, model(**given).logits)


def test_the_recipe_of_the_configurations_is_that_of_teach() -> None:
    values = yaml.safe_load((CONFIGS / "few.yaml").read_text())
    del values["data"]["source"]
    assert values == FEW


def test_what_cannot_be_taught_is_told(few: None) -> None:
    with pytest.raises(ValueError, match="got 2 texts, 1 labels"):
        teach(TEXTS[:2], ["x"])
    with pytest.raises(ValueError, match="is the only label of the 2 training texts"):
        teach(TEXTS[:2], ["x", "x"])
    with pytest.raises(ValueError, match=r'training\.refit keeps no checkpoints: set training\.save_strategy to "no"'):
        make_recipe({"task": "text-classification", "training": {"refit": True}})
