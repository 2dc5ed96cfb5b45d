"""Shared n-gram embeddings: types of similar spelling learn together during training.

Notable: after training, n-grams are folded into the embedding matrix, so a saved model has no more weights or compute;
checkpoints keep them. Shapes: V vocabulary, D width.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedTokenizerBase, TrainerCallback

SHORTEST = 3  # characters


class CharacterNgrams(nn.Module):
    """Adds to the embedding of each type the mean vector of its character n-grams of at least 3 characters (Bojanowski
    et al. 2017, arXiv:1607.04606, section 3.2); n-grams of a single type are left out.

    Args:
        names: V types as spelt by the tokenizer, with word beginnings marked; "" has no n-grams.
        longest: Characters of the longest n-gram.
        width: D.
        scale: Vectors are initialised uniformly between -scale and scale.
    """

    def __init__(self, names: Sequence[str], longest: int, width: int, scale: float) -> None:
        super().__init__()
        own = [ngrams(name, longest) for name in names]
        counts = Counter(ngram for found in own for ngram in found)
        place = {ngram: number for number, ngram in enumerate(sorted(n for n, count in counts.items() if count > 1))}
        shared = [[place[ngram] for ngram in found if ngram in place] for found in own]
        ends = torch.tensor([0, *(len(found) for found in shared)]).cumsum(0)
        self.register_buffer("places", torch.tensor([n for found in shared for n in found], dtype=torch.long), False)
        self.register_buffer("starts", ends[:-1], False)
        self.vectors = nn.EmbeddingBag(max(1, len(place)), width, mode="mean")
        nn.init.uniform_(self.vectors.weight, -scale, scale)

    def forward(self, matrix: Tensor) -> Tensor:
        """Embedding matrix (V, D) with n-grams, floating."""
        return matrix + self.vectors(self.places, self.starts)


def ngrams(name: str, longest: int) -> list[str]:
    """Distinct n-grams of a type, sorted.

    >>> ngrams("cards", 4)
    ['ard', 'ards', 'car', 'card', 'rds']
    """
    sizes = range(SHORTEST, longest + 1)
    return sorted({name[i : i + size] for size in sizes for i in range(len(name) - size + 1)})


def add_ngrams(embeddings: nn.Embedding, tokenizer: PreTrainedTokenizerBase, longest: int, scale: float) -> None:
    """Adds n-grams to embeddings until `FoldNgrams`; special tokens of the tokenizer have none."""
    names: Any = tokenizer.convert_ids_to_tokens(list(range(embeddings.num_embeddings)))
    special = set(tokenizer.all_special_tokens)
    spelt = ["" if name is None or name in special else name for name in names]
    parametrize.register_parametrization(
        embeddings, "weight", CharacterNgrams(spelt, longest, embeddings.embedding_dim, scale)
    )


class FoldNgrams(TrainerCallback):
    """Folds n-grams into the embedding matrix at the end of training.

    Args:
        embeddings: Embeddings given to `add_ngrams`.
    """

    def __init__(self, embeddings: nn.Embedding) -> None:
        self.embeddings = embeddings

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Folds them."""
        parametrize.remove_parametrizations(self.embeddings, "weight")
