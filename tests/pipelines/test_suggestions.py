"""Which texts are suggested to be labelled next: the uncertain ones, unlike the examples and unlike each other."""

import logging
from typing import Any

import pytest
import torch

from modeling_lle import LLETextClassificationPipeline, suggest
from modeling_lle.pipelines import suggestions
from modeling_lle.pipelines.suggestions import choose_texts
from tests.factories.classifiers import make_classifier, make_taught_classifier
from tests.factories.texts import WORD_TOKENIZER, make_texts


def make_keys(rows: int, width: int = 5, seed: int = 0) -> torch.Tensor:
    keys = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(keys, dim=-1)


def covers(keys: torch.Tensor, uncertainty: torch.Tensor, covered: torch.Tensor, chosen: list[int]) -> float:
    return float((uncertainty * torch.maximum(covered, (keys @ keys[chosen].T).max(1).values)).sum())


def test_each_choice_adds_the_most_of_all() -> None:
    keys, draw = make_keys(60), torch.Generator().manual_seed(1)
    uncertainty, covered = torch.rand(60, generator=draw), 0.5 * torch.rand(60, generator=draw)
    chosen = choose_texts(keys, uncertainty, covered, 12)
    assert len(set(chosen)) == 12
    for number in range(12):
        best = max(
            covers(keys, uncertainty, covered, [*chosen[:number], one])
            for one in set(range(60)) - set(chosen[:number])
        )
        assert covers(keys, uncertainty, covered, chosen[: number + 1]) == pytest.approx(best)


def test_uncertain_texts_come_first_and_like_texts_once() -> None:
    keys = torch.eye(4)[[0, 0, 0, 1, 2, 3]]  # three texts alike, and three others
    uncertainty = torch.tensor([0.5, 0.5, 0.5, 0.9, 0.2, 0.9])
    covered = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 1.0])  # the last one is like an example
    assert choose_texts(keys, uncertainty, covered, 3) == [0, 3, 4]
    assert sorted(choose_texts(keys, uncertainty, covered, 9)) == list(range(6))


@pytest.fixture(scope="module")
def taught() -> tuple[Any, list[str]]:
    model, texts, _ = make_taught_classifier()
    return LLETextClassificationPipeline(model=model, tokenizer=WORD_TOKENIZER), texts


def test_a_suggestion_says_what_the_classifier_and_the_bank_say(taught: tuple[Any, list[str]]) -> None:
    classifier, known = taught
    texts = [text for text in dict.fromkeys(make_texts(40, 6, seed=9)) if text not in known]
    chosen = suggest(classifier, texts, 8, batch_size=3)
    assert len(chosen) == 8
    for one in chosen:
        assert texts[one.row] == one.text
        both = classifier(one.text, top_k=2)
        assert (one.label, one.second) == tuple(found["label"] for found in both)
        assert one.probability == pytest.approx(both[0]["score"], abs=1e-5)
        assert one.uncertainty == pytest.approx(1 - both[0]["score"] + both[1]["score"], abs=1e-5)
        assert one.nearest in known
        assert one.similarity is not None
        far = one.similarity < classifier.model.config.classifier.background
        assert (one.reason == suggestions.UNLIKE) == far
    assert suggest(classifier, texts, 8, batch_size=3) == chosen


def test_what_cannot_be_suggested_is_left_out(taught: tuple[Any, list[str]], caplog: pytest.LogCaptureFixture) -> None:
    classifier, known = taught
    new = "h h h h g g h"
    chosen = suggest(classifier, [known[0], " ", new, new, known[1]], 5)
    assert [(one.row, one.text) for one in chosen] == [(2, new)]
    for message in ("2 of the 5 texts are in the bank", "1 of the 5 texts are blank", "1 of the 5 texts occur before"):
        assert message in caplog.text
    assert suggest(classifier, known, 5) == []


def test_of_many_texts_the_same_part_is_drawn(
    taught: tuple[Any, list[str]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(suggestions, "MOST", 9)
    monkeypatch.setattr(suggestions, "BLOCK", 2)
    texts = [f"h h h g g g {text}" for text in taught[1]]
    chosen = suggest(taught[0], texts, 20)
    assert len({one.row for one in chosen}) == 9
    assert all(texts[one.row] == one.text for one in chosen)
    assert f"9 of {len(texts)} texts are drawn" in caplog.text
    assert suggest(taught[0], texts, 20) == chosen


def test_without_a_bank_uncertainty_and_diversity_choose(caplog: pytest.LogCaptureFixture) -> None:
    classifier = LLETextClassificationPipeline(model=make_classifier(), tokenizer=WORD_TOKENIZER)
    with caplog.at_level(logging.WARNING):
        (one,) = suggest(classifier, ["a b", "c", "d e"], 1)
    assert "no bank is attached" in caplog.text
    assert (one.similarity, one.nearest, one.nearest_label) == (None, None, None)
    assert one.reason in (suggestions.UNCERTAIN, suggestions.TYPICAL)


def test_only_classifiers_of_one_label_suggest(taught: tuple[Any, list[str]]) -> None:
    several = make_classifier(problem_type="multi_label_classification")
    with pytest.raises(ValueError, match="only single-label classifiers"):
        suggest(LLETextClassificationPipeline(model=several, tokenizer=WORD_TOKENIZER), ["a"])
    with pytest.raises(ValueError, match="should be positive"):
        suggest(taught[0], ["a"], 0)
