"""LLE, Learning from History: recurrent models for transformers that keep learning from what they read.

Importing this package registers its classes with the Auto classes of transformers; each class is loaded when it is
first used.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from .registration import register

__version__ = "0.2.0.dev0"

if TYPE_CHECKING:
    from .bank.bank import HistoryBank
    from .configuration import LLEConfig, LLESeq2SeqConfig
    from .configuration_sections import (
        BackboneConfig,
        BankConfig,
        ClassifierConfig,
        HistoryConfig,
        StreamConfig,
        TrainingConfig,
        TranslatorConfig,
    )
    from .history.attachment import Attachment
    from .history.cache import LLECache
    from .models.backbone import LLEModel
    from .models.causal import LLEForCausalLM
    from .models.classification import LLEForSequenceClassification, LLEForTokenClassification
    from .models.encoder_decoder import LLESeq2SeqModel
    from .models.pretrained import LLEPreTrainedModel
    from .models.seq2seq import LLEForSeq2SeqLM
    from .pipelines.suggestions import suggest
    from .pipelines.text_classification import LLETextClassificationPipeline
    from .pipelines.text_generation import LLETextGenerationPipeline
    from .pipelines.token_classification import LLETokenClassificationPipeline
    from .pipelines.translation import LLETranslationPipeline
    from .tokenization import LLETokenizer
    from .training.few import teach

_HOME = {
    "Attachment": "history.attachment",
    "BackboneConfig": "configuration_sections",
    "BankConfig": "configuration_sections",
    "ClassifierConfig": "configuration_sections",
    "HistoryBank": "bank.bank",
    "LLECache": "history.cache",
    "HistoryConfig": "configuration_sections",
    "LLEConfig": "configuration",
    "LLESeq2SeqConfig": "configuration",
    "StreamConfig": "configuration_sections",
    "LLEForCausalLM": "models.causal",
    "LLEForSeq2SeqLM": "models.seq2seq",
    "LLEForSequenceClassification": "models.classification",
    "LLEForTokenClassification": "models.classification",
    "LLEModel": "models.backbone",
    "LLEPreTrainedModel": "models.pretrained",
    "LLESeq2SeqModel": "models.encoder_decoder",
    "LLETextClassificationPipeline": "pipelines.text_classification",
    "LLETextGenerationPipeline": "pipelines.text_generation",
    "LLETokenClassificationPipeline": "pipelines.token_classification",
    "LLETokenizer": "tokenization",
    "LLETranslationPipeline": "pipelines.translation",
    "TrainingConfig": "configuration_sections",
    "TranslatorConfig": "configuration_sections",
    "suggest": "pipelines.suggestions",
    "teach": "training.few",
}

__all__ = [
    "Attachment",
    "BackboneConfig",
    "BankConfig",
    "ClassifierConfig",
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
    "LLETokenClassificationPipeline",
    "LLETokenizer",
    "LLETranslationPipeline",
    "StreamConfig",
    "TrainingConfig",
    "TranslatorConfig",
    "suggest",
    "teach",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME))


register(sys.modules[__name__])
