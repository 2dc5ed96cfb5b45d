"""A tiny training run for one process, or for the two that `torchrun` or a test starts.

Each process writes FOLDER/NAME_{processes}_{index}.pt, NAME "whole", "streamed" or "history": losses, tokens read,
weights and the learned numbers of the stream.
"""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from modeling_lle import LLEConfig, LLEForCausalLM
from modeling_lle.data import StreamDataset, StreamIterableDataset
from modeling_lle.training import LLETrainer, LLETrainingArguments, leave_group

VOCABULARY, SEGMENT = 13, 5
DROPOUTS = ("embedding_dropout", "input_dropout", "hidden_dropout", "output_dropout", "weight_dropout")


def make_model(dropout: float = 0.0, recurrence: str = "lstm", **training: Any) -> LLEForCausalLM:
    """A model with two layers of width 8, always the same; `training` is how it trains with history."""
    torch.manual_seed(1)
    options: dict[str, Any] = dict.fromkeys(DROPOUTS, dropout)
    history = {"stream": {"window": 20}, "training": training}
    return LLEForCausalLM(
        LLEConfig(vocab_size=VOCABULARY, hidden_size=8, recurrence=recurrence, history=history, **options)
    )


def make_tokens(count: int) -> np.ndarray:
    """Tokens (N,) that are always the same."""
    return np.random.default_rng(2).integers(0, VOCABULARY, count, dtype=np.int32)


def make_arguments(folder: Path, **options: Any) -> LLETrainingArguments:
    """Arguments that log every step, save nothing and show nothing."""
    return LLETrainingArguments(
        output_dir=str(folder),
        **{
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "segment_length": SEGMENT,
            "learning_rate": 0.02,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
            "precision": "float32",
            **options,
        },
    )


class RecordingTrainer(LLETrainer):
    """Notes the tokens of every batch that it trains on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[Tensor] = []

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.seen.append(inputs["input_ids"].clone())
        return super().compute_loss(model, inputs, *args, **kwargs)

    @property
    def losses(self) -> list[float]:
        return [entry["loss"] for entry in self.state.log_history if "loss" in entry]


def make_trainer(
    folder: Path, model: LLEForCausalLM | None = None, *, streamed: bool = False, tokens: int = 121, **options: Any
) -> RecordingTrainer:
    """A trainer on `tokens` tokens, with the arguments of `make_arguments`."""
    arguments = make_arguments(folder, **options)
    text = make_tokens(tokens)
    rows = arguments.train_batch_size * arguments.world_size
    return RecordingTrainer(
        model=make_model() if model is None else model,
        args=arguments,
        train_dataset=(
            StreamIterableDataset(np.array_split(text, 9), rows, SEGMENT)
            if streamed
            else StreamDataset(text, rows, SEGMENT, seed=3)
        ),
        eval_dataset=StreamDataset(
            make_tokens(64), arguments.eval_batch_size * arguments.world_size, SEGMENT, evaluation=True
        ),
    )


def train(folder: Path, rows: int) -> None:
    """Trains on the text in memory and on the streamed one, `rows` rows in each process, and writes what came out.

    The first of them with history, too, but for other rows: a process knows only its own.
    """
    for name in ("whole", "streamed", "history"):
        streamed = name == "streamed"
        trainer = make_trainer(
            folder,
            make_model(window=8, other_rows=False, warm_up=0.3) if name == "history" else None,
            streamed=streamed,
            per_device_train_batch_size=rows,
            per_device_eval_batch_size=rows,
            gradient_accumulation_steps=1 if streamed else 2,
            **({"max_steps": 5} if streamed else {"num_train_epochs": 2}),
        )
        trainer.train()
        outcome = {
            "losses": trainer.losses,
            "seen": torch.stack(trainer.seen),
            "eval_loss": trainer.evaluate()["eval_loss"],
            "weights": trainer.model.state_dict(),
        }
        torch.save(outcome, folder / f"{name}_{trainer.args.world_size}_{trainer.args.process_index}.pt")


def join_group(folder: Path, rank: int, port: int) -> None:
    """Trains as one of two processes, in a copy of a process that was none of a group."""
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    train(folder, rows=2)
    leave_group()


if __name__ == "__main__":
    train(Path(sys.argv[1]), rows=2)
    leave_group()
