"""Validation loss against minutes of training: language models that are trained in turn, in slices of their own clock.

    rate(s) = peak * min(s / w, (1 + cos(pi * (s - w) / (1 - w))) / 2)    s: share of the minutes gone, w: warm-up

Notable: a clock counts the processor's time of this process, so that other programs do not count, and everybody takes
a slice after everybody else's, so that a slowing machine affects all alike. Peak rates are searched for on another
part of the validation text than the one that losses are measured on. A run is resumed from its folder: each model has
a checkpoint there, written after every slice. Steps have 1,024 tokens for all: models that carry their state read 32
continued rows in segments of 32 tokens, the others 4 windows of 256. Shapes: B batch, T time.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from modeling_lle import LLECache
from modeling_lle.common.precision import resolve_precision
from modeling_lle.common.temporary import replacing
from modeling_lle.data import StreamDataset
from modeling_lle.training.language import calibrate
from modeling_lle.training.steps import begin_at_frequencies

from .peers.language_models import LENGTH, LLE, PLAIN, WINDOW, Subject, make_model

TOKENS = 1024  # of a step
CARRIED, WINDOWS = (TOKENS // 32, 32), (TOKENS // LENGTH, LENGTH)  # rows and length
WARM_UP = 0.05
RATES = (1e-3, 2e-3, 4e-3)  # searched for all; neighbours of the best one are tried too, if it is at an end
CHECKS = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # shares of the minutes after which the loss is measured
ROWS = 8  # of the validation text, for models that carry their state
CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Texts:
    """Token ids, one-dimensional: to train on, to search rates on, and to measure losses on."""

    train: np.ndarray
    search: np.ndarray
    validation: np.ndarray


@dataclass(frozen=True)
class Plan:
    """Sizes of the models and times of their trainings.

    Attributes:
        vocabulary: V.
        width: Of LLE.
        minutes: Of each training; those of the search take a tenth.
        slice: Seconds after which it is the next model's turn.
        seed: Of the weights.
        device: Where the models are trained; on an accelerator in bfloat16, if it has it, and by wall clock.
        scale: Factor of the rows of a step, for an accelerator.
    """

    vocabulary: int
    width: int
    minutes: float
    slice: float
    seed: int = 0
    device: str = "cpu"
    scale: int = 1


@dataclass
class Progress:
    """How far a training is.

    Attributes:
        seconds: Of the clock.
        steps: Taken so far.
        losses: Minutes and validation nats per token, at every check.
    """

    seconds: float = 0.0
    steps: int = 0
    losses: list[tuple[float, float]] = field(default_factory=list)


def rate_at(share: float) -> float:
    """Learning rate at a share of the minutes, as a share of its peak."""
    if share < WARM_UP:
        return share / WARM_UP
    return (1 + math.cos(math.pi * (min(share, 1.0) - WARM_UP) / (1 - WARM_UP))) / 2


def segments(subject: Subject, tokens: np.ndarray, first: int, scale: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields inputs and targets (B, T) of training steps from step `first` on, without end; `scale` as in `Plan`."""
    rows, length = CARRIED if subject.carries else WINDOWS
    rows *= scale
    stream = StreamDataset(tokens, rows, length)
    for step in range(first, 1 << 40):
        epoch, place = divmod(step, stream.segments)
        stream.set_epoch(epoch)
        if subject.carries:
            chosen = [place * rows + row for row in range(rows)]
        else:  # windows in random order
            order = np.random.default_rng(epoch).permutation(len(stream))
            chosen = order[place * rows : (place + 1) * rows].tolist()
        items = [stream[index] for index in chosen]
        yield torch.stack([i["input_ids"] for i in items]), torch.stack([i["shift_labels"] for i in items])


