"""The command for accelerators: it refuses without one, and runs through on a CPU."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("faiss")
pytest.importorskip("numba")

from modeling_lle.evaluation import read_results
from scripts.benchmark import device, minutes
from scripts.benchmark.__main__ import app
from tests.factories.texts import make_texts


def test_without_an_accelerator_the_command_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    for options, due in (([], "give --device cpu"), (["--device", "cuda"], "there is no cuda device here")):
        outcome = CliRunner().invoke(app, ["device", "texts", *options])
        assert outcome.exit_code == 2
        assert due in " ".join(outcome.output.replace("│", " ").split())


def test_a_check_fails_where_the_device_gives_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    row = device.check("scan", torch.device("cpu"))
    assert row["float32_passed"]
    assert row["bfloat16_passed"]
    calls = []

    def wrong(where: torch.device) -> dict[str, torch.Tensor]:
        calls.append(where)
        return {"right": torch.ones(3), "output": torch.full((2,), 1 + 0.01 * (len(calls) - 1))}

    monkeypatch.setitem(device.CHECKS, "scan", wrong)
    row = device.check("scan", torch.device("cpu"))
    assert (row["float32_passed"], row["float32_worst"]) == (False, "output")
    assert row["bfloat16_error"] == pytest.approx(0.02)
    assert row["bfloat16_passed"]


@pytest.mark.slow
def test_the_command_runs_through_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(minutes, "CARRIED", (4, 8))
    monkeypatch.setattr(minutes, "WINDOWS", (2, 16))
    monkeypatch.setattr(device, "HELD_OUT", 512)
    for split, rows in (("train", 300), ("valid", 200), ("test", 200)):
        Path("texts").mkdir(exist_ok=True)
        Path("texts", f"{split}.txt").write_text("\n".join(make_texts(rows, 8, seed=rows)) + "\n")
    arguments = ["device", "texts", "--device", "cpu", "--minutes", "0.01", "--output", "device.json"]
    outcome = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    results = read_results("device.json")
    assert results["metrics"]["failed_checks"] == 0
    assert {row["part"] for row in results["rows"]} == {"checks", "search", "training", "mamba2"}
    assert {"base", "LLE stream + bank"} <= {row["name"] for row in results["rows"] if row["part"] == "mamba2"}
