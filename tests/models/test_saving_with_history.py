"""Saving a model with its bank: all is checked before anything is written, and a folder is never half of two."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects

from modeling_lle import HistoryBank, LLEForCausalLM
from modeling_lle.bank.files import MANIFEST
from tests.factories.language_models import make_language_model
from tests.factories.texts import WORD_TOKENIZER, make_texts

TEXTS = make_texts(6, 5)


def contents(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def with_bank(texts: Any = TEXTS) -> LLEForCausalLM:
    """A model with a bank in a temporary folder."""
    model = make_language_model()
    with torch.no_grad():
        model.lm_head.bias += 1  # other weights than make_model() has
    model.attach_history(HistoryBank.build(model, WORD_TOKENIZER, texts))
    return model


def kept(folder: Path) -> HistoryBank:
    bank = HistoryBank.from_pretrained(folder)
    assert bank.verify() == []
    return bank


def test_a_bank_is_saved_again_as_it_grows(tmp_path: Path) -> None:
    model = with_bank()
    for _ in range(3):
        model.save_pretrained(tmp_path, save_history=True)
        assert len(kept(tmp_path)) == len(model.history_bank)
        model.history_bank.add(["a b", "c"])
        model.history_bank.forget([len(model.history_bank) - 1])
    model.history_bank.compact()
    model.save_pretrained(tmp_path, save_history=True)
    assert len(kept(tmp_path)) == len(model.history_bank)
    assert not [name for name in contents(tmp_path) if "partial" in name or "saving" in name]


def test_a_loaded_bank_is_saved_into_its_own_folder_and_into_others(tmp_path: Path) -> None:
    with_bank().save_pretrained(tmp_path / "one", save_history=True)
    model = LLEForCausalLM.from_pretrained(tmp_path / "one")
    model.attach_history(HistoryBank.from_pretrained(tmp_path / "one"), tokenizer=WORD_TOKENIZER)
    model.history_bank.add(["a b"])
    for name in ("one", "two"):
        model.save_pretrained(tmp_path / name, save_history=True)
        assert len(kept(tmp_path / name)) == len(model.history_bank)


def another_bank(history: Path) -> None:
    with_bank(["h g"]).history_bank.save_pretrained(history)


def changed_copy(history: Path) -> None:
    MODEL.history_bank.save_pretrained(history)
    HistoryBank.open(history).forget([0])


def foreign_file(history: Path) -> None:
    history.mkdir()
    (history / "songs.txt").write_text("a user's")


def a_file(history: Path) -> None:
    history.write_text("a user's")


MODEL = with_bank()


@pytest.mark.parametrize(
    ("prepare", "error", "message"),
    [
        (another_bank, FileExistsError, "there is a bank at .*history already"),
        (changed_copy, FileExistsError, "there is a bank at .*history already"),
        (foreign_file, FileExistsError, r"history holds other files \(songs.txt\)"),
        (a_file, OSError, "cannot write to the bank .*history"),
    ],
)
def test_what_is_in_the_way_is_named_before_anything_is_written(
    tmp_path: Path, prepare: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    make_language_model().save_pretrained(tmp_path)
    prepare(tmp_path / "history")
    before = contents(tmp_path)
    with pytest.raises(error, match=message):
        MODEL.save_pretrained(tmp_path, save_history=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("where", ["modeling_lle.bank.files._flush", "transformers.PreTrainedModel.save_pretrained"])
def test_a_full_disk_changes_nothing(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_bank()
    model.save_pretrained(tmp_path, save_history=True)
    before = contents(tmp_path)
    model.history_bank.add(["a b"])
    with torch.no_grad():
        model.lm_head.bias += 1

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(where, full)
        with pytest.raises(OSError, match="No space left on device"):
            model.save_pretrained(tmp_path, save_history=True)
    assert contents(tmp_path) == before


def test_an_index_is_never_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor anything else that is no file of a bank."""
    MODEL.save_pretrained(tmp_path, save_history=True)
    HistoryBank.open(tmp_path / "history").forget([0])
    wanted: list[str] = []

    def download(name: str, allow_patterns: list[str], **options: Any) -> str:
        wanted.extend(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    bank = HistoryBank.from_pretrained("someone/cat")
    names = [MANIFEST, *(file.name for file in bank.manifest.files)]
    foreign = ["index/0.faiss", "index/0.json", ".lock", "songs.txt", "segment-1.txt"]
    paths = [f"history/{name}" for name in (*names, *foreign)] + ["model.safetensors", "models/causal.py"]
    assert list(filter_repo_objects(paths, allow_patterns=wanted)) == [f"history/{name}" for name in names]


def test_shards_that_are_no_longer_needed_are_removed(tmp_path: Path) -> None:
    model = make_language_model()
    model.save_pretrained(tmp_path, max_shard_size="1KB")
    shards = list(tmp_path.glob("model-*.safetensors"))
    (tmp_path / "model-of-mine.safetensors").write_text("a user's")
    model.save_pretrained(tmp_path)
    assert len(shards) > 1
    kept = sorted(path.name for path in tmp_path.glob("model*.safetensors"))
    assert kept == ["model-of-mine.safetensors", "model.safetensors"]
