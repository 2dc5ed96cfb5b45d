import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from modeling_lle import HistoryBank, LLEConfig, LLEForCausalLM, LLETokenizer
from modeling_lle.configuration_sections import ClassifierConfig
from modeling_lle.models.classification import LLEClassifierOutput
from modeling_lle.training import Recipe, load_recipe, make_recipe, run
from modeling_lle.training.classification import MemberLoss, batches, encode, make_classifier
from modeling_lle.training.held_out import hold_out_labelled
from modeling_lle.training.model_card import write_model_card

WORDS = {"card": ["card", "chip", "pin"], "loan": ["loan", "rate", "debt"], "trip": ["taxi", "train", "plane"]}
SMOKE = Path(__file__).parents[2] / "configs" / "classification" / "smoke.yaml"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read from the Hub or from caches of earlier runs."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def rows(per_label: int = 12, more: list[tuple[str, str]] | None = None) -> Dataset:
    """Texts of three labels, told apart by one word each."""
    pairs = [
        (f"Where is number {number} {words[number % 3]} please", label)
        for label, words in WORDS.items()
        for number in range(per_label)
    ]
    pairs += more or []
    return Dataset.from_dict({"text": [text for text, _ in pairs], "label": [label for _, label in pairs]})


def recipe(tmp_path: Path, **sections: dict[str, Any]) -> Recipe:
    """A recipe of a few steps; `sections` are added to it."""
    values: dict[str, dict[str, Any]] = {
        "data": {"held_out": 0.25},
        "tokenizer": {"vocab_size": 300, "lowercase": True},
        "model": {"hidden_size": 8, "num_hidden_layers": 1, "bidirectional": True},
        "training": {
            "output_dir": str(tmp_path / "out"),
            "max_steps": 30,
            "per_device_train_batch_size": 9,
            "learning_rate": 0.05,
            "character_ngrams": 4,
            "adversarial": 0.1,
            "save_strategy": "no",
            "disable_tqdm": True,
        },
    }
    made = {name: {**given, **sections.get(name, {})} for name, given in values.items()}
    return make_recipe({"task": "text-classification", **made})


def test_the_folder_holds_all_of_it(tmp_path: Path) -> None:
    metrics = run(recipe(tmp_path), {"train": rows()})
    out = tmp_path / "out"
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert metrics["eval_accuracy"] > 0.6  # a guess is right in a third
    assert metrics["calibration"]["after_nats"] <= metrics["calibration"]["before_nats"]
    assert make_recipe(yaml.safe_load((out / "recipe.yaml").read_text())).task == "text-classification"
    tokenizer = AutoTokenizer.from_pretrained(out)
    model: Any = AutoModelForSequenceClassification.from_pretrained(out)
    bank = HistoryBank.from_pretrained(out)
    assert len(bank) == 36  # what validated is learned afterwards
    model.attach_history(bank, tokenizer=tokenizer)
    found: Any = pipeline("text-classification", model=model, tokenizer=tokenizer)("Where is number 1 taxi please")
    assert found[0]["label"] in WORDS


def test_an_ensemble_is_trained_by_a_recipe(tmp_path: Path) -> None:
    training = {"label_smoothing_factor": 0.1, "pretraining_epochs": 1.0}
    metrics = run(recipe(tmp_path, model={"classifier": {"members": 2}}, training=training), {"train": rows()})
    assert metrics["eval_accuracy"] > 0.6
    loaded: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert loaded.model.embed_tokens.weight.shape[1] == 16
    path = {"path": str(tmp_path / "out")}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert make_classifier(path, tokenizer, sorted(WORDS)).config.classifier.members == 2
    with pytest.raises(ValueError, match=r"model\.classifier\.members is 3, but the model at .* has 2"):
        make_classifier({**path, "classifier": {"members": 3}}, tokenizer, sorted(WORDS))


def test_numbers_that_the_recipe_gives_are_not_fitted(tmp_path: Path) -> None:
    model = {"history": {"bank": {"sharpness": 33.0}}, "classifier": {"margin": 0.02}}
    run(recipe(tmp_path, model=model, training={"max_steps": 2}), {"train": rows()})
    config = LLEConfig.from_pretrained(tmp_path / "out")
    assert (config.bank.sharpness, config.classifier.margin) == (33.0, 0.02)
    assert config.classifier.background != ClassifierConfig().background


