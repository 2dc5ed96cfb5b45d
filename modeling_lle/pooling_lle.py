"""Pooling: one state of a text from the states of its tokens.

Shapes: B batch, T time, S width of the states.
"""

import torch
from torch import Tensor, nn

from .configuration_lle import LLEConfig


class Pooling(nn.Module):
    """The ways that `config.pooling` names, side by side.

    Args:
        config: The configuration.
    """

    def __init__(self, config: LLEConfig) -> None:
        super().__init__()
        self.ways: list[str] = list(config.pooling)
        self.bidirectional = config.bidirectional
        self.attention = nn.Linear(config.state_size, 1) if "attention" in self.ways else None

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """States (B, T, S) of tokens, and their mask (B, T) bool, False at padding or None, as (B, ways * S)."""
        return torch.cat([getattr(self, f"_{way}")(states, mask) for way in self.ways], dim=-1)

    def _last(self, states: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            first, last = states[:, 0], states[:, -1]
        else:
            row, place = (
                torch.arange(len(states), device=states.device),
                torch.arange(mask.shape[1], device=mask.device),
            )
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
        scores = self.attention(states)[..., 0].float()
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(torch.float32).min)
            states = states.masked_fill(~mask[..., None], 0.0)
        return (scores.softmax(1)[..., None] * states).sum(1).to(states.dtype)
