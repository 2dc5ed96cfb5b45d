import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from modeling_lle.evaluation import read_results

pytest.importorskip("faiss")
pytest.importorskip("numba")
from scripts.benchmark import budget, contexts, language_models, minutes
from scripts.benchmark.__main__ import app
from scripts.benchmark.minutes import Plan, Texts, Training
from scripts.benchmark.peers.language_models import (
    FAMILIES,
    LLE,
    NAMES,
    PLAIN,
    TOLERANCE,
    Subject,
    count,
    make_lle,
    make_model,
    matched_width,
)
from tests.factories.texts import make_texts

TINY = Plan(vocabulary=200, width=64, minutes=10.0, slice=1e-9)


def some_tokens(number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, number).astype(np.int32)


def some_texts() -> Texts:
    return Texts(some_tokens(3000), some_tokens(700, 1), some_tokens(700, 2))


@pytest.mark.parametrize("name", [*NAMES, "LFM2"])
def test_every_model_has_the_number_of_parameters_of_lle(name: str) -> None:
    with torch.device("meta"):
        due = count(make_lle(8000, 512))
        own = make_model(name, 8000, 512)
    assert abs(count(own) / due - 1) <= TOLERANCE


def test_a_size_that_a_family_cannot_have_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no xLSTM has about 100,000 parameters: the nearest has"):
        matched_width("xLSTM", 200, 100_000)


@pytest.mark.parametrize("name", [*NAMES, "LFM2"])
def test_every_model_is_trained_and_measured_on_the_same_targets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    width = {"xLSTM": 128}.get(name, 64)
    model = FAMILIES[name].make(200, width, 256) if name in FAMILIES else make_model(name, 200, width)
    subject = Subject(name, model.train())
    with torch.no_grad():  # a model without weights predicts all alike
        for weight in subject.model.parameters():
            weight.zero_()
    ids = torch.from_numpy(some_tokens(2 * 65).astype(np.int64)).view(2, 65)
    assert subject.loss(ids[:, :-1], ids[:, 1:]).item() == pytest.approx(math.log(200))
    monkeypatch.setattr(minutes, "LENGTH", 64)
    assert minutes.mean_nats(subject, some_tokens(230)) == pytest.approx(math.log(200))
    assert subject.model.training


def test_windows_count_every_token_once_with_half_a_window_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minutes, "LENGTH", 8)

    class Counting(Subject):
        def nats(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return targets.float()

    subject = Counting("GPT-2", torch.nn.Linear(1, 1))
    assert minutes.mean_nats(subject, np.arange(41)) == pytest.approx(np.arange(1, 41).mean())


@pytest.mark.parametrize("name", [LLE, PLAIN, "GPT-2"])
def test_a_training_goes_on_from_its_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minutes, "CARRIED", (4, 8))
    monkeypatch.setattr(minutes, "WINDOWS", (2, 16))
    monkeypatch.setattr(minutes, "CHECKS", ())
    if name in FAMILIES:  # none is as small as this
        monkeypatch.setattr(minutes, "make_model", lambda *args, **options: FAMILIES[name].make(200, 16, 16))
        torch.manual_seed(0)
    first = Training(name, some_texts(), TINY, 1e-3, tmp_path)
    first.slice(1e-9)
    again = Training(name, some_texts(), TINY, 1e-3, tmp_path)
    assert again.progress == first.progress
    assert again.progress.steps == 1
    for training in (first, again):
        training.subject.begin()  # the state of the text is not kept
        training.progress.seconds = 30.0  # else rates differ by the clock
        training.slice(1e-9)
    for one, other in zip(first.subject.model.parameters(), again.subject.model.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="another rate or time"):
        Training(name, some_texts(), TINY, 2e-3, tmp_path)


def test_rates_are_searched_until_the_best_has_a_worse_neighbour_on_each_side() -> None:
    found: dict[str, float] = {}
    while (rate := minutes._next_rate(found)) is not None:
        found[f"{rate:g}"] = abs(math.log(rate / 0.007))
    assert list(found) == ["0.001", "0.002", "0.004", "0.008", "0.016"]
    assert minutes._best(found) == 0.008


def test_the_rate_follows_the_clock() -> None:
    assert [minutes.rate_at(share) for share in (0.0, 0.025, 0.05, 1.0, 1.1)] == [0, 0.5, 1, 0, 0]


def test_a_budget_counts_operations_and_says_where_time_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "SQUARES", (16,))
    monkeypatch.setattr(budget, "COPIED", 1 << 12)
    monkeypatch.setattr(budget, "PROFILED", 1)
    metrics, rows = budget.measure_budget([LLE, PLAIN], 200, 64, 2, 4, repeats=2)
    row = rows[0]
    matrices = 200 * 64 + 2 * 2 * 4 * 64 * 64  # output layer, and of each layer those of input and state
    assert row["gflop"] * 1e9 == 6 * 2 * 4 * matrices
    assert row["over_floor"] > 0
    assert metrics["train_over_floor_float32"] == row["over_floor"]
    assert sum(row[kind] for kind in (*budget.KINDS, "rest")) == pytest.approx(1)
    assert row["recurrence"] > 0
    assert row["products"] > 0
    assert metrics["train_ratio_plain_float32"] > 0


