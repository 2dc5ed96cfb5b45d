"""The time of the history is measured on every family in every size, and on the published one."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from modeling_lle.evaluation import read_results
from scripts.benchmark import backbones, history_time
from scripts.benchmark.__main__ import app
from scripts.benchmark.peers import language_models
from tests.factories.texts import make_texts


@pytest.mark.slow
def test_every_family_and_size_has_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_time, "keep_freed_pages", lambda: None)  # it would hold for all tests
    monkeypatch.setattr(history_time, "SIZES", ((300, 96), (310, 128)))
    small = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_heads": 4, "head_dim": 16}
    monkeypatch.setattr(history_time, "CONFIG", {**history_time.CONFIG, **small})
    monkeypatch.setattr(language_models, "TOLERANCE", 0.3)  # widths come in steps that are large for such models
    for module in (backbones, history_time):
        monkeypatch.setattr(module, "TIMED", 16)
    for split in ("train", "validation"):
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "text" / f"{split}.txt").write_text("\n".join(make_texts(60, 8)) + "\n")
    output = tmp_path / "results.json"
    options = ["--repeats", "1", "--window", "50", "--output", str(output)]
    outcome = CliRunner().invoke(app, ["history-time", str(tmp_path / "text"), *options], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    rows = read_results(output)["rows"]
    assert [row["model"] for row in rows] == [*2 * ("Mamba2", "LFM2", "LSTM"), "mamba2-130m"]
    assert [row["vocabulary"] for row in rows] == [*3 * (300,), *3 * (310,), 300]
    assert all(min(row["stream"], row["stream_matches"], row["base_ms_per_token"]) > 0 for row in rows)
