"""Two parts of a batch whose gradients are accumulated by transformers' Trainer are worth the batch as a whole."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DataCollatorForTokenClassification, DataCollatorWithPadding, Trainer, TrainingArguments

from modeling_lle.training.adversarial import AdversarialTrainer
from modeling_lle.training.classification import MemberLoss
from modeling_lle.training.pretraining import TwoWayLanguageModel, with_neighbours
from tests.factories.classifiers import make_classifier
from tests.factories.texts import WORD_TOKENIZER

TEXTS = ["a b c d e f g h", "b", "c d", "a"]  # of lengths that differ, so that no mean of means is right


def encoded(labels: list[Any]) -> list[dict[str, Any]]:
    return [{**WORD_TOKENIZER(text), "labels": label} for text, label in zip(TEXTS, labels, strict=True)]


def step(
    folder: Path, make_model: Callable[[], Any], rows: list[dict[str, Any]], size: int, **options: Any
) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of one step over all rows, `size` at once, and the weights after it."""
    model = make_model()
    arguments = TrainingArguments(
        str(folder),
        max_steps=1,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=len(rows) // size,
        optim="sgd",
        learning_rate=0.5,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        label_smoothing_factor=options.pop("smoothing", 0.0),
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    kind = options.pop("trainer", Trainer)
    options = {"data_collator": DataCollatorWithPadding(WORD_TOKENIZER), **options}
    trainer = kind(model=model, args=arguments, train_dataset=rows, **options)
    if isinstance(trainer, AdversarialTrainer):
        trainer.embeddings = model.model.embed_tokens
    loss = trainer.train().training_loss
    return loss, {name: value.detach() for name, value in model.state_dict().items()}


MULTI = {"problem_type": "multi_label_classification"}
HOT = [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
TAGS = [[0, 1, 2, 0, 1, 2, 0, 1], [-100], [2, -100], [1]]
ADVERSARIAL = {"trainer": AdversarialTrainer, "embeddings": nn.Identity(), "strength": 0.1}
CASES: dict[str, tuple[dict[str, Any], list[Any], dict[str, Any]]] = {
    "one label, smoothed": ({}, [0, 2, 1, 1], {"smoothing": 0.2}),
    "several labels, some not known": (MULTI, [[1.0, -100.0, -100.0], *HOT[1:]], {}),
    "values": ({"labels": 1}, [0.5, -2.0, 30.0, 4.0], {}),
    "tokens": ({"of_tokens": True}, TAGS, {"data_collator": DataCollatorForTokenClassification(WORD_TOKENIZER)}),
    "members, several labels": ({"classifier": {"members": 2}, **MULTI}, HOT, {}),
    "members, smoothed": ({"classifier": {"members": 2}}, [0, 2, 1, 1], {"compute_loss_func": MemberLoss(0.2)}),
    "adversarial, several labels": (MULTI, HOT, ADVERSARIAL),
}


@pytest.mark.parametrize("case", CASES)
def test_classifiers(tmp_path: Path, case: str) -> None:
    values, labels, options = CASES[case]
    rows = encoded(labels)
    whole, parts = (step(tmp_path, lambda: make_classifier(**values), rows, size, **options) for size in (4, 2))
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    torch.testing.assert_close(parts[1], whole[1], rtol=1e-4, atol=1e-5)
    before = make_classifier(**values).state_dict()
    assert not torch.allclose(whole[1]["classifier.weight"], before["classifier.weight"], atol=1e-3)


def test_pretraining(tmp_path: Path) -> None:
    rows = [dict(WORD_TOKENIZER(text)) for text in TEXTS]
    whole, parts = (
        step(
            tmp_path,
            lambda: TwoWayLanguageModel(make_classifier(classifier={"members": 2}).model),
            rows,
            size,
            data_collator=functools.partial(with_neighbours, DataCollatorWithPadding(WORD_TOKENIZER)),
        )
        for size in (4, 2)
    )
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    torch.testing.assert_close(parts[1], whole[1], rtol=1e-4, atol=1e-5)
