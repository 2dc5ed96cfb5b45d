"""A recurrent or hybrid model of transformers as a backbone: how a segment is read, and the state it leaves.

Notable: a text is padded before its beginning or after its end, never in the middle, where the states of some models
would decay. What follows the end of a text is read, but nothing may go on from there. A model that would go on with
its cache wrongly by several tokens at once reads them one by one. Shapes: B batch, T time, D width, V vocabulary, S
tokens of the text so far.
"""

import contextlib
import copy
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from .hub_cache import Layers, clear_rows, make_cache, put_together, take_apart
from .hub_families import Family, cap_of
from .state import OpaqueState

_MASK = "mask"  # in the state, beside the layers


class Encoded(NamedTuple):
    """What a segment gives: states (B, T, D), the state after it, and those of all layers if asked for."""

    states: Tensor
    state: OpaqueState
    hidden_states: tuple[Tensor, ...] | None


class CappedLinear(nn.Linear):
    """An output layer whose logits x are softly capped: cap * tanh(x / cap).

    Args:
        inputs, outputs: Widths.
        cap: The bound of the logits.
    """

    def __init__(self, inputs: int, outputs: int, cap: float) -> None:
        super().__init__(inputs, outputs)
        self.cap = cap

    def forward(self, input: Tensor) -> Tensor:
        """Logits (..., V) of states (..., D)."""
        return torch.tanh(super().forward(input) / self.cap) * self.cap


def make_output_layer(width: int, vocabulary: int, wrapped: PreTrainedConfig | None) -> nn.Linear:
    """The output layer (V, D) of a language model, as that of the wrapped model if there is one."""
    cap = None if wrapped is None else cap_of(wrapped)
    return nn.Linear(width, vocabulary) if cap is None else CappedLinear(width, vocabulary, cap)


def make_backbone(config: PreTrainedConfig) -> PreTrainedModel:
    """A backbone of a configuration of transformers, with random weights."""
    return AutoModel.from_config(config)


def embedding_name(backbone: PreTrainedModel) -> str:
    """The name of the weight of its input embeddings."""
    own = backbone.get_input_embeddings()
    return next(f"{name}.weight" for name, module in backbone.named_modules() if module is own)


def read_segment(
    backbone: PreTrainedModel,
    family: Family,
    given: dict[str, Tensor],
    mask: Tensor | None,
    state: OpaqueState,
    keeps_state: bool,
    with_layers: bool = False,
) -> Encoded:
    """Reads a segment of texts.

    Args:
        backbone: The base model of transformers.
        family: How it is read.
        given: `input_ids` (B, T) int64 or `inputs_embeds` (B, T, D) floating, by its name.
        mask: (B, T) bool, False at padding, or None.
        state: The state before the segment; None at the beginning.
        keeps_state: Whether the state after it is wanted.
        with_layers: Whether the states of all layers are wanted.

    Raises:
        ValueError: There is padding in the middle of a text.
    """
    (tokens,) = given.values()
    rows, length = tokens.shape[:2]
    past = torch.ones(rows, 0, dtype=torch.bool, device=tokens.device) if state is None else state[_MASK]
    now = torch.ones(rows, length, dtype=torch.bool, device=tokens.device) if mask is None else mask
    reading = _Reading(backbone, family, torch.cat([past, now], dim=1), past.shape[1])
    reading.check_padding()
    single = length > 1 and (
        (state is not None and not family.pieces) or (not family.masks and reading.has_rows_to_begin(1))
    )
    cache = None
    if keeps_state or state is not None or single:
        cache = reading.make_cache({} if state is None else {n: part for n, part in state.items() if n != _MASK})
    parts = []
    for start in range(0, length, 1 if single else length):
        stop = start + 1 if single else length
        parts.append(reading.read({n: own[:, start:stop] for n, own in given.items()}, stop, cache, with_layers))
        if cache is not None and reading.has_rows_to_begin(stop):
            cache = reading.make_cache(clear_rows(take_apart(cache), reading.begun(stop)), stop)
    states = torch.cat([own.last_hidden_state for own in parts], dim=1)
    hidden = None
    if with_layers:
        layers = zip(*(own.hidden_states for own in parts), strict=True)
        hidden = (*(torch.cat(layer, dim=1) for layer in layers),)
    return Encoded(states, reading.state(cache) if keeps_state else None, hidden)


