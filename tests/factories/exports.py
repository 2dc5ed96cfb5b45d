"""Exported folders: the run.py in them as a module."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from modeling_lle.bank.files import sha256


def load_run(folder: Path) -> Any:
    """The module run.py of an exported folder."""
    spec = importlib.util.spec_from_file_location(f"run_{folder.name}", folder / "run.py")
    assert spec is not None
    assert spec.loader is not None
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    return run


def seal_export(folder: Path, name: str) -> None:
    """Writes size and checksum of a changed file into export.json, as if it had been exported so."""
    values = json.loads((folder / "export.json").read_text())
    values["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
    (folder / "export.json").write_text(json.dumps(values))
