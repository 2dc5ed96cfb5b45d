"""Configurations that version 1 saved are read as sections; whatever the model did not read is left out."""

import copy
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig

from modeling_lle import LLEConfig, LLESeq2SeqConfig
from modeling_lle.configuration_fields import MOVED
from modeling_lle.configuration_sections import BackboneConfig, StreamConfig, UpdateConfig

BACKBONE: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "recurrence": "gru",
    "stack": "plain",
    "bidirectional": True,
    "token_dropout": 0.11,
    "embedding_dropout": 0.12,
    "input_dropout": 0.13,
    "hidden_dropout": 0.14,
    "output_dropout": 0.15,
    "weight_dropout": 0.16,
    "activation_penalty": 0.17,
    "smoothness_penalty": 0.18,
    "initializer_range": 0.2,
    "norm_eps": 1e-5,
}
GATE = [1.0, 2.0, 3.0, 4.0]
OUT_OF_SCOPE = {"weights": [0.5, 1, 1.5, 2], "threshold": 0.75}
STREAM = {"window": 9, "sharpness": 8.0, "recency": 0.1, "gate": GATE}
BANK = {"neighbours": 5, "sharpness": 9.0, "gate": GATE, "skip_above": 0.5, "search": "fast"}
UPDATE = {"scope": "head", "every": 7, "rate": 0.5, "decay": 0.1, "momentum": 0.2, "preconditioning": 1.0, "rank": 5}
TRAINING = {"window": 5, "other_rows": False, "warm_up": 0.5, "sharpness": 2.0, "gate": GATE}
# What they are read as: version 1 had no such field.
STREAM_NOW, UPDATE_NOW = {**STREAM, "generated": False}, {**UPDATE, "generated": False}
BANK_NOW = {**BANK, "match": 0.0, "continuation": 0.0, "length": 0.0}
OTHER = {"vocab_size": 30, "bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 4, "note": "mine"}
OTHER |= {"tie_word_embeddings": False, "use_cache": False, "use_history": False, "dtype": "float32"}


def saved(architecture: str | None, **values: Any) -> dict[str, Any]:
    """A config.json of version 1 with no default value."""
    return {
        **BACKBONE,
        **OTHER,
        "architectures": architecture and [architecture],
        "config_version": 1,
        "model_type": "lle",
        "transformers_version": "5.23.0",
        "members": 2,
        "pooling": ["last", "attention"],
        "num_encoder_layers": 2,
        "num_attention_heads": 3,
        "share_embeddings": False,
        "history": {
            "stream": STREAM,
            "bank": {**BANK, "background": 0.6, "margin": 0.01, "sentences": 7},
            "update": UPDATE,
            "training": TRAINING,
            "out_of_scope": OUT_OF_SCOPE,
        },
        **values,
    }


BACKBONE_NOW = {**BACKBONE, "embedding_size": None}  # that version had none
CLASSIFIER = {"members": 2, "pooling": ["last", "attention"], "background": 0.6, "margin": 0.01}
CLASSIFIER |= {"projection": 0, "out_of_scope": OUT_OF_SCOPE}  # likewise
TRANSLATOR = {"num_encoder_layers": 2, "num_attention_heads": 3, "share_embeddings": False, "sentences": 7}
TRANSLATOR |= {"neighbours": 0, "confidence": []}  # likewise
DEFAULT = LLEConfig().to_dict()


def read(folder: Path, values: dict[str, Any]) -> Any:
    (folder / "config.json").write_text(json.dumps(values))
    return AutoConfig.from_pretrained(folder)


def test_the_dictionary_here_covers_every_field() -> None:
    fields = {field.name for field in dataclasses.fields(BackboneConfig)}
    assert set(BACKBONE_NOW) == fields
    defaults = dataclasses.asdict(BackboneConfig())
    assert not [name for name, value in BACKBONE.items() if value == defaults[name]]
    places = {path.rpartition(".")[2] for path in MOVED}
    assert places == {*CLASSIFIER, *TRANSLATOR} - {"projection", "neighbours", "confidence"}


@pytest.mark.parametrize("architecture", [None, "LLEModel", "SomebodysModel"])
def test_every_field_finds_its_section(tmp_path: Path, architecture: str | None) -> None:
    given = saved(architecture)
    kept = copy.deepcopy(given)
    config = read(tmp_path, given)
    values = config.to_dict()
    assert values["backbone"] == BACKBONE_NOW
    assert values["classifier"] == CLASSIFIER
    assert values["translator"] == TRANSLATOR
    new = {name: DEFAULT["history"][name] for name in ("matches", "bank_matches")}  # that version had none
    sections = {"stream": STREAM_NOW, **new, "bank": BANK_NOW, "update": UPDATE_NOW, "training": TRAINING}
    assert values["history"] == sections
    assert {name: values[name] for name in OTHER} == OTHER
    assert config.config_version == 2
    LLEConfig.from_dict(given)
    assert given == kept
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["config_version"] == 2
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == values


@pytest.mark.parametrize(
    ("architecture", "sections"),
    [
        ("LLEForCausalLM", {"stream": STREAM_NOW, "update": UPDATE_NOW, "training": TRAINING}),
        ("LLEForSequenceClassification", {"classifier": CLASSIFIER}),
        ("LLEForTokenClassification", {"classifier": CLASSIFIER}),
        ("LLEForSeq2SeqLM", {"translator": TRANSLATOR}),
    ],
)
def test_sections_that_the_model_did_not_read_are_left_out(
    tmp_path: Path, architecture: str, sections: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    values = read(tmp_path, saved(architecture)).to_dict()
    flat = {**values, **values["history"]}
    default = {**DEFAULT, **DEFAULT["history"]}
    assert flat["bank"] == BANK_NOW
    for name in ("classifier", "translator", "stream", "update", "training"):
        assert flat[name] == sections.get(name, default[name])
        assert (f"{name} of the saved configuration: ignored" in caplog.text) == (name not in sections)
    assert f"{architecture} does not read the section" in caplog.text


def test_default_sections_are_left_out_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    history = {"stream": dataclasses.asdict(StreamConfig()), "update": {"scope": "none"}, "bank": {"sharpness": 3}}
    values = {"config_version": 1, "model_type": "lle", "architectures": ["LLEForSeq2SeqLM"], "history": history}
    with caplog.at_level(logging.WARNING):
        config = read(tmp_path, values)
    assert not caplog.records
    assert config.overlay == UpdateConfig()
    assert config.bank.sharpness == 3


@pytest.mark.parametrize("model_type", ["lle", "lle_seq2seq"])
def test_both_formats_of_translators_are_read(tmp_path: Path, model_type: str) -> None:
    given = saved("LLEForSeq2SeqLM", model_type=model_type, is_encoder_decoder=True)
    (tmp_path / "config.json").write_text(json.dumps(given))
    loads = [LLESeq2SeqConfig.from_pretrained, LLEConfig.from_pretrained, AutoConfig.from_pretrained]
    for load in loads:
        config = load(tmp_path)
        assert config.model_type == "lle_seq2seq"
        assert dataclasses.asdict(config.translator) == TRANSLATOR
        assert config.hidden_size == 48


def test_values_beside_a_folder_change_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(saved("LLEForCausalLM")))
    config = LLEConfig.from_pretrained(tmp_path, hidden_dropout=0.3, history={"stream": {"window": 4}}, note="other")
    assert (config.hidden_dropout, config.stream.window, config.note) == (0.3, 4, "other")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": 0}, "'hidden_size'"),
        ({"history": 5}, "'history'"),
        ({"history": {"bank": 5}}, "'bank'"),
        ({"history": {"vault": {}}}, "unknown key in history: 'vault'"),
        ({"history": {"bank": {"margins": 1}}}, "unknown key in history.bank: 'margins'"),
    ],
)
def test_a_wrong_value_is_refused_as_in_the_present_version(values: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, StrictDataclassFieldValidationError), match=message):
        LLEConfig.from_dict(saved("LLEForCausalLM", **values))


def test_a_file_without_a_version_is_of_the_version_that_its_sections_tell() -> None:
    old, new = ({"hidden_size": 6, "members": 2}, {"hidden_size": 6, "classifier": {"members": 2}})
    for values in (old, new):
        config = LLEConfig.from_dict(values)
        assert (config.hidden_size, config.classifier.members) == (6, 2)
    with pytest.raises(ValueError, match="members belongs into the section classifier"):
        LLEConfig.from_dict({**old, **new})


def test_the_constructor_names_what_reads_version_1() -> None:
    with pytest.raises(ValueError, match=r"values of version 1: read them with LLEConfig\.from_dict"):
        LLEConfig(config_version=1)
