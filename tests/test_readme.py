"""The pages say what the results files hold, name every folder, and link to what exists."""

import ast
import importlib
import re
from pathlib import Path

from scripts import tables
from scripts.matrix import first_example

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")), *sorted(ROOT.glob("docs/*.md"))]


def test_tables_are_up_to_date() -> None:
    assert tables.main(["--check"]) == 0


def test_the_tree_names_every_folder() -> None:
    tree = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    folders = {path.parent.name for path in (ROOT / "modeling_lle").glob("*/__init__.py")}
    assert [name for name in sorted(folders) if f"{name}/ " not in tree] == []


def test_links_lead_to_files_and_headings_that_exist() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            name, _, anchor = link.partition("#")
            if "://" in link:
                continue
            target = page.parent / name if name else page
            assert target.exists(), f"{page.name} links to {link}"
            assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_every_page_can_be_reached_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES[3:] if f"(docs/{page.name})" not in readme] == []


def test_the_first_example_compiles_and_trains_where_the_matrix_looks() -> None:
    example = first_example()
    compile(example, "the first example", "exec")
    assert '"runs/tiny"' in example


def test_names_that_the_pages_import_exist() -> None:
    for page in PAGES:
        for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in ast.walk(ast.parse(block)):
                if isinstance(line, ast.ImportFrom) and (line.module or "").startswith("modeling_lle"):
                    module = importlib.import_module(line.module or "")
                    assert [alias.name for alias in line.names if not hasattr(module, alias.name)] == [], page


def test_every_results_file_is_shown_on_some_page() -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in tables.documents(ROOT))
    shown = {name for names in re.findall(r"<!-- (?:results|rows):(\S+)", pages) for name in names.split(",")}
    assert {path.stem for path in (ROOT / "model_cards" / "results").glob("*.json")} <= shown
