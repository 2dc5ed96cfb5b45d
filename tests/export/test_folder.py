"""An exported folder is whole or not there, and a folder that is damaged, or of another kind, is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from modeling_lle import HistoryBank
from modeling_lle.bank.manifest import BankError
from modeling_lle.export import ExportError, export
from tests.factories.exports import load_run, seal_export
from tests.factories.language_models import make_language_model
from tests.factories.texts import WORD_TOKENIZER


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model without a bank."""
    return export(make_language_model(), WORD_TOKENIZER, tmp_path_factory.mktemp("folder") / "exported", int8=True)


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported, tmp_path / "copy")


def test_it_holds_what_others_expect(exported: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    names = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert {"onnx/model.onnx", "onnx/model_quantized.onnx", "config.json", "tokenizer.json", "run.py"} <= names
    assert "python run.py generate" in (exported / "README.md").read_text()
    assert AutoConfig.from_pretrained(exported).architectures == ["LLEForCausalLM"]
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert tokenizer("a b").input_ids == WORD_TOKENIZER("a b").input_ids
    assert json.loads((exported / "export.json").read_text())["largest_difference"] < 1e-3


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="exists: export into a folder that does not"):
        export(make_language_model(), WORD_TOKENIZER, tmp_path / "out")


def test_nothing_is_left_of_an_export_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def differ(*args: Any) -> float:
        raise ExportError("model: logits differ")

    monkeypatch.setattr("modeling_lle.export.check.check_graphs", differ)
    with pytest.raises(ExportError, match="logits differ"):
        export(make_language_model(), WORD_TOKENIZER, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_programs_are_written_where_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modeling_lle.export.programs.write_programs", lambda model, folder: {"model": str(folder)})
    folder = export(make_language_model(), WORD_TOKENIZER, tmp_path / "out", programs=True)
    assert set(json.loads((folder / "export.json").read_text())["programs"]) == {"model"}


def test_banks_of_other_models_and_empty_ones_are_refused(tmp_path: Path) -> None:
    model, other = make_language_model(), make_language_model(hidden_size=5)
    bank = HistoryBank.build(other, WORD_TOKENIZER, [{"text": "a b c"}])
    with pytest.raises(BankError, match="another backbone"):
        export(model, WORD_TOKENIZER, tmp_path / "out", bank=bank)
    bank.forget(namespace="default")
    with pytest.raises(ExportError, match="no entry to export"):
        export(other, WORD_TOKENIZER, tmp_path / "out", bank=bank)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.to(torch.bfloat16), "dtype=torch.float32"),
        (lambda model: setattr(model.config.overlay, "scope", "head"), "history.update.scope"),
        (lambda model: setattr(model.generation_config, "no_repeat_ngram_size", 2), "no_repeat_ngram_size = None"),
        (lambda model: setattr(model.config, "vocab_size", 3), "the tokenizer has"),
    ],
)
def test_what_cannot_be_exported_is_named_with_the_remedy(tmp_path: Path, change: Any, message: str) -> None:
    model = make_language_model()
    change(model)
    with pytest.raises(ExportError, match=message):
        export(model, WORD_TOKENIZER, tmp_path / "out")


@pytest.mark.parametrize("name", ["onnx/model.onnx", "tokenizer.json"])
def test_a_truncated_or_changed_file_is_not_run(folder: Path, name: str) -> None:
    run, data = load_run(folder), (folder / name).read_bytes()
    for damaged in (data[:-9], data[:-9] + b"\0" * 9):
        (folder / name).write_bytes(damaged)
        with pytest.raises(run.RunError, match=r"is damaged.*export the model again"):
            run.load()
    (folder / name).unlink()
    with pytest.raises(run.RunError, match="is missing"):
        run.load()


def test_a_graph_that_is_too_new_for_onnxruntime_names_its_version(folder: Path) -> None:
    import onnx

    path, run = folder / "onnx/model.onnx", load_run(folder)
    graph = onnx.load(path)
    graph.opset_import[0].version = 999
    onnx.save(graph, path)
    seal_export(folder, "onnx/model.onnx")
    with pytest.raises(run.RunError, match=r"onnxruntime .* cannot load .*pip install -U onnxruntime"):
        run.load()


def test_folders_of_other_kinds_are_refused(folder: Path, tmp_path: Path) -> None:
    run = load_run(folder)
    with pytest.raises(run.RunError, match="lle export"):
        run.load(tmp_path / "nothing")
    values = json.loads((folder / "export.json").read_text())
    for other in ({"task": "translation"}, {"format": 2}):
        (folder / "export.json").write_text(json.dumps(values | other))
        with pytest.raises(run.RunError, match=r"another run\.py"):
            run.load()
    values["graphs"]["model"].pop("int8")
    (folder / "export.json").write_text(json.dumps(values))
    with pytest.raises(run.RunError, match="lle export --int8"):
        run.load(int8=True)
