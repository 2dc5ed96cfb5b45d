"""Classifiers from a few examples of each label: `teach`, and the recipe behind it.

Notable: a text to classify has words that none of a few examples has, so the classifier begins with pretrained
embeddings of all words. They stay as they are, and the mean of those of a text is its state: from five examples of
each label of Banking77, trained embeddings and a trained LSTM were less accurate. The output layer is a logistic
regression. A fifth of the examples is held out to fit the rule of the bank; then all are trained on and taught.
"""

import copy
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..models.classification import LLEForSequenceClassification
from ..pipelines.text_classification import LLETextClassificationPipeline
from .classification import labelled_splits, train_classifier
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
        "max_steps": 10,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 64,
        "learning_rate": 3.0e-3,
        "embeddings_training": "frozen",
        "output_penalty": 0.03,
        "refit": True,
        "save_strategy": "no",
        "logging_steps": 200,
        "seed": 0,
    },
}


def teach(
    texts: Sequence[str], labels: Sequence[str], *, embeddings: str = "wordllama", seed: int = 0
) -> LLETextClassificationPipeline:
    """Makes a classifier of a few texts of each label, with the examples in its bank; takes seconds.

    Example:
        >>> classifier = teach(texts, labels)
        >>> classifier("where is my card?")
        >>> classifier.model.learn(["hello"], ["greeting"], classifier.tokenizer, new_labels=True)
        >>> classifier.model.save_pretrained(folder, save_history=True)  # with the tokenizer and the bank

    Args:
        texts: The texts, two or more of at least one label.
        labels: The label of each.
        embeddings: What it begins with, as `LLEForSequenceClassification.from_embeddings` takes it.
        seed: Of all that is drawn.

    Returns:
        The pipeline of transformers with the classifier: it takes a text or a list of texts.

    Raises:
        ImportError: wordllama is not installed.
        ValueError: There are fewer than two labels, or a text is empty or has two labels.
    """
    if isinstance(texts, str) or len(texts) != len(labels):
        raise ValueError(f"give a list of texts and as many labels: got {len(texts)} texts, {len(labels)} labels")
    values = copy.deepcopy(FEW)
    values["model"]["embeddings"] = embeddings
    rows = Dataset.from_dict({"text": list(texts), "label": list(labels)})
    with tempfile.TemporaryDirectory() as folder:  # the Trainer needs one, and writes nothing there
        values["training"] |= {"output_dir": folder, "seed": seed, "disable_tqdm": True, "logging_strategy": "no"}
        recipe = make_recipe(values, "the recipe of teach")
        keep_freed_pages()
        torch.manual_seed(seed)
        trainer, _ = train_classifier(recipe, labelled_splits(recipe, {"train": rows}))
    model, tokenizer = trainer.model, trainer.processing_class
    assert isinstance(model, LLEForSequenceClassification)
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    model.backbone_tokenizer = tokenizer
    return LLETextClassificationPipeline(model=model.eval(), tokenizer=tokenizer)
