"""Pooling: combines the states of a text's tokens into one state.

Shapes: B batch, T time, W width of the states (both directions of all members), D width of a member, E of its
embeddings, M members, Q width of what is pooled, P of what comes out: Q, or M times that of the projection.
"""

import torch
from torch import Tensor, nn

from ..configuration import LLEConfig

EMBEDDINGS = "embeddings"  # the way of pooling that reads the embedded tokens, not the states


class Pooling(nn.Module):
    """Applies the poolings of the configuration, concatenates their results, and projects each member's.

    Args:
        config: The configuration.
    """

    def __init__(self, config: LLEConfig) -> None:
        super().__init__()
        self.ways: list[str] = list(config.classifier.pooling)
        self.bidirectional = config.bidirectional
        self.members, self.width = config.classifier.members, config.hidden_size
        self.embedding_width = config.embedding_width if EMBEDDINGS in self.ways else 0
        of_states = [way for way in self.ways if way != EMBEDDINGS]
        self.pooled_size = len(of_states) * config.state_size + self.members * self.embedding_width  # Q
        self.attention = nn.Linear(config.state_size, 1) if "attention" in self.ways else None
        self.projected = config.classifier.projection
        self.size = self.members * self.projected or self.pooled_size  # P
        own = self.pooled_size // self.members
        self.projection = nn.Linear(own, self.size, bias=False) if self.projected else None

    @property
    def reads_embeddings(self) -> bool:
        """Whether it also pools the embedded tokens."""
        return EMBEDDINGS in self.ways

    def forward(self, states: Tensor, mask: Tensor | None, embedded: Tensor | None = None) -> Tensor:
        """Pools the tokens of texts.

        Args:
            states: (B, T, W) floating.
            mask: (B, T) bool, False at padding; None: there is none.
            embedded: (B, T, M E) floating, the embedded tokens, if `reads_embeddings`.

        Returns:
            (B, P) floating: the ways of pooling side by side, that of the embeddings last, or their projections.
        """
        parts = [getattr(self, f"_{way}")(states, mask) for way in self.ways if way != EMBEDDINGS]
        if self.reads_embeddings:
            assert embedded is not None
            parts.append(self._mean(embedded, mask))
        pooled = torch.cat(parts, dim=-1)
        return pooled if self.projection is None else self._project(pooled, self.projection.weight)

    def channels(self) -> Tensor:
        """Which channels of what is pooled (B, Q) are each member's: (M, Q / M) int64."""
        own = [torch.arange(self.pooled_size - self.members * self.embedding_width).view(-1, self.members, self.width)]
        if self.reads_embeddings:
            last = torch.arange(self.members * self.embedding_width) + own[0].numel()
            own.append(last.view(1, self.members, -1))
        return torch.cat([part.transpose(0, 1).flatten(1) for part in own], dim=1)

    def _project(self, pooled: Tensor, weight: Tensor) -> Tensor:
        """Projects each member's channels of what is pooled (B, Q) by its rows of the weight (P, Q / M).

        What comes out has the root mean square 1: like the embeddings of sentence encoders, texts differ in direction
        alone, so that long ones do not count for more.
        """
        if self.members == 1:
            own = nn.functional.linear(pooled, weight)[:, None]
        else:
            own = pooled[:, self.channels().to(pooled.device)]  # (B, M, Q / M)
            own = torch.einsum("bmq,mpq->bmp", own, weight.unflatten(0, (self.members, -1)))
        return (nn.functional.normalize(own, dim=-1) * self.projected**0.5).flatten(1)

    def apart(self, items: Tensor) -> Tensor:
        """Copies what comes out (B, P) for each member, (M, B, P), as the function `apart` does."""
        if self.projected:
            return apart(items, self.members, self.projected)
        if not self.reads_embeddings:
            return apart(items, self.members, self.width)
        states, embedded = items.tensor_split([self.size - self.members * self.embedding_width], dim=-1)
        parts = [apart(embedded, self.members, self.embedding_width)]
        if states.shape[-1]:
            parts.insert(0, apart(states, self.members, self.width))
        return torch.cat(parts, dim=-1)

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
    """Copies items (..., C) for each member, (M, ..., C), with the channels of the other members set to 0.

    Args:
        items: Floating; states of a backbone (C = W) or pooled states (C = ways * W).
        members: M.
        width: D, of a member in one direction.
    """
    if members == 1:
        return items[None]
    own = torch.eye(members, dtype=items.dtype, device=items.device).view(members, *[1] * items.dim(), members, 1)
    return (items.unflatten(-1, (-1, members, width)) * own).flatten(-3)