def mean_nats(subject: Subject, tokens: np.ndarray) -> float:
    """Nats per token of a text, read in evaluation mode.

    A model that carries its state reads the text in 8 rows; the others read windows of 256 that overlap by half, so
    that every token but those of the first window has 128 tokens or more before it.
    """
    subject.model.eval()
    subject.begin()
    total, measured = 0.0, 0
    if subject.carries:
        stream = StreamDataset(tokens[: len(tokens) - (len(tokens) - 1) % ROWS], ROWS, LENGTH, evaluation=True)
        for place in range(stream.segments):
            items = [stream[place * ROWS + row] for row in range(ROWS)]
            nats = subject.nats(*(torch.stack([item[key] for item in items]) for key in ("input_ids", "shift_labels")))
            total, measured = total + float(nats.sum()), measured + nats.numel()
    else:
        half = LENGTH // 2
        windows = torch.from_numpy(tokens.astype(np.int64)).unfold(0, LENGTH + 1, half)
        for place in range(0, len(windows), ROWS):
            rows = windows[place : place + ROWS]
            nats = subject.nats(rows[:, :-1], rows[:, 1:])
            nats = nats[:, half:] if place else torch.cat([nats[0, :half], nats[:, half:].flatten()])
            total, measured = total + float(nats.sum()), measured + nats.numel()
    subject.begin()
    subject.model.train()
    return total / measured


def history_nats(model: Any, search: np.ndarray, tokens: np.ndarray) -> float:
    """Nats per token with a stream, whose parameters are fitted on the text of the search."""
    model.config.history.stream.window = WINDOW
    calibrate(model, search, len(search) - 1)
    model.eval()
    ids, cache, total = torch.from_numpy(tokens.astype(np.int64))[None], LLECache(WINDOW), 0.0
    with torch.no_grad():
        for place in range(0, ids.shape[1] - 1, LENGTH):
            part = ids[:, place : place + LENGTH + 1]
            total -= float(model.score(part[:, :-1], part[:, 1:], past_key_values=cache).log_probs.sum())
    return total / (ids.shape[1] - 1)


