"""Pretraining of classifiers: language modelling of the training texts in both directions, without labels.

Shapes: B batch, T time, D width of a member in a direction, M members, V vocabulary.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments

from ..backbone.recurrence import variational_dropout
from ..history.loss import IGNORED, linear_cross_entropy
from ..models.backbone import LLEModel
from .progress import show_progress


class TwoWayLanguageModel(nn.Module):
    """A language model on each stack of a backbone (Peters et al. 2018, arXiv:1802.05365, section 3.1).

    The forward stack predicts the next token, the backward stack the previous one; both use the embeddings as output
    layer, behind a linear map where they have another width than the states. Members of an ensemble are independent,
    each with its slice of the embeddings.

    Args:
        backbone: Backbone; with a forward stack only, a plain language model.
    """

    def __init__(self, backbone: LLEModel) -> None:
        super().__init__()
        self.model = backbone
        self.bias = nn.Parameter(torch.zeros(backbone.config.vocab_size))
        D, E = backbone.config.hidden_size, backbone.config.embedding_width
        sides = (1 if backbone.backward_stack is None else 2) * backbone.config.classifier.members
        self.maps = nn.ModuleList(nn.Identity() if D == E else nn.Linear(D, E, bias=False) for _ in range(sides))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """Computes the `loss` of texts in nats per predicted token.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T) of 0 and 1, 0 at padding.
            labels: Unused; labels of `with_neighbours` let the Trainer count the predictions of a batch.
            num_items_in_batch: Number of neighbours in all parts of a batch; None: in these texts.
            kwargs: Must be empty; their presence tells the Trainer that the loss is divided by `num_items_in_batch`.
        """
        if kwargs:
            raise TypeError(f"unexpected arguments: {', '.join(kwargs)}")
        states = self.model(input_ids, attention_mask, use_cache=False).last_hidden_state
        states = variational_dropout(states, self.model.config.output_dropout, self.training)
        real = attention_mask.bool()
        both = real[:, 1:] & real[:, :-1]
        sides = [(states[:, :-1], input_ids[:, 1:])]
        if self.model.backward_stack is not None:
            forwards, backwards = states.chunk(2, dim=-1)
            sides = [(forwards[:, :-1], input_ids[:, 1:]), (backwards[:, 1:], input_ids[:, :-1])]
        members = self.model.config.classifier.members
        matrices = self.model.embed_tokens.weight.chunk(members, dim=-1)
        own = [
            (part, matrix, y.masked_fill(~both, IGNORED))
            for h, y in sides
            for part, matrix in zip(h.chunk(members, dim=-1), matrices, strict=True)
        ]
        total = torch.stack(
            [
                linear_cross_entropy(widen(part), matrix, self.bias, y)
                for widen, (part, matrix, y) in zip(self.maps, own, strict=True)
            ]
        ).sum()
        number = both.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return {"loss": total / (len(sides) * members * number)}


def with_neighbours(collate: Callable[[list[Any]], Any], rows: list[Any]) -> dict[str, Tensor]:
    """Collates rows and adds `labels` (B, T - 1) int64: the next token if a neighbour predicts it, else -100."""
    batch = collate(rows)
    real = batch["attention_mask"].bool()
    return {**batch, "labels": batch["input_ids"][:, 1:].masked_fill(~(real[:, 1:] & real[:, :-1]), IGNORED)}


def pretrain(
    backbone: LLEModel,
    texts: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    arguments: TrainingArguments,
    epochs: float,
    callbacks: Sequence[TrainerCallback] = (),
) -> float:
    """Trains a backbone in place on unlabelled texts; returns the minutes taken.

    Args:
        backbone: Backbone, changed in place.
        texts: Columns `input_ids` and `attention_mask`.
        tokenizer: Tokenizer.
        arguments: Arguments of the subsequent training; its specific ones are ignored.
        epochs: Passes over the texts.
        callbacks: Of the Trainer.
    """
    collate = functools.partial(with_neighbours, DataCollatorWithPadding(tokenizer))
    return train_stage(TwoWayLanguageModel(backbone), texts, collate, arguments, epochs, "Pretraining", callbacks)


def train_stage(
    module: nn.Module,
    texts: Dataset,
    collate: Callable[[list[Any]], Any],
    arguments: TrainingArguments,
    epochs: float,
    title: str,
    callbacks: Sequence[TrainerCallback] = (),
) -> float:
    """Trains a module on unlabelled texts before its training; returns the minutes taken.

    Args:
        module: Whose forward takes what `collate` makes, and returns a mapping with the `loss`.
        texts: Its rows.
        collate: Makes a batch of rows.
        arguments: Arguments of the subsequent training; its specific ones are ignored.
        epochs: Passes over the texts.
        title: Of the progress bar.
        callbacks: Of the Trainer.
    """
    begin = time.perf_counter()
    own: dict[str, Any] = {"num_train_epochs": epochs, "max_steps": -1, "label_smoothing_factor": 0.0}
    own |= {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    trainer = Trainer(
        model=module,
        args=dataclasses.replace(arguments, **own),
        data_collator=collate,
        train_dataset=texts,
        callbacks=list(callbacks),
    )
    show_progress(trainer, title, 1, "texts")
    trainer.train()
    return (time.perf_counter() - begin) / 60
