"""How a decoder looks at the source: multi-head attention between its recurrent layers.

Shapes: B batch, T time steps of the target, N tokens of the source, D width, S width of the encoder's states, H heads.
"""

import torch
from torch import Tensor, nn

from .configuration_lle import LLEConfig


class SourceAttention(nn.Module):
    """Scaled dot-product attention of the decoder's states to those of the encoder (Vaswani et al. 2017, section 3.2).

    Args:
        config: The configuration.
        source_size: Width of the encoder's states, S.
    """

    def __init__(self, config: LLEConfig, source_size: int) -> None:
        super().__init__()
        D, heads = config.hidden_size, config.num_attention_heads
        if D % heads:
            raise ValueError(f"num_attention_heads must divide hidden_size: got {heads} heads, a width of {D}")
        self.heads = heads
        self.norm = nn.RMSNorm(D, eps=config.norm_eps)
        self.query = nn.Linear(D, D, bias=False)
        self.key_value = nn.Linear(source_size, 2 * D, bias=False)
        self.output = nn.Linear(D, D, bias=False)

    def read(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, N, D / H) of the encoder's states (B, N, S)."""
        keys, values = self.key_value(source).unflatten(-1, (2 * self.heads, -1)).transpose(1, 2).chunk(2, dim=1)
        return keys, values

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the states x find in the source.

        Args:
            x: (B, T, D) floating.
            keys, values: From `read`.
            mask: (B, N) bool, False at padding; None for none.

        Returns:
            (B, T, D), and how much each state looks at each token of the source, (B, H, T, N); rows sum to 1.
        """
        # Written out: sentences are short, and torch's fused kernel takes several times as long for them on a CPU.
        query = self.query(self.norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        scores = query @ keys.to(query.dtype).transpose(-1, -2) * keys.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
        weights = scores.softmax(-1)
        found = weights.to(query.dtype) @ values.to(query.dtype)
        return self.output(found.transpose(1, 2).flatten(2)), weights
