"""`lle doctor` says what is there, what is missing, and what to do."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from modeling_lle import __version__
from modeling_lle.cli import main as cli
from modeling_lle.cli.doctor import EXTRAS, examine


def test_it_shows_every_section_and_ends_well() -> None:
    result = CliRunner().invoke(cli.app, ["doctor"], catch_exceptions=False)
    assert result.exit_code == 0
    for part in (__version__, torch.__version__, "cores", "precision", "caches", "extras", "roblem"):
        assert part in result.output


def test_json_holds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(CliRunner().invoke(cli.app, ["doctor", "--json"], catch_exceptions=False).output)
    assert set(found) == {"versions", "machine", "precision", "caches", "extras", "problems"}
    assert re.match("bfloat16|float32: ", found["precision"]["cpu"])


def test_problems_come_with_their_remedies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    (tmp_path / "file").touch()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("modeling_lle.cli.doctor.cores", lambda: 0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    problems: list[dict[str, Any]] = examine()["problems"]
    told = "\n".join(f"{problem['what']}: {problem['remedy']}" for problem in problems)
    for part in ("threads", "modeling_lle[fast]", "set NUMBA_CACHE_DIR", "unset HF_HUB_OFFLINE"):
        assert part in told


def test_it_knows_every_extra_that_users_install() -> None:
    root = Path(__file__).parents[2]
    project = (root / "pyproject.toml").read_text(encoding="utf-8")
    section = project.split("[project.optional-dependencies]")[1].split("[project.scripts]")[0]
    extras = re.findall(r"^(\w+) = \[", section, re.MULTILINE)
    assert set(extras) - {"all", "benchmark", "lint", "test", "wheel"} == set(EXTRAS)
