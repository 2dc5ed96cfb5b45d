"""transformers' TrainingArguments, extended for recipes."""

import os
from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import Seq2SeqTrainingArguments, TrainingArguments

from ..common.precision import Precision, resolve_precision
from .character_ngrams import SHORTEST


@dataclass
class _Arguments(TrainingArguments):
    """transformers' TrainingArguments with a precision that suits the hardware.

    Args:
        precision: "auto" (bfloat16 where it is faster), "float32" or "bfloat16"; without hardware support, float32 is
            used with a warning. After initialisation, the precision in use.
        bf16: As in transformers: true for bfloat16, false for float32, None to follow `precision`.
        keep_checkpoints: Whether checkpoints stay when training is finished; otherwise they only serve to resume it.
    """

    precision: Precision = field(
        default="auto", metadata={"help": "auto, float32 or bfloat16; auto: the faster one on this machine."}
    )
    bf16: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "true for bfloat16, false for float32; by default, precision decides."}
    )
    keep_checkpoints: bool = field(
        default=True, metadata={"help": "Whether checkpoints stay when training is finished."}
    )

    def __post_init__(self) -> None:
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()  # else bf16 requires a GPU
        if self.fp16:
            self._leave_fp16()
        else:
            self._choose_precision()
        super().__post_init__()
        if not self.fp16:
            self.mixed_precision = "bf16" if self.bf16 else "no"  # overrides the launcher of accelerate

    def _choose_precision(self) -> None:
        device = torch.device("cpu") if self.use_cpu else torch.accelerator.current_accelerator()
        assert device is not None
        asked = "auto" if self.bf16 is None else "bfloat16" if self.bf16 else "float32"
        if asked == "auto" and os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16":
            asked = self.precision if self.precision != "auto" else "bfloat16"
        if "auto" not in (asked, self.precision) and asked != self.precision:
            raise ValueError(
                f"training.precision is {self.precision!r}, but training.bf16 is {self.bf16}: leave training.bf16 out"
            )
        self.bf16 = resolve_precision(self.precision if asked == "auto" else asked, device) == torch.bfloat16
        self.precision = "bfloat16" if self.bf16 else "float32"
        if self.bf16_full_eval:
            self.bf16_full_eval = resolve_precision("bfloat16", device) == torch.bfloat16

    def _leave_fp16(self) -> None:
        if self.bf16 or self.precision == "bfloat16":
            raise ValueError("training.fp16 and bfloat16 exclude each other: leave one of them out")
        self.bf16 = False


@dataclass
class LLETrainingArguments(_Arguments):
    """transformers' TrainingArguments for streams.

    Args:
        segment_length: Tokens per row and step; also the length of backpropagation.
        calibration_tokens: Validation tokens for fitting the parameters of the rule after training; 0 keeps the
            defaults, or the parameters learned with history.
        history_learning_rate: Learning rate of these parameters in training with history, for any optimizer; same
            schedule as the weights, no weight decay.
    """

    segment_length: int = field(default=70, metadata={"help": "Tokens per row and step."})
    calibration_tokens: int = field(default=30000, metadata={"help": "Validation tokens for fitting the rule."})
    history_learning_rate: float = field(default=0.03, metadata={"help": "Learning rate of the rule's parameters."})


@dataclass
class ClassificationArguments(_Arguments):
    """transformers' TrainingArguments for classifiers.

    Args:
        pretraining_epochs: Epochs of two-way language modelling on the training texts and on `data.unlabelled` before
            training (`TwoWayLanguageModel`); 0: none.
        teacher: Folder or name on the Hub of a sentence encoder of transformers, such as
            "sentence-transformers/all-MiniLM-L6-v2": before training, the classifier learns its embeddings of the
            training texts and of `data.unlabelled` (`distil`); None: none.
        distillation_epochs: Epochs of this.
        distillation_weight: Weight, beside the loss of the labels, of the distance to the teacher in training
            (`distance`), so that what was learned from it is kept; 0: none.
        character_ngrams: Characters of the longest n-gram shared by embeddings during training, so that words of
            similar spelling learn together (`CharacterNgrams`); 0: none.
        adversarial: Strength of adversarial training (`AdversarialTrainer`), the relative norm of perturbations;
            doubles the time of a step. 0: none.
        keep_in_scope: Least share of correctly labelled validation texts that "none of these" accepts.
        embeddings_training: Whether embeddings are "trained" like all weights, "slow", at `SLOW` times the learning
            rate and without weight decay, or "frozen".
        output_penalty: Penalty on the output layer, with which it is fitted by logistic regression at the end of
            training (`fit_output_layer`); 0: it stays as it was trained.
        refit: Whether to train anew on all examples, those that were held out to fit the rule included, where examples
            are few; doubles the time. It needs `data.held_out`, and keeps no checkpoints.
    """

    pretraining_epochs: float = field(default=0.0, metadata={"help": "Epochs as a language model; 0: none."})
    teacher: str | None = field(default=None, metadata={"help": "Sentence encoder to learn from; by default none."})
    distillation_epochs: float = field(default=8.0, metadata={"help": "Epochs of learning from the teacher."})
    distillation_weight: float = field(default=0.0, metadata={"help": "Weight of the teacher in training; 0: none."})
    character_ngrams: int = field(default=0, metadata={"help": "Characters of the longest n-gram; 0: none."})
    adversarial: float = field(default=0.0, metadata={"help": "Strength of adversarial training; 0: none."})
    keep_in_scope: float = field(default=0.99, metadata={"help": "Least share of correctly labelled texts to accept."})
    embeddings_training: Literal["trained", "slow", "frozen"] = field(
        default="trained", metadata={"help": "How embeddings are trained: trained, slow or frozen."}
    )
    output_penalty: float = field(default=0.0, metadata={"help": "Penalty of the output layer's regression; 0: none."})
    refit: bool = field(default=False, metadata={"help": "Whether to train anew on held-out examples too."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.refit and self.save_strategy != "no":
            raise ValueError('training.refit keeps no checkpoints: set training.save_strategy to "no"')
        for name in (
            "pretraining_epochs",
            "distillation_epochs",
            "distillation_weight",
            "character_ngrams",
            "adversarial",
            "output_penalty",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"training.{name} is {getattr(self, name)}: give a number of at least 0")
        if 0 < self.character_ngrams < SHORTEST:
            raise ValueError(
                f"training.character_ngrams is {self.character_ngrams}: n-grams have at least {SHORTEST} characters; "
                "0: none"
            )


@dataclass
class TranslationArguments(_Arguments, Seq2SeqTrainingArguments):
    """transformers' Seq2SeqTrainingArguments for translators.

    Args:
        max_tokens: Maximum tokens of a training sentence, on either side; longer pairs are left out.
    """

    max_tokens: int = field(default=128, metadata={"help": "Maximum tokens of a training sentence."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_tokens < 2:
            raise ValueError(f"training.max_tokens is {self.max_tokens}: give a number of at least 2")
