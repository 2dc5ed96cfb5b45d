"""Models and banks that version 1 saved: they load, and predict what they predicted then."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

import modeling_lle
from modeling_lle import HistoryBank

FOLDER = Path(__file__).parent / "saved_by_version_1"
HEADS = {
    "causal-gru": "CausalLM",
    "causal-lstm": "CausalLM",
    "causal-qrnn": "CausalLM",
    "classifier": "SequenceClassification",
    "token-classifier": "TokenClassification",
    "translator": "Seq2SeqLM",
    "translator-of-type-lle": "Seq2SeqLM",
}
INPUTS = ("input_ids", "attention_mask", "labels")
WAYS: dict[str, dict[str, bool]] = {
    "": {},
    "_with_history": {"use_history": True},
    "_without_history": {"use_history": False},
}
every_folder = pytest.mark.parametrize("name", HEADS)


@pytest.fixture
def folder(name: str, tmp_path: Path) -> Path:
    """A copy of a saved model, so that nothing that its use writes, such as a lock, comes into the checkout."""
    return Path(shutil.copytree(FOLDER / name, tmp_path / name))


def load(folder: Path, name: str) -> Any:
    """A saved model by its Auto class, with the bank that lies with it, if there is one."""
    model = getattr(transformers, f"AutoModelFor{HEADS[name]}").from_pretrained(folder).eval()
    assert type(model) is getattr(modeling_lle, f"LLEFor{HEADS[name]}")
    if (folder / "history").is_dir():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model.attach_history(HistoryBank.from_pretrained(folder), tokenizer=tokenizer)
    return model


@torch.no_grad()
def check(model: Any, expected: dict[str, Tensor]) -> None:
    """Compares every output that was written down."""
    inputs = {name: expected[name] for name in INPUTS}
    scored = {"output_out_of_scope": True} if "out_of_scope" in expected else {}
    found = dict(inputs)
    for way, options in WAYS.items():
        output = model(**inputs, **options, **scored)
        found |= {f"{name}{way}": output[name] for name in ("logits", "loss", *(["out_of_scope"] if scored else []))}
    if "generated" in expected:
        own = {name: expected[name] for name in ("input_ids", "attention_mask")}
        if hasattr(model.config, "stream"):
            model.config.stream.generated = True  # as version 1 did, and by choice today
        found["generated"] = model.generate(**own, num_beams=1, do_sample=False, max_new_tokens=10)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=f"{name}: {{}}".format)


def test_every_folder_is_read() -> None:
    assert {path.name for path in FOLDER.iterdir() if path.is_dir()} == HEADS.keys()
    assert not list(FOLDER.rglob("*.py"))


@every_folder
def test_what_version_1_saved_predicts_the_same(name: str, folder: Path) -> None:
    assert json.loads((folder / "config.json").read_text())["config_version"] == 1
    check(load(folder, name), load_file(folder / "expected.safetensors"))


@every_folder
def test_it_predicts_the_same_once_it_is_saved_anew(name: str, folder: Path, tmp_path: Path) -> None:
    model = load(folder, name)
    model.save_pretrained(tmp_path / "again", save_history=model.history_bank is not None)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "again")
    check(load(tmp_path / "again", name), load_file(folder / "expected.safetensors"))


@every_folder
def test_its_history_has_a_say(name: str) -> None:
    """Else the comparison would show nothing."""
    expected = load_file(FOLDER / name / "expected.safetensors")
    with_history, without = (expected[f"loss{way}"] for way in ("_with_history", "_without_history"))
    assert abs(with_history - without) > 1e-3
