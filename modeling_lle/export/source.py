"""`runner_source`: the file run.py of a task, made of the modules of `runner/`."""

import ast
from pathlib import Path

from ..tasks import CLASSIFICATION, LANGUAGE, TOKEN_CLASSIFICATION, TRANSLATION

RUNNER = Path(__file__).parent / "runner"
MODULES = {
    LANGUAGE.name: "language",
    CLASSIFICATION.name: "classifier",
    TOKEN_CLASSIFICATION.name: "classifier",
    TRANSLATION.name: "translator",
}


def runner_source(task: str) -> str:
    """The text of run.py for a task: runner/core.py and the task's module, as one file that imports neither.

    Args:
        task: Name of the task.
    """
    core, own = (_parts(RUNNER / f"{name}.py") for name in ("core", MODULES[task]))
    (_, imports, shared), (says, own_imports, specific) = core, own
    lines = sorted({*imports, *own_imports}, key=lambda line: (line.startswith("from"), line))
    return "\n".join(["#!/usr/bin/env python3", says, "", *lines, "", shared, "", "", specific, ""])


def _parts(path: Path) -> tuple[str, list[str], str]:
    """The docstring of a module, its imports of the standard library at the top, and what comes after them."""
    text = path.read_text(encoding="utf-8")
    first, *body = ast.parse(text).body
    rest = next(node for node in body if not isinstance(node, ast.Import | ast.ImportFrom))
    imports = [node for node in body[: body.index(rest)] if getattr(node, "level", 0) == 0]
    lines = text.splitlines()
    says = "\n".join(lines[first.lineno - 1 : first.end_lineno])
    return says, [ast.unparse(node) for node in imports], "\n".join(lines[rest.lineno - 1 :])
