"""Running a recipe: from data to a folder with model, tokenizer, resolved recipe and metrics."""

from typing import Any

import torch

from ..tasks import CLASSIFICATION, LANGUAGE, TRANSLATION
from .classification import run_classification
from .language import run_language
from .recipe import Recipe
from .steps import check_trackers, keep_freed_pages
from .translation import run_translation

_RUN = {LANGUAGE.name: run_language, CLASSIFICATION.name: run_classification, TRANSLATION.name: run_translation}


def run(recipe: Recipe, rows: dict[str, Any] | None = None, resume: bool = False) -> dict[str, Any]:
    """Trains a model by a recipe, fits its history rule on validation data, and saves everything.

    Args:
        recipe: Recipe; its task selects the model.
        rows: Rows in memory for "train" and "validation", instead of `recipe.data`.
        resume: Whether to resume from the newest checkpoint in the output folder, if any.

    Returns:
        Metrics, as in metrics.json beside the weights.
    """
    check_trackers(recipe.training)
    keep_freed_pages()
    torch.manual_seed(recipe.training.seed)
    return _RUN[recipe.task](recipe, rows, resume)
