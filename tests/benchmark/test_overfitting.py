import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from modeling_lle.evaluation import read_results

pytest.importorskip("faiss")
pytest.importorskip("numba")
from scripts.benchmark import overfitting
from scripts.benchmark.__main__ import app
from tests.factories.texts import make_texts


@pytest.mark.slow
def test_every_size_and_dropout_has_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(overfitting, "DROPOUTS", (0.0, 0.3))
    monkeypatch.setattr(overfitting, "SHARES", (0.5, 1.0))
    monkeypatch.setattr(overfitting, "MODEL", {"hidden_size": 8, "num_hidden_layers": 1})
    short = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 2, "segment_length": 6}
    monkeypatch.setattr(overfitting, "TRAINING", {**overfitting.TRAINING, **short, "calibration_tokens": 60})
    for split, rows in (("train", 60), ("valid", 20), ("test", 30)):
        Path(f"{split}.txt").write_text("\n".join(make_texts(rows, 8, seed=rows)) + "\n")
    arguments = ["overfitting", str(tmp_path), "--steps", "3", "--tokens", "50", "--output", "results.json"]
    outcome = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    results = read_results("results.json")
    assert [(row["share"], row["dropout"]) for row in results["rows"]] == [(0.5, 0), (0.5, 0.3), (1, 0), (1, 0.3)]
    for row in results["rows"]:
        assert row["base_gap"] == pytest.approx(math.log(row["base_test_ppl"] / row["base_train_ppl"]))
        assert row["stream_test_ppl"] != row["base_test_ppl"]
    narrower = sum(row["stream_gap"] < row["base_gap"] for row in results["rows"])
    assert results["metrics"] == {"runs": 4, "stream_gap_narrower": narrower}
