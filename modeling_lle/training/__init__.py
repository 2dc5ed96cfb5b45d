"""Training: trainers, recipes, and running them."""

from .arguments import ClassificationArguments, LLETrainingArguments, TranslationArguments
from .language import calibrate, segments
from .planning import Plan, plan
from .recipe import Recipe, load_recipe, make_recipe
from .run import run
from .steps import leave_group
from .trainer import LLETrainer

__all__ = [
    "ClassificationArguments",
    "LLETrainer",
    "LLETrainingArguments",
    "Plan",
    "Recipe",
    "TranslationArguments",
    "calibrate",
    "leave_group",
    "load_recipe",
    "make_recipe",
    "plan",
    "run",
    "segments",
]
