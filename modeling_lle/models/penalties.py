"""Penalties of the states that are part of a training loss. Shapes: B batch, T time, D width."""

import torch
from torch import Tensor

from ..configuration import LLEConfig


def penalties(config: LLEConfig, states: Tensor, dropped: Tensor, mask: Tensor | None) -> Tensor:
    """Activation and temporal activation regularisation (Merity et al. 2018, arXiv:1708.02182, section 4.6).

    Means over what is real in states and dropped states (B, T, D), by `mask` (B, T) bool or None.
    """
    penalty = states.new_zeros((), dtype=torch.float32)
    if config.activation_penalty:
        real = dropped if mask is None else dropped[mask]
        penalty = penalty + config.activation_penalty * real.float().square().mean()
    if config.smoothness_penalty:
        steps = states.float().diff(dim=1)
        steps = steps if mask is None else steps[mask[:, 1:] & mask[:, :-1]]
        if steps.numel():
            penalty = penalty + config.smoothness_penalty * steps.square().mean()
    return penalty
