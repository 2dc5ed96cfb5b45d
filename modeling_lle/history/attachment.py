"""Attachment: a bank, the namespaces to recall from, and a tokenizer, as one value that a call of a model takes.

Notable: a tenant is an Attachment, so that many tenants share one model and one bank; nothing of it lies on the model.
Shapes: D width, K neighbours, Q queries.
"""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..bank.found import Found
from ..bank.protocol import Bank, Search, Snapshot

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Attachment:
    """What a model recalls from: `model(..., history=attachment)`, or the default that `attach_history` sets.

    Attributes:
        bank: The bank.
        namespaces: The namespaces to recall from; one that the bank does not hold (any more) has nothing to recall.
            None: all that there are at the time of the search.
        tokenizer: The model's tokenizer, by which a translation memory compares sentences.
    """

    bank: Bank
    namespaces: tuple[str, ...] | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    _pinned: Snapshot | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.namespaces is not None:
            own = (self.namespaces,) if isinstance(self.namespaces, str) else tuple(self.namespaces)
            object.__setattr__(self, "namespaces", own)

    @classmethod
    def of(cls, history: "Attachment | Bank | None", default: "Attachment | None" = None) -> "Attachment | None":
        """The attachment that a call means: the given one, a bank's, or the default for None.

        Raises:
            TypeError: It is something else.
        """
        if history is None:
            return default
        if isinstance(history, Attachment):
            return history
        if hasattr(history, "snapshot"):
            return cls(history, tokenizer=None if default is None else default.tokenizer)
        raise TypeError(f"history={history!r:.80}: give an Attachment, a bank, or None")

    def snapshot(self) -> Snapshot:
        """The state of the bank that is searched: the newest, or the one that this is pinned to."""
        return self.bank.snapshot() if self._pinned is None else self._pinned

    def pinned(self) -> "Attachment":
        """The same, for good in the state that the bank has now: for a prediction and what is told of it."""
        return self if self._pinned is not None else dataclasses.replace(self, _pinned=self.bank.snapshot())

    def search(self, queries: Tensor, neighbours: int, how: Search = "balanced") -> Found:
        """The nearest entries of the namespaces; queries (Q, D) float32 normalised, results (Q, K)."""
        state = self.snapshot()
        return state.search(queries, neighbours, state.held(self.namespaces), how)

    def derived(self, key: Hashable, make: Callable[[Snapshot], T]) -> T:
        """What `make` derives from the snapshot, once for all attachments that share the key and the namespaces."""
        state = self.snapshot()
        value: Any = state.once((key, self.namespaces), lambda: make(state))
        return value
