"""The model card: filled from results and the saved configuration."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from modeling_lle.cli.model_card import TEMPLATE, write_model_card
from tests.factories.classifiers import make_classifier
from tests.factories.language_models import make_language_model
from tests.factories.pairs import WORD_PAIRS_TOKENIZER
from tests.factories.translators import make_translator

MAKERS = {
    "text-generation": (make_language_model, {"base_test_ppl": 81.5, "tokens_per_second": 5000.0}, ["perplexity"]),
    "text-classification": (make_classifier, {"accuracy": 0.9, "members": 2}, ["accuracy", "f1"]),
    "translation": (
        lambda: make_translator(WORD_PAIRS_TOKENIZER),
        {"bleu": 40.0, "seconds": 3.0},
        ["bleu", "chrf", "ter"],
    ),
}


def write(folder: Path, task: str, **options: Any) -> ModelCard:
    make, metrics, _ = MAKERS[task]
    make().save_pretrained(folder)
    names = {"repo_id": "me/model", "dataset": "owner/data"}
    return ModelCard.load(write_model_card(folder, {"metrics": metrics}, **names, **options))


@pytest.mark.parametrize("task", MAKERS)
def test_the_hub_indexes_task_and_metrics(task: str, tmp_path: Path) -> None:
    card = write(tmp_path, task)
    assert (card.data.pipeline_tag, card.data.metrics) == (task, MAKERS[task][2])
    (result,) = card.data.eval_results or []
    assert (result.metric_name, result.metric_value) == next(iter(MAKERS[task][1].items()))


def test_the_card_shows_recipe_languages_and_every_number(tmp_path: Path) -> None:
    text = str(write(tmp_path, "text-generation", languages=["en", "de"], recipe="model:\n  hidden_size: 6\n"))
    for part in ("hidden_size: 6", "en, de", "81.500", "5,000.000"):
        assert part in text


def test_the_template_is_that_of_the_repository() -> None:
    source = Path(__file__).parents[2] / "model_cards" / "template.md"
    assert TEMPLATE.read_text(encoding="utf-8") == source.read_text(encoding="utf-8")


def test_results_without_metrics_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hold no metrics"):
        write_model_card(tmp_path, {"metrics": {}}, repo_id="me/model", dataset="owner/data")
