"""Evaluation of models with and without history, and results files."""

from .classification import (
    ClassifierEvaluation,
    evaluate_classifier,
    evaluate_classifier_folder,
    format_classification,
)
from .language import evaluate_folder, evaluate_stream, format_table
from .metrics import ClassificationMetric, LanguageModelMetric, OutOfScopeMetric, TranslationMetric
from .results import read_results, write_release, write_results
from .stream import StreamEvaluation
from .translation import (
    TranslationEvaluation,
    evaluate_translator,
    evaluate_translator_folder,
    format_translation,
    translate,
)

__all__ = [
    "ClassificationMetric",
    "ClassifierEvaluation",
    "LanguageModelMetric",
    "OutOfScopeMetric",
    "StreamEvaluation",
    "TranslationEvaluation",
    "TranslationMetric",
    "evaluate_classifier",
    "evaluate_classifier_folder",
    "evaluate_folder",
    "evaluate_stream",
    "evaluate_translator",
    "evaluate_translator_folder",
    "format_classification",
    "format_table",
    "format_translation",
    "read_results",
    "translate",
    "write_release",
    "write_results",
]
