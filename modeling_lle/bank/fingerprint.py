"""Fingerprint of the weights that make the keys of a bank; rounding them to 16 bits does not change it.

Notable: a digest cannot tell rounding from training (float32 to bfloat16 differs from float32 to float16 to bfloat16).
So the fingerprint holds names and shapes, and for each tensor its root mean square and a few random projections, which
are compared up to rounding errors. Rounding to bfloat16 changes a weight by 2^-9 of its value at most, and a
normalised projection by about 2^-10; a training step changes it by 2^-7 and more. Keys are bfloat16 themselves.
"""

import base64
import binascii
import functools
import hashlib
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.precision import outside_autocast
from .protocol import Encoder

VERSION = "projections-1"
PROJECTIONS = 8  # of each tensor
BLOCK = 4096  # weights that share one row of signs
CHUNK = 1024  # blocks that are projected at once
STEP = 2.0**-12  # of the projections, which are stored as 16-bit integers
MOST, MEAN = 2.0**-7, 2.0**-8  # largest difference of projections: of each, and root mean square of all
UNDERFLOW = 2.0**-23  # several times the rounding error of the smallest float16 numbers
_RECORD = np.dtype([("size", "<f4"), ("projections", "<i2", (PROJECTIONS,))])
_DIGEST = re.compile(r"[0-9a-f]{64}")  # fingerprint of older banks: the SHA-256 of the weights in bfloat16


@torch.no_grad()
def fingerprint(model: Encoder) -> str:
    """Fingerprint of the weights that make the keys of `model`; compare it with `same_backbone`, not with `==`."""
    weights = model.key_weights()
    records = np.array([_record(weight) for _, weight in weights], dtype=_RECORD)
    return f"{VERSION}:{_names(weights)}:{base64.b64encode(records.tobytes()).decode()}"


def same_backbone(given: str, model: Encoder) -> bool:
    """Whether a fingerprint belongs to the backbone of `model`, whose weights may have another floating dtype.

    Fingerprints of older banks, which are digests, fit weights in float32 and in bfloat16.
    """
    if _DIGEST.fullmatch(given):
        return given == _digest(model)
    names, records = _parse(given)
    own_names, own = _parse(fingerprint(model))
    if records is None or own is None or names != own_names or len(records) != len(own):
        return False
    sizes, own_sizes = records["size"].astype(np.float64), own["size"].astype(np.float64)
    slack = UNDERFLOW / np.maximum(np.maximum(sizes, own_sizes), np.finfo(np.float32).tiny)
    alike = np.abs(sizes - own_sizes) <= (MEAN + slack) * np.maximum(sizes, own_sizes)
    differences = (records["projections"].astype(np.float64) - own["projections"]) * STEP
    mean = np.sqrt(np.square(differences / (1 + slack / MOST)[:, None]).mean()) if len(own) else 0.0
    return bool(alike.all() and (np.abs(differences) <= (MOST + slack)[:, None]).all() and mean <= MEAN)


def _names(weights: list[tuple[str, Tensor]]) -> str:
    lines = (f"{name} {tuple(weight.shape)}\n" for name, weight in weights)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:32]


@outside_autocast
def _record(weight: Tensor) -> tuple[float, np.ndarray]:
    """The root mean square of a tensor, and its projections divided by its norm, in units of `STEP`."""
    flat = weight.detach().flatten()
    total, squares = np.zeros(PROJECTIONS), 0.0
    signs = torch.from_numpy(_signs("columns", BLOCK))
    rows = _signs("rows", -(-len(flat) // BLOCK))
    for start in range(0, len(flat), BLOCK * CHUNK):
        part = flat[start : start + BLOCK * CHUNK].cpu().float()
        blocks = torch.nn.functional.pad(part, (0, -len(part) % BLOCK)).view(-1, BLOCK)
        squares += float(torch.linalg.vector_norm(blocks, dim=1).double().square().sum())
        first = start // BLOCK
        total += ((blocks @ signs).double().numpy() * rows[first : first + len(blocks)]).sum(0)
    norm = squares**0.5
    projections = np.nan_to_num(total / norm if norm else total) / STEP
    return (squares / max(1, len(flat))) ** 0.5, np.clip(np.rint(projections), -32767, 32767).astype(np.int16)


@functools.lru_cache(maxsize=8)
def _signs(name: str, count: int) -> np.ndarray:
    """Signs (count, PROJECTIONS) float32, 1 or -1, pseudo-random and the same on every machine."""
    data = hashlib.shake_256(f"modeling_lle {VERSION} {name}".encode()).digest(count * PROJECTIONS // 8)
    return np.unpackbits(np.frombuffer(data, dtype=np.uint8)).reshape(count, PROJECTIONS).astype(np.float32) * 2 - 1


def _parse(given: str) -> tuple[str, Any]:
    """Digest of the names, and the records; None in their place if the fingerprint is of another version."""
    version, _, rest = given.partition(":")
    names, _, text = rest.partition(":")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return names, None
    if version != VERSION or len(data) % _RECORD.itemsize:
        return names, None
    return names, np.frombuffer(data, dtype=_RECORD)


@torch.no_grad()
def _digest(model: Encoder) -> str:
    digest = hashlib.sha256()
    for name, weight in model.key_weights():
        digest.update(f"{name} {tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().cpu().bfloat16().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
