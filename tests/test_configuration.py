"""The configuration: what is wrong is refused and named, what is right survives saving."""

import copy
import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, PreTrainedConfig

from modeling_lle import (
    HistoryConfig,
    LLEConfig,
    LLEForCausalLM,
    LLEForSeq2SeqLM,
    LLEForSequenceClassification,
    LLEModel,
    StreamConfig,
)
from modeling_lle.configuration import CONFIG_VERSION
from modeling_lle.configuration_fields import MOVED, check_keys
from modeling_lle.configuration_sections import (
    READ_BY,
    BackboneConfig,
    BankConfig,
    ClassifierConfig,
    OutOfScopeConfig,
    TrainingConfig,
    TranslatorConfig,
    UpdateConfig,
)
from modeling_lle.history.calibration import store_values
from modeling_lle.training.recipe import load_recipe
from tests.factories.classifiers import make_classifier
from tests.factories.language_models import make_language_model
from tests.factories.texts import make_ids, make_word_tokenizer
from tests.factories.translators import make_translator


def test_defaults() -> None:
    config = LLEConfig()
    assert config.recurrence == "lstm"
    assert config.stream == StreamConfig()
    assert config.stream.window == 2000
    assert len(config.stream.gate) == 4
    assert config.training.window == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hiden_size": 3}, r"LLEConfig: 'hiden_size' \(did you mean 'hidden_size'\?\)"),
        ({"history": {"strem": {}}}, r"history: 'strem' \(did you mean 'stream'\?\)"),
        ({"history": {"stream": {"windw": 3}}}, r"history.stream: 'windw' \(did you mean 'window'\?\)"),
        ({"history": {"training": {"warmup": 3}}}, r"history.training: 'warmup' \(did you mean 'warm_up'\?\)"),
        ({"zzz": 1, "recurence": "gru"}, r"'zzz', 'recurence' \(did you mean 'recurrence'\?\)"),
        ({"backbone": {"hiden_size": 3}}, r"backbone: 'hiden_size' \(did you mean 'hidden_size'\?\)"),
        ({"classifier": {"member": 3}}, r"classifier: 'member' \(did you mean 'members'\?\)"),
        ({"classifier": {"out_of_scope": {"treshold": 1}}}, r"classifier.out_of_scope: 'treshold' .did you mean"),
        ({"translator": {"sentence": 3}}, r"translator: 'sentence' \(did you mean 'sentences'\?\)"),
    ],
)
def test_a_misspelt_key_proposes_the_nearest_one(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LLEConfig(**values)


def test_known_keys_are_those_of_lle() -> None:
    with pytest.raises(ValueError, match="Known keys: ") as caught:
        LLEConfig(zzz=1)
    known = str(caught.value).partition("Known keys: ")[2].rstrip(".").split(", ")
    assert {"hidden_size", "history", "pad_token_id"} <= set(known)
    assert not {"_name_or_path", "attn_implementation", "id2label", "chunk_size_feed_forward"} & set(known)
    assert set(known) <= {field.name for cls in (LLEConfig, BackboneConfig) for field in dataclasses.fields(cls)}


def test_keys_of_transformers_are_accepted() -> None:
    config = LLEConfig(num_labels=3, torch_dtype="float32", output_attentions=False, architectures=["LLEModel"])
    assert config.num_labels == 3


def test_check_keys_accepts_silent_keys_without_proposing_them() -> None:
    check_keys(["one", "two"], ["one"], "here", silent=["two"])
    with pytest.raises(ValueError, match=r"^unknown key in here: 'twoo'. Known keys: one.$"):
        check_keys(["twoo"], ["one"], "here", silent=["two"])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("hidden_size", {"hidden_size": 0}),
        ("hidden_size", {"hidden_size": 1.5}),
        ("config_version", {"config_version": 0}),
        ("eos_token_id", {"eos_token_id": [1, 10**12]}),
        ("hidden_size", {"hidden_size": "8"}),
        ("hidden_size", {"hidden_size": True}),
        ("vocab_size", {"vocab_size": -1}),
        ("num_hidden_layers", {"num_hidden_layers": 0}),
        ("intermediate_size", {"intermediate_size": 0}),
        ("recurrence", {"recurrence": "transformer"}),
        ("stack", {"stack": "tall"}),
        ("output_dropout", {"output_dropout": 1.0}),
        ("weight_dropout", {"weight_dropout": -0.1}),
        ("input_dropout", {"input_dropout": float("nan")}),
        ("activation_penalty", {"activation_penalty": -1}),
        ("tie_word_embeddings", {"tie_word_embeddings": "yes"}),
        ("history", {"history": 5}),
        ("backbone", {"backbone": 5}),
        ("hidden_size", {"backbone": {"hidden_size": 0}}),
        ("classifier", {"classifier": [1]}),
        ("members", {"classifier": {"members": 0}}),
        ("pooling", {"classifier": {"pooling": ["mean", "mean"]}}),
        ("out_of_scope", {"classifier": {"out_of_scope": 1}}),
        ("num_encoder_layers", {"translator": {"num_encoder_layers": 0}}),
        ("share_embeddings", {"translator": {"share_embeddings": 1}}),
        ("stream", {"history": {"stream": 5}}),
        ("window", {"history": {"stream": {"window": -1}}}),
        ("neighbours", {"history": {"bank": {"neighbours": 0}}}),
        ("skip_above", {"history": {"bank": {"skip_above": 1.5}}}),
        ("search", {"history": {"bank": {"search": "quick"}}}),
        ("window", {"history": {"stream": {"window": 2.5}}}),
        ("window", {"history": {"training": {"window": -1}}}),
        ("other_rows", {"history": {"training": {"other_rows": 1}}}),
        ("warm_up", {"history": {"training": {"warm_up": 1.1}}}),
        ("sharpness", {"history": {"stream": {"sharpness": -1}}}),
        ("recency", {"history": {"stream": {"recency": "0.2"}}}),
        ("gate", {"history": {"stream": {"gate": [1.0, 2.0]}}}),
        ("gate", {"history": {"stream": {"gate": ["a", "b", "c", "d"]}}}),
    ],
)
def test_a_wrong_value_is_refused_and_named(name: str, values: dict[str, Any]) -> None:
    with pytest.raises(StrictDataclassFieldValidationError, match=f"'{name}'"):
        LLEConfig(**values)
    config = LLEConfig()
    for key, value in values.items():
        with pytest.raises(StrictDataclassFieldValidationError, match=f"'{name}'"):
            setattr(config, key, value)


