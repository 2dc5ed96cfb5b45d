"""Recipes that begin with pretrained embeddings, and how these are trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from modeling_lle.embeddings.sources import load_embeddings
from modeling_lle.training import make_recipe, run
from tests.factories.embeddings import TEXTS, make_model2vec

ROWS = Dataset.from_dict(
    {"text": [f"{text} {n}" for text in TEXTS for n in range(5)], "label": ["x"] * 10 + ["y"] * 10}
)


def made(folder: Path, model: dict[str, Any] | None = None, **training: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 4, "num_hidden_layers": 1, "stack": "plain", "bidirectional": True}
    own = {"output_dir": str(folder / "out"), "save_strategy": "no", "max_steps": 4, "learning_rate": 0.01}
    return {
        "task": "text-classification",
        "data": {"held_out": 0.2},
        "model": {"embeddings": str(folder / "static"), "prune": True, **sizes, **(model or {})},
        "training": {**own, "weight_decay": 0.0, "disable_tqdm": True, **training},
    }


@pytest.mark.parametrize("kind", ["trained", "slow", "frozen"])
def test_embeddings_move_as_far_as_the_recipe_says(kind: str, tmp_path: Path) -> None:
    make_model2vec(tmp_path / "static")
    own = {"adversarial": 0.1, "pretraining_epochs": 1.0 if kind == "trained" else 0.0, "embeddings_training": kind}
    run(make_recipe(made(tmp_path, **own)), {"train": ROWS})
    trained: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    begun = load_embeddings(tmp_path / "static")
    assert len(tokenizer) < len(begun.tokenizer)
    ids, before = (own.convert_tokens_to_ids(["cat", "the"]) for own in (tokenizer, begun.tokenizer))
    moved = (trained.get_input_embeddings().weight[ids].detach() - begun.matrix[before]).abs().max()
    bounds = {"trained": (0.011, 1.0), "slow": (1e-6, 0.0041), "frozen": (0.0, 0.0)}
    assert bounds[kind][0] <= float(moved) <= bounds[kind][1]
    assert torch.isfinite(trained.classifier.weight).all()


def test_recipes_that_contradict_themselves_are_refused(tmp_path: Path) -> None:
    make_model2vec(tmp_path / "static")
    with pytest.raises(ValueError, match=r"model\.embeddings and model\.path in .* exclude each other"):
        make_recipe(made(tmp_path, {"path": "other"}))
    with pytest.raises(ValueError, match=r"model\.embeddings in .* is for classifiers"):
        make_recipe({"task": "text-generation", "model": {"embeddings": "wordllama"}})
    with pytest.raises(ValueError, match=r"model\.prune in .* is for pretrained embeddings"):
        make_recipe({"task": "text-classification", "model": {"prune": True}})
    with pytest.raises(ValueError, match=r"leave tokenizer\.path and tokenizer\.vocab_size out"):
        run(make_recipe({**made(tmp_path), "tokenizer": {"vocab_size": 300}}), {"train": ROWS})
