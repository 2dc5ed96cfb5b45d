"""LLE, Learning from History: recurrent models for transformers that keep learning from what they read.

Importing this package registers its classes with the Auto classes of transformers; each class is loaded when it is
first used.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from .registration import register

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .backbone_lle import LLEModel
    from .bank_lle import HistoryBank
    from .cache_lle import LLECache
    from .classification_lle import LLEForSequenceClassification, LLEForTokenClassification
    from .configuration_lle import (
        BankConfig,
        HistoryConfig,
        LLEConfig,
        LLESeq2SeqConfig,
        StreamConfig,
        TrainingConfig,
    )
    from .encoder_decoder_lle import LLESeq2SeqModel
    from .modeling_lle import LLEForCausalLM
    from .pretrained_lle import LLEPreTrainedModel
    from .seq2seq_lle import LLEForSeq2SeqLM
    from .text_classification import LLETextClassificationPipeline
    from .text_generation import LLETextGenerationPipeline
    from .tokenization_lle import LLETokenizer
    from .translation import LLETranslationPipeline

_HOME = {
    "BankConfig": "configuration_lle",
    "HistoryBank": "bank_lle",
    "LLECache": "cache_lle",
    "HistoryConfig": "configuration_lle",
    "LLEConfig": "configuration_lle",
    "LLESeq2SeqConfig": "configuration_lle",
    "StreamConfig": "configuration_lle",
    "LLEForCausalLM": "modeling_lle",
    "LLEForSeq2SeqLM": "seq2seq_lle",
    "LLEForSequenceClassification": "classification_lle",
    "LLEForTokenClassification": "classification_lle",
    "LLEModel": "backbone_lle",
    "LLEPreTrainedModel": "pretrained_lle",
    "LLESeq2SeqModel": "encoder_decoder_lle",
    "LLETextClassificationPipeline": "text_classification",
    "LLETextGenerationPipeline": "text_generation",
    "LLETokenizer": "tokenization_lle",
    "LLETranslationPipeline": "translation",
    "TrainingConfig": "configuration_lle",
}

__all__ = [
    "BankConfig",
    "HistoryBank",
    "HistoryConfig",
    "LLECache",
    "LLEConfig",
    "LLEForCausalLM",
    "LLEForSeq2SeqLM",
    "LLEForSequenceClassification",
    "LLEForTokenClassification",
    "LLEModel",
    "LLEPreTrainedModel",
    "LLESeq2SeqConfig",
    "LLESeq2SeqModel",
    "LLETextClassificationPipeline",
    "LLETextGenerationPipeline",
    "LLETokenizer",
    "LLETranslationPipeline",
    "StreamConfig",
    "TrainingConfig",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME))


register(sys.modules[__name__])