SECTIONS = [
    LLEConfig,
    BackboneConfig,
    ClassifierConfig,
    TranslatorConfig,
    StreamConfig,
    BankConfig,
    UpdateConfig,
    TrainingConfig,
    OutOfScopeConfig,
]


@pytest.mark.parametrize(
    ("section", "field"),
    [
        (section, field.name)
        for section in SECTIONS
        for field in dataclasses.fields(section)
        if re.search(r"\b(int|float)\b", str(field.type))
        and field.name not in (*vars(PreTrainedConfig), "config_version")
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_every_number_is_finite_and_bounded(section: Any, field: str) -> None:
    config = section()
    for wrong in (math.nan, math.inf, -math.inf, 1e12, 10**12, -(10**12)):
        value = [wrong, 1.0, 1.0, 1.0] if isinstance(getattr(config, field), list) else wrong
        with pytest.raises(StrictDataclassFieldValidationError, match=f"'{field}'"):
            setattr(config, field, value)
        with pytest.raises(StrictDataclassFieldValidationError, match=f"'{field}'"):
            section(**{field: value})


@pytest.mark.parametrize("labels", [-1, 10**9, math.nan])
def test_the_number_of_labels_is_bounded(labels: Any) -> None:
    with pytest.raises(ValueError, match="num_labels must be between 0 and 1,000,000"):
        LLEConfig(num_labels=labels)
    with pytest.raises(ValueError, match="num_labels must be between 0 and 1,000,000"):
        LLEConfig().num_labels = labels


def test_what_calibration_fits_stays_within_the_bounds() -> None:
    section = StreamConfig()
    store_values(section, torch.tensor([80.0, 1e4, 1e30, -1e30, 0.0, 0.0]), torch.zeros(2), torch.ones(2))
    assert (section.sharpness, section.recency, section.gate) == (1e6, 1e6, [1e6, -1e6, 0.0, 0.0])


def test_sections_are_checked_and_converted_whenever_they_are_set() -> None:
    config = LLEConfig()
    config.history = {"stream": {"window": 4}}
    assert config.stream.window == 4
    assert isinstance(config.history, HistoryConfig)
    config.history.stream = {"window": 5}
    assert config.stream.window == 5
    config.history = None
    assert config.stream == StreamConfig()
    with pytest.raises(ValueError, match="did you mean 'window'"):
        config.history = {"stream": {"windows": 4}}


def test_saving_and_loading(tmp_path: Path) -> None:
    history = {
        "stream": {"window": 9, "sharpness": 3, "recency": 0, "gate": [1, 2.5, 3, 4], "generated": True},
        "matches": {"window": 99, "longest": 7, "neighbours": 6, "sharpness": 5, "recency": 0.1, "gate": [4, 3, 2, 2]}
        | {"agreement": 0.5, "success": -1},
        "bank": {"neighbours": 8, "sharpness": 2.5, "gate": [1, 2, 3, 4], "skip_above": 0.5, "search": "fast"}
        | {"match": 1.5, "continuation": -2, "length": 0.5},
        "bank_matches": {"longest": 9, "neighbours": 5, "sharpness": 4, "gate": [2, 1, 3, 4]},
        "update": {"scope": "low-rank", "every": 7, "rate": 0.5, "decay": 0.1, "momentum": 0.2}
        | {"preconditioning": 1.0, "rank": 5, "generated": True},
        "training": {"window": 5, "other_rows": False, "warm_up": 0.5, "sharpness": 2, "gate": [4, 3, 2, 1]},
    }
    classifier = {"members": 2, "pooling": ["last"], "projection": 3, "background": 0.7, "margin": 0.02}
    classifier["out_of_scope"] = {"weights": [1, 2, 3, 4], "threshold": 0.5}
    translator = {"num_encoder_layers": 3, "num_attention_heads": 2, "share_embeddings": False, "sentences": 3}
    translator |= {"neighbours": 5, "confidence": [1, -2, 3, 0.5, 4]}
    sections = {"classifier": classifier, "translator": translator, "history": history}
    config = LLEConfig(vocab_size=20, recurrence="qrnn", stack="residual", eos_token_id=[1, 2], **sections)
    config.save_pretrained(tmp_path)
    again = LLEConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    saved = json.loads((tmp_path / "config.json").read_text())
    assert {name: saved[name] for name in sections} == sections
    assert saved["backbone"]["recurrence"] == "qrnn"
    assert saved["config_version"] == 2
    assert not {field.name for field in dataclasses.fields(BackboneConfig)} & set(saved)
    assert LLEConfig.from_dict(config.to_dict()).history == config.history
    assert LLEConfig.from_dict(again.to_dict()) == LLEConfig.from_dict(again.to_dict()) == copy.deepcopy(again)
    assert LLEConfig(**again.to_dict()) == LLEConfig.from_dict(again.to_dict())


FURTHER = {
    "decoder_start_token_id": 1,
    "note": {"by": ["me", 2.5, None]},
    "_private": 3,
    "hiden_size": 3,
    "of_the_future": True,
    "quantization_config": {"quant_method": "none"},
}


def test_further_attributes_survive_saving(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = LLEConfig(vocab_size=20)
    for name, value in FURTHER.items():
        setattr(config, name, value)
    config.save_pretrained(tmp_path)
    loads = [LLEConfig.from_pretrained, AutoConfig.from_pretrained]
    again = [load(tmp_path) for load in loads]
    again += [LLEConfig.from_json_file(tmp_path / "config.json"), LLEConfig.from_dict(config.to_dict())]
    again += [LLEConfig(**config.to_dict()), copy.deepcopy(again[0])]
    for other in again:
        assert {**other.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}
    assert "holds 'hiden_size' (did you mean 'hidden_size'?), which is kept, but means nothing" in caplog.text
    assert "note" not in caplog.text
    assert AutoConfig.from_pretrained(tmp_path, note="other").note == "other"
    values = json.loads((tmp_path / "config.json").read_text())
    del values["transformers_version"]  # as in a file that was written by hand
    assert LLEConfig.from_dict(values).note == FURTHER["note"]


@pytest.mark.parametrize(
    "make", [make_language_model, make_classifier, lambda: make_translator(make_word_tokenizer())]
)
def test_a_model_with_further_attributes_is_loaded_again(tmp_path: Path, make: Callable[[], Any]) -> None:
    model = make()
    model.config.note, model.config.decoder_start_token_id = "mine", 1
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert (again.config.note, again.config.decoder_start_token_id) == ("mine", 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"history": {"vault": {}}}, "unknown key in history: 'vault'"),
        ({"history": {"stream": {"widow": 3}}}, r"unknown key in history.stream: 'widow' .did you mean 'window'"),
        ({"stream": {"window": 3}}, "a configuration cannot hold 'stream': sections belong into history"),
        ({"num_labels": 10**12}, "num_labels must be between"),
        ({"members": 2}, "members belongs into the section classifier"),
    ],
)
def test_a_saved_configuration_is_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LLEConfig.from_dict({**LLEConfig().to_dict(), **values})


