"""The text generation pipeline: as that of transformers, and with the entries that moved each new token."""

from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, pipeline

import modeling_lle
from tests.factories.language_models import make_language_model
from tests.factories.texts import WORD_TOKENIZER

OPTIONS = {"max_new_tokens": 3, "do_sample": False}


def make_pipeline(model: Any = None) -> Any:
    return pipeline("text-generation", model=model or make_language_model(), tokenizer=WORD_TOKENIZER)


def test_the_pipeline_is_that_of_the_package() -> None:
    assert type(make_pipeline()) is modeling_lle.LLETextGenerationPipeline


def test_the_history_has_an_item_for_each_new_token() -> None:
    generate = make_pipeline()
    (plain,) = generate("a b a b a", **OPTIONS)
    (record,) = generate("a b a b a", **OPTIONS, return_history=True, history_top=2)
    assert "history" not in plain
    assert record["generated_text"] == plain["generated_text"]
    assert 1 <= len(record["history"]) <= 3
    for item in record["history"]:
        assert len(item["causes"]) <= 2
        change = sum(cause["effect"] for cause in item["causes"]) + item["rest"]
        assert change == pytest.approx(item["prob"] - item["base_prob"], abs=1e-5)


def test_a_model_without_history_is_refused() -> None:
    config = GPT2Config(vocab_size=len(WORD_TOKENIZER), n_embd=8, n_layer=1, n_head=1)
    generate = modeling_lle.LLETextGenerationPipeline(model=GPT2LMHeadModel(config), tokenizer=WORD_TOKENIZER)
    with pytest.raises(TypeError, match="a history needs an LLE model; this is a GPT2LMHeadModel"):
        generate("a b", return_history=True)
