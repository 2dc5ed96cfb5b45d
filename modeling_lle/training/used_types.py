"""Training of pretrained embeddings for the types that occur: an optimizer would go through all others in vain.

Notable: a type without a gradient keeps its embedding, so that a model trained this way is that which is trained as a
whole without weight decay; of 32,000 types a task uses some thousands. Shapes: V vocabulary, U types that occur, E
width of an embedding.
"""

from collections.abc import Iterable
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import TrainerCallback

from ..models.backbone import LLEModel


class UsedEmbedding(nn.Module):
    """The embeddings of the types that occur.

    Args:
        whole: The embeddings of all types (V, E).
        ids: (U,) int64, those that occur, in ascending order.
    """

    places: Tensor

    def __init__(self, whole: nn.Embedding, ids: Tensor) -> None:
        super().__init__()
        places = torch.zeros(whole.num_embeddings, dtype=torch.long)
        places[ids] = torch.arange(len(ids))
        self.register_buffer("places", places, persistent=False)
        self.weight = nn.Parameter(whole.weight.detach()[ids].clone())

    def forward(self, ids: Tensor) -> Tensor:
        """Embeds ids (B, T) int64 as (B, T, E)."""
        return nn.functional.embedding(self.places[ids], self.weight)


class TrainUsedTypes(TrainerCallback):
    """Puts a `UsedEmbedding` into a backbone, and the whole embeddings back at the end of training.

    Args:
        backbone: The backbone, changed in place.
        texts: Columns `input_ids` of all texts that are read in training, those of its evaluation included.
        padding: Id of the type for padding.
    """

    def __init__(self, backbone: LLEModel, texts: Iterable[Dataset], padding: int) -> None:
        found = {padding} | {number for rows in texts for ids in rows["input_ids"] for number in ids}
        self.backbone, self.ids = backbone, torch.tensor(sorted(found))
        self.whole: nn.Embedding = backbone.embed_tokens
        self.used = UsedEmbedding(self.whole, self.ids)
        backbone.set_input_embeddings(self.used)

    @torch.no_grad()
    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Puts them back."""
        self.whole.to(self.used.weight.device)
        self.whole.weight[self.ids.to(self.used.weight.device)] = self.used.weight
        self.backbone.set_input_embeddings(self.whole)
