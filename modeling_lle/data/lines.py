"""Files of plain text as a data set on the disk: each line, or the whole of each file, with its file and line.

Notable: text is converted to Arrow in parts of 10 MB, so that neither size nor number of files matters. The copy in
the cache is that of a path with a size and a time of change: a file that was changed is read again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value

from .gather import Taken

FEATURES = Features({"text": Value("string"), "file": Value("string"), "line": Value("int32")})
_PART = 10 * 2**20  # characters


@dataclass
class _LinesConfig(datasets.BuilderConfig):
    """Path, name, size and time of change of each file, and what a row is."""

    files: Sequence[tuple[str, str, int, int]] = ()
    whole: bool = False
    part: str = "train"


class Lines(datasets.ArrowBasedBuilder):
    """Builder of a data set with the columns text, file and line."""

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = _LinesConfig

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=FEATURES)

    def _split_generators(self, manager: Any) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(name=self.config.part, gen_kwargs={"files": list(self.config.files)})]

    def _generate_tables(self, files: Sequence[tuple[str, str, int, int]]) -> Iterator[tuple[Any, pa.Table]]:
        schema = FEATURES.arrow_schema
        for number, (path, name, _, _) in enumerate(files):
            line = 1
            for part, texts in enumerate(_read(path, self.config.whole)):
                lines = np.arange(line, line + len(texts), dtype=np.int32)
                columns = [pa.array(texts, pa.string()), pa.repeat(pa.scalar(name), len(texts)), pa.array(lines)]
                yield datasets.builder.Key(number, part), pa.Table.from_arrays(columns, schema=schema)
                line += len(texts)


def _read(path: str, whole: bool) -> Iterator[list[str]]:
    """Yields the texts of a file in parts."""
    with open(path, encoding="utf-8-sig") as file:
        if whole:
            yield [file.read()]
            return
        while part := file.read(_PART):
            part += file.readline()
            yield [line.removesuffix("\n") for line in StringIO(part).readlines()]


def load_lines(files: Sequence[Taken], whole: bool, split: str, cache_dir: str | Path | None) -> Dataset:
    """Loads text files.

    Args:
        files: The files.
        whole: Whether a row is a file; else it is a line.
        split: Name of the split that they are.
        cache_dir: Folder where `datasets` keeps a copy; None: its own cache.

    Returns:
        The columns `text`, `file` and `line`, counted from 1.

    Raises:
        DatasetGenerationError: A file is not UTF-8.
    """
    given = []
    for file in files:
        about = file.path.stat()
        given.append((str(file.path.absolute()), file.name, about.st_size, about.st_mtime_ns))
    builder = Lines(cache_dir=None if cache_dir is None else str(cache_dir), files=given, whole=whole, part=split)
    builder.download_and_prepare()
    loaded = builder.as_dataset(split=split)
    assert isinstance(loaded, Dataset)
    return loaded
