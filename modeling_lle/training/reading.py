"""Reading part of a text that is larger than what can be trained on."""

import random
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset

from ..data import load_texts
from ..data.gather import TEXT, Files, Survey, Taken, survey


def training_files(found: Survey) -> list[Taken]:
    """Files of the train split, or all files without splits."""
    if not found.splits:
        return found.taken
    inside = set(found.splits.get("train", []))
    return [file for file in found.taken if file.path in inside]


def read_some(source: Files, text_column: str, most: int, seed: int) -> Dataset:
    """Documents of the train split, or of all files, with about `most` bytes; large files are not read to their end.

    Args:
        source: Local files, folders or globs, as in `survey`.
        text_column: Column of the text in tables.
        most: Bytes.
        seed: Of the order of the files.

    Returns:
        A row for each file of plain text and for each row of a table, in the order that was drawn, with the columns
        `text_column` and `file`.
    """
    files = training_files(survey(source, text_column))
    random.Random(seed).shuffle(files)
    texts: list[str] = []
    names: list[str] = []
    left = most
    for file in files:
        for text in _documents(file, text_column, left):
            if left <= 0:
                break
            texts.append(text)
            names.append(file.name)
            left -= len(text.encode())
    return Dataset.from_dict({text_column: texts, "file": names})


def _documents(file: Taken, text_column: str, most: int) -> Iterator[str]:
    if most <= 0:
        return
    if file.kind != TEXT:
        for row in load_texts(file.path, text_column=text_column, streaming=True):
            if row[text_column]:
                yield row[text_column]
        return
    yield _head(file.path, most)


def _head(path: Path, most: int) -> str:
    """The first lines of a text file, about so many bytes."""
    with path.open("rb") as lines:
        content = lines.read(most)
        content += lines.readline() if len(content) == most else b""
    return content.decode("utf-8-sig", errors="ignore").replace("\r\n", "\n")
