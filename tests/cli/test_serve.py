"""`lle serve` says what is missing or wrong before it loads anything."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from modeling_lle.cli import main as cli
from tests.factories.classifiers import make_classifier


@pytest.fixture
def model(tmp_path: Path) -> str:
    make_classifier().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def fails(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, ["serve", *arguments])
    assert result.exit_code
    assert isinstance(result.exception, ValueError | ImportError | FileNotFoundError), result.output
    return str(result.exception)


def test_without_the_extra_it_says_which_one_to_install(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find: Any = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "uvicorn" else find(name, *rest)
    )
    assert 'uvicorn is missing: pip install "modeling_lle[serve]"' in fails(model)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org"])
def test_without_keys_it_listens_to_this_machine_only(model: str, host: str) -> None:
    pytest.importorskip("fastapi")
    assert "give --keys FILE" in fails(model, "--host", host)


def test_models_banks_and_languages_are_named(model: str, tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    assert "two models are called" in fails(model, model)
    assert "NAME=..., with one of the models model" in fails(model, "--bank", "other=x")
    assert "there is no bank" in fails(model, "--bank", f"model={tmp_path / 'none'}")
    assert "such as en-de" in fails(model, "--languages", "model=en")
    assert "--bank NAME=FOLDER" in fails(model, "--shared", "common")
    assert "none" in fails(f"name={tmp_path / 'none'}")


@pytest.mark.parametrize(("given", "due"), [([], 2), (["--threads", "5"], 5)])
def test_a_core_is_left_to_the_requests(
    model: str, monkeypatch: pytest.MonkeyPatch, given: list[str], due: int
) -> None:
    pytest.importorskip("fastapi")
    called: list[Any] = []
    monkeypatch.setattr("modeling_lle.common.machine.cores", lambda: 3)
    monkeypatch.setattr("torch.set_num_threads", called.append)
    monkeypatch.setattr("modeling_lle.cli.serve._run", lambda *_: called.append("run"))
    result = CliRunner().invoke(cli.app, ["serve", model, *given])
    assert not result.exit_code, result.output
    assert called == [due, "run"]


def test_neither_the_package_nor_the_help_imports_fastapi() -> None:
    for code in ("import modeling_lle", "from modeling_lle.cli.main import app"):
        check = (
            f"import sys; {code}; sys.exit(any(name in sys.modules for name in ('fastapi', 'uvicorn', 'pydantic')))"
        )
        assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0, code
