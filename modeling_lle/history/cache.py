"""LLECache: all that carries over from one segment of a text to the next, in constant memory.

It holds the backbone's opaque state, the stream of recent entries and the overlay of the test-time update.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, LinearAttentionCacheLayerMixin

from ..backbone.state import (
    OpaqueState,
    change_tensors,
    detach,
    from_named_tensors,
    join,
    named_tensors,
    reorder,
    repeat,
    rows_of,
    select,
)
from ..configuration import HistoryConfig
from .bank_matches import LastTokens
from .matches import Matches
from .stream import Stream


class _StateLayer(LinearAttentionCacheLayerMixin):
    """The backbone's opaque state, as the one layer that `transformers.Cache` asks for."""

    is_compileable = False

    def __init__(self) -> None:
        super().__init__()
        self.state: OpaqueState = None

    def set(self, state: OpaqueState) -> None:
        self.state = state
        self.has_previous_state[0] = state is not None

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        self.state = change_tensors(change, self.state)

    def reset(self) -> None:
        self.set(None)

    @property
    def is_croppable(self) -> bool:
        return False

    def lazy_initialization(self, *args: object, **kwargs: object) -> None:
        """Nothing to allocate: the backbone makes its state."""

    def update_conv_state(self, *args: object, **kwargs: object) -> Tensor:
        raise TypeError("an LLE backbone keeps one opaque state: read and set LLECache.state")

    update_recurrent_state = update_conv_state