class Training:
    """One model's training, slice by slice.

    Args:
        name: Of the model.
        texts: Token ids.
        plan: Sizes and times.
        rate: Peak learning rate.
        folder: Of the checkpoint, which is read if it is there; None: none is kept, and no loss measured on the way.
    """

    def __init__(self, name: str, texts: Texts, plan: Plan, rate: float, folder: Path | None = None) -> None:
        model = make_model(name, plan.vocabulary, plan.width, seed=plan.seed).train()
        self.subject, self.device = Subject(name, model.to(plan.device)), torch.device(plan.device)
        on_cpu = self.device.type == "cpu"
        self.clock: Callable[[], float] = time.process_time if on_cpu else self._synchronised
        self.precision = torch.float32 if on_cpu else resolve_precision("auto", self.device)
        self.texts, self.rate, self.minutes, self.folder = texts, rate, plan.minutes, folder
        if name in (LLE, PLAIN):
            head = self.subject.model.lm_head if name == LLE else self.subject.model.output
            begin_at_frequencies(head.bias, texts.train)
        named = list(self.subject.model.named_parameters())
        groups = [
            {"params": [weight for _, weight in named if weight.ndim >= 2], "weight_decay": 0.05},
            {"params": [weight for _, weight in named if weight.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), fused=True)
        self.progress = Progress()
        if folder is not None and (folder / CHECKPOINT).is_file():
            self._load(folder)
        self.batches = segments(self.subject, texts.train, self.progress.steps, plan.scale)

    @property
    def share(self) -> float:
        """Share of the minutes gone."""
        return self.progress.seconds / (60 * self.minutes)

    @property
    def done(self) -> bool:
        """Whether the minutes are over."""
        return self.share >= 1

    def slice(self, seconds: float) -> None:
        """Trains for a slice, or until the minutes are over; measures the loss where it is due; keeps a checkpoint."""
        end = min(self.progress.seconds + seconds, 60 * self.minutes)
        while self.progress.seconds < end:
            begin = self.clock()
            self._step()
            self.progress.seconds += self.clock() - begin
            due = [check for check in CHECKS if self.share >= check]
            if self.folder is not None and len(due) > len(self.progress.losses):
                nats = mean_nats(self.subject, self.texts.validation)
                self.progress.losses.append((self.progress.seconds / 60, nats))
        if self.folder is not None:
            self._save(self.folder)

    def _step(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * rate_at(self.share)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            loss = self.subject.loss(*next(self.batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.subject.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.steps += 1

    def _synchronised(self) -> float:
        torch.accelerator.synchronize(self.device)
        return time.perf_counter()

    def _tensors(self) -> dict[str, Tensor]:
        """Weights, and the optimizer's tensors of each."""
        tensors = {}
        for name, weight in self.subject.model.named_parameters():
            tensors[f"weight.{name}"] = weight.detach()
            tensors |= {f"{key}.{name}": value for key, value in self.optimizer.state[weight].items()}
        return tensors

    def _save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        state = {"rate": self.rate, "minutes": self.minutes, **asdict(self.progress)}
        with replacing(folder / CHECKPOINT) as partial:
            save_file(self._tensors(), partial, metadata={"progress": json.dumps(state)})

    def _load(self, folder: Path) -> None:
        tensors = load_file(folder / CHECKPOINT)
        with safe_open(folder / CHECKPOINT, "pt") as file:
            saved = json.loads(file.metadata()["progress"])
        if saved.pop("minutes") != self.minutes or saved.pop("rate") != self.rate:
            raise ValueError(f"{folder} holds a training with another rate or time: remove it, or give another folder")
        self.progress = Progress(**saved)
        with torch.no_grad():
            for name, weight in self.subject.model.named_parameters():
                weight.copy_(tensors[f"weight.{name}"])
                self.optimizer.state[weight] = {
                    key: tensors[f"{key}.{name}"].to(self.device) for key in ("step", "exp_avg", "exp_avg_sq")
                }


def in_turn(trainings: list[Training], seconds: float, say: Callable[[str], None]) -> None:
    """Trains all to the end, a slice each in turn."""
    while unfinished := [training for training in trainings if not training.done]:
        for training in unfinished:
            training.slice(seconds)
        spent = max(training.share for training in unfinished)
        say(f"{100 * spent:.0f} % of the minutes: " + ", ".join(map(_describe, trainings)))


def _describe(training: Training) -> str:
    progress = training.progress
    return f"{training.subject.name} {progress.steps} steps" + (
        f" {progress.losses[-1][1]:.4f} nats" if progress.losses else ""
    )


def search_rates(
    names: list[str], texts: Texts, plan: Plan, folder: Path, say: Callable[[str], None]
) -> dict[str, float]:
    """Best peak rate of each model, by short trainings; what was measured is kept in rates.json of the folder."""
    short = replace(plan, minutes=plan.minutes / 10)
    file = folder / "rates.json"
    found: dict[str, dict[str, float]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    while open_rates := {name: rate for name in names if (rate := _next_rate(found.get(name, {}))) is not None}:
        trainings = [Training(name, texts, short, rate) for name, rate in open_rates.items()]
        in_turn(trainings, plan.slice, say)
        for training in trainings:
            nats = mean_nats(training.subject, texts.search)
            name = training.subject.name
            found.setdefault(name, {})[f"{training.rate:g}"] = nats if math.isfinite(nats) else 1e9
            say(f"{name}, rate {training.rate:g}: {nats:.4f} nats after {short.minutes:g} minutes")
        with replacing(file) as partial:
            partial.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return {name: _best(found[name]) for name in names}


def _best(found: dict[str, float]) -> float:
    return float(min(found, key=lambda rate: found[rate]))


def _next_rate(found: dict[str, float]) -> float | None:
    """A rate that is still to be tried; None if the best one has a worse neighbour on each side."""
    for rate in RATES:
        if f"{rate:g}" not in found:
            return rate
    rates, best = sorted(map(float, found)), _best(found)
    if best == rates[0]:
        return best / 2
    return 2 * best if best == rates[-1] else None
