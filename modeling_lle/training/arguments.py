"""transformers' TrainingArguments, with what the recipes need beyond them."""

import os
from dataclasses import dataclass, field

import torch
from transformers import Seq2SeqTrainingArguments, TrainingArguments

from ..common.precision import Precision, resolve_precision
from .character_ngrams import SHORTEST


@dataclass
class _Arguments(TrainingArguments):
    """transformers' TrainingArguments, in the precision that suits the hardware.

    Args:
        precision: "auto", bfloat16 where it is faster than float32; "float32" or "bfloat16". Where the hardware lacks
            bfloat16, float32 is used instead, with a warning. Once made, this is the precision that is used.
        bf16: As in transformers: true asks for bfloat16, false for float32; None leaves it to `precision`.
    """

    precision: Precision = field(
        default="auto", metadata={"help": "auto, float32 or bfloat16; auto: what is faster on this machine."}
    )
    bf16: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "true asks for bfloat16, false for float32; if not given, precision decides."}
    )

    def __post_init__(self) -> None:
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()  # or bf16 would ask for a GPU
        if self.fp16:
            self._leave_fp16()
        else:
            self._choose_precision()
        super().__post_init__()
        if not self.fp16:
            self.mixed_precision = "bf16" if self.bf16 else "no"  # whatever the launcher of accelerate said

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
    """transformers' TrainingArguments, with what streams need.

    Args:
        segment_length: Tokens of a row that a step reads and backpropagates through.
        calibration_tokens: Tokens of validation text that the numbers of the rule are fitted on after training;
            0 keeps the defaults, or what training with history has learned.
        history_learning_rate: Learning rate of these numbers in training with history, whatever the optimizer; the
            schedule is that of the weights, and they do not decay.
    """

    segment_length: int = field(default=70, metadata={"help": "Tokens of a row that a step reads."})
    calibration_tokens: int = field(default=30000, metadata={"help": "Validation tokens to fit the rule on."})
    history_learning_rate: float = field(default=0.03, metadata={"help": "Learning rate of the rule's numbers."})


@dataclass
class ClassificationArguments(_Arguments):
    """transformers' TrainingArguments, with what classifiers need.

    Args:
        pretraining_epochs: How often the training texts are read before, without their labels, to predict their tokens
            in both directions (`TwoWayLanguageModel`); 0: not at all.
        character_ngrams: Characters of the longest n-gram that embeddings of types have in common while they are
            trained, so that words which are spelt alike learn together (`CharacterNgrams`); 0: they have none.
        adversarial: Strength of adversarial training (`AdversarialTrainer`): how far embedded texts are moved, as a
            share of their length; doubles the time of a step. 0: none.
        keep_in_scope: Share of the rightly labelled validation texts that "none of these" must not refuse.
    """

    pretraining_epochs: float = field(default=0.0, metadata={"help": "Epochs as a language model; 0: none."})
    character_ngrams: int = field(default=0, metadata={"help": "Characters of the longest n-gram; 0: none."})
    adversarial: float = field(default=0.0, metadata={"help": "Strength of adversarial training; 0: none."})
    keep_in_scope: float = field(default=0.99, metadata={"help": "Share of right texts that must not be refused."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("pretraining_epochs", "character_ngrams", "adversarial"):
            if getattr(self, name) < 0:
                raise ValueError(f"training.{name} is {getattr(self, name)}: give a number from 0 on")
        if 0 < self.character_ngrams < SHORTEST:
            raise ValueError(
                f"training.character_ngrams is {self.character_ngrams}: n-grams have {SHORTEST} characters or more; "
                "0 is none"
            )


@dataclass
class TranslationArguments(_Arguments, Seq2SeqTrainingArguments):
    """transformers' Seq2SeqTrainingArguments, with what translators need.

    Args:
        max_tokens: Tokens of the longest sentence, on either side, that is trained on; pairs with a longer one are
            left out.
    """

    max_tokens: int = field(default=128, metadata={"help": "Tokens of the longest sentence that is trained on."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_tokens < 2:
            raise ValueError(f"training.max_tokens is {self.max_tokens}: give a number from 2 on")
