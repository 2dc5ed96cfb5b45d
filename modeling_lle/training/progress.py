"""Progress of training on a terminal: one bar with the loss, the speed and, once known, the validation loss.

Notable: it takes the place of the lines that transformers prints; nothing is written where standard error is a file.
"""

import time
from collections.abc import Mapping
from typing import Any

from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback


class ProgressBar(TrainerCallback):
    """Draws the bar; silent with `disable_tqdm`, without a terminal, and in all processes but the first.

    Args:
        title: What the bar counts the steps of.
        per_step: Tokens or texts of an optimizer step, over all processes.
        unit: What they are, such as "tokens".
    """

    def __init__(self, title: str, per_step: int, unit: str) -> None:
        self.title, self.per_step, self.unit = title, per_step, unit
        self.bar: Any = None
        self.shown: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Opens the bar."""
        if state.is_world_process_zero:
            quiet = True if args.disable_tqdm else None  # None: unless standard error is a terminal
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc=self.title,
                unit="step",
                disable=quiet,
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps, {remaining} left{postfix}",
            )
        self.begin, self.first = time.perf_counter(), state.global_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Moves the bar."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Shows the losses."""
        if self.bar is None or logs is None:
            return
        for name, key in (("loss", "loss"), ("validation", "eval_loss")):
            if key in logs:
                self.shown[name] = f"{float(logs[key]):.3f}"
        steps = state.global_step - self.first
        if steps:
            speed = steps * self.per_step / (time.perf_counter() - self.begin)
            self.shown[f"{self.unit}/s"] = f"{speed:,.0f}"
        self.bar.set_postfix_str(", ".join(f"{name} {value}" for name, value in self.shown.items()))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Closes the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def show_progress(trainer: Trainer, title: str, per_item: int, unit: str) -> None:
    """Gives a trainer the bar instead of the output of transformers.

    Args:
        trainer: Trainer before training.
        title: What the bar counts the steps of.
        per_item: Units of an item of the training data.
        unit: What is counted, such as "tokens".
    """
    arguments = trainer.args
    items = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    for output in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(output)
    trainer.add_callback(ProgressBar(title, items * per_item, unit))
