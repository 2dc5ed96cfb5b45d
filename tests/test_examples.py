"""The examples: each notebook has the cells of its script, and each script prints what its docstring says."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import notebooks

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
ALL = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)


def test_there_are_four_examples_and_the_readme_names_them():
    text = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert len(SCRIPTS) == 4
    assert all(f"`python examples/{script.name}`" in text and f"({script.stem}.ipynb)" in text for script in SCRIPTS)


def test_every_notebook_has_the_cells_of_its_script(capsys):
    assert notebooks.main(["--check"]) == 0, capsys.readouterr().out


@ALL
def test_a_notebook_has_the_fields_of_its_format_and_what_the_docstring_says_is_printed(script):
    notebook = json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8"))
    assert {"nbformat": 4, "nbformat_minor": 5}.items() <= notebook.items()
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    printed = []
    for cell in notebook["cells"]:
        due = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            due |= {"execution_count", "outputs"}
            printed += [line for output in cell["outputs"] for line in output["text"]]
        assert cell.keys() == due
    assert "".join(printed) == promised(script)


def test_a_changed_script_is_told(tmp_path, capsys):
    (tmp_path / "examples").mkdir()
    script = tmp_path / "examples" / "short.py"
    script.write_text('"""Short.\n\nMore.\n"""\n\n# %% [markdown]\n# Text\n# of two lines\n\n# %%\nprint("a\\nb")\n')
    assert notebooks.main(["--root", str(tmp_path)]) == 0
    cells = json.loads(script.with_suffix(".ipynb").read_text())["cells"]
    assert ["".join(cell["source"]) for cell in cells] == ["# Short.\n\nMore.", "Text\nof two lines", 'print("a\\nb")']
    assert cells[2]["outputs"] == [{"name": "stdout", "output_type": "stream", "text": ["a\n", "b\n"]}]
    assert notebooks.main(["--root", str(tmp_path), "--check"]) == 0
    script.write_text(script.read_text() + "\n# %%\n1 + 1\n")
    assert notebooks.main(["--root", str(tmp_path), "--check"]) == 1
    assert "out of date: examples/short.ipynb" in capsys.readouterr().out


@pytest.mark.slow
@ALL
def test_a_script_prints_lines_of_the_form_that_its_docstring_says(script):
    made = subprocess.run([sys.executable, str(script)], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=300)
    assert made.returncode == 0, made.stderr[-2000:]
    assert form(made.stdout) == form(promised(script))


def promised(script: Path) -> str:
    """What the docstring of a script says it prints: its indented lines."""
    described = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    return "".join(line[4:] + "\n" for line in described.splitlines() if line.startswith("    "))


def form(printed: str) -> list[str]:
    """The lines with their first words alone, and without figures: predictions differ a little between machines."""
    lines = printed.splitlines()
    return [re.sub(r"[\d.,]+", "0", "'...'" if line.startswith("'") else line.split(":")[0][:24]) for line in lines]
