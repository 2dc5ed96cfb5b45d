import doctest
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modeling_lle import LLEForSequenceClassification, LLETokenizer
from modeling_lle.training import character_ngrams, run
from modeling_lle.training.character_ngrams import CharacterNgrams, FoldNgrams, add_ngrams, ngrams

from .test_classification import recipe, rows


def test_the_example() -> None:
    (example,) = doctest.DocTestFinder(recurse=False).find(ngrams, globs=vars(character_ngrams))
    assert doctest.DocTestRunner().run(example) == (0, 1)


def test_types_that_are_spelt_alike_share_vectors() -> None:
    names = ["card", "cards", "loan", "", "of"]
    module, matrix = CharacterNgrams(names, 4, 6, 0.5), torch.randn(5, 6)
    assert len(module.vectors.weight) == 3  # car, ard, card
    summed = module(matrix)
    mean = module.vectors.weight.mean(0)
    torch.testing.assert_close(summed[:2], matrix[:2] + mean)
    assert torch.equal(summed[2:], matrix[2:])
    assert set(module.state_dict()) == {"vectors.weight"}


def test_after_the_training_the_matrix_is_the_sum() -> None:
    tokenizer = LLETokenizer.train(["the card", "the cards"] * 9, 280)
    embeddings = nn.Embedding(len(tokenizer), 4)
    plain = embeddings.weight.detach().clone()
    add_ngrams(embeddings, tokenizer, 5, 0.3)
    summed = embeddings.weight.detach().clone()
    assert (summed != plain).any()
    assert torch.equal(summed[tokenizer.all_special_ids], plain[tokenizer.all_special_ids])
    embeddings(torch.arange(len(tokenizer))).square().sum().backward()
    assert all(parameter.grad is not None for parameter in embeddings.parameters())
    FoldNgrams(embeddings).on_train_end()
    assert type(embeddings) is nn.Embedding
    assert torch.equal(embeddings.weight, summed)
    assert [name for name, _ in embeddings.named_parameters()] == ["weight"]


def test_a_resumed_training_has_them_again(tmp_path: Path) -> None:
    training: dict[str, Any] = {"save_strategy": "steps", "save_steps": 15, "character_ngrams": 4}
    whole = run(recipe(tmp_path, training=training), {"train": rows()})
    first = LLEForSequenceClassification.from_pretrained(tmp_path / "out")
    for name in ("model.safetensors", "history", "checkpoint-30"):
        path = tmp_path / "out" / name
        path.rename(tmp_path / name)
    again = run(recipe(tmp_path, training=training), {"train": rows()}, resume=True)
    second = LLEForSequenceClassification.from_pretrained(tmp_path / "out")
    assert again["train_steps"] == whole["train_steps"] == 30
    assert again["parameters"] == whole["parameters"] == first.num_parameters()
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other)
