"""The pages say what the results files hold, name every folder, and link to what exists."""

import re
from pathlib import Path

from scripts import tables

ROOT = Path(__file__).resolve().parent.parent


def test_tables_are_up_to_date() -> None:
    assert tables.main(["--check"]) == 0


def test_the_tree_names_every_folder() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    folders = {path.parent.name for path in (ROOT / "modeling_lle").glob("*/__init__.py")}
    assert [name for name in sorted(folders) if f"{name}/ " not in readme] == []


def test_pages_link_to_files_that_exist() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")):
        links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        assert [link for link in links if not (page.parent / link).exists()] == [], page


def test_every_results_file_is_shown_on_some_page() -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in tables.documents(ROOT))
    shown = {name for names in re.findall(r"<!-- (?:results|rows):(\S+)", pages) for name in names.split(",")}
    assert {path.stem for path in (ROOT / "model_cards" / "results").glob("*.json")} <= shown
