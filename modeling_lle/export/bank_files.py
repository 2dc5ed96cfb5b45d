"""`write_bank`: the entries of a bank as files that the runner maps into memory.

Notable: keys stay as they are, bfloat16, so the runner finds the very similarities of the bank; what was forgotten is
not written. Shapes: N entries, D width, P sentence pairs.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..bank.found import Entries
from ..bank.protocol import Snapshot
from ..entries.pairs import Memory
from ..history.attachment import Attachment
from ..tasks import LANGUAGE, TRANSLATION, Task
from .errors import ExportError
from .index import PROBES, make_index

Arrays = dict[str, Any]  # NumPy arrays, and values for JSON


def write_bank(attachment: Attachment, task: Task, folder: Path) -> int:
    """Writes the entries of a bank into a folder: a file an array, and `bank.json`, which names them.

    Args:
        attachment: The bank, its namespaces and, for a translator, the tokenizer.
        task: The task of the model.
        folder: The folder, which is made.

    Returns:
        The number of entries.

    Raises:
        ExportError: There is no entry.
    """
    own = attachment.pinned()
    if task == TRANSLATION:
        keys, arrays = _pairs(own)
    else:
        batches = list(own.snapshot().entries(own.snapshot().held(own.namespaces)))
        keys = torch.cat([torch.zeros(0, own.bank.width, dtype=torch.bfloat16), *(batch.keys for batch in batches)])
        arrays = _tokens(keys, batches) if task == LANGUAGE else _examples(keys, own)
        arrays |= _projection(own.snapshot())
    if not len(keys):
        raise ExportError(f"the bank {own.bank.name} has no entry to export: add some, or leave it out")
    folder.mkdir()
    order = arrays.pop("order", None)
    _write_keys(keys, order, folder / "keys-1.npy")
    files = {"keys": "keys-1.npy"} | {name: _write(folder, name, value) for name, value in arrays.items()}
    about = {"generation": 1, "probes": PROBES, "files": files}
    (folder / "bank.json").write_text(json.dumps(about), encoding="utf-8")
    return len(keys)


def _projection(state: Snapshot) -> Arrays:
    """The projection of queries, and of the keys of examples that the runner is taught, if the keys are projected."""
    own = state.projection
    return {} if own is None else {"projection": own.axes.numpy()}


def _tokens(keys: Tensor, batches: list[Entries]) -> Arrays:
    """Outcomes and counts of tokens, with the index, in its order."""
    index, order = make_index(keys)
    columns = {
        "outcomes": torch.cat([batch.outcomes for batch in batches]).int().numpy(),
        "counts": torch.cat([batch.counts for batch in batches]).int().numpy(),
    }
    if order is not None:
        columns = {name: column[order] for name, column in columns.items()}
    return {**columns, **index, "order": order}


def _examples(keys: Tensor, attachment: Attachment) -> Arrays:
    """Text, name of the label and source of each entry; codes for a large bank, which is taught and not in lists."""
    state = attachment.snapshot()
    names = state.labels or ()
    examples = [
        (document.columns["text"], names[outcome], document.source)
        for document in state.documents(state.held(attachment.namespaces))
        for outcome in document.outcomes
    ]
    index, _ = make_index(keys, listed=False)
    return {"examples": examples, **index}


def _pairs(attachment: Attachment) -> tuple[Tensor, Arrays]:
    """Keys, and the pairs with their entries and the words by which they are found, and codes of many keys."""
    memory = Memory.of(attachment)
    words, starts, sentences, scores = memory.index.postings()
    index, _ = make_index(memory.keys, listed=False)
    return memory.keys, {
        **index,
        "outcomes": memory.outcomes.int().numpy(),
        "first": np.array(memory.first, np.int64),
        "pairs": [(pair["text"], pair["translation"], pair["where"]) for pair in memory.pairs],
        "words": words,
        **{"starts": starts, "sentences": sentences, "scores": scores},
    }


def _write_keys(keys: Tensor, order: NDArray[np.int64] | None, path: Path) -> None:
    """Writes keys (N, D) in an order as bfloat16, for which NumPy has no dtype: uint16."""
    file = np.lib.format.open_memmap(path, "w+", np.uint16, tuple(keys.shape))
    for start in range(0, len(keys), 1 << 16):
        part = slice(start, start + (1 << 16))
        block = keys[part] if order is None else keys[torch.from_numpy(order[part])]
        file[part] = block.contiguous().view(torch.int16).numpy().view(np.uint16)
    file.flush()


def _write(folder: Path, name: str, value: NDArray[np.generic] | list[Any]) -> str:
    """Writes an array, or a list as JSON; the name of the file."""
    if isinstance(value, np.ndarray):
        np.save(folder / f"{name}-1.npy", value)
        return f"{name}-1.npy"
    (folder / f"{name}-1.json").write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return f"{name}-1.json"
