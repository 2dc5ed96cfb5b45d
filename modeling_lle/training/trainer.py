"""LLETrainer: transformers' Trainer on continuous streams, with the recurrent state carried from step to step.

Notable: checkpoints include the state, so a resumed run continues exactly; each process carries the rows that
Accelerate's sharding assigns to it; evaluation counts every target once for any batch size. With `history.training` in
the configuration, the training loss is that of the mixture over the carried stream; evaluation is without history.
"""

import logging
import math
from collections.abc import Sized
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    default_data_collator,
)

from ..history.cache import LLECache
from ..history.training import HistoryLoss
from .arguments import LLETrainingArguments

logger = logging.getLogger(__name__)

_NUMBERS = "numbers"  # name of the rule's parameters in the file of the carried state


class _NewEpoch(TrainerCallback):
    """Resets the carried state when the stream restarts."""

    def __init__(self, trainer: "LLETrainer") -> None:
        self.trainer = trainer

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.carried.reset()


class LLETrainer(Trainer):
    """Trains an LLE language model on a `StreamDataset` or `StreamIterableDataset`.

    Arguments as for `transformers.Trainer`, without `compute_metrics` and label smoothing, since no logits are built.
    Rows of the data sets must equal `per_device_train_batch_size` (in evaluation `per_device_eval_batch_size`) times
    the number of processes.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: Any = default_data_collator,
        *more: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, args, data_collator, *more, **kwargs)
        if self.args.label_names is None:
            self.label_names = ["shift_labels"]  # in the streams, but not in the signature of forward
        if self.compute_metrics is not None or self.args.label_smoothing_factor:
            unused = "label_smoothing_factor" if self.compute_metrics is None else "compute_metrics"
            raise ValueError(
                f"LLETrainer reads streams and builds no logits, so {unused} would have no effect: leave it out, or "
                "use transformers.Trainer on texts"
            )
        if self.args.n_gpu > 1:
            raise ValueError(
                f"one process cannot carry the state on {self.args.n_gpu} GPUs: start one process per GPU with "
                f"`accelerate launch --num_processes {self.args.n_gpu}`, or choose one with CUDA_VISIBLE_DEVICES"
            )
        self.carried = LLECache(0 if self.history_loss is None else self.history_loss.config.training.window)
        if self.history_loss is not None and self.args.world_size > 1 and self.is_world_process_zero():
            logger.info(
                "training with history on %d processes: each recalls only its own rows",
                self.args.world_size,
            )
        self.add_callback(_NewEpoch(self))

    @property
    def history_loss(self) -> HistoryLoss | None:
        """Loss of training with history; None without."""
        return getattr(self.model, "history_loss", None)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        return SequentialSampler(cast(Sized, self.train_dataset if train_dataset is None else train_dataset))

    def get_train_dataloader(self) -> DataLoader:
        """Segments of the training stream in order; raises a ValueError on a wrong number of rows."""
        self._check_rows(self.train_dataset, self.args.train_batch_size)
        return super().get_train_dataloader()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As in transformers, with a separate group for the parameters of the rule."""
        given = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if self.history_loss is not None and not given:
            values = self.history_loss.values
            for group in optimizer.param_groups:
                group["params"] = [parameter for parameter in group["params"] if parameter is not values]
            rate = getattr(self.args, "history_learning_rate", LLETrainingArguments.history_learning_rate)
            optimizer.add_param_group({"params": [values], "weight_decay": 0.0, "lr": rate})
        return optimizer

    def _check_rows(self, dataset: Any, batch_size: int) -> None:
        rows = getattr(dataset, "rows", None)
        if rows is not None and rows != batch_size * self.args.world_size:
            raise ValueError(
                f"the stream has {rows} rows, but {self.args.world_size} processes read {batch_size} each: "
                f"make it with rows={batch_size * self.args.world_size}"
            )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Loss of a segment that continues the previous one; raises FloatingPointError if it is not finite."""
        inputs = {**inputs, "past_key_values": self.carried.detach(), "use_cache": True}
        if self.history_loss is not None:
            warm_up = self.history_loss.config.training.warm_up * self.state.max_steps
            inputs["use_history"] = self.state.global_step >= warm_up
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if not bool(torch.isfinite(loss.detach())):
            raise FloatingPointError(
                f"the loss of step {self.state.global_step} is {float(loss.detach())}: lower learning_rate "
                f"(now {self.args.learning_rate:g}) or max_grad_norm, or train with precision: float32"
            )
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Reads the evaluation stream once and returns `{prefix}_loss` (nats per token, no history) and perplexity."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        self._check_rows(dataset, self.args.eval_batch_size)
        model = cast(nn.Module, self.model)
        training = model.training
        model.eval()
        cache, totals = LLECache(), torch.zeros(2, dtype=torch.float64)
        for batch in self.get_eval_dataloader(cast(Dataset, dataset)):
            batch = self._prepare_inputs(batch)
            with self.compute_loss_context_manager():
                loss = model(
                    **batch,
                    past_key_values=cache,
                    use_cache=True,
                    use_history=False,
                    return_logits=False,
                    num_items_in_batch=1,
                ).loss
            totals += torch.tensor([float(loss), float((batch["shift_labels"] != -100).sum())], dtype=torch.float64)
        model.train(training)
        nats, count = self.accelerator.reduce(totals.float().to(self.args.device), "sum").tolist()
        mean = nats / max(count, 1.0)
        metrics = {f"{metric_key_prefix}_loss": mean, f"{metric_key_prefix}_perplexity": math.exp(min(mean, 700.0))}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Not supported: logits of a stream have size tokens times vocabulary."""
        raise ValueError("LLETrainer predicts nothing: use evaluate() for the loss, or model.score() for each token")

    def _state_file(self, folder: str | Path) -> Path:
        return Path(folder) / f"stream_state_{self.args.process_index}.safetensors"

    def _save_rng_state(self, output_dir: str) -> None:
        """Saves random generators, carried state and learned parameters of the rule, for exact resumption."""
        super()._save_rng_state(output_dir)
        tensors = self.carried.export()
        if self.history_loss is not None:
            tensors[_NUMBERS] = self.history_loss.values.detach()
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, self._state_file(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        tensors = self._load_numbers(checkpoint)
        if not float(self.state.epoch or 0).is_integer():  # else the stream restarts without a state
            self.carried.restore(tensors)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_numbers(str(self.state.best_model_checkpoint))

    def _load_numbers(self, checkpoint: str) -> dict[str, Tensor]:
        """Loads the parameters of the rule from a checkpoint; returns the other tensors of the carried state."""
        if not self._state_file(checkpoint).is_file():
            return {}
        tensors = load_file(self._state_file(checkpoint), device=str(self.args.device))
        numbers = tensors.pop(_NUMBERS, None)
        if self.history_loss is not None and numbers is not None:
            self.history_loss.values.data.copy_(numbers)
        return tensors