class _Reading:
    """A segment that is being read.

    Args:
        backbone, family: As for `read_segment`.
        mask: (B, S + T) bool, False at padding; of a family that does not attend, S is 2: whether the row has begun,
            and whether its last token was real.
        before: S.
    """

    def __init__(self, backbone: PreTrainedModel, family: Family, mask: Tensor, before: int) -> None:
        self.backbone, self.family, self.mask, self.before = backbone, family, mask, before
        self.is_padded = not bool(mask.all())

    def begun(self, stop: int) -> Tensor:
        """Which rows have begun within the first `stop` positions of the segment, (B,) bool."""
        return self.mask[:, : self.before + stop].any(1)

    def has_rows_to_begin(self, stop: int) -> bool:
        """Whether some row has not begun within the first `stop` positions."""
        return self.is_padded and not bool(self.begun(stop).all())

    def check_padding(self) -> None:
        """Raises a ValueError if a token follows padding that follows a token."""
        if not self.is_padded:
            return
        changes = self.mask[:, 1:] & ~self.mask[:, :-1]
        begins = changes.sum(1) + self.mask[:, 0]
        if bool((begins > 1).any()):
            row = int((begins > 1).nonzero()[0])
            raise ValueError(
                f"row {row} has padding in the middle of its text, at which the states of a model of the type "
                f"{self.backbone.config.model_type!r} would change: pad on the left "
                "(tokenizer.padding_side = 'left'), and begin a new text with a new cache"
            )

    def make_cache(self, layers: Layers, stop: int = 0) -> Any:
        """A cache with the states of these layers, of the text up to `stop` positions of the segment."""
        weight = cast(Tensor, self.backbone.get_input_embeddings().weight)
        cache = make_cache(self.backbone.config, len(self.mask), weight.dtype, self.mask.device)
        put_together(cache, layers, self.before + stop)
        return cache

    def read(self, given: dict[str, Tensor], stop: int, cache: Any, with_layers: bool) -> Any:
        """What the model returns for the part of the segment that ends at `stop`; the cache moves on."""
        (tokens,) = given.values()
        until = self.mask[:, : self.before + stop]
        options: dict[str, Any] = {"use_cache": cache is not None, "return_dict": True, **given}
        if cache is not None:
            options[self.family.cache] = cache
        if with_layers:
            options["output_hidden_states"] = True
        if self.is_padded and (self.family.masks or self.family.attends):
            options["attention_mask"] = until.long() if self.family.attends else until[:, -tokens.shape[1] :].long()
        if self.family.positions:
            positions = (until.cumsum(1) - 1).clamp(min=0) if self.is_padded else self._positions(stop)
            options["position_ids"] = positions[:, -tokens.shape[1] :]
        return self.backbone(**options)

    def _positions(self, stop: int) -> Tensor:
        return torch.arange(self.before + stop, device=self.mask.device).expand(len(self.mask), -1)

    def state(self, cache: Any) -> OpaqueState:
        """The state after the segment."""
        layers = take_apart(cache)
        if not layers:
            raise ValueError(
                f"a model of the type {self.backbone.config.model_type!r} left nothing in the cache that it was "
                "given, so that it cannot go on with a text"
            )
        mask = self.mask
        if not self.family.attends:
            mask = torch.stack([mask.any(1), mask[:, -1]], dim=1)
        return {_MASK: mask, **layers}


@torch.no_grad()
def restore_buffers(backbone: PreTrainedModel) -> None:
    """Sets the buffers that are not saved to what the configuration makes of them.

    transformers leaves some of them as they come out of the memory in a model within another one.
    """
    if not any(module._non_persistent_buffers_set for module in backbone.modules()):
        return
    try:  # parameters without memory, buffers with their values
        from accelerate import init_empty_weights
    except ImportError:  # parameters whose memory nobody writes to
        without_memory: Any = contextlib.nullcontext()
    else:
        without_memory = init_empty_weights(include_buffers=False)
    with without_memory, no_init_weights():
        fresh = type(backbone)(copy.deepcopy(backbone.config))
    modules = dict(backbone.named_modules())
    for name, module in fresh.named_modules():
        for buffer in module._non_persistent_buffers_set:
            own, due = getattr(modules[name], buffer), getattr(module, buffer)
            if own is not None and due is not None:
                own.copy_(due)
