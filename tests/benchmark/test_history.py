"""The comparison: a row a data set and method, kept when interrupted, other data sets' rows kept too."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("faiss")

from modeling_lle import LLECache
from modeling_lle.evaluation import read_results

pytest.importorskip("numba")
from scripts.benchmark import history
from scripts.benchmark.__main__ import app
from tests.factories.language_models import make_language_model
from tests.factories.texts import make_ids, make_texts, make_word_tokenizer

METHODS = [
    "base",
    "LLE stream",
    "LLE stream + bank",
    "LLE update",
    "LLE update of all weights",
    "LLE all",
    "neural cache",
    "kNN-LM",
    "dynamic evaluation (SGD)",
    "dynamic evaluation (RMS)",
    "dynamic evaluation (RMS) + cache",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model and two data sets; the search of rates is short."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(history, "keep_freed_pages", lambda: None)  # it would hold for all tests
    make_language_model(vocab_size=len(make_word_tokenizer()), bos_token_id=None).save_pretrained("model")
    make_word_tokenizer().save_pretrained("model")
    for dataset in ("one", "two-2"):
        for split, rows in (("train", 200), ("valid", 20), ("test", 30)):
            Path(dataset).mkdir(exist_ok=True)
            Path(dataset, f"{split}.txt").write_text("\n".join(make_texts(rows, 8, seed=rows)) + "\n")
    return tmp_path


def run(dataset: str, *options: str) -> dict[str, Any]:
    arguments = ["history", "model", dataset, "--dynamic-tokens", "20", "--output", "history.json", *options]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return read_results("history.json")


@pytest.mark.usefixtures("folder")
@pytest.mark.slow
def test_every_method_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "this_command", lambda: "compare one")
    results = run("one")
    rows = {row["method"]: row for row in results["rows"]}
    assert list(rows) == METHODS
    assert {row["dataset"] for row in rows.values()} == {"one"}
    assert all(row["ppl"] > 1 and row["tokens_per_second"] > 0 for row in rows.values())
    assert rows["base"]["memory_mb"] == 0
    assert rows["base"]["numbers"] == ""
    assert rows["LLE stream"]["memory_mb"] < rows["LLE stream + bank"]["memory_mb"]
    assert rows["LLE stream + bank"]["numbers"].count("sharpness") == 2
    assert rows["LLE stream"]["numbers"].startswith("stream: window 7, sharpness ")
    weights = (
        sum(weight.nbytes for weight in make_language_model(vocab_size=len(make_word_tokenizer())).parameters())
        / 2**20
    )
    assert rows["dynamic evaluation (SGD)"]["memory_mb"] == pytest.approx(weights)
    assert rows["dynamic evaluation (RMS)"]["memory_mb"] == pytest.approx(2 * weights)
    assert rows["dynamic evaluation (RMS) + cache"]["memory_mb"] > 2 * weights
    assert rows["LLE update"]["numbers"].startswith("stream: window 0, ")
    assert "; update: scope head, every 40, rate 0.002, " in rows["LLE update"]["numbers"]
    assert rows["LLE update"]["speed_over_dynamic"] > 0
    assert rows["LLE all"]["numbers"].count("; ") == 2
    names = ("stream", "stream_bank", "update", "update_of_all_weights", "all")
    assert set(results["metrics"]) == {
        *(f"one_{name}_over_{other}" for name in names for other in ("base", "best_peer")),
        "one_update_share_of_dynamic_gain",
        "one_update_speed_over_dynamic",
    }
    monkeypatch.setattr(history, "this_command", lambda: "compare two-2")
    both = run("two-2", "--method", "base", "--method", "LLE stream", "--test-tokens", "10")
    assert both["rows"][: len(METHODS)] == results["rows"]
    assert [row["dataset"] for row in both["rows"][len(METHODS) :]] == ["two-2"] * 2
    assert both["command"] == "compare one && compare two-2"
    assert "two_2_stream_over_base" in both["metrics"]
    monkeypatch.setattr(history, "this_command", lambda: "compare two-2 again")
    again = run("two-2", "--method", "base")
    assert again["command"] == "compare one && compare two-2 again"
    assert len(again["rows"]) == len(METHODS) + 1


@pytest.mark.usefixtures("folder")
def test_an_interrupted_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--method", "base", "--method", "neural cache"]
    monkeypatch.setattr(history, "this_command", lambda: "compare one --x")
    calls = []

    def counted(name: str, comparison: history.Comparison) -> list[history.Row]:
        calls.append(name)
        if len(calls) == 2:
            raise InterruptedError
        return history.lle("base", comparison)

    monkeypatch.setattr(history, "METHODS", dict.fromkeys(("base", "neural cache"), counted))
    with pytest.raises(InterruptedError):
        run("one", *options)
    (line,) = Path("runs/history-one.jsonl").read_text().splitlines()
    assert json.loads(line)["method"] == "base"
    monkeypatch.setattr(history, "this_command", lambda: "compare one --resume --x")
    assert len(run("one", *options, "--resume")["rows"]) == 2
    assert calls == ["base", "neural cache", "neural cache"]
    monkeypatch.setattr(history, "this_command", lambda: "compare one --other --resume")
    run("one", *options, "--resume")
    assert calls[3:] == ["base", "neural cache"]
    with pytest.raises(ValueError, match="did you mean 'base'"):
        run("one", "--method", "bas")


def test_comparisons_need_their_rows() -> None:
    def row(method: str, ppl: float, speed: float = 1.0) -> history.Row:
        return {"dataset": "a-b", "method": method, "ppl": ppl, "tokens_per_second": speed}

    rows = [row("base", 100), row("LLE update", 80, 1000), row("LLE all", 60), row("kNN-LM", 75)]
    assert set(history.comparisons(rows)) == {
        f"a_b_{name}_over_{other}" for name in ("update", "all") for other in ("base", "best_peer")
    }
    rows += [row("dynamic evaluation (SGD)", 70, 200), row("dynamic evaluation (RMS)", 64, 50)]
    rows[1]["speed_over_dynamic"] = 20
    metrics = history.comparisons(rows)
    assert metrics["a_b_all_over_best_peer"] == 60 / 64
    assert metrics["a_b_update_speed_over_dynamic"] == 20
    assert metrics["a_b_update_share_of_dynamic_gain"] == pytest.approx(0.5)  # log 0.8 over log 0.64


def test_bytes_of_tensors_are_counted_once() -> None:
    model, cache = make_language_model(window=5), LLECache(5)
    shared = torch.zeros(3)
    assert history.tensor_bytes({"a": shared, "b": [shared, (torch.zeros(2), model)]}) == 20
    model.score(make_ids(1, 9), make_ids(1, 9), past_key_values=cache)
    assert cache.stream is not None
    expected = sum(getattr(cache.stream, name).nbytes for name in cache.stream.tensors)
    assert history.tensor_bytes(cache) - history.tensor_bytes(cache.state) == expected
