"""Sessions as safetensors: what a client may take with it, and bring back.

Notable: what comes back is compared with a state that the model has just made: names, shapes, dtypes and values must
be such as the model could have written; a header of another model is refused. Nothing is unpickled.
"""

import json
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..history.cache import LLECache
from ..models.causal import LLEForCausalLM
from .errors import ServingError, invalid

KIND, VERSION = "lle-session", "1"
_GROWING = ("stream.keys", "stream.outcomes", "matches.tokens", "matches.usable")  # in their second dimension


def write_session(cache: LLECache, tokens: int, fingerprint: str) -> bytes:
    """A session as a file.

    Args:
        cache: Its cache, of one row.
        tokens: Tokens that were read or generated.
        fingerprint: Fingerprint of the model.
    """
    tensors = {name: tensor.contiguous() for name, tensor in cache.export().items()}
    about = {"kind": KIND, "version": VERSION, "fingerprint": fingerprint}
    return save(tensors, {**about, "tokens": str(tokens), "seen": str(cache.seen_tokens)})


def read_session(data: bytes, model: LLEForCausalLM, fingerprint: str) -> tuple[LLECache, int]:
    """The cache in a file, and the number of tokens of its text.

    Raises:
        ServingError: The file is damaged, of another model, or no such file.
    """
    try:
        tensors = load(data)
        about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__") or {}
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _wrong(f"it is no safetensors file ({type(error).__name__})") from None
    if about.get("kind") != KIND or about.get("version") != VERSION:
        raise _wrong("it was not exported by this server, or by another version")
    if about.get("fingerprint") != fingerprint:
        raise _wrong("it belongs to another model")
    tokens, seen = _count(about, "tokens"), _count(about, "seen")
    with torch.no_grad():
        made = model(torch.zeros(1, 2, dtype=torch.long), use_cache=True).past_key_values
    made.unread = torch.zeros(1, dtype=torch.long)
    expected = made.export()
    _compare(tensors, expected)
    _check_values(tensors, model.config.vocab_size, seen, made)
    made.restore(tensors)
    made.seen_tokens = seen
    return made, tokens


def _wrong(reason: str) -> ServingError:
    return invalid(f"the session cannot be imported: {reason}", "invalid_session")


def _count(about: dict[str, Any], name: str) -> int:
    value = str(about.get(name))
    if not value.isascii() or not value.isdigit() or not 0 < int(value[:19]) < 2**48 or len(value) > 15:
        raise _wrong(f"its number of {name} is {value[:20]!r}")
    return int(value)


def _compare(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raises a ServingError unless names, shapes and dtypes are those of the model's own state."""
    missing, more = expected.keys() - tensors.keys() - {"unread"}, tensors.keys() - expected.keys()
    if missing or more:
        raise _wrong(f"its tensors are not those of this model ({', '.join(sorted(missing | more))[:200]})")
    for name, tensor in tensors.items():
        due = list(expected[name].shape)
        shape = list(tensor.shape)
        if name in _GROWING and len(shape) == len(due):
            due[1] = shape[1]
        if shape != due or tensor.dtype != expected[name].dtype:
            raise _wrong(f"{name} is {tensor.dtype} {shape}, and {expected[name].dtype} {due} is needed")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise _wrong(f"{name} holds values that are not finite")


def _check_values(tensors: dict[str, Tensor], vocab_size: int, seen: int, cache: LLECache) -> None:
    """Raises a ServingError unless buffers have a possible size, and hold possible tokens and counts."""
    buffers = (
        ("stream", cache.stream, 0 if cache.stream is None else cache.stream.window, ("keys", "outcomes")),
        ("matches", cache.matches, 0 if cache.matches is None else cache.matches.room, ("tokens", "usable")),
    )
    for part, own, room, names in buffers:
        if own is None or f"{part}.count" not in tensors:
            continue
        count = int(tensors[f"{part}.count"][0])
        slots = {tensors[f"{part}.{name}"].shape[1] for name in names}
        if len(slots) != 1 or not 0 <= count <= seen or not min(count, room) <= min(slots) <= room:
            raise _wrong(f"its {part} holds {count} entries in {sorted(slots)} slots")
    for name, lowest in (
        *(("unread", 0), ("stream.outcomes", 0)),
        *(("matches.tokens", -1), ("matches.named", -1), ("last.tokens", -1)),
    ):
        values = tensors.get(name)
        if values is not None and values.numel() and not lowest <= int(values.min()) <= int(values.max()) < vocab_size:
            raise _wrong(f"{name} holds numbers that are no tokens")
