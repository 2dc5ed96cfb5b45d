"""The final figure of a training: what a new model reaches on what it was neither trained on nor fitted on."""

import json
import logging
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset

from ..common.precision import in_precision
from ..common.temporary import replacing
from ..data import collect, load_labelled, load_pairs, load_texts, tokenize
from ..saved import attach_bank, load_classifier, load_language_model, load_translator
from ..tasks import CLASSIFICATION, LANGUAGE, TRANSLATION
from ..training.checkpoints import METRICS
from ..training.classification import labelled_splits
from ..training.language import text_splits
from ..training.recipe import Recipe
from ..training.translation import pair_splits
from .classification import evaluate_classifier
from .language import evaluate_stream
from .translation import evaluate_translator

logger = logging.getLogger(__name__)

TOKENS = 100_000  # to measure a language model on, at most
TEXTS = 2_000  # for a classifier
PAIRS = 100  # for a translator: beam search takes long


def measure_held_out(recipe: Recipe, split: str | None = None) -> dict[str, float]:
    """Measures the model in the output folder of a recipe, and adds the figures to its metrics.json as "test".

    Args:
        recipe: Recipe of a finished run.
        split: Split of `data.source` to measure on; None: what `data.held_out_test` holds out.

    Returns:
        `documents` (texts, or pairs) and, for language models, `tokens`, `base_ppl` and `history_ppl`; for
        classifiers `accuracy` and `base_accuracy`, for translators `bleu` and `chrf`, otherwise as their evaluations
        name them. Empty if nothing was held out, or, with a warning, if the package that measures it is missing.
    """
    rows = _test_rows(recipe, split)
    if rows is None or not len(rows):
        return {}
    try:
        figures = _MEASURE[recipe.task](recipe, rows)
    except ImportError as error:
        logger.warning("no figure on texts that were held out: %s", error)
        return {}
    file = Path(str(recipe.training.output_dir)) / METRICS
    metrics = json.loads(file.read_text(encoding="utf-8"))
    with replacing(file) as partial:
        partial.write_text(json.dumps({**metrics, "test": figures}, indent=2) + "\n", encoding="utf-8")
    return figures


def _test_rows(recipe: Recipe, split: str | None) -> Dataset | None:
    data = recipe.data
    if split is None:
        if not data.held_out_test:
            return None
        return cast(Dataset, _SPLITS[recipe.task](recipe)["test"])
    if recipe.task == LANGUAGE.name:
        rows = load_texts(data.source, split=split, text_column=data.text_column, sample_by=data.sample_by)
        return cast(Dataset, rows)
    if recipe.task == CLASSIFICATION.name:
        text_column = None if data.text_column == "text" else data.text_column
        return load_labelled(data.source, split=split, text_column=text_column, label_column=data.label_column)
    return load_pairs(
        data.source,
        split=split,
        source_language=str(data.source_language),
        target_language=str(data.target_language),
        source_column=data.source_column,
        target_column=data.target_column,
    )


_SPLITS: dict[str, Any] = {
    LANGUAGE.name: text_splits,
    CLASSIFICATION.name: labelled_splits,
    TRANSLATION.name: pair_splits,
}


def _language(recipe: Recipe, rows: Dataset) -> dict[str, float]:
    model, tokenizer = load_language_model(str(recipe.training.output_dir))
    cast(torch.nn.Module, model).to(recipe.training.device)
    texts = collect(tokenize(rows, tokenizer, text_column=recipe.data.text_column), start=tokenizer.eos_token_id)
    if len(texts.ids) > TOKENS:
        share = TOKENS / len(texts.ids)
        texts = type(texts)(texts.ids[:TOKENS], int(share * texts.words), int(share * texts.bytes))
    with in_precision(model, recipe.training.precision):
        found = evaluate_stream(model, texts).metrics()
    names = ("tokens", "base_ppl", "history_ppl", "base_bits_per_byte", "history_bits_per_byte")
    return {"documents": len(rows), **{name: found[name] for name in names}}


def _classifier(recipe: Recipe, rows: Dataset) -> dict[str, float]:
    folder = str(recipe.training.output_dir)
    model, tokenizer = load_classifier(folder)
    cast(torch.nn.Module, model).to(recipe.training.device)
    attach_bank(model, tokenizer, folder)
    rows = rows.select(range(min(len(rows), TEXTS)))
    with in_precision(model, recipe.training.precision):
        found = evaluate_classifier(model, tokenizer, rows).metrics()
    return {"documents": len(rows), **{name: found[name] for name in ("accuracy", "macro_f1", "base_accuracy")}}


def _translator(recipe: Recipe, rows: Dataset) -> dict[str, float]:
    model, tokenizer = load_translator(str(recipe.training.output_dir))
    cast(torch.nn.Module, model).to(recipe.training.device)
    rows = rows.select(range(min(len(rows), PAIRS)))
    with in_precision(model, recipe.training.precision):
        found = evaluate_translator(model, tokenizer, rows, target_language=recipe.data.target_language).metrics()
    return {"documents": len(rows), **{name: found[name] for name in ("bleu", "chrf")}}


_MEASURE: dict[str, Any] = {
    LANGUAGE.name: _language,
    CLASSIFICATION.name: _classifier,
    TRANSLATION.name: _translator,
}
