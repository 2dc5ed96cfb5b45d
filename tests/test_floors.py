"""The architecture: imports go down the floors, without circles; files, functions and annotations keep their limits.

Every import counts: inside functions, for type checkers only, relative and absolute ones.
"""

import ast
import functools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import modeling_lle

ROOT = Path(modeling_lle.__file__).parent
FLOORS = (
    ("common", "tasks"),
    ("configuration", "kernels"),
    ("backbone",),
    ("bank",),
    ("history",),
    ("data", "embeddings"),
    ("entries",),
    ("models",),
    ("pipelines", "saved", "tokenization"),
    ("export", "training"),
    ("evaluation", "serving"),
    ("cli",),
)
STOREY = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
ALONE = {"__init__", "__main__", "registration"}  # they load modules by name, and nothing imports them
BELOW_MODELS = {"shipping"}  # may be imported from models upwards
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 500, 60


@functools.cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@functools.cache
def nodes(file: Path) -> list[ast.AST]:
    return list(ast.walk(tree(file)))


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def name_of(file: Path) -> str:
    """The name of a module within the package: "history.rule"; "bank" of the folder's __init__."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {name_of(file): file for file in files()}


def room(name: str) -> str:
    """The folder of a module; that of the configuration is flat, because its first file lies beside the package's."""
    first = name.split(".")[0]
    return "configuration" if first.startswith("configuration_") else first


def imports(file: Path) -> Iterator[tuple[str, int]]:
    """The modules of this package that a file imports, wherever the statement stands, and its line.

    A name that the package offers counts as an import of the module where it lies.
    """
    package = ["modeling_lle", *file.relative_to(ROOT).parent.parts]
    for node in nodes(file):
        if isinstance(node, ast.Import):
            given = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = [*above, *(node.module.split(".") if node.module else [])]
            given = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for parts in given:
            if parts[0] == "modeling_lle":
                inside = [".".join(parts[1:stop]) for stop in range(len(parts), 1, -1)]
                public = modeling_lle._HOME.get(parts[1], "__init__") if len(parts) > 1 else "__init__"
                yield next((name for name in inside if name in MODULES), public), node.lineno


@functools.cache
def graph() -> dict[str, dict[str, int]]:
    return {name: dict(imports(file)) for name, file in MODULES.items()}


def is_allowed(importer: str, imported: str) -> bool:
    above, below = room(importer), room(imported)
    if above == below or below == "__init__":  # the version is the package's
        return True
    if below in BELOW_MODELS or above in BELOW_MODELS:
        return below in BELOW_MODELS and STOREY.get(above, 0) >= STOREY["models"]
    return above in STOREY and below in STOREY and STOREY[below] < STOREY[above]


def report(offenders: list[str], rule: str) -> None:
    assert not offenders, f"{rule}:\n  " + "\n  ".join(offenders)


def test_every_module_has_a_floor() -> None:
    rooms = {room(name) for name in MODULES} - ALONE - BELOW_MODELS
    report(sorted(rooms - STOREY.keys()), "give these a place in FLOORS")


def test_imports_go_down() -> None:
    offenders = [
        f"{name}:{line} imports {imported}"
        for name, found in graph().items()
        if room(name) not in ALONE
        for imported, line in found.items()
        if not is_allowed(name, imported)
    ]
    report(offenders, "imports go to a lower floor or stay in their folder (FLOORS)")


def test_there_is_no_circle() -> None:
    left = {name: set(found) - {name, "__init__"} for name, found in graph().items()}
    while free := [name for name, found in left.items() if not found & left.keys()]:
        for name in free:
            del left[name]
    # What is only above a circle has a way into it, but none back.
    while free := [name for name in left if not any(name in found for found in left.values())]:
        for name in free:
            del left[name]
    report([f"{name} imports {', '.join(sorted(found & left.keys()))}" for name, found in left.items()], "circles")


def test_no_module_is_loaded_by_a_string() -> None:
    offenders = []
    for name, file in MODULES.items():
        if room(name) in ALONE:
            continue
        for node in nodes(file):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called.split(".")[-1] in ("import_module", "__import__"):
                offenders.append(f"{name}:{node.lineno} calls {called}")
    report(offenders, "import a module by its name in the code, not by a string")


def functions(file: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """The functions of a file with their qualified names."""
    names: dict[ast.AST, str] = {}
    for node in nodes(file):  # parents come before their children
        inside = names.get(node, "")
        for child in ast.iter_child_nodes(node):
            names[child] = inside
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names[child] = f"{inside}.{child.name}" if inside else child.name
                if not isinstance(child, ast.ClassDef):
                    yield names[child], child


def untyped() -> Counter[str]:
    """The modules with parameters named model or bank that are `Any`, and how many they have."""
    found: Counter[str] = Counter()
    for name, file in MODULES.items():
        for _, function in functions(file):
            arguments = function.args
            for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
                is_any = argument.annotation is None or ast.unparse(argument.annotation) == "Any"
                found[name] += argument.arg in ("model", "bank") and is_any
    return +found


def test_no_model_and_no_bank_is_any() -> None:
    offenders = [f"{name}: {count}" for name, count in untyped().items()]
    report(offenders, "annotate parameters named model and bank with a class or a protocol")


def test_no_file_is_too_long() -> None:
    lines = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in MODULES.items()}
    offenders = [f"{name}: {count}" for name, count in lines.items() if count > MOST_LINES]
    report(offenders, f"at most {MOST_LINES} lines")


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, without the docstring."""
    first, documented = function.body[0], ast.get_docstring(function) is not None
    docstring = int(first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return int(function.end_lineno or 0) - function.lineno + 1 - docstring


def test_no_function_is_too_long() -> None:
    offenders = []
    for name, file in MODULES.items():
        for function, node in functions(file):
            if length(node) > MOST_LINES_OF_A_FUNCTION:
                offenders.append(f"{name}.{function}: {length(node)}")
    report(offenders, f"at most {MOST_LINES_OF_A_FUNCTION} lines, the docstring aside")


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("history.rule", "kernels.scan", True),
        ("history.rule", "history.cache", True),
        ("kernels.nearest_numba", "bank.sketch", False),
        ("configuration", "kernels.scan", False),
        ("history.rule", "configuration_fields", True),
        ("configuration_fields", "configuration", True),
        ("models.pretrained", "shipping", True),
        ("history.rule", "shipping", False),
        ("shipping", "common.checks", False),
    ],
)
def test_the_floors_are_read_as_drawn(importer: str, imported: str, allowed: bool) -> None:
    assert is_allowed(importer, imported) == allowed
