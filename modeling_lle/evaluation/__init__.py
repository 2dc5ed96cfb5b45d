"""Measuring what a model predicts, with and without its history, and keeping the results."""

from .language import StreamEvaluation, evaluate_folder, evaluate_stream, format_table
from .metrics import ClassificationMetric, LanguageModelMetric, OutOfScopeMetric
from .results import read_results, write_release, write_results

__all__ = [
    "ClassificationMetric",
    "LanguageModelMetric",
    "OutOfScopeMetric",
    "StreamEvaluation",
    "evaluate_folder",
    "evaluate_stream",
    "format_table",
    "read_results",
    "write_release",
    "write_results",
]
