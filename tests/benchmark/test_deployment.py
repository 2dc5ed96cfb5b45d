"""The smallest size of the benchmark: what it measures, not how fast it is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from modeling_lle.evaluation import read_results

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("faiss")
from transformers import BertConfig, BertModel

from scripts.benchmark import deployed, deployment
from scripts.benchmark.__main__ import app
from scripts.benchmark.before import Before
from scripts.benchmark.peers import exported
from tests.factories.classifiers import make_classifier
from tests.factories.language_models import make_language_model
from tests.factories.pairs import make_capitals_pairs
from tests.factories.texts import WORD_TOKENIZER, make_texts
from tests.factories.translators import make_trained_translator

KINDS = ("onnxruntime", "onnxruntime int8")
ROOT = Path(__file__).resolve().parents[2]


def save(model: Any, folder: Path) -> Path:
    """Saves a model with the tokenizer of words."""
    model.save_pretrained(folder)
    WORD_TOKENIZER.save_pretrained(folder)
    return folder


def run(*arguments: Any) -> dict[str, Any]:
    """Results of the benchmark in its smallest size."""
    sizes = ["--rounds", "1", "--tokens", "4", "--timed", "2", "--output", "results.json"]
    outcome = CliRunner().invoke(app, ["deployment", *map(str, arguments), *sizes], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return read_results("results.json")


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(deployment, "CONTEXTS", (8, 300))
    monkeypatch.setattr(deployment, "GPT2_CONTEXT", 12)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_every_form_of_a_language_model_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = {"start_seconds": 1.0, "memory_megabytes": 100.0}
    monkeypatch.setattr(exported, "matched_width", lambda *arguments: 16)
    monkeypatch.setattr(deployment, "_starts", lambda *arguments: dict.fromkeys(deployment.FORMS, start))
    model = save(make_language_model(), tmp_path / "model")
    Path("test.txt").write_text("\n".join(make_texts(20, 8, seed=1)) + "\n")
    results = run("--language-model", model, "--texts", "test.txt", "--limit", "100")
    rows = {row["form"]: row for row in results["rows"]}
    assert {"generate", "stream", "onnxruntime", "onnxruntime int8", "memory floor", "context 300"} < set(rows)
    assert {"GPT-2, generate", "GPT-2, onnxruntime", "GPT-2, onnxruntime int8"} < set(rows)
    for form in ("stream", "onnxruntime"):
        assert rows[form]["quality"] == pytest.approx(rows["stream"]["quality"], rel=1e-3)
        assert rows[form]["quality_with_history"] == pytest.approx(rows["stream"]["quality_with_history"], rel=1e-3)
    assert results["metrics"]["runner_memory_ratio"] == 1
    assert results["metrics"]["int8_ppl_ratio"] == pytest.approx(1, abs=0.1)


@pytest.mark.slow
def test_a_classifier_is_measured_beside_the_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported, "ExportedEncoder", lambda threads, int8: lambda text: np.zeros(3))
    model = save(make_classifier(recurrence="qrnn"), tmp_path / "model")
    texts = make_texts(12, 5, seed=2)
    lines = [f"{text},label-{number % 3}" for number, text in enumerate(texts)]
    Path("test.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    results = run("--classifier", model, "--intents", "test.csv")
    rows = {row["form"]: row for row in results["rows"]}
    assert set(rows) == {"torch", *(f"{name}{kind}" for name in ("", "all-MiniLM-L6-v2, ") for kind in KINDS)}
    assert rows["onnxruntime"]["quality"] == rows["torch"]["quality"]
    assert results["metrics"]["classifier_int8_accuracy_drop"] == rows["torch"]["quality"] - rows[KINDS[1]]["quality"]


@pytest.mark.slow
def test_a_translator_is_measured_without_its_memory(tmp_path: Path) -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("bm25s")
    model, tokenizer = make_trained_translator()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    recipe = {"task": "translation", "data": {"source_language": "en", "target_language": "de"}}
    (tmp_path / "model" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    pairs = make_capitals_pairs(8)
    for language, side in (("en", "source"), ("de", "target")):
        Path(f"test.{language}").write_text("\n".join(pairs[side]) + "\n")
    results = run("--translator", tmp_path / "model", "--sentences", "test.*", "--beams", "2")
    rows = {row["form"]: row for row in results["rows"]}
    assert set(rows) == {"torch", *KINDS}
    assert rows["onnxruntime"]["quality"] == pytest.approx(rows["torch"]["quality"])


@pytest.mark.slow
def test_another_checkout_generates_in_a_process_of_its_own(tmp_path: Path) -> None:
    model = save(make_language_model(), tmp_path / "model")
    with Before(ROOT, model, threads=1) as before:
        assert len(before.generate([3, 4, 5], 4, use_history=True)) == 3
    with pytest.raises(ValueError, match="no checkout"):
        Before(tmp_path, model, threads=1)


def test_gpt2_as_a_graph_goes_on_from_its_cache() -> None:
    torch.manual_seed(0)
    model = exported.gpt2_of_width(20, 16, 16)
    graph, ids = exported.ExportedGPT2(model, threads=1), [3, 1, 4, 1, 5, 9]
    with torch.no_grad():
        right = model(torch.tensor([ids])).logits[0].numpy()
    for _ in range(2):
        graph.reset()
        for end, given in ((3, ids[:4]), (4, ids[4:5]), (5, ids[5:])):
            np.testing.assert_allclose(graph(given), right[end], atol=1e-4)


def test_the_encoder_as_a_graph_gives_the_mean_of_its_states(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    model = BertModel(BertConfig(vocab_size=20, **sizes, initializer_range=0.5)).eval()
    exported.write_bert(model, tmp_path / "model.onnx")
    ids = np.array([[1, 5, 7, 2]])
    with torch.no_grad():
        right = torch.nn.functional.normalize(model(torch.tensor(ids)).last_hidden_state.mean(1), dim=-1)
    (found,) = exported.session(tmp_path / "model.onnx", 1).run(None, {"input_ids": ids})
    np.testing.assert_allclose(found, right, atol=1e-4)


def test_forms_take_turns_and_their_first_round_is_not_counted() -> None:
    calls: list[str] = []

    def form(name: str) -> deployed.Round:
        return lambda: calls.append(name) or [float(len(calls))] * 3

    assert deployed.take_turns({"a": form("a"), "b": form("b")}, rounds=2) == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert calls == ["a", "b"] * 3
