"""Distillation: from unlabelled texts, a classifier learns the embeddings that a sentence encoder gives them.

Notable: the student is trained to point where its teacher does (Reimers and Gurevych 2020, arXiv:2004.09813, section
2, with the cosine in place of the squared error). The teacher reads every text once, before training, and is needed
no more afterwards. Shapes: n texts, B batch, T time, M members, W width of the teacher's embeddings.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import cached_file

from ..models.classification import LLEForSequenceClassification
from .pretraining import train_stage

LONGEST = 256  # tokens that a teacher reads of a text
BATCH = 64  # texts that a teacher reads at once


class SentenceEncoder:
    """A sentence encoder: an encoder of transformers whose last states are pooled and normalised.

    Args:
        name: Its folder or name on the Hub. How it pools is read from the file of sentence-transformers beside it,
            the mean of all tokens without one.

    Raises:
        ValueError: It pools in another way than by the mean or by the first token.
        OSError: There is no such model.
    """

    POOLING = "1_Pooling/config.json"

    def __init__(self, name: str) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(name)
        self.model: Any = AutoModel.from_pretrained(name).eval().requires_grad_(False)
        self.of_first = _pools_first(name)

    @property
    def width(self) -> int:
        """W."""
        return int(self.model.config.hidden_size)

    def check(self, model: LLEForSequenceClassification) -> None:
        """Raises a ValueError if a classifier's projection has another width than the embeddings."""
        width = model.config.classifier.projection
        if width != self.width:
            raise ValueError(
                f"the teacher's embeddings are {self.width} wide, and classifier.projection is {width}: set "
                f"model.classifier.projection={self.width}"
            )

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embeds texts: (n, W) float32, each of length 1."""
        given = self.tokenizer(list(texts), truncation=True, max_length=LONGEST)
        lengths = torch.tensor([len(ids) for ids in given["input_ids"]])
        found = torch.empty(len(texts), self.width)
        for chosen in lengths.argsort(descending=True).split(BATCH):  # of like length: little padding
            rows = {name: [values[row] for row in chosen.tolist()] for name, values in given.items()}
            batch = self.tokenizer.pad(rows, return_tensors="pt").to(self.model.device)
            states = self.model(**batch).last_hidden_state.float()
            mask = batch["attention_mask"][..., None]
            pooled = states[:, 0] if self.of_first else (states * mask).sum(1) / mask.sum(1)
            found[chosen] = nn.functional.normalize(pooled, dim=-1).cpu()
        return found


class Taught:
    """What a teacher says of texts.

    Args:
        texts: n different texts.
        embeddings: (n, W) float32, of length 1.
    """

    def __init__(self, texts: Sequence[str], embeddings: Tensor) -> None:
        self.embeddings = embeddings
        self._rows = {text: row for row, text in enumerate(texts)}

    def of(self, texts: Iterable[str]) -> Tensor:
        """The embeddings (m, W) of some of the texts, in their order."""
        return self.embeddings[torch.tensor([self._rows[text] for text in texts])]


def _pools_first(name: str) -> bool:
    """Whether the encoder's state is that of its first token, not the mean."""
    options: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}
    file = cached_file(name, SentenceEncoder.POOLING, **options, _raise_exceptions_for_connection_errors=False)
    if file is None:
        return False
    values = json.loads(Path(file).read_text(encoding="utf-8"))
    ways = {way.removeprefix("pooling_mode_") for way, used in values.items() if used is True}
    ways = {str(values["pooling_mode"])} if "pooling_mode" in values else ways - {"include_prompt"}
    if ways <= {"mean", "mean_tokens"}:
        return False
    if ways <= {"cls", "cls_token"}:
        return True
    raise ValueError(f"{name} pools by {', '.join(sorted(ways))}: choose an encoder that pools by mean or first token")


def encoder_width(name: str) -> int:
    """Width of the embeddings of a sentence encoder, a folder or a name on the Hub."""
    return int(AutoConfig.from_pretrained(name).hidden_size)


class Student(nn.Module):
    """A classifier beside the embeddings that it is to learn.

    Args:
        model: The classifier, whose projection is as wide as these.
        embeddings: (n, W) float32, of length 1.
    """

    embeddings: Tensor

    def __init__(self, model: LLEForSequenceClassification, embeddings: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("embeddings", embeddings, persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """Computes the `loss` of texts, their `distance` to the teacher.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T) of 0 and 1, 0 at padding.
            rows: (B,) int64, their rows of the embeddings.
        """
        items = self.model.pooled(input_ids, attention_mask)
        return {"loss": distance(items, self.embeddings[rows])}


def distance(items: Tensor, embeddings: Tensor) -> Tensor:
    """Mean of 1 less the cosine between what each member says (B, M W) and the teacher (B, W): a scalar float32."""
    own = nn.functional.normalize(items.float().unflatten(-1, (-1, embeddings.shape[1])), dim=-1)
    return 1 - (own * embeddings[:, None]).sum(-1).mean()


def distil(
    model: LLEForSequenceClassification,
    texts: Dataset,
    embeddings: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    arguments: TrainingArguments,
    epochs: float,
    callbacks: Sequence[TrainerCallback] = (),
) -> None:
    """Trains a classifier in place, all but its output layer, to embed texts as a teacher does.

    Args:
        model: Classifier, changed in place.
        texts: Columns `input_ids` and `attention_mask` of n texts.
        embeddings: (n, W) float32, the teacher's.
        tokenizer: Tokenizer of the classifier.
        arguments: Arguments of the subsequent training; its specific ones are ignored.
        epochs: Passes over the texts.
        callbacks: Of the Trainer.
    """
    texts = texts.add_column("rows", list(range(len(texts))))
    student, collate = Student(model, embeddings), DataCollatorWithPadding(tokenizer)
    train_stage(student, texts, collate, arguments, epochs, "Distilling", callbacks)
