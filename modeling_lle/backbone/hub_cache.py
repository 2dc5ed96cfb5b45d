"""The state of a backbone of transformers: what its cache holds, as a nest of tensors, and a cache from it.

Notable: a cache is made for each segment and taken apart again, so that the state is a value like that of every other
backbone: it is reordered, selected, repeated, saved and detached by backbone/state.py. The layers of that cache
replace their states where those of transformers write into them, which would break gradients. Shapes: B batch.
"""

from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)

Layers = dict[str, Any]  # the tensors of each layer by the names of the layer and of the tensor


class _Replacing(LinearAttentionLayer):
    """A recurrent layer's states, which are replaced and never written into."""

    def update_conv_state(
        self, conv_states: Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **kwargs: Any
    ) -> Tensor:
        """As in transformers: returns the inputs before the segment and in it, and keeps the last ones."""
        before = self.conv_states[state_idx]
        size = self.conv_kernel_size[state_idx] or conv_kernel_size or conv_states.shape[-1]
        whole = conv_states if before is None else torch.cat([before, conv_states], dim=-1)
        whole = torch.nn.functional.pad(whole, (max(0, size - whole.shape[-1]), 0))
        self.conv_states[state_idx], self.conv_kernel_size[state_idx] = whole[..., -size:], size
        self.is_conv_states_initialized[state_idx] = self.has_previous_state[state_idx] = True
        layer = cast(Any, self)  # transformers declares None
        layer.dtype, layer.device = conv_states.dtype, conv_states.device
        return whole

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: Any) -> Tensor:
        """As in transformers."""
        self.recurrent_states[state_idx] = recurrent_states
        self.is_recurrent_states_initialized[state_idx] = True
        return recurrent_states


class _ReplacingAndFull(_Replacing, LinearAttentionAndFullAttentionLayer):  # type: ignore[misc, override]
    """The same in a layer that attends as well."""


_REPLACING: dict[type, Any] = {
    LinearAttentionLayer: _Replacing,
    LinearAttentionAndFullAttentionLayer: _ReplacingAndFull,
}


def make_cache(config: PreTrainedConfig, rows: int, dtype: torch.dtype, device: torch.device) -> Any:
    """An empty cache for a batch of `rows`."""
    if config.model_type == "xlstm":
        from transformers.models.xlstm.modeling_xlstm import xLSTMCache

        return xLSTMCache(config, rows, dtype, device)  # type: ignore[arg-type]
    cache = DynamicCache(config=config)
    layers: list[Any] = cache.layers
    cache.layers = [
        _REPLACING[type(layer)](layer.number_of_states) if type(layer) in _REPLACING else layer for layer in layers
    ]
    return cache


def take_apart(cache: Any) -> Layers:
    """The tensors that a cache holds, by layer."""
    if not isinstance(cache, Cache):
        return {f"layer{number}": tuple(state) for number, state in cache.rnn_state.items()}
    layers: Layers = {}
    for number, layer in enumerate(cache.layers):
        tensors: dict[str, Tensor] = {}
        for kind in ("conv", "recurrent"):
            for place, tensor in getattr(layer, f"{kind}_states", {}).items():
                if tensor is not None:
                    tensors[f"{kind}_{place}"] = tensor
        for kind in ("keys", "values"):
            tensor = getattr(layer, kind, None)
            if tensor is not None:
                tensors[kind] = tensor
        if tensors:
            layers[f"layer{number}"] = tensors
    return layers


def put_together(cache: Any, layers: Layers, seen: int) -> None:
    """Fills an empty cache with what `take_apart` gave, after `seen` tokens.

    Recurrent states are copied, because the kernels of some models write into them.
    """
    if not layers:
        return
    if not isinstance(cache, Cache):
        cache.rnn_state = {int(name[5:]): tuple(map(torch.clone, state)) for name, state in layers.items()}
        cache.seqlen_offset += seen
        return
    for name, tensors in layers.items():
        layer = cast(Any, cache.layers[int(name[5:])])
        for kind, tensor in tensors.items():
            if kind in ("keys", "values"):
                _fill_attention(layer, kind, tensor, seen)
            else:
                name, _, place = kind.partition("_")
                _fill_recurrent(layer, name, int(place), tensor.clone())


def _fill_attention(layer: Any, kind: str, tensor: Tensor, seen: int) -> None:
    setattr(layer, kind, tensor)
    layer.dtype, layer.device, layer.is_initialized = tensor.dtype, tensor.device, True
    if hasattr(layer, "cumulative_length"):
        layer.cumulative_length = seen


def _fill_recurrent(layer: Any, kind: str, place: int, tensor: Tensor) -> None:
    getattr(layer, f"{kind}_states")[place] = tensor
    getattr(layer, f"is_{kind}_states_initialized")[place] = True
    layer.has_previous_state[place] = True
    layer.dtype, layer.device = tensor.dtype, tensor.device
    if kind == "conv":
        layer.conv_kernel_size[place] = tensor.shape[-1]


def clear_rows(layers: Layers, begun: Tensor) -> Layers:
    """The layers with the recurrent states of rows that have not begun, `begun` (B,) bool, as at the beginning."""

    def cleared(tensor: Tensor) -> Tensor:
        return torch.where(begun.view(-1, *[1] * (tensor.dim() - 1)), tensor, tensor.new_zeros(()))

    changed: Layers = {}
    for name, tensors in layers.items():
        if isinstance(tensors, tuple):
            changed[name] = tuple(map(cleared, tensors))
        else:
            changed[name] = {
                kind: tensor if kind in ("keys", "values") else cleared(tensor) for kind, tensor in tensors.items()
            }
    return changed
