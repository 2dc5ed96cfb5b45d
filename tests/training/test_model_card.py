"""The model card: filled from results, recipe.yaml, metrics.json and the saved configuration."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from modeling_lle.cli import main as cli
from modeling_lle.training.model_card import MARK, TEMPLATE, stated, write_model_card
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
TRAINED = {
    "parameters": 1618,
    "train_minutes": 0.25,
    "eval_loss": 2.5,
    "eval_runtime": 77.0,
    "calibration": {"predictions": 99.0, "before_nats": 1.5, "after_nats": 0.00125},
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


@pytest.mark.parametrize("task", MAKERS)
def test_a_trained_folder_alone_makes_a_card_that_invents_nothing(task: str, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    MAKERS[task][0]().save_pretrained(folder)
    (folder / "metrics.json").write_text(json.dumps(TRAINED))
    (folder / "recipe.yaml").write_text("data:\n  source: texts\n  source_language: en\n  target_language: de\n")
    text = write_model_card(folder).read_text(encoding="utf-8")
    data = ModelCard(text).data.to_dict()
    assert not data.keys() & {"datasets", "license", "metrics", "model-index"}
    assert re.search(r'[(=]"mine", trust_remote_code=True', text)
    assert "| loss on the validation data, without history | 2.500 |" in text
    assert "| the same with history, after they were fitted | 0.00125 |" in text
    assert "has not been measured on such data" in text
    assert "source: texts" in text
    assert [part for part in ("None", "77", "{{", "{%", "\n\n\n", "## Results") if part in text] == []


def test_a_card_of_a_folder_without_recipe_and_metrics_says_so(tmp_path: Path) -> None:
    make_language_model().save_pretrained(tmp_path)
    text = write_model_card(tmp_path).read_text(encoding="utf-8")
    assert "The data that it was trained on is not stated." in text
    assert [part for part in ("None", "validation", "recipe", "\n\n\n") if part in text] == []


def test_names_and_prompts_stay_literals_in_the_example(tmp_path: Path) -> None:
    text = str(write(tmp_path, "text-generation", prompt='She said "no"\nand left'))
    assert r'generate("She said \"no\"\nand left", max_new_tokens' in text


def test_a_readme_by_a_person_is_never_replaced(tmp_path: Path) -> None:
    make_language_model().save_pretrained(tmp_path)
    own, other = tmp_path / "README.md", tmp_path / "MODEL_CARD.md"
    own.write_text("my own words")
    assert [write_model_card(tmp_path) for _ in range(2)] == [other, other]
    assert stated(tmp_path) == {}
    other.write_text(other.read_text(encoding="utf-8").replace(MARK, ""))
    with pytest.raises(FileExistsError, match="rename one of them"):
        write_model_card(tmp_path)
    assert own.read_text() == "my own words"


def test_the_command_adds_to_what_the_card_states(tmp_path: Path) -> None:
    make_language_model().save_pretrained(tmp_path)
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"metrics": {"base_ppl": 81.5}, "command": "x", "commit": "y"} | {"rows": []}))
    invoke = CliRunner().invoke
    assert invoke(cli.app, ["card", str(tmp_path), "--license", "mit", "--dataset", "a/b"]).exit_code == 0
    results.write_text(json.dumps(json.loads(results.read_text()) | {"environment": {"cpu": "z"}}))
    assert invoke(cli.app, ["card", str(tmp_path), str(results), "--language", "en"]).exit_code == 0
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.license, card.data.datasets, card.data.language) == ("mit", ["a/b"], ["en"])
    assert "| base_ppl | 81.500 |" in str(card)


def test_the_template_is_that_of_the_repository() -> None:
    source = Path(__file__).parents[2] / "model_cards" / "template.md"
    assert TEMPLATE.read_text(encoding="utf-8") == source.read_text(encoding="utf-8")


def test_results_without_metrics_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hold no metrics"):
        write_model_card(tmp_path, {"metrics": {}}, repo_id="me/model", dataset="owner/data")
