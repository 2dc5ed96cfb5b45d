"""How a decoder looks at the source: multi-head attention between its recurrent layers.

Shapes: E sources, B = E * R targets, R of each source side by side, such as the beams of a search, T time steps of the
target, N tokens of the source, D width, S width of the encoder's states, H heads.
"""

import torch
from torch import Tensor, nn

from ..configuration import LLEConfig


class SourceAttention(nn.Module):
    """Scaled dot-product attention of the decoder's states to those of the encoder (Vaswani et al. 2017, section 3.2).

    Args:
        config: The configuration.
        source_size: Width of the encoder's states, S.
    """

    def __init__(self, config: LLEConfig, source_size: int) -> None:
        super().__init__()
        D, heads = config.hidden_size, config.translator.num_attention_heads
        if D % heads:
            raise ValueError(f"num_attention_heads must divide hidden_size: got {heads} heads, a width of {D}")
        self.heads = heads
        self.norm = nn.RMSNorm(D, eps=config.norm_eps)
        self.query = nn.Linear(D, D, bias=False)
        self.key_value = nn.Linear(source_size, 2 * D, bias=False)
        self.output = nn.Linear(D, D, bias=False)

    def read(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (E, H, N, D / H) of the encoder's states (E, N, S)."""
        keys, values = self.key_value(source).unflatten(-1, (2 * self.heads, -1)).transpose(1, 2).chunk(2, dim=1)
        return keys.contiguous(), values.contiguous()  # once, and not in each step of a search

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the states x find in the source.

        Args:
            x: (B, T, D) floating.
            keys, values: From `read`.
            mask: (E, N) bool, False at padding; None for none.

        Returns:
            (B, T, D), and how much each state looks at each token of the source, (B, H, T, N); rows sum to 1.
        """
        # Written out: sentences are short, and torch's fused kernel takes several times as long for them on a CPU.
        length = x.shape[1]
        if len(x) % len(keys):
            raise ValueError(f"{len(x)} targets cannot belong to {len(keys)} sources: give as many to each")
        # All that look at one source are read as one: (E, R * T, D), so that its keys are read once.
        x = x.reshape(len(keys), -1, x.shape[-1])
        query = self.query(self.norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        scores = query @ keys.to(query.dtype).transpose(-1, -2) * keys.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
        weights = scores.softmax(-1)
        found = weights.to(query.dtype) @ values.to(query.dtype)
        states = self.output(found.transpose(1, 2).flatten(2))
        weights = weights.unflatten(2, (-1, length)).transpose(1, 2).flatten(0, 1)
        return states.reshape(-1, length, states.shape[-1]), weights
