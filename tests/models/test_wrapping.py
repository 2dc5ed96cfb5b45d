"""`from_backbone`: the logits are the wrapped model's, nothing is copied, the folder is one LLE model."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)

from modeling_lle import LLECache, LLEConfig, LLEForCausalLM, LLEForSequenceClassification
from modeling_lle.backbone.hub_families import FAMILIES
from tests.factories.hub_models import make_config, make_hub_model, make_wrapped_model
from tests.factories.texts import VOCAB, WORD_TOKENIZER, make_ids

IDS = make_ids(2, 9).clamp(min=2)  # without the padding that `generate` would look for
TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


def close(got: Tensor, want: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)


@torch.no_grad()
def logits_of(model: Any, **options: Any) -> Tensor:
    return model(IDS, **options).logits


def save(folder: Path, kind: str = "mamba2", **values: Any) -> PreTrainedModel:
    model = make_hub_model(kind, **values)
    model.save_pretrained(folder)
    return model


def check_wrapped(folder: Path, kind: str, **values: Any) -> None:
    model = save(folder / "hub", kind, **values)
    wrapped = LLEForCausalLM.from_backbone(folder / "hub", use_history=False)
    close(logits_of(wrapped), logits_of(model))
    wrapped.save_pretrained(folder / "lle")
    loaded = AutoModelForCausalLM.from_pretrained(folder / "lle")
    assert type(loaded) is LLEForCausalLM
    close(logits_of(loaded), logits_of(model))
    is_tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == is_tied
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": -1, "pad_token_id": 1}
    assert torch.equal(loaded.generate(IDS, **options), model.generate(IDS, **options))


# Scaled and capped logits, and a buffer that is not saved.
@pytest.mark.parametrize("kind", ["falcon_h1", "granitemoehybrid", "xlstm"])
def test_logits_are_those_of_the_wrapped_model(tmp_path: Path, kind: str) -> None:
    check_wrapped(tmp_path, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_logits_of_every_type_are_those_of_the_wrapped_model(tmp_path: Path, kind: str) -> None:
    for tied in (False, True):
        check_wrapped(tmp_path / str(tied), kind, tie_word_embeddings=tied)


def test_tokenizer_template_generation_and_special_tokens_are_kept(tmp_path: Path) -> None:
    model = save(tmp_path / "hub", tie_word_embeddings=True)
    GenerationConfig(do_sample=True, temperature=0.7, eos_token_id=3, pad_token_id=1).save_pretrained(tmp_path / "hub")
    tokenizer = WORD_TOKENIZER.__class__(tokenizer_object=WORD_TOKENIZER.backend_tokenizer, eos_token="<eos>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "hub")
    wrapped = LLEForCausalLM.from_backbone(tmp_path / "hub", history={"stream": {"window": 9}})
    wrapped.save_pretrained(tmp_path / "lle")
    names = {path.name for path in (tmp_path / "lle").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "modeling_lle.py"} <= names
    saved = json.loads((tmp_path / "lle" / "config.json").read_text())
    assert (saved["model_type"], saved["backbone_config"]["model_type"]) == ("lle", "mamba2")
    loaded = LLEForCausalLM.from_pretrained(tmp_path / "lle")
    assert loaded.config.stream.window == 9
    assert loaded.config.pad_token_id == model.config.pad_token_id
    assert (loaded.generation_config.temperature, loaded.generation_config.eos_token_id) == (0.7, 3)
    again = AutoTokenizer.from_pretrained(tmp_path / "lle")
    assert again.chat_template == TEMPLATE
    assert again("a b c").input_ids == tokenizer("a b c").input_ids
    assert all(name.startswith(("model.backbone.", "lm_head.")) for name in loaded.state_dict())


def test_nothing_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path)
    own: list[PreTrainedModel] = []
    load = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: own.append(load(*a, **k)) or own[0])
    wrapped = LLEForCausalLM.from_backbone(tmp_path)
    assert wrapped.model.backbone is own[0].base_model
    assert wrapped.lm_head.weight is own[0].get_output_embeddings().weight
    assert not any(weight.is_meta for weight in (*wrapped.parameters(), *wrapped.buffers()))


def test_a_type_outside_the_table_is_read_token_by_token_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = {"num_attention_heads": 4, "intermediate_size": 48}
    model = save(tmp_path, "llama", **values)
    with caplog.at_level(logging.WARNING, "modeling_lle"):
        wrapped = LLEForCausalLM.from_backbone(tmp_path, use_history=False)
    assert "the type llama is not among those that are tested" in caplog.text
    cache = LLECache()
    with torch.no_grad():
        parts = [wrapped(part, past_key_values=cache).logits for part in IDS.split([4, 5], dim=1)]
    close(torch.cat(parts, dim=1), logits_of(model))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LLEForCausalLM.from_backbone(folder)


def test_what_cannot_be_a_backbone_is_refused_with_the_reason(tmp_path: Path) -> None:
    for kind, reason in (("rwkv", "batch of more than one text"), ("recurrent_gemma", "state in its modules")):
        make_config(kind).save_pretrained(tmp_path / kind)
        refused(tmp_path / kind, f"is of the type '{kind}'.*{reason}.*types that work: bamba")
    make_config("t5").save_pretrained(tmp_path / "t5")
    refused(tmp_path / "t5", "has no causal language model")
    make_config("vit").save_pretrained(tmp_path / "vit")
    refused(tmp_path / "vit", "has no causal language model")
    (tmp_path / "remote").mkdir()
    (tmp_path / "remote" / "config.json").write_text('{"model_type": "rwkv7", "auto_map": {"AutoConfig": "a.B"}}')
    refused(tmp_path / "remote", "does not have, or needs code of its own")
    config = make_config("mamba2", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    config.save_pretrained(tmp_path / "quantised")
    refused(tmp_path / "quantised", "is quantised.*load the checkpoint that it was quantised from")
    make_wrapped_model().config.save_pretrained(tmp_path / "lle")
    refused(tmp_path / "lle", "is an LLE model already: load it with from_pretrained")
    with pytest.raises(ValueError, match="leave trust_remote_code"):
        LLEForCausalLM.from_backbone(tmp_path, trust_remote_code=True)


def test_a_model_that_sees_what_comes_is_refused(tmp_path: Path) -> None:
    sizes = {"num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 32}
    model = save(tmp_path, "bert", **sizes)
    assert not model.config.is_decoder
    refused(tmp_path, "sees the tokens that come after|cannot be taken apart|takes no cache")


def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    save(tmp_path, vocab_size=5)
    WORD_TOKENIZER.save_pretrained(tmp_path)
    refused(tmp_path, f"has {len(WORD_TOKENIZER)} tokens, the model 5: they do not belong together")


def test_the_configuration_says_what_does_not_belong_beside_a_wrapped_one() -> None:
    config = make_config("mamba2")
    own = LLEConfig(backbone_config=config.to_dict())
    assert (own.hidden_size, own.vocab_size, own.num_hidden_layers) == (32, VOCAB, 2)
    assert LLEConfig.from_dict(own.to_dict()).to_dict() == own.to_dict()
    for values, message in (
        ({"recurrence": "gru"}, "recurrence='gru' is for backbones of LLE's own"),
        ({"hidden_dropout": 0.1}, "hidden_dropout=0.1 is for"),
        ({"hidden_size": 7}, "hidden_size is 7, but that of backbone_config is 32"),
        ({"vocab_size": 7}, "vocab_size is 7"),
    ):
        with pytest.raises(ValueError, match=message):
            LLEConfig(backbone_config=config, **values)
    with pytest.raises(ValueError, match="has no model_type"):
        LLEConfig(backbone_config={"hidden_size": 3})
    with pytest.raises(ValueError, match=r"'mamba9', which transformers .* does not know"):
        LLEConfig(backbone_config={"model_type": "mamba9"})
    with pytest.raises(TypeError, match="from_backbone"):
        LLEConfig(backbone_config="AntonV/mamba2-130m-hf")


def test_embeddings_are_resized_with_the_configuration_of_the_backbone(tmp_path: Path) -> None:
    model = make_wrapped_model()
    model.resize_token_embeddings(VOCAB + 3)
    model.save_pretrained(tmp_path)
    loaded = LLEForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.vocab_size == loaded.config.wrapped.vocab_size == VOCAB + 3
    assert math.isclose(float(logits_of(loaded).sum()), float(logits_of(model).sum()), rel_tol=1e-3)


@pytest.mark.parametrize("kind", ["mamba", "bamba"])
def test_a_classifier_is_taught_labels_of_its_own_and_forgets_them(tmp_path: Path, kind: str) -> None:
    save(tmp_path / "hub", kind)
    names = {0: "short", 1: "long"}
    model = LLEForSequenceClassification.from_backbone(tmp_path / "hub", id2label=names)
    assert not any(weight.is_meta for weight in model.parameters())
    texts, labels = ["a", "b c", "a b c d e f", "c d e f g h a"], ["short", "short", "long", "odd"]
    assert model.learn(texts, labels, WORD_TOKENIZER, new_labels=True) == 4
    batch = WORD_TOKENIZER(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        output = model(**batch)
        alone = [model(**WORD_TOKENIZER(text, return_tensors="pt")).logits for text in texts]
    close(torch.cat(alone), output.logits)  # padded on the right or not
    assert output.label_names[2] == "odd"
    assert int(output.logits[3].argmax()) == 2
    model.history_bank.forget(ids=[3])
    assert "odd" not in model(**batch).label_names
    model.detach_history()
    model.save_pretrained(tmp_path / "lle")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "lle")
    with torch.no_grad():
        close(loaded(**batch).logits, model(**batch).logits)


def test_a_soft_cap_bounds_what_the_rule_is_given(tmp_path: Path) -> None:
    model = make_wrapped_model("xlstm", output_logit_soft_cap=0.5)
    assert logits_of(model, use_history=False).abs().max() < 0.5