@pytest.mark.parametrize("load", [LLEConfig.from_pretrained, AutoConfig.from_pretrained])
def test_a_misspelt_value_beside_a_folder_is_an_error(tmp_path: Path, load: Callable[..., Any]) -> None:
    LLEConfig(pad_token_id=3).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"unknown key for LLEConfig: 'hiden_size' .did you mean 'hidden_size'"):
        load(tmp_path, hiden_size=3)
    assert (
        load(tmp_path, pad_token="<pad>", padding_side="left").pad_token_id == 3
    )  # for a tokenizer, of AutoTokenizer
    assert load(tmp_path, hiden_size=3, return_unused_kwargs=True)[1] == {"hiden_size": 3}


def test_what_json_cannot_hold_is_named_and_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    config = LLEConfig()
    config.save_pretrained(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    config.note = {1, 2}
    with pytest.raises(ValueError, match="cannot be saved: JSON cannot hold note"):
        config.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before


def test_loading_with_other_values(tmp_path: Path) -> None:
    LLEConfig().save_pretrained(tmp_path)
    config = LLEConfig.from_pretrained(tmp_path, history={"stream": {"window": 3}}, use_history=False)
    assert config.stream.window == 3
    assert not config.use_history


def test_configurations_share_nothing() -> None:
    first, second = LLEConfig(), LLEConfig()
    first.stream.gate[0] = 9.0
    assert second.stream.gate[0] != 9.0
    values = first.to_dict()
    values["history"]["stream"]["gate"][0] = 8.0
    assert first.stream.gate[0] == 9.0


def test_a_newer_version_is_refused_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has version 3.*reads up to 2: upgrade with `pip install -U modeling_lle`"):
        LLEConfig(config_version=CONFIG_VERSION + 1)
    LLEConfig().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values |= {"config_version": 7, "recurrence": "of the future", "history": {"vault": {}}, "depth": 3}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="has version 7"):
        LLEConfig.from_pretrained(tmp_path)


