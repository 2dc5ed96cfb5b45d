"""Selects the checkpoint to resume from: the newest complete one.

Notable: the Trainer writes a checkpoint in place, file by file: weights and tokenizer, optimizer.pt, scheduler.pt,
states of random generators and stream, and last trainer_state.json; then it removes older ones. A killed process
leaves a checkpoint with missing files, or a truncated last file.
"""

import json
import logging
import re
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import Trainer
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..bank.files import Folder
from ..bank.manifest import HISTORY_FOLDER
from .trainer import LLETrainer

logger = logging.getLogger(__name__)

METRICS = "metrics.json"  # written last by a run
_STATE = "trainer_state.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def find_checkpoint(trainer: Trainer, resume: bool) -> str | None:
    """Folder of the checkpoint to resume from; None: start from scratch.

    Args:
        trainer: Trainer before training.
        resume: Whether to resume. Incomplete checkpoints are skipped with a warning.

    Raises:
        FileExistsError: A new run would overwrite checkpoints of an unfinished one.
    """
    folder = Path(str(trainer.args.output_dir))
    found = _checkpoints(folder)
    if not resume:
        if found and trainer.is_world_process_zero():
            _give_up(folder, found)
        return None
    for path in found:
        fault = _fault(path, trainer)
        if fault is None:
            return str(path)
        logger.warning("%s is skipped: %s, as after an interruption while it was written", path, fault)
    if found:
        logger.warning("no complete checkpoint in %s: training starts from scratch", folder)
    return None


def newest_checkpoint(folder: str | Path) -> Path | None:
    """Newest checkpoint that was written to its end, from which an unfinished run can be resumed; None: none."""
    found = _checkpoints(Path(folder))
    return next((path for path in found if (path / _STATE).is_file()), None)


def remove_checkpoints(folder: str | Path) -> None:
    """Removes all checkpoints of a folder."""
    for path in _checkpoints(Path(folder)):
        shutil.rmtree(path)


def holds_run(folder: str | Path) -> bool:
    """Whether a folder holds a trained model, or checkpoints of a run."""
    folder = Path(folder)
    return any((folder / name).is_file() for name in (METRICS, SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)) or bool(
        _checkpoints(folder)
    )


def remove_run(folder: str | Path) -> None:
    """Removes checkpoints, metrics and bank of an earlier run; its other files are replaced by the next one."""
    folder = Path(folder)
    remove_checkpoints(folder)
    (folder / METRICS).unlink(missing_ok=True)
    Folder(folder / HISTORY_FOLDER).remove()


def _checkpoints(folder: Path) -> list[Path]:
    """Folders of all checkpoints, newest first."""
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    steps = sorted((int(match[1]) for match in map(_NAME.fullmatch, names) if match), reverse=True)
    return [folder / f"checkpoint-{step}" for step in steps]


def _give_up(folder: Path, found: list[Path]) -> None:
    """Makes checkpoints of a finished run unusable for resuming; their weights stay.

    Else a killed new run could resume from them, or from a checkpoint that mixes both runs.
    """
    resumable = [path for path in found if (path / _STATE).exists()]
    if resumable and not (folder / METRICS).exists():
        raise FileExistsError(
            f"{folder} holds checkpoints of an unfinished run, the newest {resumable[0].name}: resume it with "
            "--resume, remove them, or choose another training.output_dir"
        )
    for path in resumable:
        (path / _STATE).unlink()
    (folder / METRICS).unlink(missing_ok=True)


def _fault(path: Path, trainer: Trainer) -> str | None:
    """Reason why training cannot resume exactly from a checkpoint; None: it can."""
    needed = [_STATE, *_weights(path)]
    if not (trainer.args.save_only_model or trainer.args.fsdp or trainer.args.deepspeed):
        needed += ["optimizer.pt", "scheduler.pt", *_process_files(path, trainer)]
    optional = [name for name in ("scaler.pt", "train_minutes.json") if (path / name).exists()]
    for name in needed + optional:
        try:
            _check_readable(path / name)
        except FileNotFoundError:
            return f"{name} is missing"
        except (OSError, ValueError, RecursionError, SafetensorError, zipfile.BadZipFile) as error:
            return f"{name} cannot be read ({error})"
    return None


def _weights(path: Path) -> list[str]:
    """Names of the weight files."""
    index = path / SAFE_WEIGHTS_INDEX_NAME
    if not index.is_file():
        return [SAFE_WEIGHTS_NAME]
    try:
        return [SAFE_WEIGHTS_INDEX_NAME, *sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))]
    except (ValueError, TypeError, LookupError, AttributeError):
        return [SAFE_WEIGHTS_INDEX_NAME]  # its fault is found when it is read


def _process_files(path: Path, trainer: Trainer) -> list[str]:
    """Names of the files that each process writes; the number of processes may have changed."""
    count = trainer.args.world_size
    one = (path / "rng_state.pth").exists() or (count == 1 and not (path / "rng_state_0.pth").exists())
    processes = range(1 if one else count)
    names = ["rng_state.pth"] if one else [f"rng_state_{process}.pth" for process in processes]
    streams = [f"stream_state_{process}.safetensors" for process in processes]
    return names + (streams if isinstance(trainer, LLETrainer) else [])


def _check_readable(path: Path) -> None:
    """Raises an error if a file is truncated, as far as its format tells."""
    if path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".safetensors":
        with safe_open(path, framework="pt"):
            pass
    else:  # written by torch.save
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        if damaged:
            raise ValueError(f"{damaged} in it is damaged")
