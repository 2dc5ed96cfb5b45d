"""The text generation pipeline: as that of transformers, and with the entries that moved each new token."""

from typing import Any

import pytest
import torch
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


@pytest.mark.parametrize("options", [OPTIONS, {"max_new_tokens": 5, "do_sample": True, "top_p": 0.9}])
def test_one_text_is_streamed_with_the_tokens_of_generate(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = make_pipeline()
    torch.manual_seed(1)
    with monkeypatch.context() as patch:
        patch.setattr(generate.model, "generate", None)
        record = generate("a b a b a", **options)
    torch.manual_seed(1)
    with monkeypatch.context() as patch:
        patch.setattr(generate.model, "stream", None)
        patch.setattr(generate.model, "can_stream", lambda *_, **__: False)
        assert generate("a b a b a", **options) == record


def test_what_is_not_for_one_text_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    generate = make_pipeline()
    monkeypatch.setattr(generate.model, "stream", None)
    (one, two) = generate("a b a b a", max_new_tokens=3, num_beams=2, num_return_sequences=2, do_sample=False)
    assert one != two
    batch = generate(["a b", "b a a"], max_new_tokens=2, do_sample=False, batch_size=2)
    assert len(batch) == 2