def test_smoothed_losses_are_those_of_the_members() -> None:
    logits, labels = torch.randn(2, 4, 3), torch.tensor([0, 1, 2, 0])
    due = nn.functional.cross_entropy(logits.flatten(0, 1), labels.repeat(2), label_smoothing=0.2)
    own = LLEClassifierOutput(logits=logits.mean(0), member_logits=logits)
    torch.testing.assert_close(MemberLoss(0.2)(own, labels), due)
    torch.testing.assert_close(MemberLoss(0.2)(own, labels, num_items_in_batch=8), due / 2)
    together = nn.functional.cross_entropy(logits.mean(0), labels, label_smoothing=0.2)
    torch.testing.assert_close(MemberLoss(0.2)(LLEClassifierOutput(logits=logits.mean(0)), labels), together)


def test_a_bank_in_the_way_is_found_before_training(tmp_path: Path) -> None:
    (tmp_path / "out" / "history").mkdir(parents=True)
    (tmp_path / "out" / "history" / "notes.txt").touch()
    with pytest.raises(FileExistsError, match=r"holds other files \(notes\.txt\)"):
        run(recipe(tmp_path), {"train": rows()})
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["history"]


def test_its_card_says_how_it_is_taught(tmp_path: Path) -> None:
    run(recipe(tmp_path), {"train": rows()})
    results = {"metrics": {"accuracy": 0.9, "macro_f1": 0.8, "ece": 0.1}}
    text = write_model_card(tmp_path / "out", results, repo_id="a/b", dataset="c", prompt="Where is it").read_text()
    card = ModelCard(text)
    assert card.data.pipeline_tag == "text-classification"
    assert [(result.metric_type, result.metric_value) for result in card.data.eval_results] == [
        ("accuracy", 0.9),
        ("f1", 0.8),
    ]
    assert "with 3 labels" in text
    assert 'model.learn(["Where is it"], ["a new label"], new_labels=True)' in text
    assert "## Licence" in text
    assert "{%" not in text
    assert "{{" not in text
    assert "\n\n\n" not in text


def test_out_of_scope_rows_are_neither_trained_on_nor_taught(tmp_path: Path) -> None:
    strangers = [(f"sing song {number}", "oos") for number in range(8)]
    data = {"held_out": 0.0, "out_of_scope": "oos"}
    metrics = run(recipe(tmp_path, data=data), {"train": rows(8, strangers), "validation": rows(3, strangers)})
    assert set(metrics["out_of_scope"]) == {"out_of_scope_recall", "in_scope_accuracy"}
    model: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert sorted(model.trained_labels) == sorted(WORDS)
    assert model.config.classifier.out_of_scope.threshold < 1
    assert "oos" not in (HistoryBank.from_pretrained(tmp_path / "out").manifest.labels or ())


def test_it_can_begin_at_a_language_model(tmp_path: Path) -> None:
    language = make_recipe(
        {
            "tokenizer": {"vocab_size": 300, "lowercase": True},
            "model": {"hidden_size": 8, "num_hidden_layers": 1},
            "training": {
                "output_dir": str(tmp_path / "language"),
                "max_steps": 2,
                "per_device_train_batch_size": 2,
                "segment_length": 8,
                "save_strategy": "no",
                "calibration_tokens": 0,
                "disable_tqdm": True,
            },
        }
    )
    run(language, {"train": rows(), "validation": rows()})
    trained: Any = LLEForCausalLM.from_pretrained(tmp_path / "language")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "language")
    values = {"path": str(tmp_path / "language")}
    for bidirectional in (False, True):
        model = make_classifier({**values, "bidirectional": bidirectional}, tokenizer, ["a", "b"])
        assert model.trained_labels == ("a", "b")
        for stack in filter(None, (model.model.stack, model.model.backward_stack)):
            for given, due in zip(stack.parameters(), trained.model.stack.parameters(), strict=True):
                assert torch.equal(given, due)
        assert torch.equal(model.model.embed_tokens.weight, trained.model.embed_tokens.weight)
    metrics = run(recipe(tmp_path, model=values, tokenizer={"vocab_size": None}), {"train": rows()})
    assert metrics["train_steps"] == 30


def test_every_label_is_held_out_alike() -> None:
    kept, held = hold_out_labelled(rows(8, [("alone", "rare")]), 0.25, seed=3)
    assert sorted(held["label"]) == ["card"] * 2 + ["loan"] * 2 + ["trip"] * 2
    assert len(kept) == 19
    assert not set(kept["text"]) & set(held["text"])
    assert hold_out_labelled(rows(8), 0.25, seed=3)[1]["text"] != hold_out_labelled(rows(8), 0.25, seed=4)[1]["text"]
    assert hold_out_labelled(rows(8), 0.25, seed=3)[1]["text"] == hold_out_labelled(rows(8), 0.25, seed=3)[1]["text"]
    assert sorted(hold_out_labelled(rows(4), 0.99, seed=3)[0]["label"]) == [
        "card",
        "loan",
        "trip",
    ]  # none is held out whole
    for share in (1.0, -0.1):
        with pytest.raises(ValueError, match=rf"data.held_out is {share}: give a share between 0 and 1"):
            hold_out_labelled(rows(2), share, seed=3)


