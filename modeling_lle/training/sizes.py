"""Sizes of models, vocabularies and runs by the amount of text; the tables behind `plan`.

Notable: the settings of classifiers and translators are those of configs/classification/banking77.yaml and
configs/translation/multi30k-en-de.yaml, with the tokenizer and the memory of software-en-de.yaml, whatever the texts
are; those of language models are those of `lle demo`; only what depends on the amount of text and on the time is
chosen here.
"""

from dataclasses import dataclass
from typing import Any

LANGUAGE_TRAINING: dict[str, Any] = {
    "segment_length": 64,
    "learning_rate": 4e-3,
    "adam_beta2": 0.99,
    "weight_decay": 0.05,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "max_grad_norm": 0.5,
    "seed": 0,
}
CLASSIFICATION_SETTINGS: dict[str, dict[str, Any]] = {
    "tokenizer": {"vocab_size": 3000, "lowercase": True},
    "model": {
        "hidden_size": 128,
        "num_hidden_layers": 1,
        "recurrence": "qrnn",
        "bidirectional": True,
        "initializer_range": 0.1,
        "input_dropout": 0.5,
        "token_dropout": 0.1,
        "hidden_dropout": 0.3,
        "output_dropout": 0.4,
        "classifier": {"members": 2, "pooling": ["mean", "max"]},
    },
    "training": {
        "per_device_eval_batch_size": 64,
        "train_sampling_strategy": "group_by_length",
        "learning_rate": 3e-3,
        "adam_beta2": 0.98,
        "weight_decay": 0.05,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.15,
        "max_grad_norm": 1.0,
        "label_smoothing_factor": 0.1,
        "character_ngrams": 5,
        "adversarial": 0.1,
        "seed": 0,
    },
}
TRANSLATION_SETTINGS: dict[str, dict[str, Any]] = {
    "tokenizer": {"placeholders": True},
    "model": {
        "num_hidden_layers": 2,
        "recurrence": "qrnn",
        "initializer_range": 0.1,
        "input_dropout": 0.2,
        "hidden_dropout": 0.2,
        "output_dropout": 0.2,
        "translator": {"num_encoder_layers": 2, "num_attention_heads": 4, "sentences": 16, "neighbours": 64},
    },
    "training": {
        "per_device_eval_batch_size": 128,
        "train_sampling_strategy": "group_by_length",
        "learning_rate": 2e-3,
        "adam_beta2": 0.98,
        "weight_decay": 0.01,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "max_grad_norm": 1.0,
        "label_smoothing_factor": 0.1,
        "seed": 0,
    },
}


@dataclass(frozen=True)
class Size:
    """Size of a language model.

    Attributes:
        width: Of its layers.
        layers: Their number.
        least_passes: Passes over the text, or parts of one, below which the next smaller size is better.
    """

    width: int
    layers: int
    least_passes: float = 0.0


@dataclass(frozen=True)
class Amount:
    """Choices for language models trained on at most so much text.

    Attributes:
        bytes: Largest amount of training text.
        vocab_size: V of the byte-level vocabulary.
        sizes: Sizes of the model, the largest first.
        dropout: Of inputs, layers and outputs.
        rows: Rows of a batch.
        epochs: Passes over the text, at most; the best checkpoint is kept.
    """

    bytes: float
    vocab_size: int
    sizes: tuple[Size, ...]
    dropout: float
    rows: int
    epochs: int


# Measured once each on a loaded core of an EPYC (Zen 3) with code and documentation of Python packages, by unseen
# documents, in bits per byte alone / with history; small differences say little:
#   30 kB: width 128, V 512: 2.98 / 1.65; V 320: 2.88 / 1.69; width 256, V 512: 3.29 / 1.62, which overfits
#   300 kB: width 256, V 1024: 2.06 / 1.30 in 123 s; V 2048: 2.07 / 1.33 in 178 s; width 384, 2 layers: 2.29 / 1.50
#   3 MB, 32 rows: width 256, V 4096: 2.42 / 1.47 in 147 s; width 384, 2 layers: 2.51 / 1.54 in 224 s; with V 2048
#     width 256: 2.45 / 1.48 in 87 s, width 128: 2.35 / 1.45 in 89 s; width 256 with 16 rows, which read 1.9 times as
#     many tokens: 2.21 / 1.36 in 104 s
# The rows for 20 kB and for more than 5 MB, and the thresholds, are not measured.
AMOUNTS = (
    Amount(20_000, 320, (Size(128, 1),), 0.3, 2, 16),
    Amount(100_000, 512, (Size(128, 1),), 0.3, 4, 16),
    Amount(600_000, 1024, (Size(256, 1, 2), Size(128, 1)), 0.3, 16, 12),
    Amount(5_000_000, 2048, (Size(384, 2, 2), Size(256, 1, 0.3), Size(128, 1)), 0.1, 16, 6),
    Amount(float("inf"), 4096, (Size(384, 2, 1), Size(256, 1)), 0.05, 32, 3),
)


def amount_of(size: float) -> Amount:
    """The choices for so many bytes of training text."""
    return next(amount for amount in AMOUNTS if size <= amount.bytes)


def language_settings(amount: Amount, size: Size) -> dict[str, dict[str, Any]]:
    """Sections of a recipe of a language model, but for the duration."""
    dropouts = dict.fromkeys(("input_dropout", "hidden_dropout", "output_dropout"), amount.dropout)
    return {
        "tokenizer": {"kind": "bpe", "vocab_size": amount.vocab_size},
        "model": {"hidden_size": size.width, "num_hidden_layers": size.layers, **dropouts},
        "training": {**LANGUAGE_TRAINING, "per_device_train_batch_size": amount.rows},
    }


@dataclass(frozen=True)
class Rows:
    """Choices for classifiers or translators trained on at most so many rows.

    Attributes:
        rows: Largest number of training rows.
        batch: Rows of a batch.
        epochs: Passes over the rows.
        pretraining: Passes as a language model before, for classifiers.
        vocab_size: V of the byte-level vocabulary, for translators.
    """

    rows: float
    batch: int
    epochs: int
    pretraining: int = 0
    vocab_size: int = 0


LABELLED = (
    Rows(100, 8, 40, 20),
    Rows(1_000, 8, 30, 20),
    Rows(4_000, 16, 20, 15),
    Rows(float("inf"), 32, 12, 10),
)
PAIRS = (
    Rows(1_000, 16, 40, vocab_size=2000),
    Rows(5_000, 32, 30, vocab_size=4000),
    Rows(20_000, 64, 20, vocab_size=8000),
    Rows(float("inf"), 64, 15, vocab_size=8000),
)
TRANSLATOR_WIDTHS = (256, 192, 128)  # a later one is taken where the time does not suffice
LEAST_EPOCHS_OF_PAIRS = 6  # below which a narrower translator is better
LEAST_EPOCHS_OF_LABELS = 4


def rows_of(table: tuple[Rows, ...], count: int) -> Rows:
    """The choices of a table for so many training rows."""
    return next(entry for entry in table if count <= entry.rows)
