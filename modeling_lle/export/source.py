"""`runner_source`: the file run.py of a task, made of the modules of `runner/` and of shared ones."""

import ast
from pathlib import Path

from ..tasks import CLASSIFICATION, LANGUAGE, TOKEN_CLASSIFICATION, TRANSLATION

RUNNER = Path(__file__).parent / "runner"
# They need the standard library alone.
SHARED = {TRANSLATION.name: (RUNNER.parent.parent / "data" / "placeholders.py",)}
MODULES = {
    LANGUAGE.name: "language",
    CLASSIFICATION.name: "classifier",
    TOKEN_CLASSIFICATION.name: "classifier",
    TRANSLATION.name: "translator",
}


def runner_source(task: str) -> str:
    """The text of run.py for a task: runner/core.py, shared modules and the task's own, as a file that imports none.

    Args:
        task: Name of the task.
    """
    own = RUNNER / f"{MODULES[task]}.py"
    parts = [_parts(path) for path in (RUNNER / "core.py", *SHARED.get(task, ()), own)]
    imports = {line for _, lines, _ in parts for line in lines}
    lines = sorted(imports, key=lambda line: (line.startswith("from"), line))
    bodies = "\n\n\n".join(body.strip("\n") for _, _, body in parts)
    return "\n".join(["#!/usr/bin/env python3", parts[-1][0], "", *lines, "", bodies, ""])


def _parts(path: Path) -> tuple[str, list[str], str]:
    """The docstring of a module, its imports of the standard library at the top, and what comes after them."""
    text = path.read_text(encoding="utf-8")
    first, *body = ast.parse(text).body
    rest = next(node for node in body if not isinstance(node, ast.Import | ast.ImportFrom))
    imports = [node for node in body[: body.index(rest)] if getattr(node, "level", 0) == 0]
    lines = text.splitlines()
    says = "\n".join(lines[first.lineno - 1 : first.end_lineno])
    return says, [ast.unparse(node) for node in imports], "\n".join(lines[rest.lineno - 1 :])
