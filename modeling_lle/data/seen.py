"""Sketches of texts, to notice that a model is measured or calibrated on text that it was trained on or can recall.

Notable: a sketch holds hashes, no text. A long text is compared by its runs of 16 tokens, without blank tokens, so
that it is found whether it was read by line or by document; short texts are compared as wholes. Of many hashes the
smallest are kept, which are a random sample of the text that any other text can be compared with (Broder 1997, "On the
resemblance and containment of documents"). Shapes: T tokens, N hashes.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerBase

from ..common.temporary import replacing

RUN = 16  # tokens of a run
KEPT = 65_536  # hashes of a sketch, half a MiB
_PART = 1 << 20  # runs hashed at once
VERSION = "1"
_ODD = np.uint64(0x9E3779B97F4A7C15)


def blank_tokens(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Ids of special tokens and of tokens of white space only, which say nothing about a text, 1-D int64."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    blank = {token for token, text in enumerate(texts) if not text.strip()}
    return np.array(sorted(blank | set(tokenizer.all_special_ids)), dtype=np.int64)


def run_hashes(tokens: np.ndarray, blank: np.ndarray, kept: int | None = None) -> np.ndarray:
    """Hashes of all runs of `RUN` tokens that are not blank.

    Args:
        tokens: (T,) integers; -1 where a token is missing.
        blank: 1-D integers, the tokens to skip.
        kept: Return only this number of the smallest hashes; None: all.

    Returns:
        1-D uint64, each once, ascending; empty for a shorter text.
    """
    told = tokens[~np.isin(tokens, blank)].astype(np.int64).view(np.uint64)
    parts = [np.zeros(0, dtype=np.uint64)]
    for start in range(0, len(told) - RUN + 1, _PART):
        mixed = _mix(told[start : start + _PART + RUN - 1])
        hashes = np.zeros(len(mixed) - RUN + 1, dtype=np.uint64)
        for place in range(RUN):
            hashes *= _ODD
            hashes += mixed[place : place + len(hashes)]
        parts.append(_sorted(_mix(hashes), kept))
    return _sorted(np.concatenate(parts), kept)


def text_hashes(texts: Iterable[str]) -> np.ndarray:
    """Hashes of whole texts, 1-D uint64, each once, ascending; case and white space do not matter."""
    hashes = {
        int.from_bytes(hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=8).digest(), "little")
        for text in texts
    }
    return np.array(sorted(hashes), dtype=np.uint64)


def _sorted(hashes: np.ndarray, kept: int | None) -> np.ndarray:
    """The smallest hashes, ascending, each once; by sorting, as `np.unique` of NumPy 2.4 takes 50 times as long."""
    hashes = np.sort(hashes)
    first = np.ones(len(hashes), dtype=bool)
    first[1:] = hashes[1:] != hashes[:-1]
    return hashes[first][:kept]


def _mix(values: np.ndarray) -> np.ndarray:
    """Spreads uint64 values over the whole range, one to one (the finaliser of SplitMix64)."""
    values = values * _ODD
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@dataclass(frozen=True)
class Sketch:
    """The smallest hashes of a text.

    Attributes:
        hashes: (N,) uint64, ascending, each once.
        complete: Whether these are all hashes of the text.
    """

    hashes: np.ndarray
    complete: bool

    @classmethod
    def of(cls, hashes: np.ndarray, kept: int = KEPT) -> "Sketch":
        """Sketch of at most `kept` of these hashes, ascending, each once."""
        return cls(hashes[:kept], len(hashes) <= kept)

    def share(self, hashes: np.ndarray) -> float:
        """Share of another text that is in this one, estimated from its hashes, ascending, each once; 0 for none."""
        if not self.complete:
            hashes = hashes[: np.searchsorted(hashes, self.hashes[-1], side="right")]
        return float(np.isin(hashes, self.hashes).mean()) if len(hashes) else 0.0

    def save(self, path: Path) -> None:
        """Writes the sketch to a safetensors file, atomically."""
        with replacing(path) as partial:
            save_file(
                {"hashes": self.hashes.view(np.int64)},
                partial,
                {"version": VERSION, "complete": str(self.complete).lower()},
            )

    @classmethod
    def load(cls, path: Path) -> "Sketch":
        """Reads a sketch; raises a ValueError that names the file if it is none."""
        try:
            with safe_open(path, "numpy") as file:
                metadata, hashes = file.metadata() or {}, file.get_tensor("hashes")
        except SafetensorError as error:
            raise ValueError(f"{str(path)!r} is no sketch of a training text ({error}): remove it") from None
        if metadata.get("version") != VERSION or hashes.dtype != np.int64 or hashes.ndim != 1 or not len(hashes):
            raise ValueError(f"{str(path)!r} is no sketch of a training text of version {VERSION}: remove it")
        return cls(np.sort(hashes.view(np.uint64)), metadata.get("complete") == "true")
