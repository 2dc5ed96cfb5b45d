"""Multi-head attention of a decoder to the source, between its recurrent layers.

Shapes: E sources, B = E * G targets, G per source, side by side (such as beams), T time of the target, S tokens of the
source, D width, W width of the encoder's states, H heads.
"""

import torch
from torch import Tensor, nn

from ..configuration import LLEConfig
from ..kernels.linear import apply_linear


class SourceAttention(nn.Module):
    """Scaled dot-product attention of decoder states to encoder states (Vaswani et al. 2017, section 3.2).

    Args:
        config: The configuration.
        source_size: W, width of the encoder's states.
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
        """Returns keys and values (E, H, S, D / H) of the encoder's states (E, S, W)."""
        keys, values = self.key_value(source).unflatten(-1, (2 * self.heads, -1)).transpose(1, 2).chunk(2, dim=1)
        return keys.contiguous(), values.contiguous()  # once, not in every step of a search

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Attends from the decoder's states to the source.

        Args:
            x: (B, T, D) floating.
            keys, values: From `read`.
            mask: (E, S) bool, False at padding; None for none.

        Returns:
            The result (B, T, D) and the attention weights (B, H, T, S), whose rows sum to 1.
        """
        # Written out, since torch's fused kernel takes several times as long for short sentences on a CPU.
        length = x.shape[1]
        if len(x) % len(keys):
            raise ValueError(f"{len(x)} targets cannot belong to {len(keys)} sources: give as many to each")
        # Targets of one source are batched as (E, G * T, D), so that its keys are read once.
        x = x.reshape(len(keys), -1, x.shape[-1])
        query = apply_linear(self.query, self.norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        scores = query @ keys.to(query.dtype).transpose(-1, -2) * keys.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
        weights = scores.softmax(-1)
        found = weights.to(query.dtype) @ values.to(query.dtype)
        states = apply_linear(self.output, found.transpose(1, 2).flatten(2))
        weights = weights.unflatten(2, (-1, length)).transpose(1, 2).flatten(0, 1)
        return states.reshape(-1, length, states.shape[-1]), weights