def test_batches_are_padded() -> None:
    tokenizer = LLETokenizer.train(rows()["text"], 400)
    texts = Dataset.from_dict({"text": ["Where", "Where is number please"] * 10, "label": ["card", "loan"] * 10})
    padded = list(batches(encode(texts, tokenizer, ["card", "loan"]), tokenizer, 8))
    assert [batch["labels"].tolist() for batch in padded] == [[0, 1] * 4, [0, 1] * 4, [0, 1] * 2]
    assert (
        padded[0]["attention_mask"][0].sum() < padded[0]["attention_mask"][1].sum() == len(padded[0]["input_ids"][1])
    )
    assert set(next(batches(encode(texts, tokenizer), tokenizer, 8))) == {"input_ids", "attention_mask"}


def test_contradicting_and_empty_texts_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [("Same", "card"), ("Same", "loan"), (" ", "card")]
    run(recipe(tmp_path), {"train": rows(12, bad)})
    assert "'Same'" in caplog.text
    assert "blank" in caplog.text
    assert len(HistoryBank.from_pretrained(tmp_path / "out")) == 36


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        (["a", "b"], ["x", "x"], "'x' is the only label of the 2 training texts: a classifier needs two"),
        (["a", "a"], ["x", "y"], "nothing to train on: all 2 rows of the training split are bad examples"),
        (["a", "b"], [None, ""], "nothing to train on: all 2 rows"),
        (["a", "b"], ["x", "y"], "none of the 2 labels has two training texts, so none can be held out"),
        (["a", "b"], ["oos", "oos"], "the training split has no in-scope text: all have the label 'oos'"),
        (["a", "b"], [["x"], ["y"]], "the labels of the split 'train' are lists, such as .'x'.: a recipe trains"),
    ],
)
def test_texts_that_make_no_classifier(tmp_path: Path, texts: list, labels: list, message: str) -> None:
    given = Dataset.from_dict({"text": texts, "label": labels})
    with pytest.raises(ValueError, match=message):
        run(recipe(tmp_path, data={"out_of_scope": "oos"}), {"train": given})
    assert not (tmp_path / "out").exists()


def test_validation_splits_of_no_use(tmp_path: Path) -> None:
    def check(texts: list, labels: list, message: str) -> None:
        validation = Dataset.from_dict({"text": texts, "label": labels})
        with pytest.raises(ValueError, match=message):
            run(
                recipe(tmp_path, data={"held_out": 0.0, "out_of_scope": "oos"}),
                {"train": rows(2), "validation": validation},
            )

    check(["a"], ["oos"], "the validation split has no in-scope text: all have the label 'oos'")
    check(["a", "b"], ["card", None], "the label in row 1 of the validation split is missing: remove the row")
    check(["a", " "], ["card", "loan"], "the text in row 1 of the validation split is blank")


def test_errors_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no data\.source: set it"):
        run(recipe(tmp_path))
    splits = {"train": rows(), "validation": rows(2, [("a bike", "bike")])}
    with pytest.raises(ValueError, match="without training texts: bike"):
        run(recipe(tmp_path, data={"held_out": 0.0}), splits)
    with pytest.raises(ValueError, match="task in the recipe is 'translate'"):
        make_recipe({"task": "translate"})
    with pytest.raises(ValueError, match="character_ngrams"):
        make_recipe({"task": "text-classification", "training": {"charcter_ngrams": 5}})
    for name, value in (("pretraining_epochs", -1), ("adversarial", -0.1), ("character_ngrams", 2)):
        with pytest.raises(ValueError, match=rf"training\.{name} is {value}"):
            make_recipe({"task": "text-classification", "training": {name: value}})


def test_the_smoke_recipe(tmp_path: Path) -> None:
    file = tmp_path / "texts.csv"
    rows(20).to_csv(file)
    settings = [f"data.source={file}", f"training.output_dir={tmp_path / 'out'}", "training.disable_tqdm=true"]
    assert run(load_recipe(SMOKE, settings))["eval_accuracy"] > 0.5
