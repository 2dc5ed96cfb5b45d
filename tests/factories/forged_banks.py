"""Banks as a stranger may make them: every checksum is right, and something else is not."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from modeling_lle.bank.files import MANIFEST, sha256


def seal(values: dict[str, Any]) -> bytes:
    """A manifest of these values, its own checksum among them."""
    values = {name: value for name, value in values.items() if name != "sha256"}

    def written(values: dict[str, Any]) -> bytes:
        return (json.dumps(values, indent=1, sort_keys=True) + "\n").encode()

    return written({**values, "sha256": hashlib.sha256(written(values)).hexdigest()})


def forge_manifest(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the values of a bank's manifest."""
    values = json.loads((path / MANIFEST).read_text())
    change(values)
    (path / MANIFEST).write_bytes(seal(values))


def forge_tensors(path: Path, change: Callable[[dict[str, Tensor]], None], kind: str = "segment") -> Path:
    """Changes the tensors of the first segment of a bank, of its forgotten ids, or of its projection; the file."""
    values = json.loads((path / MANIFEST).read_text())
    known = {"segment": values["segments"][0], "projection": values.get("projection")}
    described = values["forgotten"] if kind == "forgotten" else known[kind]["file"]
    file = path / described["name"]
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    described.update(bytes=file.stat().st_size, sha256=sha256(file))
    (path / MANIFEST).write_bytes(seal(values))
    return file
