"""What a language model predicts in a batch: the next token of each position, and what the summed loss is divided by.

Notable: the mask decides what is a target. Padding neither predicts nor is predicted, so a padded row has the targets
that it has alone, wherever its padding lies.
Shapes: B batch, T time; of packed documents N documents, L tokens of the longest one.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..history.loss import IGNORED
from .arguments import Packing


def next_labels(labels: Tensor, mask: Tensor | None) -> Tensor:
    """The label of the token after each position (B, T) int64, -100 where there is none.

    Args:
        labels: (B, T) int64.
        mask: (B, T) bool, False at padding; None for none.
    """
    if mask is None:
        return pad(labels[:, 1:], (0, 1), value=IGNORED)
    length = labels.shape[1]
    place = torch.where(mask, torch.arange(length, device=labels.device), length)
    following = place.flip(1).cummin(1).values.flip(1)[:, 1:]  # the first real position from each one on
    ended = pad(labels, (0, 1), value=IGNORED)
    return without_padding(ended.gather(1, pad(following, (0, 1), value=length)), mask)


def without_padding(targets: Tensor, mask: Tensor | None) -> Tensor:
    """The targets (B, T) int64 of positions, of which padding has none: `mask` (B, T) bool is False there."""
    return targets if mask is None else targets.masked_fill(~mask, IGNORED)


class Targets:
    """The targets of a batch.

    Args:
        labels: (B, T) int64.
        shifted: Whether they are those of the next token already.
        mask: (B, T) bool, False at padding; None for none.
        packing: The packed documents, if there are any; nothing is predicted from one to the next.
        items: `num_items_in_batch`; None: the targets of this batch.

    Attributes:
        tokens: (B, T), or (N, L) of packed documents, int64, -100 where there is none.
        number: What the summed loss is divided by.
        share: What a mean over the batch is multiplied by: its share in what a step of the optimizer adds up.
    """

    def __init__(
        self, labels: Tensor, shifted: bool, mask: Tensor | None, packing: Packing | None, items: Tensor | int | None
    ) -> None:
        first, padded = labels[:, 1:], mask is not None
        if packing is not None:
            labels, mask = packing.split(labels), packing.mask
        if not shifted:
            self.tokens = next_labels(labels, mask)
        else:
            self.tokens = without_padding(labels, mask if packing is None else packing.mask & ~packing.followed)
        own = (self.tokens != IGNORED).sum()
        self.number: Tensor | int = own.clamp(min=1)
        self.share: Tensor | float = 1.0
        if items is not None:
            # The Trainer counts a row's first token as well if padding stands before it, where nothing predicts it.
            counted = own if shifted or not (padded or packing) else (first != IGNORED).sum()
            self.number = items if counted is own else items * self.number / counted.clamp(min=1)
            self.share = counted / items
