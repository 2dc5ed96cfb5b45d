"""Translators by the conventions of transformers: outputs and their order, embeddings, encoder outputs, generation."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModel,
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    DynamicCache,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from modeling_lle import LLEConfig, LLEForSeq2SeqLM, LLESeq2SeqConfig, LLESeq2SeqModel
from tests.factories.pairs import SUBWORD_PAIRS, SUBWORD_PAIRS_TOKENIZER, encode_pairs
from tests.factories.translators import attach_pairs, make_subword_translator

close = torch.testing.assert_close
EVERYTHING = {"output_attentions": True, "output_hidden_states": True}


def source() -> dict[str, torch.Tensor]:
    return {name: value for name, value in encode_pairs().items() if name != "labels"}


@pytest.mark.parametrize("memory", [False, True])
@torch.no_grad()
def test_outputs_have_the_order_and_the_names_of_transformers(memory: bool) -> None:
    model = attach_pairs(make_subword_translator()) if memory else make_subword_translator()
    given = {**encode_pairs(), "use_cache": True, "output_history": memory, **EVERYTHING}
    output = model(**given)
    names = ["loss", "logits", "past_key_values", "decoder_hidden_states", "cross_attentions"]
    names += ["encoder_last_hidden_state", "encoder_hidden_states"]
    assert list(output) == names + ["history"] * memory
    assert output[0] is output.loss
    plain = model(**given, return_dict=False)
    assert [type(part) for part in plain] == [type(part) for part in output.to_tuple()]
    assert torch.equal(plain[0], output.loss)
    assert list(model(**encode_pairs()))[:2] == ["loss", "logits"]
    assert next(iter(model(**source(), decoder_input_ids=encode_pairs()["labels"].clamp(min=0)))) == "logits"


@torch.no_grad()
def test_hidden_states_end_with_the_last_ones() -> None:
    model = make_subword_translator(translator={"num_encoder_layers": 2})
    output = model(**encode_pairs(), **EVERYTHING)
    layers = model.config.num_hidden_layers
    assert len(output.decoder_hidden_states) == layers + 1
    assert all(states.shape[:2] == encode_pairs()["labels"].shape for states in output.decoder_hidden_states)
    close(model.lm_head(output.decoder_hidden_states[-1]), output.logits)
    assert torch.equal(output.encoder_hidden_states[-1], output.encoder_last_hidden_state)
    assert all(states.shape[:2] == encode_pairs()["input_ids"].shape for states in output.encoder_hidden_states)
    assert len(output.cross_attentions) == layers
    bare = model(**encode_pairs())
    assert (bare.decoder_hidden_states, bare.encoder_hidden_states, bare.cross_attentions) == (None, None, None)
    model.config.output_hidden_states = True  # what the configuration asks for counts too
    assert len(model(**encode_pairs()).decoder_hidden_states) == layers + 1


@torch.no_grad()
def test_embedded_tokens_are_those_tokens() -> None:
    model, given = make_subword_translator(), encode_pairs()
    expected = model(**given)
    inputs = model.prepare_decoder_input_ids_from_labels(given["labels"])
    sides = {
        "inputs_embeds": model.get_input_embeddings()(given["input_ids"]),
        "decoder_inputs_embeds": model.model.decoder.embed_tokens(inputs),
    }
    mask = {"attention_mask": given["attention_mask"]}
    both = model(**sides, **mask, labels=given["labels"])
    close((both.loss, both.logits), (expected.loss, expected.logits))
    alone = model(input_ids=given["input_ids"], **mask, decoder_inputs_embeds=sides["decoder_inputs_embeds"])
    close(alone.logits, expected.logits)
    backbone = model.model(input_ids=given["input_ids"], **mask, decoder_input_ids=inputs)
    close(model.lm_head(backbone[0]), expected.logits)
    assert backbone.past_key_values.get_seq_length() == inputs.shape[1]
    wrong = {"exactly one of input_ids and inputs_embeds": {"inputs_embeds": sides["inputs_embeds"], **given}}
    wrong["exactly one of decoder_input_ids and"] = {**sides, "decoder_input_ids": inputs}
    for message, options in wrong.items():
        with pytest.raises(ValueError, match=message):
            model(**options)


@torch.no_grad()
def test_logits_to_keep() -> None:
    for model in (make_subword_translator(), attach_pairs(make_subword_translator())):
        whole, inputs = model(**encode_pairs()), encode_pairs()["labels"].clamp(min=0)
        last = model(**encode_pairs(), logits_to_keep=2)
        close((last.loss, last.logits), (whole.loss, whole.logits[:, -2:]))
        places = torch.tensor([0, 3])
        chosen = model(**source(), decoder_input_ids=inputs, logits_to_keep=places).logits
        close(chosen, model(**source(), decoder_input_ids=inputs).logits[:, places])


@pytest.mark.parametrize("kind", ["output", "tuple", "source"])
@pytest.mark.parametrize("memory", [False, True])
@torch.no_grad()
def test_what_the_encoder_returned_stands_for_the_source(kind: str, memory: bool) -> None:
    model, given = make_subword_translator(), encode_pairs()
    mask = given["attention_mask"]
    encoded = model.get_encoder()(input_ids=given["input_ids"], attention_mask=mask)
    outputs = {"output": encoded, "tuple": encoded.to_tuple(), "source": model.model.source_of(encoded, mask)}[kind]
    options: dict[str, Any] = {"num_beams": 2, "max_new_tokens": 4}
    if not memory:
        close(model(encoder_outputs=outputs, attention_mask=mask, labels=given["labels"]).loss, model(**given).loss)
        generated = model.generate(encoder_outputs=outputs, attention_mask=mask, **options)
        assert torch.equal(generated, model.generate(**source(), **options))
        return
    attach_pairs(model)
    assert torch.equal(model(encoder_outputs=outputs, **given).logits, model(**given).logits)
    with pytest.raises(ValueError, match="input_ids are not given: give them too, or leave the memory out"):
        model(encoder_outputs=outputs, attention_mask=mask, labels=given["labels"])
    plain = model(encoder_outputs=outputs, attention_mask=mask, labels=given["labels"], use_history=False)
    close(plain.loss, model(**given, use_history=False).loss)


@torch.no_grad()
def test_what_does_not_fit_the_source_is_refused() -> None:
    model, given = make_subword_translator(), encode_pairs()
    encoded = model.get_encoder()(given["input_ids"])
    with pytest.raises(ValueError, match=r"states of the shape \(4, 8\)"):
        model(encoder_outputs=(torch.zeros(4, 8),), labels=given["labels"])
    with pytest.raises(ValueError, match="3 targets cannot belong to 4 sources"):
        model(encoder_outputs=encoded, labels=given["labels"][:3])
    with pytest.raises(ValueError, match="holds no token"):
        model(**source(), decoder_input_ids=torch.zeros(4, 0, dtype=torch.long))
    with pytest.raises(TypeError, match="keeps its state in an LLECache"):
        model(**given, past_key_values=DynamicCache())


def test_labels_that_count_nothing_have_no_loss() -> None:
    model, given = make_subword_translator().train(), encode_pairs()
    loss = model(**{**given, "labels": torch.full_like(given["labels"], -100)}).loss
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize("beams", [1, 2])
@torch.no_grad()
def test_generate_returns_what_it_is_asked_for(beams: int) -> None:
    model = make_subword_translator()
    options: dict[str, Any] = {"num_beams": beams, "max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    found = model.generate(**source(), **options, **EVERYTHING, return_dict_in_generate=True)
    assert torch.equal(found.sequences, model.generate(**source(), **options))
    rows, length = encode_pairs()["input_ids"].shape
    assert len(found.decoder_hidden_states) == len(found.cross_attentions) == 3
    for states, weights in zip(found.decoder_hidden_states, found.cross_attentions, strict=True):
        assert [layer.shape for layer in states] == [(rows * beams, 1, 8)] * 3
        assert [layer.shape for layer in weights] == [(rows * beams, 2, 1, length)] * 2
    assert torch.equal(found.encoder_hidden_states[-1], model.get_encoder()(**source()).last_hidden_state)


@torch.no_grad()
def test_generate_from_embedded_tokens() -> None:
    model, given = make_subword_translator(), source()
    embedded = {"inputs_embeds": model.get_input_embeddings()(given["input_ids"])}
    mask = {"attention_mask": given["attention_mask"]}
    options: dict[str, Any] = {"num_beams": 2, "max_new_tokens": 3}
    assert torch.equal(model.generate(**embedded, **mask, **options), model.generate(**given, **options))
    attach_pairs(model)
    with pytest.raises(ValueError, match="input_ids are not given: give them too, or leave the memory out"):
        model.generate(**embedded, **mask)
    plain = model.generate(**embedded, **mask, **options, use_history=False)
    assert torch.equal(plain, model.generate(**given, **options, use_history=False))


def test_a_memory_is_not_attached_where_nothing_can_search_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = attach_pairs(make_subword_translator())
    bank = model.history_bank
    model.detach_history()

    monkeypatch.setitem(sys.modules, "modeling_lle.entries.pairs", None)  # as if the package were not installed
    with pytest.raises(ImportError, match="this needs the package: `pip install modeling_lle`"):
        model.attach_history(bank, tokenizer=SUBWORD_PAIRS_TOKENIZER)
    assert model.history_bank is None


@pytest.mark.parametrize("generates", [False, True])
def test_a_trainer_predicts_logits_or_tokens_alone(generates: bool, tmp_path: Path) -> None:
    model = make_subword_translator()
    data = Dataset.from_list(
        [
            {
                "input_ids": SUBWORD_PAIRS_TOKENIZER(source)["input_ids"],
                "labels": SUBWORD_PAIRS_TOKENIZER(target)["input_ids"],
            }
            for source, target in SUBWORD_PAIRS
        ]
    )
    arguments = Seq2SeqTrainingArguments(
        str(tmp_path), use_cpu=True, disable_tqdm=True, report_to=[], predict_with_generate=generates
    )
    seen = []

    def measure(prediction: Any) -> dict[str, float]:
        seen.append(prediction.predictions)
        return {"rows": float(len(prediction.label_ids))}

    trainer = Seq2SeqTrainer(
        model,
        arguments,
        data_collator=DataCollatorForSeq2Seq(SUBWORD_PAIRS_TOKENIZER, model),
        eval_dataset=data,
        compute_metrics=measure,
    )
    metrics = trainer.evaluate()
    assert metrics["eval_rows"] == 4
    with torch.no_grad():
        loss = model(**encode_pairs()).loss
    close(torch.tensor(metrics["eval_loss"]), loss, rtol=1e-4, atol=1e-4)
    (predictions,) = seen
    assert predictions.ndim == (2 if generates else 3)
    if generates:
        assert predictions[0, 0] == model.start_token_id


def test_translators_have_a_model_type_of_their_own() -> None:
    model = make_subword_translator()
    assert (type(model.config), model.config.model_type) == (LLESeq2SeqConfig, "lle_seq2seq")
    given = LLEConfig(hidden_size=8, history={"bank": {"sharpness": 3.0}})
    given.note = "kept"
    config = LLESeq2SeqConfig.of(given)
    assert (config.hidden_size, config.bank.sharpness, config.note, config.is_encoder_decoder) == (
        8,
        3.0,
        "kept",
        True,
    )
    assert not given.is_encoder_decoder
    assert LLESeq2SeqConfig.of(config) is config
    assert [part.config.model_type for part in (model.model.encoder, model.model.decoder)] == ["lle", "lle"]


def test_folders_of_the_version_before_load(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = make_subword_translator()
    model.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    old = config.read_text().replace('"model_type": "lle_seq2seq"', '"model_type": "lle"')
    old = old.replace("LLESeq2SeqConfig", "LLEConfig").replace("encoder_decoder_lle.LLE", "seq2seq_lle.LLE")
    assert old.count('"lle"') == 1
    config.write_text(old)
    for load in (LLEForSeq2SeqLM, AutoModelForSeq2SeqLM):
        loaded: Any = load.from_pretrained(tmp_path)  # type: ignore[attr-defined]
        assert (type(loaded), loaded.config.model_type) == (LLEForSeq2SeqLM, "lle_seq2seq")
        assert torch.equal(loaded(**encode_pairs()).logits, model(**encode_pairs()).logits)
    assert type(AutoModel.from_pretrained(tmp_path)) is LLESeq2SeqModel
    assert type(LLEConfig.from_pretrained(tmp_path)) is LLESeq2SeqConfig
    assert "You are using a model of type" not in caplog.text
