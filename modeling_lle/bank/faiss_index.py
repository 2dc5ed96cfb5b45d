"""The search index of a large bank: principal components, coarse cells and short codes (FAISS), set by its size.

Notable: it only proposes candidates, which the bank scores again in full precision. It is a cache (index_files.py):
made again when it is missing or damaged, and complemented by exact search when entries were added. FAISS parses only
files that this user made on this machine, which their seal proves (seal.py).
Shapes: Q queries, N entries, D width, C candidates.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .files import Folder, SegmentInfo
from .index_files import find_indexes, save_index

try:
    import faiss
except ImportError as error:
    raise ImportError("a search index needs FAISS: `pip install modeling_lle[faiss]`") from error

logger = logging.getLogger(__name__)

MAKER = f"faiss {faiss.__version__}"
COMPONENTS = 128
SAMPLE_PER_CELL = 64  # keys that the cells are learned from
CHUNK = 65_536  # keys that are converted at once
LEAST_USABLE = 0.05  # smallest share of usable entries that a wider search makes up for; below it, compact the bank


@dataclasses.dataclass(frozen=True)
class Setting:
    """Search effort: share of the cells to read, and candidates for each neighbour."""

    cells: float
    candidates: float


SETTINGS = {"balanced": Setting(1 / 64, 3), "fast": Setting(1 / 256, 1.5)}


class Index:
    """Proposes candidates among the entries that it covers.

    Args:
        index: The FAISS index.
        setting: Search effort.

    Attributes:
        entries: Number of entries that it covers.
    """

    def __init__(self, index: Any, setting: Setting) -> None:
        self.index, self.setting, self.entries = index, setting, index.ntotal
        self.cells = faiss.extract_index_ivf(index)

    def candidates(self, queries: Tensor, neighbours: int, usable: float = 1.0) -> Tensor:
        """Candidates of the queries (Q, D) float32, as (Q, C) int64; -1 for none.

        Args:
            queries: The queries.
            neighbours: Number of entries to find, K.
            usable: Share of the entries that may be found; the smaller it is, the more are read and proposed.
        """
        wider = 1 / max(usable, LEAST_USABLE)
        wanted = min(self.entries, math.ceil(neighbours * self.setting.candidates * wider))
        self.cells.nprobe = min(self.cells.nlist, math.ceil(self.cells.nlist * self.setting.cells * wider))
        _, found = self.index.search(queries.detach().contiguous().numpy(), wanted)
        return torch.from_numpy(found)


def index_of(
    folder: Folder,
    infos: Sequence[SegmentInfo],
    keys: Callable[[Tensor], Tensor],
    how: str,
    is_current: Callable[[], bool] = lambda: True,
) -> tuple[Index, dict[str, int]]:
    """The index of a bank's segments, from the disk or made now.

    Args:
        folder: The bank's files.
        infos: The segments, in the order of a view.
        keys: A function from indices of entries (n,) int64 to their keys (n, D) bfloat16.
        how: "balanced" or "fast".
        is_current: Says whether every entry of the segments is still on the disk; else the index is not kept there.

    Returns:
        The index, and the file names and sizes of the segments that it covers, in its order.
    """
    found = load(folder, infos)
    if found is None:
        made = _make(keys, sum(info.entries for info in infos))
        try:
            saved = save_index(folder, infos, MAKER, lambda path: faiss.write_index(made, path))
            if not is_current():  # asked last: a compaction after this call finds and removes the file itself
                saved.remove()
        except (OSError, RuntimeError) as error:
            logger.warning("the search index is not kept: %s", error)
        found = made, {info.file.name: info.entries for info in infos}
    return Index(found[0], SETTINGS[how]), found[1]


def cells_for(entries: int) -> int:
    """Number of cells: a power of two near the square root of the number of entries."""
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


def load(folder: Folder, infos: Sequence[SegmentInfo]) -> tuple[Any, dict[str, int]] | None:
    """The index on the disk that covers most of the segments' entries, and its segments; None if there is none."""
    for file in find_indexes(folder, infos, MAKER):
        try:
            if file.is_own:
                index = faiss.read_index(str(file.path))
                if index.ntotal == sum(file.known.values()):
                    return index, file.known
        except (OSError, RuntimeError):
            pass
        logger.warning("%s is damaged, or was not made here: the search index is made again", file.path)
    return None
