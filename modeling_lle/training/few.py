"""Classifiers from a few examples of each label: `teach`, and the recipes behind it.

Notable: a text to classify has words that none of a few examples has, so the classifier begins with pretrained
embeddings of all words. They stay as they are, and the mean of those of a text is its state; a network is trained only
where a sentence encoder teaches it, on texts without labels. The output layer is a logistic regression. A fifth of the
examples is held out to fit the rule of the bank; then all are trained on and taught.
"""

import copy
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..models.classification import LLEForSequenceClassification
from ..pipelines.text_classification import LLETextClassificationPipeline
from .classification import labelled_splits, train_classifier
from .distillation import encoder_width
from .recipe import make_recipe
from .steps import keep_freed_pages

# The recipe for few examples, which configs/classification/few.yaml has as well.
FEW: dict[str, Any] = {
    "task": "text-classification",
    "data": {"held_out": 0.2},
    "model": {
        "embeddings": "wordllama",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "recurrence": "lstm",
        "stack": "plain",
        "bidirectional": True,
        "classifier": {"pooling": ["embeddings"]},
    },
    "training": {
        "num_train_epochs": 0,
        "per_device_eval_batch_size": 64,
        "output_penalty": 0.03,
        "refit": True,
        "save_strategy": "no",
        "seed": 0,
    },
}

# The recipe for few examples and many texts without labels, as in configs/classification/few-distilled.yaml.
DISTILLED: dict[str, Any] = {
    "task": "text-classification",
    "data": {"held_out": 0.2},
    "tokenizer": {"lowercase": True},
    "model": {
        "embeddings": "wordllama",
        "hidden_size": 96,
        "num_hidden_layers": 1,
        "recurrence": "lstm",
        "stack": "plain",
        "bidirectional": True,
        "input_dropout": 0.1,
        "classifier": {"pooling": ["mean", "max", "embeddings"], "projection": 384},
    },
    "training": {
        "teacher": "sentence-transformers/all-MiniLM-L6-v2",
        "distillation_epochs": 10,
        "num_train_epochs": 0,
        "per_device_train_batch_size": 64,
        "per_device_eval_batch_size": 64,
        "train_sampling_strategy": "group_by_length",
        "learning_rate": 3.0e-3,
        "adam_beta2": 0.98,
        "weight_decay": 0.01,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "max_grad_norm": 1.0,
        "output_penalty": 0.06,
        "refit": True,
        "save_strategy": "no",
        "logging_steps": 200,
        "seed": 0,
    },
}


def teach(
    texts: Sequence[str],
    labels: Sequence[str],
    *,
    unlabelled: Sequence[str] = (),
    teacher: str | None = None,
    encoder: str | os.PathLike[str] | None = None,
    embeddings: str = "wordllama",
    seed: int = 0,
) -> LLETextClassificationPipeline:
    """Makes a classifier of a few texts of each label, with the examples in its bank; takes seconds.

    With a `teacher` it takes minutes, once: what came of it can be the `encoder` of further classifiers.

    Example:
        >>> classifier = teach(texts, labels)
        >>> classifier("where is my card?")
        >>> classifier.model.learn(["hello"], ["greeting"], classifier.tokenizer, new_labels=True)
        >>> classifier.model.save_pretrained(folder, save_history=True)  # with the tokenizer and the bank

    Args:
        texts: The texts, two or more of at least one label.
        labels: The label of each.
        unlabelled: Texts of the same kind without labels, thousands if there are, for the teacher.
        teacher: A sentence encoder of transformers, a folder or a name on the Hub, such as
            "sentence-transformers/all-MiniLM-L6-v2": the classifier learns its embeddings of all texts
            (training/distillation.py). It is not needed afterwards.
        encoder: A saved classifier that learned from a teacher, with any labels: what it begins with.
        embeddings: What it begins with otherwise, as `LLEForSequenceClassification.from_embeddings` takes it.
        seed: Of all that is drawn.

    Returns:
        The pipeline of transformers with the classifier: it takes a text or a list of texts.

    Raises:
        ImportError: wordllama is not installed.
        ValueError: There are fewer than two labels, a text is empty or has two labels, or arguments exclude each
            other.
    """
    if isinstance(texts, str) or len(texts) != len(labels):
        raise ValueError(f"give a list of texts and as many labels: got {len(texts)} texts, {len(labels)} labels")
    rows = {"train": Dataset.from_dict({"text": list(texts), "label": list(labels)})}
    if len(unlabelled):
        rows["unlabelled"] = Dataset.from_dict({"text": list(unlabelled)})
    values = _recipe(bool(len(unlabelled)), teacher, encoder, embeddings)
    with tempfile.TemporaryDirectory() as folder:  # the Trainer needs one, and writes nothing there
        values["training"] |= {"output_dir": folder, "seed": seed, "disable_tqdm": True, "logging_strategy": "no"}
        recipe = make_recipe(values, "the recipe of teach")
        keep_freed_pages()
        torch.manual_seed(seed)
        trainer, _ = train_classifier(recipe, labelled_splits(recipe, rows))
    model, tokenizer = trainer.model, trainer.processing_class
    assert isinstance(model, LLEForSequenceClassification)
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    model.backbone_tokenizer = tokenizer
    return LLETextClassificationPipeline(model=model.eval(), tokenizer=tokenizer)


def _recipe(
    unlabelled: bool, teacher: str | None, encoder: str | os.PathLike[str] | None, embeddings: str
) -> dict[str, Any]:
    """Values of the recipe that suits the arguments of `teach`."""
    if unlabelled and teacher is None:
        raise ValueError(
            "unlabelled texts are for a teacher: name one, such as sentence-transformers/all-MiniLM-L6-v2"
        )
    if encoder is not None:
        if teacher is not None:
            raise ValueError("an encoder has learned from its teacher already: leave teacher and unlabelled out")
        values = copy.deepcopy(DISTILLED)
        values["tokenizer"] = {}
        values["model"] = {"path": str(encoder)}
        values["training"]["teacher"] = None
        return values
    values = copy.deepcopy(FEW if teacher is None else DISTILLED)
    values["model"]["embeddings"] = embeddings
    if teacher is not None:
        values["training"]["teacher"] = teacher
        values["model"]["classifier"]["projection"] = encoder_width(teacher)
    return values
