"""A corpus present on every machine: the source code of Python's standard library."""

import hashlib
import sysconfig
import tokenize
from pathlib import Path

from datasets import Dataset, DatasetDict

# About 5 % of the bytes each; present in Python 3.10 to 3.13; without near copies such as _pydecimal.
VALIDATION_PACKAGES = frozenset(
    {"configparser", "dataclasses", "ftplib", "gettext", "ipaddress", "pathlib", "pprint", "smtplib", "statistics"}
    | {"traceback", "uuid"}
)
TEST_PACKAGES = frozenset(
    {"argparse", "calendar", "csv", "difflib", "fractions", "heapq", "json", "queue", "random", "shlex", "sqlite3"}
    | {"textwrap", "zipfile"}
)

# Test suites, installed packages, and packages that are tables or generated.
_LEFT_OUT = {"__phello__", "encodings", "idle_test", "lib2to3", "pydoc_data", "test", "tests"}
_LEFT_OUT |= {"dist-packages", "site-packages"}
_LEFT_OUT_FILES = {"html/entities.py", "re/_casefix.py", "stringprep.py"}


def python_corpus(max_train_bytes: int | None = None) -> DatasetDict:
    """Source code of the running Python's standard library, split by package.

    Splits share no package, so validation and test measure on unseen packages.

    Args:
        max_train_bytes: Maximum size of the training split, filled in a fixed order of packages; None: unlimited.

    Returns:
        Splits "train", "validation" and "test" with one row per file, sorted by path: `text`, `source` (path in the
        library) and `package` (top-level package or module).
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    rows = [_read(path, root) for path in sorted(root.rglob("*.py")) if _wanted(path.relative_to(root))]
    splits: dict[str, list[dict[str, str]]] = {"train": [], "validation": [], "test": []}
    for row in rows:
        if row["text"]:
            splits[_split_of(row["package"])].append(row)
    if not all(splits.values()):
        raise FileNotFoundError(
            f"{str(root)!r} does not hold the sources of Python's standard library (this Python may keep them in a "
            "zip file): run another Python, or name a data set"
        )
    if max_train_bytes is not None:
        splits["train"] = _at_most(splits["train"], max_train_bytes)
    return DatasetDict({split: Dataset.from_list(part) for split, part in splits.items()})


def _wanted(place: Path) -> bool:
    return (
        not _LEFT_OUT.intersection(place.parts)
        and place.as_posix() not in _LEFT_OUT_FILES
        and not place.parts[0].startswith(("config-", "_sysconfigdata"))
    )


def _read(path: Path, root: Path) -> dict[str, str]:
    place = path.relative_to(root)
    with tokenize.open(path) as file:  # honours the declared encoding
        return {"text": file.read(), "source": place.as_posix(), "package": place.parts[0].removesuffix(".py")}


def _split_of(package: str) -> str:
    if package in TEST_PACKAGES:
        return "test"
    return "validation" if package in VALIDATION_PACKAGES else "train"


def _at_most(rows: list[dict[str, str]], max_bytes: int) -> list[dict[str, str]]:
    """Rows that fit in `max_bytes`, in an order of packages that depends only on their names."""
    kept = set()
    for row in sorted(rows, key=lambda row: (hashlib.sha256(row["package"].encode()).digest(), row["source"])):
        max_bytes -= len(row["text"].encode())
        if max_bytes < 0:
            break
        kept.add(row["source"])
    if not kept:
        raise ValueError("max_train_bytes is smaller than the first file of the training split: give at least 100,000")
    return [row for row in rows if row["source"] in kept]
