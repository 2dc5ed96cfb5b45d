"""The code that is copied into saved folders: all that a class needs, under flat names, and nothing else."""

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn

from modeling_lle import (
    LLEConfig,
    LLEForCausalLM,
    LLEForSeq2SeqLM,
    LLEForSequenceClassification,
    LLEModel,
    LLETokenizer,
    shipping,
)

ROOT = Path(shipping.__file__).parent
HEADS = [LLEForCausalLM, LLEForSequenceClassification, LLEForSeq2SeqLM]
ALL_HEADS = pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
SHIPPED_FOLDERS = {"common", "kernels", "backbone", "bank", "history", "models"}


@pytest.fixture
def package(tmp_path: Path) -> Iterator[Path]:
    """A package with a copy of shipping.py, whose other modules a test writes."""
    root = tmp_path / "shipping_test_package"
    for folder in (root, root / "low", root / "high"):
        folder.mkdir()
        (folder / "__init__.py").touch()
    (root / "shipping.py").write_text((ROOT / "shipping.py").read_text())
    yield root
    for name in [name for name in sys.modules if name.startswith(root.name)]:
        del sys.modules[name]


def load(root: Path, name: str) -> ModuleType:
    """A module of the package at `root` that can be imported relative to it."""
    for part in ("", *name.split(".")[:-1], name):
        full = f"{root.name}.{part}".rstrip(".")
        file = root.joinpath(*part.split(".")) if part else root
        file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        spec = importlib.util.spec_from_file_location(full, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def relative_imports(text: str) -> list[tuple[int, str | None]]:
    nodes = ast.walk(ast.parse(text))
    return [(node.level, node.module) for node in nodes if isinstance(node, ast.ImportFrom) and node.level]


@ALL_HEADS
def test_a_copy_is_flat_and_complete(head: type, tmp_path: Path) -> None:
    shipping.ship({"AutoModel": head}, tmp_path)
    copies = contents(tmp_path)
    assert all(name.endswith(".py") for name in copies)
    for text in copies.values():
        assert all(level == 1 and f"{module}.py" in copies for level, module in relative_imports(text))


def test_every_folder_of_shipped_code_is_reached(tmp_path: Path) -> None:
    for head in HEADS:
        shipping.ship({"AutoModel": head}, tmp_path)
    names = contents(tmp_path)
    assert {folder for folder in SHIPPED_FOLDERS if any(name.startswith(f"{folder}_") for name in names)} == (
        SHIPPED_FOLDERS
    )
    assert not any(name.startswith(("cli_", "data_", "evaluation_", "pipelines_", "training_")) for name in names)


def test_modules_that_are_imported_inside_functions_are_copied(tmp_path: Path) -> None:
    shipping.ship({"AutoModelForCausalLM": LLEForCausalLM}, tmp_path)
    at_the_top = set()
    for text in contents(tmp_path).values():
        statements = [node for node in ast.parse(text).body if isinstance(node, ast.ImportFrom) and node.level]
        at_the_top |= {f"{node.module}.py" for node in statements}
    assert "kernels_scan_numba.py" in contents(tmp_path)
    assert "kernels_scan_numba.py" not in at_the_top


def test_each_class_is_named_by_its_copy(tmp_path: Path) -> None:
    parts = {"AutoConfig": LLEConfig, "AutoModel": LLEModel, "AutoModelForCausalLM": LLEForCausalLM}
    assert shipping.ship(parts, tmp_path) == {
        "AutoConfig": "configuration_lle.LLEConfig",
        "AutoModel": "models_backbone.LLEModel",
        "AutoModelForCausalLM": "modeling_lle.LLEForCausalLM",
    }
    assert shipping.ship({"AutoTokenizer": LLETokenizer}, tmp_path) == {"AutoTokenizer": "modeling_lle.LLETokenizer"}


def test_a_class_of_another_package_is_left_out(tmp_path: Path) -> None:
    parts = {"AutoModel": nn.Linear, "AutoModelForCausalLM": LLEForCausalLM}
    assert shipping.ship(parts, tmp_path) == {"AutoModelForCausalLM": "modeling_lle.LLEForCausalLM"}


def test_a_copy_ships_itself_unchanged(package: Path, tmp_path: Path) -> None:
    (package / "low" / "part.py").write_text("VALUE = 1\n")
    (package / "high" / "head.py").write_text(
        "from ..low.part import VALUE\nfrom ..shipping import ship\n\n\nclass Head:\n    pass\n"
    )
    first, second = tmp_path / "flat_copy", tmp_path / "again"
    first.mkdir()
    second.mkdir()
    head = load(package, "high.head")
    assert head.ship({"AutoModel": head.Head}, first) == {"AutoModel": "modeling_lle.Head"}
    assert set(contents(first)) == {"modeling_lle.py", "low_part.py", "shipping_lle.py"}
    (first / "__init__.py").touch()
    try:
        copy = load(first, "modeling_lle")
        assert copy.VALUE == 1
        assert copy.ship({"AutoModel": copy.Head}, second) == {"AutoModel": "modeling_lle.Head"}
    finally:
        for name in [name for name in sys.modules if name.startswith(first.name)]:
            del sys.modules[name]
    (first / "__init__.py").unlink()
    copies = contents(first)
    copies.pop("__pycache__", None)
    assert contents(second) == copies


@pytest.mark.parametrize(
    "statement",
    ["from . import part", "from .. import low", "from ..low import part", "from ..low.missing import x"],
)
def test_an_import_that_cannot_be_shipped_is_named(package: Path, statement: str, tmp_path: Path) -> None:
    (package / "low" / "part.py").touch()
    (package / "high" / "part.py").touch()
    file = package / "high" / "head.py"
    file.write_text("class Head:\n    def use(self):\n        pass\n")
    head, ship = load(package, "high.head").Head, load(package, "shipping").ship
    file.write_text(f"class Head:\n    def use(self):\n        {statement}\n")
    with pytest.raises(ValueError, match=r"head\.py:3: write `from \.module import name`"):
        ship({"AutoModel": head}, tmp_path)


def test_absolute_imports_are_left_as_they_are(package: Path, tmp_path: Path) -> None:
    text = "class Head:\n    def use(self):\n        from modeling_lle.entries.texts import TextEntries\n"
    (package / "high" / "head.py").write_text(text)
    folder = tmp_path / "saved"
    folder.mkdir()
    load(package, "shipping").ship({"AutoModel": load(package, "high.head").Head}, folder)
    assert contents(folder) == {"modeling_lle.py": text}