def test_fields_of_the_backbone_need_no_section(tmp_path: Path) -> None:
    config = LLEConfig(backbone={"hidden_size": 8, "stack": "plain"}, hidden_size=6, recurrence="gru")
    assert config.backbone == BackboneConfig(hidden_size=6, stack="plain", recurrence="gru")
    config.hidden_dropout = 0.2
    assert config.backbone.hidden_dropout == config.hidden_dropout == 0.2
    config.save_pretrained(tmp_path)
    again = LLEConfig.from_pretrained(tmp_path, hidden_dropout=0.1, num_hidden_layers=3)
    assert again.backbone == dataclasses.replace(config.backbone, hidden_dropout=0.1, num_hidden_layers=3)
    for field in dataclasses.fields(BackboneConfig):
        assert getattr(again, field.name) == getattr(again.backbone, field.name)


@pytest.mark.parametrize("path", MOVED)
def test_a_field_at_its_old_place_names_its_section(path: str, tmp_path: Path) -> None:
    *parents, name = path.split(".")
    values: dict[str, Any] = {name: 1}
    for parent in reversed(parents):
        values = {parent: values}
    message = rf"{name} belongs into the section {MOVED[path]}: LLEConfig\({MOVED[path]}={{'{name}': 1}}\)"
    with pytest.raises(ValueError, match=message):
        LLEConfig(**values)
    config = LLEConfig()
    with pytest.raises(ValueError, match=message):
        setattr(config, *next(iter(values.items())))
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        LLEConfig.from_pretrained(tmp_path, **values)


SMALL: dict[str, Any] = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1}
UNREAD: dict[str, dict[str, Any]] = {
    "classifier": {"classifier": {"pooling": ["last"]}},
    "translator": {"translator": {"sentences": 2}},
    "history.stream": {"history": {"stream": {"window": 5}}},
    "history.update": {"history": {"update": {"scope": "head"}}},
    "history.training": {"history": {"training": {"window": 5}}},
}


