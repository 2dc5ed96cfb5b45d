"""Shares of the sentence pairs of a memory in a translation.

Notable: every token of a translation is a mixture of the base's prediction and of entries of the memory; the share of
an entry in it is exact, and that of a pair is the sum over its entries. Nothing is estimated.
Shapes: T tokens, K candidates.
"""

from dataclasses import dataclass

import torch

from ..history.prediction import HistoryOutput
from .pairs import Memory


@dataclass(frozen=True)
class Attribution:
    """Shares in a translation, means over its tokens; they add up to one.

    Attributes:
        base_share: The base's share.
        shares: The shares of the pairs by their places in `Memory.pairs`, the largest first.
    """

    base_share: float
    shares: dict[int, float]


def attribute(history: HistoryOutput, memory: Memory) -> Attribution:
    """The shares of the base and of sentence pairs in a translation.

    Args:
        history: That of the T >= 1 tokens of the translation: shares (T,) and (T, K), on the CPU, such as
            `LLEForSeq2SeqLM.explained` gives.
        memory: The memory that it recalled from.
    """
    assert history.base_share is not None
    assert history.bank_shares is not None
    assert history.bank_ids is not None
    ids, tokens = history.bank_ids, len(history.base_share)
    pairs, places = memory.owners(ids[ids >= 0]).unique(return_inverse=True)
    shares = history.bank_shares[ids >= 0] / tokens
    by_pair = torch.zeros(len(pairs)).index_add(0, places, shares)
    order = by_pair.argsort(descending=True, stable=True)
    return Attribution(
        base_share=sum(history.base_share.tolist()) / tokens,
        shares=dict(zip(pairs[order].tolist(), by_pair[order].tolist(), strict=True)),
    )
