"""transformers' TrainingArguments, with what the recipes need beyond them."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments


@dataclass
class _Arguments(TrainingArguments):
    def __post_init__(self) -> None:
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()  # or bf16 would ask for a GPU
        super().__post_init__()


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
        merge_dropout: Probability that a merge of the byte-level tokenizer is left out while training, so that a word
            is read in ever new pieces (BPE-dropout, Provilkov et al. 2020, arXiv:1910.13267). The tokenizer draws them
            by itself: no seed makes two trainings equal.
        keep_in_scope: Share of the rightly labelled validation texts that "none of these" must not refuse.
    """

    remove_unused_columns: bool = field(default=False, metadata={"help": "Texts are encoded when they are read."})
    merge_dropout: float = field(default=0.0, metadata={"help": "Probability that a merge is left out."})
    keep_in_scope: float = field(default=0.99, metadata={"help": "Share of right texts that must not be refused."})
