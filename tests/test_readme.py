"""The README and the model cards say what the results files hold."""

from pathlib import Path

from scripts import tables

ROOT = Path(__file__).resolve().parent.parent


def test_tables_are_up_to_date() -> None:
    assert tables.main(["--check"]) == 0


def test_the_tree_names_every_module() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    modules = {path.name for path in (ROOT / "modeling_lle").glob("*.py")} - {"__init__.py"}
    assert [name for name in sorted(modules) if name not in readme] == []
