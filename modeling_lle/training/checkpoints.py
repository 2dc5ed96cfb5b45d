"""Which checkpoint a training goes on from: the newest one that is whole.

Notable: the Trainer writes a checkpoint in place, file by file: weights and tokenizer, optimizer.pt, scheduler.pt, the
states of the random generators and of the stream, and last trainer_state.json. Only then does it remove older ones. A
process that is killed leaves one that lacks files, or whose last file ends early.
"""

import json
import logging
import re
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import Trainer
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from .trainer import LLETrainer

logger = logging.getLogger(__name__)

METRICS = "metrics.json"  # a run writes it last
_STATE = "trainer_state.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def find_checkpoint(trainer: Trainer, resume: bool) -> str | None:
    """The folder of the checkpoint that a training goes on from; None: it begins anew.

    Args:
        trainer: The Trainer, not yet begun.
        resume: Whether to go on. Checkpoints that are not whole are passed over with a warning.

    Raises:
        FileExistsError: It is to begin anew where a run that is not finished has left checkpoints.
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
        logger.warning("%s is passed over: %s, as after an interruption while it was written", path, fault)
    if found:
        logger.warning("no checkpoint in %s is whole: the training begins anew", folder)
    return None


def _checkpoints(folder: Path) -> list[Path]:
    """The folders of all checkpoints, the newest first."""
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    steps = sorted((int(match[1]) for match in map(_NAME.fullmatch, names) if match), reverse=True)
    return [folder / f"checkpoint-{step}" for step in steps]


def _give_up(folder: Path, found: list[Path]) -> None:
    """Sees to it that no training will go on from what a finished run has left; its weights stay.

    Otherwise, one that is killed could go on from them, or from a mixture of both runs in one checkpoint.
    """
    resumable = [path for path in found if (path / _STATE).exists()]
    if resumable and not (folder / METRICS).exists():
        raise FileExistsError(
            f"{folder} holds checkpoints of a run that was not finished, the newest of them {resumable[0].name}: go "
            "on from it with --resume, remove them, or choose another training.output_dir"
        )
    for path in resumable:
        (path / _STATE).unlink()
    (folder / METRICS).unlink(missing_ok=True)


def _fault(path: Path, trainer: Trainer) -> str | None:
    """Why a training cannot go on from a checkpoint exactly; None: it can."""
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
    """Names of the files of the weights."""
    index = path / SAFE_WEIGHTS_INDEX_NAME
    if not index.is_file():
        return [SAFE_WEIGHTS_NAME]
    try:
        return [SAFE_WEIGHTS_INDEX_NAME, *sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))]
    except (ValueError, TypeError, LookupError, AttributeError):
        return [SAFE_WEIGHTS_INDEX_NAME]  # whose fault is found there


def _process_files(path: Path, trainer: Trainer) -> list[str]:
    """Names of the files that each process writes. The number of processes may be another one than before."""
    count = trainer.args.world_size
    one = (path / "rng_state.pth").exists() or (count == 1 and not (path / "rng_state_0.pth").exists())
    processes = range(1 if one else count)
    names = ["rng_state.pth"] if one else [f"rng_state_{process}.pth" for process in processes]
    streams = [f"stream_state_{process}.safetensors" for process in processes]
    return names + (streams if isinstance(trainer, LLETrainer) else [])


def _check_readable(path: Path) -> None:
    """Raises an error unless a file has all its bytes, as far as its format tells."""
    if path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".safetensors":
        with safe_open(path, framework="pt"):
            pass
    else:  # what torch.save writes
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        if damaged:
            raise ValueError(f"{damaged} in it is damaged")
