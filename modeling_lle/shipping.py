"""Copies the code of a model into its saved folder, so that `trust_remote_code` loads it without this package.

Notable: transformers ships only files that the first file's own folder holds and that are reached by
`from .name import x` (dynamic_module_utils.py). So the modules that a class needs are found by following relative
imports from it, each is written once under a flat name, and its import lines are rewritten: `history/rule.py` becomes
`history_rule.py`. The class that is saved lies in `modeling_lle.py`, its configuration in `configuration_lle.py`.
A flat copy ships itself as it is. Absolute imports of this package, which need it installed, are not followed.
"""

import ast
import functools
import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path

SOURCE = Path(__file__)
ROOT, IS_FLAT = SOURCE.parent, SOURCE.stem != "shipping"
ENTRY = "modeling_lle"


def ship(parts: Mapping[str, type], folder: Path, also: Iterable[type] = ()) -> dict[str, str]:
    """Writes the modules that classes of this package need into a folder.

    Args:
        parts: The classes under the names of their Auto classes; the last one is that of the model which is saved. A
            class that lies outside this package is left out: its own package must be installed.
        folder: Where the modules are written.
        also: Further classes whose modules are written, such as that of the bank which is saved with the model.

    Returns:
        The `auto_map` of the configuration: for each Auto class "module.Class".
    """
    files = {auto: file for auto, part in parts.items() if (file := _file(part)) is not None}
    entry = _file(list(parts.values())[-1])
    names: dict[Path, str] = {}
    waiting = [*files.values(), *(file for part in also if (file := _file(part)) is not None)]
    while waiting:
        file = waiting.pop()
        if file not in names:
            names[file] = _flat_name(file, entry)
            waiting += [target for target, _ in _imports(file)]
    for file, name in names.items():
        (folder / f"{name}.py").write_text(_flattened(file, names), encoding="utf-8")
    return {auto: f"{names[file]}.{parts[auto].__name__}" for auto, file in files.items()}


def _file(part: type) -> Path | None:
    """The module of a class, or None if it lies outside this package."""
    try:
        file = Path(inspect.getfile(part))
    except (OSError, TypeError):  # a class of an interactive session
        return None
    return file if file.is_relative_to(ROOT) else None


def _flat_name(file: Path, entry: Path | None) -> str:
    if IS_FLAT:
        return file.stem
    if file == entry:
        return ENTRY
    parts = file.relative_to(ROOT).with_suffix("").parts
    return "_".join(parts) if len(parts) > 1 else f"{parts[0]}_lle"


@functools.cache
def _imports(file: Path) -> list[tuple[Path, ast.ImportFrom]]:
    """The modules that a module imports by relative imports, and the statements."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = file.parents[node.level - 1]
            target = folder.joinpath(*(node.module or "").split(".")).with_suffix(".py")
            if node.module is None or not target.is_file():
                raise ValueError(f"{file}:{node.lineno}: write `from .module import name`: this module is shipped")
            found.append((target, node))
    return found


def _flattened(file: Path, names: Mapping[Path, str]) -> str:
    """The text of a module, its relative imports rewritten to the flat names."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    for target, node in _imports(file):
        written = "." * node.level + str(node.module)
        line = node.lineno - 1
        lines[line] = lines[line].replace(f"from {written} import", f"from .{names[target]} import", 1)
    return "".join(lines)