@pytest.mark.parametrize("name", [*NAMES, contexts.HISTORY])
def test_a_context_is_gone_on_with_from_its_state(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contexts, "SEGMENT", 8)
    family = FAMILIES.get(name)
    if family is not None:
        model = family.make(200, {"xLSTM": 128}.get(name, 64), 32)
        monkeypatch.setattr(contexts, "make_model", lambda *args: model)
    ids = torch.from_numpy(some_tokens(17).astype(np.int64))[None]
    with torch.inference_mode():
        whole, parts = contexts.Reader(name, TINY, 32), contexts.Reader(name, TINY, 32)
        parts.read(ids[:, :16])
        assert int(whole.read(ids)) == int(parts.read(ids[:, 16:]))
        assert contexts.tensor_bytes(parts.state) > 0


def test_longer_contexts_are_skipped_by_name_when_they_would_take_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def bounded(name: str, plan: Plan, batch: int, context: int, limit: float, gigabytes: float) -> dict[str, float]:
        asked.append(context)
        return {"prefill_seconds": context / 10, "step_ms": 1.0}

    monkeypatch.setattr(contexts, "bounded", bounded)
    rows = contexts.measure_contexts([PLAIN], TINY, [1], [512, 4096, 65536], 60.0, 8.0, lambda line: None)
    assert asked == [512]
    assert [row.get("skipped") for row in rows] == [None, "more than 60 s", "more than 60 s"]


@pytest.mark.slow
def test_a_context_that_takes_too_long_or_too_much_memory_is_given_up_by_name() -> None:
    measured = contexts.bounded(PLAIN, TINY, 1, 64, 120.0, 8.0)
    assert measured["step_ms"] > 0
    assert measured["state_mb"] > 0
    assert contexts.bounded(PLAIN, TINY, 1, 64, 0.1, 8.0) == {"skipped": "more than 0.1 s"}
    large = Plan(vocabulary=400_000, width=512, minutes=1.0, slice=1.0)
    assert contexts.bounded(PLAIN, large, 1, 64, 120.0, 0.5) == {"skipped": "more than 0.5 GB"}


def test_the_summary_has_a_row_a_model_and_the_metrics_name_the_best_peer() -> None:
    losses = {LLE: 5.0, contexts.HISTORY: 4.8, PLAIN: 5.1, "GPT-2": 5.6, "RWKV": 5.4}
    steps = [{"model": name, "minutes": 10.0, "loss": loss} for name, loss in losses.items()]
    shared = {"parameters": 1, "learning_rate": 1e-3, "steps": 7}
    found = {
        "minutes": {
            "rows": [{**shared, "model": LLE, "minutes": 1.0, "loss": 6.0}, *[{**shared, **s} for s in steps]]
        },
        "training": {"rows": [{"model": LLE, "length": 64, "tokens_per_second": 900.0}]},
        "budget": {"metrics": {"train_over_floor_float32": 1.3}, "rows": []},
        "contexts": {"rows": [{"model": LLE, "batch": 1, "context": 512, "step_ms": 3.0, "state_mb": 0.1}]},
    }
    rows = {row["model"]: row for row in language_models.summary(found)}
    assert set(rows) == set(losses)
    assert rows[LLE]["loss"] == 5.0
    assert rows[LLE]["tokens_per_second_64"] == 900
    assert rows[LLE]["step_ms_512"] == 3
    assert language_models.metrics_of(found, 10) == {
        "train_over_floor_float32": 1.3,
        "loss_after_10_minutes": 5.0,
        "history_loss_after_10_minutes": 4.8,
        "best_peer_loss_after_10_minutes": 5.4,
        "plain_lstm_loss_after_10_minutes": 5.1,
    }


@pytest.mark.slow
def test_parts_are_measured_once_and_written_with_a_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(minutes, "CARRIED", (4, 8))
    threads, texts = torch.get_num_threads(), tmp_path / "texts"
    texts.mkdir()
    for split, rows in (("train", 200), ("valid", 100)):
        (texts / f"{split}.txt").write_text("\n".join(make_texts(rows, 12, seed=rows)) + "\n")
    options = {"minutes": 0.01, "slice-seconds": 0.1, "vocabulary": 300, "width": 64, "validation": 300}
    options |= {"length": 16, "context": 16, "batch": 1, "repeats": 1, "output": tmp_path / "results.json"}
    arguments = ["peers", str(texts), str(tmp_path / "runs"), "--model", LLE, "--model", PLAIN]
    arguments += [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    try:
        outcome = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert outcome.exit_code == 0, outcome.output
        first = (tmp_path / "runs" / "minutes.json").read_text()
        assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    finally:
        torch.set_num_threads(threads)
    assert (tmp_path / "runs" / "minutes.json").read_text() == first
    results = read_results(tmp_path / "results.json")
    assert [row["model"] for row in results["rows"]] == [LLE, contexts.HISTORY, PLAIN]
    assert {"loss_after_0.01_minutes", "train_ratio_plain_float32"} <= set(results["metrics"])
    assert {row["minutes"] > 0 for row in json.loads(first)["rows"]} == {True}
    assert len(read_results(tmp_path / "results-training.json")["rows"]) == 2
