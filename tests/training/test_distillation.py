"""Classifiers that learn from a sentence encoder."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset

from modeling_lle import teach
from modeling_lle.training import make_recipe, run
from modeling_lle.training.distillation import SentenceEncoder, Student
from modeling_lle.training.few import DISTILLED
from tests.factories.classifiers import make_classifier
from tests.factories.embeddings import TEXTS, make_model2vec, make_sentence_encoder, make_wordllama

CONFIGS = Path(__file__).parents[2] / "configs" / "classification"
PLACES = ("here", "there", "where", "now", "then", "why", "when")
MORE = [f"{place} {text}" for text in TEXTS for place in PLACES]


def test_a_sentence_encoder_embeds_a_text_as_it_does_alone(tmp_path: Path) -> None:
    encoder = SentenceEncoder(str(make_sentence_encoder(tmp_path / "encoder")))
    together = encoder.encode(MORE)
    assert together.shape == (len(MORE), 8)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(len(MORE)))
    for row in (0, 9, -1):
        torch.testing.assert_close(together[row], encoder.encode([MORE[row]])[0])


@pytest.mark.parametrize(
    ("pooling", "of_first"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "word_embedding_dimension": 8}, True),
        ({"pooling_mode_mean_tokens": True, "include_prompt": True}, False),
        ({"pooling_mode": "cls"}, True),
    ],
)
def test_it_pools_as_the_file_beside_it_says(pooling: dict[str, object], of_first: bool, tmp_path: Path) -> None:
    assert SentenceEncoder(str(make_sentence_encoder(tmp_path / "encoder", pooling))).of_first == of_first


def test_a_pooling_that_it_does_not_know_is_refused(tmp_path: Path) -> None:
    folder = make_sentence_encoder(tmp_path / "encoder", {"pooling_mode_max_tokens": True})
    with pytest.raises(ValueError, match="pools by max_tokens: choose an encoder that pools by mean or first token"):
        SentenceEncoder(str(folder))


def test_the_loss_of_a_student_is_zero_where_every_member_points_as_the_teacher() -> None:
    model = make_classifier(classifier={"members": 2, "projection": 3}).eval()
    ids, mask = torch.tensor([[3, 4, 5]]), torch.ones(1, 3, dtype=torch.long)
    own = model.pooled(ids, mask).unflatten(-1, (2, 3))
    due = torch.nn.functional.normalize(own, dim=-1)
    for member in range(2):
        teacher = torch.cat([torch.zeros(1, 3), due[:, member]]).detach()
        loss = Student(model, teacher)(ids, mask, torch.tensor([1]))["loss"]
        other = (due[0, 0] * due[0, 1]).sum()
        torch.testing.assert_close(loss, (1 - other) / 2)


@pytest.fixture
def distilled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A classifier that learned from a tiny encoder and the embeddings of a tiny wordllama, with both."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wordllama", raising=False)
    make_wordllama(tmp_path)
    teacher = str(make_sentence_encoder(tmp_path / "encoder"))
    labels = [str(number % 2) for number in range(8)]
    return teach(MORE[:8], labels, unlabelled=MORE, teacher=teacher), SentenceEncoder(teacher)


def test_a_classifier_learns_from_a_teacher_and_begins_others(distilled: Any, tmp_path: Path) -> None:
    classifier, teacher = distilled
    model = classifier.model
    given = classifier.tokenizer(MORE, return_tensors="pt", padding=True)
    cosines = (model.encode(**given) * teacher.encode(MORE)).sum(-1)
    assert cosines.mean() > 0.8  # without learning it is about 0
    model.save_pretrained(tmp_path / "saved", save_history=True)
    classifier.tokenizer.save_pretrained(tmp_path / "saved")
    other = teach(MORE[:9], ["a", "b", "c"] * 3, encoder=tmp_path / "saved")
    assert other.model.trained_labels == ("a", "b", "c")
    assert len(other.model.history_bank) == 9
    torch.testing.assert_close(other.model.encode(**given), model.encode(**given))
    with pytest.raises(ValueError, match="an encoder has learned from its teacher already"):
        teach(MORE[:2], ["a", "b"], encoder=tmp_path / "saved", teacher="x")


def test_the_recipe_of_the_configurations_is_that_of_teach() -> None:
    values = yaml.safe_load((CONFIGS / "few-distilled.yaml").read_text())
    del values["data"]["source"]
    assert values == DISTILLED


def test_a_teacher_needs_a_projection_of_its_width(tmp_path: Path) -> None:
    make_model2vec(tmp_path / "static")
    values: dict[str, Any] = {
        "task": "text-classification",
        "data": {"held_out": 0.5},
        "model": {"embeddings": str(tmp_path / "static"), "hidden_size": 4, "stack": "plain"},
        "training": {
            "teacher": str(make_sentence_encoder(tmp_path / "encoder")),
            "output_dir": str(tmp_path / "run"),
            "save_strategy": "no",
        },
    }
    rows = {"train": Dataset.from_dict({"text": MORE[:4], "label": ["a", "b"] * 2})}
    with pytest.raises(
        ValueError, match=r"are 8 wide, and classifier\.projection is 0: set model\.classifier\.projec"
    ):
        run(make_recipe(values), rows)


def test_unlabelled_texts_without_a_teacher_are_refused() -> None:
    with pytest.raises(ValueError, match="unlabelled texts are for a teacher: name one"):
        teach(MORE[:2], ["a", "b"], unlabelled=MORE)