class LLECache(Cache):
    """Backbone state, stream and overlay of a batch of texts, passed as `past_key_values`.

    Pass it back to continue a text; `reset` starts a new one. Rows are independent of each other.

    Args:
        window: Entries that the stream keeps per row; 0 for no stream.
        matches: Window of the exact matches, in tokens; 0 for none.
        longest: Tokens of a match that are counted.
        last: Tokens that are kept to find exact matches in a bank; 0 for none.

    Attributes:
        stream: The ring buffer, or None.
        matches: The tokens among which exact matches are found, or None.
        last: The last tokens of each row, by which exact matches are found in a bank, or None.
        followed: (B, K) int64, of a translator how far it follows each of its `Candidates`, or None.
        overlay: The changes of the test-time update, an `Overlay` (history/overlay.py), or None.
        unread: (B,) int64, the tokens that `generate` chose last and did not read any more, or None: if the next
            segment begins with them, they are known as the model's own output.
        seen_tokens: Tokens read so far, padding included.
    """

    def __init__(self, window: int = 0, matches: int = 0, longest: int = 16, last: int = 0) -> None:
        super().__init__(layers=[_StateLayer()])
        self.window, self._sizes_of_matches = window, (matches, longest, last)
        self.seen_tokens = 0
        self._begin_history()
        self.overlay: Any = None
        self.unread: Tensor | None = None
        self.followed: Tensor | None = None

    @classmethod
    def of(cls, history: HistoryConfig) -> "LLECache":
        """The cache of a model that uses its history, with the windows of `config.history`."""
        matches = history.matches
        return cls(history.stream.window, matches.window, matches.longest, history.bank_matches.longest)

    @classmethod
    def joined(cls, caches: "Sequence[LLECache]") -> "LLECache":
        """One cache with the rows of several, in order, which stay as they are.

        Args:
            caches: Caches of one model that have read at least one token each, without an overlay, and of a backbone
                whose state does not grow with the text. What only one call knows (`unread`, `followed`) is left out.
        """
        own = cls(caches[0].window, *caches[0]._sizes_of_matches)
        own.state = join([cache.state for cache in caches])
        own.seen_tokens = max(cache.seen_tokens for cache in caches)
        for name in ("stream", "matches", "last"):
            part = getattr(own, name)
            if part is not None and getattr(getattr(caches[0], name), part.tensors[0]) is not None:
                for tensor in part.tensors:
                    setattr(part, tensor, _side_by_side([getattr(getattr(cache, name), tensor) for cache in caches]))
        return own

    def selected(self, indices: Tensor) -> "LLECache":
        """A cache with the rows `indices` (rows,) int64 of this one, which stays as it is; otherwise as `joined`."""
        own = type(self)(self.window, *self._sizes_of_matches)
        own.state, own.seen_tokens = select(self.state, indices), self.seen_tokens
        for name in ("stream", "matches", "last"):
            part = getattr(self, name)
            if part is not None:
                setattr(own, name, copy.copy(part))
                getattr(own, name).apply(lambda tensor: select(tensor, indices))
        return own

    def _begin_history(self) -> None:
        window, longest, last = self._sizes_of_matches
        self.stream = Stream(self.window) if self.window > 0 else None
        self.matches = Matches(window, longest) if window > 0 else None
        self.last = LastTokens(last) if last > 0 else None

    @property
    def takes_tokens(self) -> bool:
        """Whether it reads tokens that make no entry too, as context of exact matches."""
        return self.matches is not None or self.last is not None

    @property
    def _layer(self) -> _StateLayer:
        return cast(_StateLayer, self.layers[0])

    @property
    def state(self) -> OpaqueState:
        """The backbone's state, which only the backbone looks into; None at the beginning of a text."""
        return self._layer.state

    @state.setter
    def state(self, state: OpaqueState) -> None:
        self._layer.set(state)

    @property
    def batch_size(self) -> int:
        """Number of rows; -1 before the first segment."""
        return rows_of(self.state)

    def check_rows(self, rows: int) -> None:
        """Raises a ValueError unless a batch of `rows` can continue the texts of the cache."""
        if self.batch_size not in (-1, rows):
            raise ValueError(
                f"the cache holds {self.batch_size} rows, the batch has {rows}: "
                "begin new texts with a new cache or cache.reset()"
            )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Returns the number of tokens read so far, padding included."""
        return self.seen_tokens

    def _apply(self, change: Callable[[Tensor], Tensor]) -> None:
        self._layer.apply(change)
        for part in (self.stream, self.matches, self.last, self.overlay):
            if part is not None:
                part.apply(change)
        self.unread = None if self.unread is None else change(self.unread)
        self.followed = None if self.followed is None else change(self.followed)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Replaces row i by row `beam_idx[i]`."""
        self._apply(lambda tensor: reorder(tensor, beam_idx))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows `indices`."""
        self._apply(lambda tensor: select(tensor, indices))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row `repeats` times."""
        self._apply(lambda tensor: repeat(tensor, repeats))

    def detach(self) -> "LLECache":
        """Cuts the gradient here (truncated backpropagation through time) and returns the cache."""
        self._apply(detach)
        return self

    def export(self) -> dict[str, Tensor]:
        """Returns its tensors by name, for `restore`."""
        tensors = named_tensors(self.state, "state")
        tensors |= {name: own for name in ("unread", "followed") if (own := getattr(self, name)) is not None}
        if self.stream is not None and self.stream.keys is not None:
            tensors |= {f"stream.{name}": getattr(self.stream, name) for name in Stream.tensors}
        if self.matches is not None and self.matches.tokens is not None:
            tensors |= {f"matches.{name}": getattr(self.matches, name) for name in Matches.tensors}
        if self.last is not None and self.last.tokens is not None:
            tensors["last.tokens"] = self.last.tokens
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Continues where the cache that exported the tensors was; both must have the same windows."""
        self.reset()
        self.state = from_named_tensors(tensors, "state")
        self.unread, self.followed = tensors.get("unread"), tensors.get("followed")
        if self.stream is not None and "stream.keys" in tensors:
            for name in Stream.tensors:
                setattr(self.stream, name, tensors[f"stream.{name}"])
        if self.matches is not None and "matches.tokens" in tensors:
            for name in Matches.tensors:
                setattr(self.matches, name, tensors[f"matches.{name}"])
        if self.last is not None:
            self.last.tokens = tensors.get("last.tokens")

    def reset(self) -> None:
        """Clears everything: the next token begins a new text."""
        self.layers[0].reset()
        self.seen_tokens = 0
        self._begin_history()
        self.overlay = self.unread = self.followed = None

    def crop(self, tokens_to_remove: int) -> None:
        """A recurrent state cannot go back."""
        raise ValueError("an LLECache cannot be cropped: a recurrent state cannot go back to an earlier token")


def _side_by_side(tensors: Sequence[Tensor]) -> Tensor:
    """The rows of buffers of a stream or of matches, padded with free slots to the longest of them."""
    slots = max(tensor.shape[1] if tensor.dim() > 1 else 0 for tensor in tensors)
    grown = [
        tensor
        if tensor.dim() == 1 or tensor.shape[1] == slots
        else torch.nn.functional.pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, slots - tensor.shape[1]))
        for tensor in tensors
    ]
    return torch.cat(grown)


def check_cache(cache: Any) -> None:
    """Raises a TypeError unless `cache` is an `LLECache` or None: other caches hold keys of attention, not a state.

    Empty ones are refused too: they would stay empty, and the next segment would begin a new text.
    """
    if cache is not None and not hasattr(cache, "check_rows"):  # remote code has a class of its own
        raise TypeError(
            f"past_key_values is a {type(cache).__name__}, but a recurrent model keeps its state in an LLECache: pass "
            "the past_key_values that the model returned, LLECache(), or None; prefix tuning needs attention"
        )
