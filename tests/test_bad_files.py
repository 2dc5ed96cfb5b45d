"""Files that are broken, or that do not belong together: each is named, with what to do about it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from modeling_lle import LLEConfig, LLEForCausalLM, LLEModel

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    LLEForCausalLM(LLEConfig(vocab_size=50, hidden_size=16)).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A saved model that a test may break."""
    return shutil.copytree(saved, tmp_path / "cat")


def configure(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def drop(folder: Path, beginning: str) -> None:
    weights = load_file(folder / WEIGHTS)
    kept = {key: value for key, value in weights.items() if not key.startswith(beginning)}
    assert len(kept) < len(weights)
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: b"",
        lambda content: content[:100],
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: content + b"\0",
        lambda content: content[1:],
        lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 100\n",
    ],
    ids=["empty", "header cut", "last byte gone", "cut in half", "one byte more", "shifted", "git-lfs pointer"],
)
def test_broken_weights(folder: Path, spoil: Callable[[bytes], bytes]) -> None:
    (folder / WEIGHTS).write_bytes(spoil((folder / WEIGHTS).read_bytes()))
    with pytest.raises(OSError, match=r"safetensors.*cat is truncated or corrupted.*download it again"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_part_of_the_backbone_is_missing(folder: Path) -> None:
    drop(folder, "model.stack.layers.0")
    with pytest.raises(ValueError, match=r"cat do not fit its config\.json: model\.stack\.layers\.0\S* is missing"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_more_layers_than_weights(folder: Path) -> None:
    configure(folder, num_hidden_layers=3)
    with pytest.raises(ValueError, match=r"layers\.2\S* is missing.*Save the model again"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_missing_head_starts_anew(folder: Path) -> None:
    backbone = LLEModel.from_pretrained(folder)
    backbone.save_pretrained(folder)
    model, info = LLEForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert info["missing_keys"] == {"lm_head.bias"}
    assert torch.equal(model.lm_head.weight, backbone.embed_tokens.weight)


def test_vocabulary_does_not_match(folder: Path) -> None:
    configure(folder, vocab_size=60)
    with pytest.raises(ValueError, match=r"embed_tokens\.weight is \(50, 16\), not \(60, 16\)"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_mismatch_on_purpose(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, vocab_size=60, ignore_mismatched_sizes=True)
    assert model.lm_head.weight.shape == (60, 16)


def test_newer_configuration(folder: Path) -> None:
    configure(folder, config_version=99)
    with pytest.raises(ValueError, match=r"version 99.*pip install -U modeling_lle"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_an_unknown_key_is_kept_and_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    configure(folder, hiden_size=16)
    with caplog.at_level("WARNING"):
        assert AutoModelForCausalLM.from_pretrained(folder).config.hiden_size == 16
    assert "'hiden_size' (did you mean 'hidden_size'?)" in caplog.text


def test_wrong_type(folder: Path) -> None:
    configure(folder, hidden_size="big")
    with pytest.raises(Exception, match="'hidden_size'"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_truncated_configuration(folder: Path) -> None:
    (folder / "config.json").write_text((folder / "config.json").read_text()[:100])
    with pytest.raises(OSError, match=r"config\.json' is not a valid JSON file"):
        AutoModelForCausalLM.from_pretrained(folder)
