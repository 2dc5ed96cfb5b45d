"""A Transformer with equal size, data, tokenizer and training time: transformers' Marian, from scratch.

    rate(s) = peak * min(s / w, (1 + cos(pi * (s - w) / (1 - w))) / 2)    s: share of the minutes gone, w: warm-up

Notable: layers are those of Vaswani et al. 2017 (arXiv:1706.03762), with sizes of published recipes for small data
sets; the feed-forward width is chosen to match LLE's number of parameters. The learning rate follows the clock, not
the steps, so that its schedule ends with the minutes on any machine. Training is the fastest found: eager attention
and one fused loss take 52 % of the CPU time per step of torch's fused attention and transformers' label smoothing,
with equal results. Shapes: B batch, T time, V vocabulary.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    MarianConfig,
    MarianMTModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from modeling_lle.common.precision import Precision
from modeling_lle.history.loss import IGNORED
from modeling_lle.training.arguments import TranslationArguments
from modeling_lle.training.steps import keep_freed_pages
from modeling_lle.training.translation import NO_REPEATED, PairTrainer

WIDTH, LAYERS, HEADS = 256, 3, 4
DROPOUT = 0.2  # as in LLE's recipes for Multi30k; with more, neither converges in time
POSITIONS = 1024  # maximum tokens of a text; positions are fixed
ENDLESS = 1 << 30  # never reached


def make_transformer(
    tokenizer: PreTrainedTokenizerBase, parameters: int, seed: int = 0, dropout: float = DROPOUT
) -> MarianMTModel:
    """Untrained Transformer with a number of trainable parameters as near as possible to `parameters`.

    Args:
        tokenizer: Tokenizer for both languages.
        parameters: Target number of parameters.
        seed: Seed of the weights.
        dropout: Dropout of every layer.

    Raises:
        ValueError: Embeddings and attention alone have more.
    """
    sizes = []
    for width in (1, 2):
        with torch.device("meta"):
            sizes.append(trainable(MarianMTModel(_config(tokenizer, width, dropout))))
    each = sizes[1] - sizes[0]
    width = round((parameters - sizes[0]) / each) + 1
    if width < 1:
        raise ValueError(f"a Transformer with this vocabulary has {sizes[0]:,} parameters or more, not {parameters:,}")
    torch.manual_seed(seed)
    return MarianMTModel(_config(tokenizer, width, dropout))


def _config(tokenizer: PreTrainedTokenizerBase, width: int, dropout: float = DROPOUT) -> MarianConfig:
    return MarianConfig(
        vocab_size=len(tokenizer),
        d_model=WIDTH,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=width,
        decoder_ffn_dim=width,
        max_position_embeddings=POSITIONS,
        activation_function="relu",
        dropout=dropout,
        scale_embedding=True,
        decoder_start_token_id=tokenizer.bos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        forced_eos_token_id=None,
    )


def trainable(model: torch.nn.Module) -> int:
    """Number of trainable parameters, without the fixed positions."""
    return sum(weight.numel() for name, weight in model.named_parameters() if "embed_positions" not in name)


def rate_by_share(share: float, warm_up: float = 0.05) -> float:
    """Learning rate as a share of its peak, after a share of the minutes; it rises during the share `warm_up`."""
    share = min(share, 1.0)
    if share < warm_up:
        return share / warm_up
    return (1 + math.cos(math.pi * (share - warm_up) / (1 - warm_up))) / 2


class Minutes(TrainerCallback):
    """Ends training after the given minutes, and sets the learning rate by the clock.

    Args:
        minutes: Minutes of training.
        warm_up: Share of the minutes in which the rate rises.
    """

    def __init__(self, minutes: float, warm_up: float = 0.05) -> None:
        self.minutes, self.warm_up = minutes, warm_up
        self.begin: float | None = None

    @property
    def gone(self) -> float:
        """Minutes since the start of training."""
        return 0.0 if self.begin is None else (time.perf_counter() - self.begin) / 60

    def rate(self, step: int) -> float:
        """Current learning rate as a share of its peak, independent of the step."""
        return rate_by_share(self.gone / self.minutes, self.warm_up)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clock."""
        self.begin = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stops training when time is over."""
        if self.gone >= self.minutes:
            control.should_training_stop = True


def smoothed_loss(smoothing: float) -> Callable[..., Tensor]:
    """Label smoothing as in the Trainer, in one operation, for `compute_loss_func`."""

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        logits = outputs.logits.float().flatten(0, 1)  # (B * T, V)
        total = functional.cross_entropy(logits, labels.flatten(), reduction="sum", label_smoothing=smoothing)
        return total / ((labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)

    return loss


def train_transformer(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    train: Dataset,
    validation: Dataset,
    parameters: int,
    minutes: float,
    *,
    learning_rate: float = 1e-3,
    batch_size: int = 64,
    label_smoothing: float = 0.1,
    dropout: float = DROPOUT,
    precision: Precision = "auto",
    seed: int = 0,
) -> None:
    """Trains a Transformer, and saves it with tokenizer and metrics.json.

    Args:
        folder: Output folder.
        tokenizer: Tokenizer.
        train, validation: `input_ids` and `labels` of sentence pairs; the validation loss is reported only.
        parameters: As in `make_transformer`.
        minutes: Minutes of training.
        learning_rate: Peak; other parameters of AdamW as in the paper.
        batch_size: Pairs per step.
        label_smoothing: `label_smoothing_factor` of TrainingArguments.
        dropout: Of every layer.
        precision, seed: As in a recipe.
    """
    keep_freed_pages()  # as for LLE
    model = make_transformer(tokenizer, parameters, seed, dropout)
    model.set_attn_implementation("eager")
    clock = Minutes(minutes)
    trainer = PairTrainer(
        model=model,
        args=TranslationArguments(
            output_dir=str(folder),
            max_steps=ENDLESS,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=2 * batch_size,
            train_sampling_strategy="group_by_length",
            learning_rate=learning_rate,
            adam_beta2=0.98,
            adam_epsilon=1e-9,
            weight_decay=0.01,
            max_grad_norm=1.0,
            precision=precision,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=seed,
        ),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        compute_loss_func=smoothed_loss(label_smoothing),
        callbacks=[clock],
    )
    trainer.create_optimizer()
    assert trainer.optimizer is not None
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, clock.rate)
    outcome = trainer.train()
    gone = clock.gone
    trainer.compute_loss_func = smoothed_loss(0.0)  # validation loss in nats per token
    model.config.use_cache = True  # the Trainer switches it off
    model.generation_config.no_repeat_ngram_size = NO_REPEATED  # as for LLE
    loss = trainer.evaluate()["eval_loss"]
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss of the Transformer is {loss}: lower --learning-rate")
    metrics = {
        "parameters": trainable(model),
        "train_minutes": gone,
        "train_steps": outcome.global_step,
        "train_loss": outcome.training_loss,
        "eval_loss": loss,
    }
    trainer.save_model()
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def load_transformer(folder: Path) -> tuple[MarianMTModel, PreTrainedTokenizerBase]:
    """Loads a model of `train_transformer`, in evaluation mode."""
    return MarianMTModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
