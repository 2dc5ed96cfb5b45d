"""Names of files, folders and repositories of the Hub, and what is said of a name that is none of them.

Notable: a name is looked up on the Hub only if it can be one, because offline the look-up takes half a minute.
"""

import difflib
import os
import re
from collections.abc import Collection
from pathlib import Path

# A name with one of these endings is that of a file. Other files exist, too; these only decide what a missing name is.
_TEXT = (".txt", ".md", ".rst", ".tex", ".log", ".html", ".htm", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg")
_CODE = (".py", ".ipynb", ".js", ".ts", ".c", ".h", ".cpp", ".java", ".go", ".rs", ".sh", ".sql")
_TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow", ".tmx", ".po", ".pot", ".mo")
_OTHERS = (".pdf", ".doc", ".docx", ".odt", ".xls", ".xlsx", ".gz", ".bz2", ".xz", ".zip", ".zst", ".tar")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".onnx")
FILE_ENDINGS = frozenset((*_TEXT, *_CODE, *_TABLES, *_OTHERS, *_WEIGHTS))
_ADDRESS = re.compile(r"(milvus|milvuss|milvus\+file):")
_REPOSITORY = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def is_address(place: str | Path) -> bool:
    """Whether the place of a bank is an address (bank/address.py), and not a folder or a repository of the Hub."""
    return _ADDRESS.match(str(place)) is not None


def looks_like_file(text: str, endings: Collection[str] = ()) -> bool:
    """Whether a text is one word that ends like the name of a file: with one of the `FILE_ENDINGS` or `endings`."""
    if len(text.split()) != 1 or "\0" in text:
        return False
    ending = Path(text.strip()).suffix
    return ending in endings or ending.lower() in FILE_ENDINGS


def names_file(text: str) -> bool:
    """Whether a text names a file or folder: one that exists, a usual name, or one that resembles a file beside it."""
    if os.path.exists(text):
        return True
    if len(text.split()) != 1 or "\0" in text:
        return False
    folder, name = os.path.split(text)
    if looks_like_file(text) or (folder and os.path.isdir(folder)):
        return True
    return bool(
        not folder and re.fullmatch(r"[\w-]+\.\w{1,5}", name) and difflib.get_close_matches(name, os.listdir(), 1, 0.8)
    )


def may_be_on_hub(text: str | Path, endings: Collection[str] = ()) -> bool:
    """Whether a name can be that of a model or data set on the Hub: "name" or "owner/name".

    A name that exists on this machine, whose first part is a local folder, or that ends like a file is local.

    Args:
        text: The name.
        endings: Endings of files beside `FILE_ENDINGS`.
    """
    name = str(text)
    if not _REPOSITORY.fullmatch(name) or looks_like_file(name, endings):
        return False
    return not Path(name).exists() and not ("/" in name and Path(name.partition("/")[0]).is_dir())


def not_found(path: str | Path) -> str:
    """Message for a path that does not exist: its first missing part, and near names beside it."""
    path = Path(path).expanduser()
    missing = path.absolute()
    while not missing.parent.exists():
        missing = missing.parent
    try:
        beside = [entry.name for entry in missing.parent.iterdir()]
    except OSError:
        beside = []
    near = difflib.get_close_matches(missing.name, beside, n=3)
    hint = f"; near names there: {', '.join(near)}" if near else ""
    return f"there is no {str(path)!r}: {str(missing.parent)!r} holds no {missing.name!r}{hint}"
