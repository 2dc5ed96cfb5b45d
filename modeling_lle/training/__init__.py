"""Training on continuous streams: the Trainer, the recipes, and running them."""

from .recipe import Recipe, load_recipe, make_recipe
from .run import calibrate, leave_group, run, segments
from .trainer import LLETrainer, LLETrainingArguments

__all__ = [
    "LLETrainer",
    "LLETrainingArguments",
    "Recipe",
    "calibrate",
    "leave_group",
    "load_recipe",
    "make_recipe",
    "run",
    "segments",
]
