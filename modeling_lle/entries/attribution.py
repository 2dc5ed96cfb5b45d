"""Attribution of a translation to the sentence pairs of a memory, by exact shares.

Notable: each token is predicted by a mixture of the base and the entries of the memory; the share of a pair is the sum
over its entries. Nothing is estimated.
Shapes: B batch, T time, K candidates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..history.loss import IGNORED
from ..history.prediction import Prediction
from .pairs import Memory, PairEncoder, padded


class Translator(PairEncoder, Protocol):
    """A translator that recalls from a memory."""

    @property
    def model(self) -> Any:
        """Encoder and decoder."""
        ...

    @property
    def memory(self) -> Memory:
        """The attached memory as it is now."""
        ...

    def read_source(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, *, memory: Memory | None = None
    ) -> Any:
        """Encoded sources with the candidates of a memory."""
        ...

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """The decoder's input (B, T) for targets (B, T) int64."""
        ...

    def predictions(self, states: Tensor, source: Any) -> Iterator[Prediction]:
        """Predictions after the decoder's states (B, T, D), block by block."""
        ...


@dataclass(frozen=True)
class TokenShare:
    """A token of a translation.

    Attributes:
        id: Its id.
        base_prob, prob: Its probability by the base alone, and with the memory.
        base_share: The base's share of the mixture.
    """

    id: int
    base_prob: float
    prob: float
    base_share: float


@dataclass(frozen=True)
class Attribution:
    """Shares of the base and of the pairs in a translation.

    Attributes:
        base_share: The base's share, mean over the tokens.
        shares: Likewise the shares of the pairs by their indices in `Memory.pairs`, the largest first; together with
            the base's they add up to one.
        tokens: The tokens of the translation.
    """

    base_share: float
    shares: dict[int, float]
    tokens: list[TokenShare]


@torch.no_grad()
def attribute(
    model: Translator,
    sources: Sequence[list[int]],
    targets: Sequence[list[int]],
    pad_token_id: int,
    memory: Memory | None = None,
) -> list[Attribution]:
    """Attributes each of B translations to the pairs of a memory.

    Args:
        model: A translator with a memory, in evaluation mode.
        sources: Token ids of the sources.
        targets: Token ids of the translations, with their end tokens.
        pad_token_id: Padding of the sources.
        memory: The memory; None: the newest state of the model's.
    """
    if not any(targets):
        return [Attribution(1.0, {}, []) for _ in targets]
    batch = {name: value.to(model.device) for name, value in padded(sources, targets, pad_token_id).items()}
    labels = batch["labels"]
    memory = model.memory if memory is None else memory
    source = model.read_source(batch["input_ids"], batch["attention_mask"], memory=memory)
    inputs = model.prepare_decoder_input_ids_from_labels(labels)
    states = model.model.decode(source, inputs, labels != IGNORED).last_hidden_state
    totals = torch.zeros_like(source.candidate_ids, dtype=torch.float32)  # of the entries' shares, (B, K)
    columns: list[Tensor] = []
    for prediction in model.predictions(states, source):
        own = labels[:, prediction.positions]
        history = prediction.history()
        assert history.bank_shares is not None
        assert history.base_share is not None
        totals += (history.bank_shares * (own != IGNORED)[..., None]).sum(1)
        columns.append(
            torch.stack([prediction.base_log_probs(own).exp(), prediction.log_probs(own).exp(), history.base_share])
        )
    numbers = torch.cat(columns, dim=-1).permute(1, 2, 0).tolist()
    return [
        _attribution(target, row, ids.cpu(), shares.cpu(), memory)
        for target, row, ids, shares in zip(targets, numbers, source.candidate_ids, totals, strict=True)
    ]


def _attribution(
    target: list[int], numbers: list[list[float]], ids: Tensor, shares: Tensor, memory: Memory
) -> Attribution:
    """Attribution of one translation, from three values for each token, and ids and summed shares (K,) of entries."""
    if not target:
        return Attribution(1.0, {}, [])
    tokens = [TokenShare(id, *three) for id, three in zip(target, numbers, strict=False)]
    pairs, places = memory.owners(ids[ids >= 0]).unique(return_inverse=True)
    by_pair = torch.zeros(len(pairs)).index_add(0, places, shares[ids >= 0] / len(target))
    order = by_pair.argsort(descending=True, stable=True)
    return Attribution(
        base_share=sum(token.base_share for token in tokens) / len(tokens),
        shares=dict(zip(pairs[order].tolist(), by_pair[order].tolist(), strict=True)),
        tokens=tokens,
    )
