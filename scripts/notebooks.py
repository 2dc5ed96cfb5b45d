"""Makes the notebooks of examples from their scripts, and runs them.

python -m scripts.notebooks             rewrites the notebooks, with what the cells print (minutes)
python -m scripts.notebooks --check     only lists notebooks that differ from their script, and fails if there are any

A script is cut into cells at its lines `# %%`, and `# %% [markdown]` for text; its docstring is the first cell.
"""

import argparse
import ast
import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeling_lle.common.temporary import replacing

ROOT = Path(__file__).resolve().parent.parent
CODE, TEXT = "# %%\n", "# %% [markdown]\n"


def make_parser() -> argparse.ArgumentParser:
    """The arguments of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="run nothing, fail if a notebook has other cells")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of the repository")
    parser.add_argument("names", nargs="*", metavar="NAME", help="the examples; all if none is given")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrites the notebooks, prints the outdated ones, and returns the exit status."""
    options = make_parser().parse_args(arguments)
    outdated = False
    for script in sorted((options.root / "examples").glob("*.py")):
        if options.names and script.stem not in options.names:
            continue
        cells, path = read_cells(script.read_text(encoding="utf-8")), script.with_suffix(".ipynb")
        if not options.check:
            outputs = run_cells(cells, str(script))
            text = json.dumps(as_notebook(cells, outputs), indent=1, ensure_ascii=False)
            with replacing(path) as partial:
                partial.write_text(text + "\n", encoding="utf-8")
            print(f"written: {path.relative_to(options.root)}")
        elif not path.is_file() or cells_of(json.loads(path.read_text(encoding="utf-8"))) != cells:
            outdated = True
            print(f"out of date: {path.relative_to(options.root)}")
    return int(outdated)


def read_cells(script: str) -> list[tuple[str, str]]:
    """The cells of a script: "markdown" or "code", and the source.

    Raises:
        ValueError: The script has no docstring, or code before the first cell.
    """
    head, *parts = script.replace(TEXT, CODE + TEXT).split(CODE)
    described = ast.get_docstring(ast.parse(head))
    if described is None or len(ast.parse(head).body) > 1:
        raise ValueError(f"a docstring alone should be above the first cell, but there is {head.strip()!r:.80}")
    title, _, rest = described.partition("\n")
    return [("markdown", f"# {title}\n{rest}"), *(_cell(part) for part in parts if part.strip())]


def _cell(part: str) -> tuple[str, str]:
    if not part.startswith(TEXT):
        return "code", part.strip()
    lines = part.removeprefix(TEXT).strip().splitlines()
    return "markdown", "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines)


def run_cells(cells: Sequence[tuple[str, str]], name: str) -> list[str]:
    """What each cell prints, when all code is run in order in one namespace; standard error is not kept."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    outputs = []
    for kind, source in cells:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            if kind == "code":
                exec(compile(source, name, "exec"), namespace)
        outputs.append(printed.getvalue())
    return outputs


def as_notebook(cells: Sequence[tuple[str, str]], outputs: Sequence[str]) -> dict[str, Any]:
    """A notebook of the format 4.5 with these cells and what they print."""
    made: list[dict[str, Any]] = []
    run = 0
    for number, ((kind, source), printed) in enumerate(zip(cells, outputs, strict=True)):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": _lines(source)}
        if kind == "code":
            run += 1
            stream = {"name": "stdout", "output_type": "stream", "text": _lines(printed)}
            cell |= {"execution_count": run, "outputs": [stream] if printed else []}
        made.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def cells_of(notebook: dict[str, Any]) -> list[tuple[str, str]]:
    """The cells of a notebook, as `read_cells` gives them."""
    return [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    raise SystemExit(main())
