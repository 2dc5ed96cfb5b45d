"""Training a translator by a recipe."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from modeling_lle.training import Recipe, load_recipe, make_recipe, run
from modeling_lle.training.model_card import write_model_card
from modeling_lle.training.translation import LengthGroups, encode, make_trainer
from tests.factories.pairs import SUBWORD_PAIRS, SUBWORD_PAIRS_TOKENIZER
from tests.factories.translators import make_subword_translator

NAMES = Path(__file__).parents[2] / "configs" / "translation"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read from the Hub or from caches of earlier runs."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def recipe(tmp_path: Path, **sections: dict[str, Any]) -> Recipe:
    """A recipe of a few steps; `sections` are added to it."""
    values: dict[str, dict[str, Any]] = {
        "data": {"source_language": "en", "target_language": "de"},
        "tokenizer": {"vocab_size": 320},
        "model": {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "recurrence": "qrnn",
            "translator": {"num_attention_heads": 2},
        },
        "training": {
            "output_dir": str(tmp_path / "out"),
            "max_steps": 80,
            "per_device_train_batch_size": 4,
            "learning_rate": 0.02,
            "label_smoothing_factor": 0.05,
            "save_strategy": "no",
            "disable_tqdm": True,
        },
    }
    made = {name: {**given, **sections.get(name, {})} for name, given in values.items()}
    return make_recipe({"task": "translation", **made})


def pairs(given: list[tuple[str, str]] = SUBWORD_PAIRS) -> Dataset:
    return Dataset.from_dict({"en": [source for source, _ in given], "de": [target for _, target in given]})


def test_a_recipe_makes_a_translator_and_its_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = ("cat " * 200, "Katze " * 200)
    metrics = run(recipe(tmp_path), rows={"train": pairs([*SUBWORD_PAIRS, long]), "validation": pairs()})
    assert metrics == json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["eval_loss"] < 1.0
    assert metrics["train_steps"] == 80
    assert metrics["train_minutes"] > 0
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.num_parameters() == metrics["parameters"]
    assert model.config.is_encoder_decoder
    assert model.config.use_cache
    given = tokenizer([source for source, _ in SUBWORD_PAIRS], return_tensors="pt", padding=True)
    translated = tokenizer.batch_decode(model.generate(**given, max_new_tokens=30), skip_special_tokens=True)
    assert translated == [target for _, target in SUBWORD_PAIRS]
    results = {"command": "lle evaluate", "metrics": {"bleu": 38.25, "chrf": 60.5, "seconds": 3.0}}
    path = write_model_card(
        tmp_path / "out",
        results,
        repo_id="someone/cats",
        dataset="someone/mats",
        languages=["en", "de"],
        prompt="a cat",
    )
    head = ModelCard.load(path).data.to_dict()
    assert (head["pipeline_tag"], head["language"]) == ("translation", ["en", "de"])
    (measured,) = head["model-index"][0]["results"]
    assert {item["type"]: item["value"] for item in measured["metrics"]} == {"bleu": 38.25, "chrf": 60.5}
    example = path.read_text().split("```python\n")[1].split("```")[0]
    exec(example.replace("someone/cats", str(tmp_path / "out")), {})
    assert capsys.readouterr().out.splitlines()[-1] == tokenizer.decode(
        model.generate(**tokenizer("a cat", return_tensors="pt"), num_beams=5)[0], skip_special_tokens=True
    )
    resolved = load_recipe(tmp_path / "out" / "recipe.yaml")
    assert (resolved.task, resolved.data.target_language) == ("translation", "de")
    # going on from a trained model keeps its tokenizer
    more = recipe(tmp_path, model={"path": str(tmp_path / "out")}, training={"max_steps": 1, "learning_rate": 0.0})
    more.training.output_dir = str(tmp_path / "more")
    again = run(more, rows={"train": pairs(), "validation": pairs()})
    assert again["eval_loss"] == pytest.approx(metrics["eval_loss"], rel=1e-3)


def test_files_are_read_by_their_languages(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "val"):
        for language, side in (("en", 0), ("de", 1)):
            (folder / f"{split}.{language}").write_text("".join(f"{pair[side]}\n" for pair in SUBWORD_PAIRS))
    made = recipe(tmp_path, data={"source": str(folder)}, training={"max_steps": 1})
    assert run(made)["train_steps"] == 1


def test_every_sentence_ends_and_names_of_special_tokens_are_text() -> None:
    encoded = encode(Dataset.from_dict({"source": ["a <eos>"], "target": ["b"]}), SUBWORD_PAIRS_TOKENIZER)[0]
    end = SUBWORD_PAIRS_TOKENIZER.eos_token_id
    assert [ids.count(end) for ids in encoded.values()] == [1, 1]
    assert [ids[-1] for ids in encoded.values()] == [end, end]


def test_batches_have_rows_of_like_length_in_random_order() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 60, (1003,), generator=generator).tolist()
    groups = LengthGroups(8, lengths=lengths, generator=torch.Generator().manual_seed(1))
    rows = list(groups)
    assert sorted(rows) == list(range(1003))
    batches = [[lengths[row] for row in rows[start : start + 8]] for start in range(0, 1003, 8)]
    assert max(lengths) in batches[0]
    assert len(batches[-1]) == 3
    assert sum(max(own) - min(own) for own in batches) / len(batches) < 5  # 45 in a random order
    means = torch.tensor([sum(own) / len(own) for own in batches[:-1]])
    after = torch.corrcoef(torch.stack((means[:-1], means[1:])))[0, 1]
    assert abs(after) < 0.4  # .9 from the longest to the shortest
    for few in (1, 7, 8, 9):
        assert sorted(LengthGroups(8, lengths=lengths[:few])) == list(range(few))


def test_pairs_are_grouped_by_their_longer_side(tmp_path: Path) -> None:
    sides = [("cat", "Katze " * 20), ("cat " * 20, "Katze"), ("cat", "Katze")] * 20
    encoded = encode(
        Dataset.from_dict({"source": [s for s, _ in sides], "target": [t for _, t in sides]}), SUBWORD_PAIRS_TOKENIZER
    )
    model = make_subword_translator()
    options = {"per_device_train_batch_size": 4, "train_sampling_strategy": "group_by_length"}
    trainer = make_trainer(
        recipe(tmp_path, training=options), model, SUBWORD_PAIRS_TOKENIZER, {"train": encoded, "validation": encoded}
    )
    alike = 0
    for batch in trainer.get_train_dataloader():
        sides_of = (batch["input_ids"] != SUBWORD_PAIRS_TOKENIZER.pad_token_id).sum(1), (batch["labels"] >= 0).sum(1)
        longer = torch.maximum(*sides_of)
        alike += bool(longer.max() < 1.3 * longer.min())
    assert alike > 10  # of 15; by the source alone 5


@pytest.mark.parametrize("language", ["de", "fr"])
def test_the_recipes_name_their_languages(language: str) -> None:
    made = load_recipe(NAMES / f"multi30k-en-{language}.yaml")
    assert (made.task, made.data.source_language, made.data.target_language) == ("translation", "en", language)


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    given = {"train": pairs(), "validation": pairs()}
    with pytest.raises(ValueError, match="has no languages"):
        run(recipe(tmp_path, data={"target_language": None}), rows=given)
    with pytest.raises(ValueError, match=r"has no data\.source"):
        run(recipe(tmp_path))
    with pytest.raises(ValueError, match="every training pair has more than 3 tokens"):
        run(recipe(tmp_path, training={"max_tokens": 3}), rows=given)
    with pytest.raises(ValueError, match="max_tokens is 1"):
        recipe(tmp_path, training={"max_tokens": 1})
    with pytest.raises(ValueError, match="choose one of 'text-generation', 'text-classification', 'translation'"):
        make_recipe({"task": "translatoin"})


def test_a_seed_gives_the_same_model(tmp_path: Path) -> None:
    losses = []
    for name in ("one", "two"):
        made = recipe(tmp_path, training={"max_steps": 3})
        made.training.output_dir = str(tmp_path / name)
        losses.append(run(made, rows={"train": pairs(), "validation": pairs()})["eval_loss"])
    assert losses[0] == losses[1]
    assert torch.isfinite(torch.tensor(losses)).all()
