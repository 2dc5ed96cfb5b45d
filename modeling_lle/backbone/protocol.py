"""The socket for backbones: what encodes tokens into states, which serve as keys and queries.

A backbone is an `nn.Module` that satisfies `Backbone`; tests/backbone/conformance.py runs through what it must hold.
Shapes: B batch, T time, D width.
"""

from typing import Protocol, runtime_checkable

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from .state import OpaqueState


class StateHolder(Protocol):
    """Where a backbone finds its state and leaves the new one; an `LLECache` is one.

    Attributes:
        state: A nest of tuples, lists and dictionaries of tensors with the batch in dimension 0 (backbone/state.py),
            which only the backbone looks into; None at the beginning of a text.
        seen_tokens: Length of what has been read, padding included.
    """

    state: OpaqueState
    seen_tokens: int

    def check_rows(self, rows: int) -> None:
        """Raises a ValueError unless a batch of `rows` can go on with the state."""


@runtime_checkable
class Backbone(Protocol):
    """Encodes tokens into states.

    Its rows are independent of each other, and a state depends on the tokens up to its own position only. A text read
    in segments, or step by step, gives what it gives when read at once.
    """

    @property
    def key_size(self) -> int:
        """Width D of the states."""

    def key_weights(self) -> list[tuple[str, Tensor]]:
        """Names and weights of all that the states depend on, sorted by name; banks are bound to their fingerprint."""

    def get_input_embeddings(self) -> nn.Module:
        """Maps token ids (B, T) to the `inputs_embeds` that the backbone reads."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: StateHolder | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
    ) -> BaseModelOutputWithPast:
        """Encodes a segment.

        Args:
            input_ids: (B, T) int64; or give `inputs_embeds`.
            attention_mask: (B, >= T) of 0 and 1, its last T columns are used; the state does not change at a 0.
            past_key_values: Holds the state of the text so far, from which the segment goes on; it is updated.
            inputs_embeds: (B, T, width of the embeddings) floating.
            use_cache: Whether to make a holder where none was given.

        Returns:
            `last_hidden_state` (B, T, D) floating, without meaning at padding, and `past_key_values`, the holder.
        """