@pytest.mark.parametrize("section", UNREAD)
@pytest.mark.parametrize("head", [LLEForCausalLM, LLEForSequenceClassification, LLEForSeq2SeqLM])
def test_a_section_that_the_model_does_not_read_is_an_error(head: Any, section: str) -> None:
    config = LLEConfig(**SMALL, **UNREAD[section])
    LLEModel(config)
    if section in READ_BY[head.__name__]:
        head(config)
    else:
        with pytest.raises(ValueError, match=rf"{head.__name__} does not read {section}\."):
            head(config)


def test_a_classifier_begins_at_the_backbone_of_a_language_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    LLEForCausalLM(LLEConfig(**SMALL, **UNREAD["history.stream"])).save_pretrained(tmp_path)
    model = LLEForSequenceClassification.from_pretrained(tmp_path)
    assert (
        "LLEForSequenceClassification does not read the section history.stream, saved by LLEForCausalLM" in caplog.text
    )
    assert model.config.stream == StreamConfig()
    LLEForSequenceClassification(LLEConfig(**SMALL, classifier={"members": 2})).save_pretrained(tmp_path / "two")
    with pytest.raises(ValueError, match=r"LLEForCausalLM does not read classifier\.members=2"):
        LLEForCausalLM.from_pretrained(tmp_path / "two")


def test_a_window_of_zero_is_no_stream() -> None:
    model, ids = make_language_model(window=0), make_ids(2, 6)
    with torch.no_grad():
        output = model(ids, labels=ids, output_history=True)
        plain = model(ids, labels=ids, use_history=False)
    assert output.past_key_values.stream is None
    assert output.history is None
    assert torch.equal(output.logits, plain.logits)
    assert torch.equal(output.loss, plain.loss)
    with pytest.raises(ValueError, match=r"history.stream.window and history.matches.window are 0"):
        model.calibrate([])


def test_only_the_embedding_is_tied(tmp_path: Path) -> None:
    tied, free = make_language_model(), make_language_model(tie_word_embeddings=False)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert free.lm_head.weight is not free.model.embed_tokens.weight
    free.save_pretrained(tmp_path)
    again = LLEForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, free.lm_head.weight)
    assert not torch.equal(again.lm_head.weight, again.model.embed_tokens.weight)


RECIPE = """
data: {source: text.txt}
model:
  hidden_size: 8
  history: {stream: {window: 5}}
training: {learning_rate: 2e-3, report_to: none}
"""


def recipe(folder: Path, text: str = RECIPE) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_a_recipe_and_its_settings(tmp_path: Path) -> None:
    settings = ["model.history.stream.window=6", "training.segment_length=9", "model.weight_dropout=1e-1"]
    loaded = load_recipe(recipe(tmp_path), settings)
    assert loaded.training.learning_rate == 2e-3
    assert loaded.training.segment_length == 9
    config = LLEConfig(**loaded.model)
    assert (config.stream.window, config.weight_dropout) == (6, 0.1)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.hiden_size=3", "LLEConfig: 'hiden_size' .did you mean 'hidden_size'"),
        ("model.history.strem.window=3", "history: 'strem' .did you mean 'stream'"),
        ("model.history.stream.widow=3", "history.stream: 'widow' .did you mean 'window'"),
        ("trainin.learning_rate=3", "'trainin' .did you mean 'training'"),
        ("training.learning_rat=3", "section training .*'learning_rat' .did you mean 'learning_rate'"),
        ("data.sorce=x", "section data .*'sorce' .did you mean 'source'"),
        ("tokenizer.kin=word", "section tokenizer .*'kin' .did you mean 'kind'"),
        ("hidden_size=3", "write section.key=value"),
        ("model.hidden_size", "write section.key=value"),
    ],
)
def test_a_misspelt_setting_proposes_the_nearest_one(tmp_path: Path, setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe(tmp_path), [setting])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RECIPE.replace("window", "windw"), "'windw' .did you mean 'window'"),
        (RECIPE.replace("model:", "modle:"), "'modle' .did you mean 'model'"),
        ("model: [", "is not valid YAML"),
    ],
)
def test_a_wrong_recipe(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe(tmp_path, text))


def test_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no recipe at .*cat.yaml"):
        load_recipe(tmp_path / "cat.yaml")


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent.parent / "configs").rglob("*.yaml")), ids=lambda p: p.stem
)
def test_the_recipes_of_the_repository(path: Path) -> None:
    assert load_recipe(path, ["training.report_to=none"]).data.source
