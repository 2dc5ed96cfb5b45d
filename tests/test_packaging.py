"""The distribution: one version, and every file of the package in the wheel and in the source distribution."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

import modeling_lle
from modeling_lle.cli import main as cli
from scripts import wheel

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = {
    path.relative_to(ROOT).as_posix(): path.read_bytes()
    for path in (ROOT / "modeling_lle").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
}


def make_archive(path: Path, files: dict[str, bytes]) -> Path:
    """A wheel, or a source distribution with its one folder, of these files."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w:gz") as source:
        for name, content in files.items():
            member = tarfile.TarInfo(f"modeling_lle-1/{name}")
            member.size = len(content)
            source.addfile(member, io.BytesIO(content))
    return path


def test_lle_tells_its_version() -> None:
    result = CliRunner().invoke(cli.app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"modeling_lle {modeling_lle.__version__}\n")


def test_the_version_is_written_once() -> None:
    assert modeling_lle.__version__ not in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["lle.whl", "lle.tar.gz"])
def test_an_archive_of_all_files_is_complete(tmp_path: Path, name: str) -> None:
    assert wheel.differing_files(make_archive(tmp_path / name, PACKAGE)) == []


@pytest.mark.parametrize("name", ["lle.whl", "lle.tar.gz"])
def test_a_data_file_that_is_missing_or_differs_is_named(tmp_path: Path, name: str) -> None:
    files = {**PACKAGE, "modeling_lle/evaluation/explanation.html": b"other"}
    del files["modeling_lle/training/model_card.md"]
    lacking = ["modeling_lle/evaluation/explanation.html", "modeling_lle/training/model_card.md"]
    assert wheel.differing_files(make_archive(tmp_path / name, files)) == lacking
