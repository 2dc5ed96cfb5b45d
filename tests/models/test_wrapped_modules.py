"""Modules that were wrapped, hooked or quantised are honoured by every recurrence and every head."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

from modeling_lle import HistoryBank, LLEForCausalLM
from modeling_lle.backbone.recurrence import first_name
from tests.factories.adapters import linear_names, merge_adapters, wrap_in_adapters
from tests.factories.classifiers import make_classifier
from tests.factories.language_models import make_language_model
from tests.factories.pairs import make_capitals_tokenizer
from tests.factories.texts import make_ids, make_word_tokenizer
from tests.factories.translators import make_translator
from tests.history.test_overlay import make_updating

RECURRENCES = ["lstm", "gru", "qrnn"]
every_recurrence = pytest.mark.parametrize("recurrence", RECURRENCES)
IDS = make_ids(3, 6)
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 0, 1]])


def close(got: Any, want: Any, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)


def pair(model: Any, names: list[str]) -> tuple[Any, Any]:
    """The model with adapters, and one with the same adapters merged into its weights."""
    merged = copy.deepcopy(model)
    wrap_in_adapters(model, names)
    merge_adapters(merged, names)
    return model, merged


def quantized(model: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that torchao does it now
        return torch.ao.quantization.quantize_dynamic(model, dtype=torch.qint8)


@pytest.mark.parametrize("stack", ["plain", "residual"])
@every_recurrence
def test_adapters_of_all_linear_modules_are_what_they_are_merged(recurrence: str, stack: str) -> None:
    model = make_language_model(7, recurrence, stack, intermediate_size=8, tie_word_embeddings=False)
    names = [name for name in linear_names(model) if "mixer" in name]
    assert len(names) == 2 * (1 if recurrence == "qrnn" else 2)
    plain = copy.deepcopy(model)
    model, merged = pair(model, [*names, "lm_head"])
    with torch.no_grad():
        for history in (True, False):
            got, want = (m(IDS, MASK, use_history=history).logits[MASK.bool()] for m in (model, merged))
            close(got, want)
            assert not torch.allclose(got, plain(IDS, MASK, use_history=history).logits[MASK.bool()], atol=0.01)
        greedy = [m.generate(IDS[:1], max_new_tokens=4, do_sample=False) for m in (model, merged)]
    assert torch.equal(*greedy)


@every_recurrence
def test_a_training_step_changes_the_adapters_alone(recurrence: str) -> None:
    model = make_language_model(0, recurrence).requires_grad_(False)
    wrap_in_adapters(model, [name for name in linear_names(model) if name != "lm_head"])
    model.train()(IDS, MASK, labels=IDS).loss.backward()
    got = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert got == {name for name, _ in model.named_parameters() if name.endswith(("down", "up"))}


@every_recurrence
def test_weight_dropout_drops_the_matrix_that_was_wrapped(recurrence: str) -> None:
    plain = make_language_model(0, recurrence, weight_dropout=0.5, num_hidden_layers=1).train()
    model = copy.deepcopy(plain)
    name = linear_names(model)[0 if recurrence == "qrnn" else 1]
    wrap_in_adapters(model, [name])
    nn.init.zeros_(model.get_submodule(name).up)
    losses = []
    for each in (plain, model):
        torch.manual_seed(3)
        losses.append(each(IDS, labels=IDS).loss)
    close(*losses)
    assert not torch.allclose(losses[0], plain.eval()(IDS, labels=IDS).loss)


@every_recurrence
def test_hooks_fire(recurrence: str) -> None:
    model, seen = make_language_model(7, recurrence), set()
    want = model(IDS).logits
    for name in linear_names(model):
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.add(name))
    close(model(IDS).logits, want)
    assert seen == set(linear_names(model))
    seen.clear()
    model.train()(IDS, labels=IDS).loss.backward()
    assert seen == set(linear_names(model))


@every_recurrence
@torch.no_grad()
def test_models_are_quantised(recurrence: str) -> None:
    translator = make_translator(make_capitals_tokenizer(), recurrence=recurrence)
    for model, given in (
        (make_language_model(7, recurrence, "residual"), {"input_ids": IDS, "attention_mask": MASK}),
        (
            make_classifier(recurrence=recurrence, classifier={"pooling": ["attention"]}),
            {"input_ids": IDS, "attention_mask": MASK},
        ),
        (translator, {"input_ids": IDS, "decoder_input_ids": IDS}),
    ):
        low = quantized(model)
        assert not linear_names(low)
        got, want = low(**given).logits, model(**given).logits
        if got.shape[:2] == MASK.shape and "attention_mask" in given:
            got, want = got[MASK.bool()], want[MASK.bool()]
        assert 0 < (got - want).abs().max() < 0.3
    assert low.generate(IDS, max_new_tokens=3).shape[0] == 3


def test_a_quantised_model_keeps_its_bank_and_gets_no_other() -> None:
    model = make_language_model(0)
    bank = HistoryBank.build(model, make_word_tokenizer(), ["a b c d e"])
    model.attach_history(bank)
    low = quantized(model)
    assert low.history_bank is not None
    assert low(IDS).logits.isfinite().all()
    with pytest.raises(ValueError, match=r"mixer.from_input\S*, which is quantised: attach it first"):
        low.attach_history(bank)


@pytest.mark.parametrize("window", [0, 5])
def test_the_loss_of_an_adapted_output_layer(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modeling_lle.history.loss.CHUNK_POSITIONS", 5)
    history = {"training": {"window": window}} if window else {}
    model, merged = pair(make_language_model(7, tie_word_embeddings=False, history=history).train(), ["lm_head"])
    losses = [each(IDS, MASK, labels=IDS).loss for each in (model, merged)]
    close(*losses)
    for loss in losses:
        loss.backward()
    for name, weight in merged.named_parameters():
        if not name.startswith("lm_head"):
            close(model.get_parameter(name).grad, weight.grad)
    slope = merged.lm_head.weight.grad
    close(model.lm_head.up.grad, slope @ model.lm_head.down.T)


def test_the_loss_of_an_adapted_translator() -> None:
    untied = {"tie_word_embeddings": False, "translator": {"share_embeddings": False}}
    model = make_translator(make_capitals_tokenizer(), **untied).train()
    model.label_smoothing = 0.1
    labels = IDS.masked_fill(MASK == 0, -100)
    model, merged = pair(model, linear_names(model))
    losses = [each(IDS, MASK, labels=labels).loss for each in (model, merged)]
    close(*losses)
    slopes = [
        torch.autograd.grad(loss, m.model.encoder.embed_tokens.weight)[0]
        for loss, m in zip(losses, (model, merged), strict=True)
    ]
    close(*slopes)


@pytest.mark.parametrize("scope", ["head", "low-rank"])
def test_the_test_time_update_of_an_adapted_model(scope: str) -> None:
    model = make_updating(scope)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())  # that of the embeddings is its own
    model, merged = pair(model, linear_names(model))
    with torch.no_grad():
        got, want = (each(make_ids(1, 25)).logits for each in (model, merged))
        assert not torch.allclose(got, model(make_ids(1, 25), use_history=False).logits.log_softmax(-1), atol=0.01)
    close(got, want, 1e-3)


def test_what_the_test_time_update_cannot_change_is_named() -> None:
    adapted, low = make_updating("all"), make_updating("low-rank")
    wrap_in_adapters(adapted, ["lm_head"])
    with pytest.raises(ValueError, match=r"scope 'all' changes the weights themselves, but lm_head was wrapped"):
        adapted(IDS)
    with pytest.raises(
        ValueError, match=r"a quantised output layer has no gradient, which history.update.scope 'low-rank'"
    ):
        quantized(low)(make_ids(1, 20))
    offloaded = make_updating("head")
    offloaded.lm_head.to("meta")
    with pytest.raises(ValueError, match="needs the weights of lm_head in memory"):
        offloaded(IDS)


@torch.no_grad()
def test_an_output_layer_on_the_disk(tmp_path: Path) -> None:
    model = make_language_model(7, tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "model")
    for place in ({"model": "cpu", "lm_head": "disk"}, {"model": "disk", "lm_head": "cpu"}):
        loaded = LLEForCausalLM.from_pretrained(
            tmp_path / "model", device_map=place, offload_folder=tmp_path / "offloaded"
        )
        close(loaded(IDS, labels=IDS).loss, model(IDS, labels=IDS).loss)
        close(loaded(IDS).logits, model(IDS).logits)


@every_recurrence
def test_models_that_older_versions_saved_load(recurrence: str, tmp_path: Path) -> None:
    model = make_language_model(0, recurrence)
    model.update_statistics = {name: torch.ones(1) for name, _ in model.named_parameters()}
    model.save_pretrained(tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        save_file({first_name(name): value for name, value in load_file(file).items()}, file, {"format": "pt"})
    old = load_file(tmp_path / "model.safetensors")
    names = {"qrnn": {"weight", "bias"}}.get(recurrence, {"cell.weight_hh_l0", "cell.bias_ih_l0"})
    assert {f"model.stack.layers.1.mixer.{name}" for name in names} <= set(old)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    backbone = AutoModel.from_pretrained(tmp_path)
    filled = make_language_model(0, recurrence, initializer_range=0.5)
    filled.load_state_dict({**old, "lm_head.weight": old["model.embed_tokens.weight"]})
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
        assert torch.equal(filled.state_dict()[name], value)
        assert name.startswith("lm_head") or torch.equal(backbone.state_dict()[name.removeprefix("model.")], value)
    assert again.update_statistics.keys() == model.update_statistics.keys()
    again.save_pretrained(tmp_path / "again")
    third = LLEForCausalLM.from_pretrained(tmp_path / "again")
    assert all(torch.equal(third.state_dict()[name], value) for name, value in model.state_dict().items())
    assert [name for name, _ in model.key_weights()] == sorted(
        name.removeprefix("model.") for name in old if name.startswith("model.")
    )
