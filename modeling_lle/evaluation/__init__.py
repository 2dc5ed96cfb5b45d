"""Measuring what a model predicts, with and without its history, and keeping the results."""

from .classification import (
    ClassifierEvaluation,
    evaluate_classifier,
    evaluate_classifier_folder,
    format_classification,
)
from .language import StreamEvaluation, evaluate_folder, evaluate_stream, format_table
from .metrics import ClassificationMetric, LanguageModelMetric, OutOfScopeMetric
from .results import read_results, write_release, write_results

__all__ = [
    "ClassificationMetric",
    "ClassifierEvaluation",
    "LanguageModelMetric",
    "OutOfScopeMetric",
    "StreamEvaluation",
    "evaluate_classifier",
    "evaluate_classifier_folder",
    "evaluate_folder",
    "evaluate_stream",
    "format_classification",
    "format_table",
    "read_results",
    "write_release",
    "write_results",
]
