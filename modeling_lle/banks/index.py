"""The search index of a large bank: principal components, coarse cells and short codes (FAISS), all from its size.

Notable: it only proposes candidates, which the bank scores again in full precision; it is a cache in the bank's folder
`index`, made again when it is absent or damaged, and extended by exact search when entries were added. FAISS parses
only what this user has made on this machine: the name of the file holds a code of its bytes that needs a secret.
Shapes: Q queries, N entries, D width, R candidates.
"""

import dataclasses
import hashlib
import json
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..bank_files_lle import seal

try:
    import faiss
except ImportError as error:
    raise ImportError("a search index needs FAISS: `pip install modeling_lle[faiss]`") from error

logger = logging.getLogger(__name__)

FOLDER = "index"
COMPONENTS = 128
SAMPLE_PER_CELL = 64  # keys that the cells are learned from
CHUNK = 65_536  # keys that are converted at once
MAX_ADDED = 0.2  # share of entries that may have been added since; beyond it the index is made again
LEAST_USABLE = 0.05  # where less of a bank may be found, it is time to compact it


@dataclasses.dataclass(frozen=True)
class Setting:
    """How thoroughly to search: the share of the cells that are read, and the candidates for each neighbour."""

    cells: float
    candidates: float


SETTINGS = {"balanced": Setting(1 / 64, 3), "fast": Setting(1 / 256, 1.5)}


class Index:
    """Proposes candidates for the first `entries` entries of a view.

    Args:
        index: The FAISS index.
        setting: How thoroughly to search.

    Attributes:
        entries: How many entries it knows.
    """

    def __init__(self, index: Any, setting: Setting) -> None:
        self.index, self.setting, self.entries = index, setting, index.ntotal
        self.cells = faiss.extract_index_ivf(index)

    def candidates(self, queries: Tensor, neighbours: int, usable: float = 1.0) -> Tensor:
        """Candidates of the queries (Q, D) float32, as (Q, R) int64; -1 for none.

        The smaller the share `usable` of the entries that may be found, the more are read and proposed.
        """
        wider = 1 / max(usable, LEAST_USABLE)
        wanted = min(self.entries, math.ceil(neighbours * self.setting.candidates * wider))
        self.cells.nprobe = min(self.cells.nlist, math.ceil(self.cells.nlist * self.setting.cells * wider))
        _, found = self.index.search(queries.contiguous().numpy(), wanted)
        return torch.from_numpy(found)


def index_of(folder: Path, names: list[str], keys: Callable[[Tensor], Tensor], sizes: list[int], how: str) -> Index:
    """The index of a bank's segments, from its folder or made now.

    Args:
        folder: The bank's folder.
        names: Names of the segments, in their order.
        keys: A function that returns the keys of the entries (n,) int64, as (n, D) bfloat16.
        sizes: How many entries each segment has.
        how: "balanced" or "fast".

    Returns:
        An index of the first segments, or of all of them.
    """
    index = load(folder / FOLDER, names, sizes)
    if index is None:
        index = _make(keys, sum(sizes))
        _save(index, folder / FOLDER, names)
    return Index(index, SETTINGS[how])


def cells_for(entries: int) -> int:
    """The number of cells for so many entries: a power of two near their square root."""
    return 1 << max(4, round(math.log2(math.sqrt(entries))))


def _make(keys: Callable[[Tensor], Tensor], entries: int) -> Any:
    logger.info("making a search index of %d entries", entries)
    cells = cells_for(entries)
    sample = min(entries, SAMPLE_PER_CELL * cells)
    stride = entries / sample
    chosen = (torch.arange(sample) * stride).long()
    learned = torch.cat([keys(part) for part in chosen.split(CHUNK)]).float().numpy()
    components = min(COMPONENTS, learned.shape[1]) // 2 * 2
    index = faiss.index_factory(learned.shape[1], f"PCAR{components},IVF{cells},PQ{components // 2}x4fs")
    index.train(learned)
    for start in range(0, entries, CHUNK):
        index.add(keys(torch.arange(start, min(start + CHUNK, entries))).float().numpy())
    return index


def _key(names: list[str]) -> str:
    """What the name of the index of these segments begins with; after it comes its seal."""
    return hashlib.sha256(json.dumps([faiss.__version__, names]).encode()).hexdigest()[:16]


def load(folder: Path, names: list[str], sizes: list[int]) -> Any:
    """The index in the folder of the most of the first segments, if it knows most of the entries; None otherwise."""
    count = len(names)
    while count and sum(sizes[:count]) >= (1 - MAX_ADDED) * sum(sizes):
        for path in folder.glob(f"{_key(names[:count])}-*.faiss"):
            try:
                if seal(path) == path.stem.partition("-")[2]:
                    return faiss.read_index(str(path))
            except (OSError, RuntimeError):
                pass
            logger.warning("%s is damaged, or was not made here: the search index is made again", path)
        count -= 1
    return None


def _save(index: Any, folder: Path, names: list[str]) -> None:
    """Writes an index for the next time, in place of those of fewer segments; that it cannot is no error."""
    try:
        folder.mkdir(exist_ok=True)
        replaced = {_key(names[:count]) for count in range(len(names) + 1)}
        partial = folder / f".partial-{os.getpid()}"
        faiss.write_index(index, str(partial))
        path = folder / f"{_key(names)}-{seal(partial)}.faiss"
        os.replace(partial, path)
        for other in folder.iterdir():
            if other != path and (other.name.startswith(".partial-") or other.name.partition("-")[0] in replaced):
                other.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        logger.warning("the search index is not kept: %s", error)
