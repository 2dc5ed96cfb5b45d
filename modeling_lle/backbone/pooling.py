"""Pooling: one state of a text from the states of its tokens.

Shapes: B batch, T time, S width of the states, M members, K width of an item.
"""

import torch
from torch import Tensor, nn

from ..configuration import LLEConfig


class Pooling(nn.Module):
    """The ways that `config.classifier.pooling` names, side by side.

    Args:
        config: The configuration.
    """

    def __init__(self, config: LLEConfig) -> None:
        super().__init__()
        self.ways: list[str] = list(config.classifier.pooling)
        self.bidirectional = config.bidirectional
        self.members, self.width = config.classifier.members, config.hidden_size
        self.attention = nn.Linear(config.state_size, 1) if "attention" in self.ways else None

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """States (B, T, S) of tokens, and their mask (B, T) bool, False at padding or None, as (B, ways * S)."""
        return torch.cat([getattr(self, f"_{way}")(states, mask) for way in self.ways], dim=-1)

    def _last(self, states: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            first, last = states[:, 0], states[:, -1]
        else:
            row = torch.arange(states.shape[0], device=states.device)
            place = torch.arange(mask.shape[1], device=mask.device)
            first, last = states[row, mask.int().argmax(1)], states[row, (place * mask).amax(1)]
        half = states.shape[-1] // 2
        return torch.cat([last[:, :half], first[:, half:]], dim=-1) if self.bidirectional else last

    def _mean(self, states: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return states.sum(1) / states.shape[1]
        return states.masked_fill(~mask[..., None], 0.0).sum(1) / mask.sum(1)[:, None].clamp(min=1)

    def _max(self, states: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            states = states.masked_fill(~mask[..., None], torch.finfo(states.dtype).min)
        return states.amax(1)

    def _attention(self, states: Tensor, mask: Tensor | None) -> Tensor:
        assert self.attention is not None
        scores = self.attention(apart(states, self.members, self.width))[..., 0].float()  # (M, B, T)
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(torch.float32).min)
            states = states.masked_fill(~mask[..., None], 0.0)
        weights = scores.softmax(-1)[..., None]
        return (weights * apart(states, self.members, self.width)).sum(2).sum(0).to(states.dtype)


def apart(items: Tensor, members: int, width: int) -> Tensor:
    """Items (..., K) once for each member, (M, ..., K), with the channels of the others set to 0.

    Args:
        items: Floating; states of a backbone, or what was pooled of them.
        members: M.
        width: Of a member in one direction.
    """
    if members == 1:
        return items[None]
    own = torch.eye(members, dtype=items.dtype, device=items.device).view(members, *[1] * items.dim(), members, 1)
    return (items.unflatten(-1, (-1, members, width)) * own).flatten(-3)
