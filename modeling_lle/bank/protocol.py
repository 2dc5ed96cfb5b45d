"""The sockets around a bank: what a store of entries, a model that makes keys and a kind of entry must provide.

`Snapshot` and `Bank` are implemented by `BankState` and `HistoryBank` (a folder); `BaseBank` (bank/base.py) derives
most of `Bank` from `snapshot()`. `EntryKind` is implemented in entries/, `Encoder` by every LLE model.
tests/bank/conformance.py checks any implementation of `Bank`.
Shapes: Q queries, K neighbours, N entries, D width, L labels.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from .found import Document, Entries, EntryText, Found
from .manifest import Added
from .projection import Projection
from .segment import Segment
from .suffixes import Texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Search = Literal["exact", "balanced", "fast"]  # "balanced" and "fast" may miss a neighbour
Outcome = Literal["token", "label", "target token"]
Where = Mapping[str, Any] | Callable[[dict[str, Any]], bool]
Made = TypeVar("Made")
EncoderType = TypeVar("EncoderType", bound="Encoder", contravariant=True)

DEFAULT = "default"  # the namespace of entries that are added without one


class EncoderConfig(Protocol):
    """The part of a model's configuration that a bank reads."""

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary."""
        ...


class Encoder(Protocol):
    """A model that makes keys of a bank and recalls from it."""

    training: bool

    @property
    def outcome(self) -> Outcome:
        """What the model predicts."""
        ...

    @property
    def config(self) -> EncoderConfig:
        """The configuration."""
        ...

    @property
    def key_size(self) -> int:
        """Width of keys and queries, D."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        ...

    @property
    def entry_kind(self) -> "EntryKind[Any]":
        """How entries for this model are made; raises an ImportError where the package is not installed."""
        ...

    def key_weights(self) -> list[tuple[str, Tensor]]:
        """Names and values of the weights that keys depend on, of which the fingerprint is made."""
        ...

    def train(self, mode: bool = True) -> Any:
        """As in torch."""
        ...

    def eval(self) -> Any:
        """As in torch."""
        ...


class Described(Protocol):
    """The contents of a bank: common to a snapshot, and to a bank, which answers from its newest one."""

    @property
    def name(self) -> str:
        """Name of the bank in messages: its folder or address."""
        ...

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model that made the keys (bank/fingerprint.py)."""
        ...

    @property
    def width(self) -> int:
        """Width of the keys, D unless they are projected."""
        ...

    @property
    def state_width(self) -> int:
        """Width of the states that keys are made of and queries are, D."""
        ...

    @property
    def vocab_size(self) -> int:
        """Vocabulary of the model that made the keys."""
        ...

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the L outcomes in a bank of labels, those without a live entry included; None in one of tokens."""
        ...

    @property
    def generation(self) -> int:
        """Number of changes so far."""
        ...

    @property
    def namespaces(self) -> list[str]:
        """The namespaces that exist, sorted."""
        ...

    def __len__(self) -> int:
        """Number of entries that can be recalled."""
        ...

    def check_namespaces(self, namespaces: Iterable[str] | str) -> tuple[str, ...]:
        """The namespaces, each once and sorted; raises a BankError if one does not exist."""
        ...

    def search(
        self, queries: Tensor, neighbours: int, namespaces: Iterable[str] | None = None, how: Search = "balanced"
    ) -> Found:
        """The entries whose keys are nearest to the queries; no gradient flows through it.

        Args:
            queries: (Q, D) floating, normalised states.
            neighbours: Number of entries to find, K.
            namespaces: Where to search; None: everywhere.
            how: "exact", or faster and approximate where the bank is large: "balanced" or "fast".

        Raises:
            BankError: A namespace does not exist.
            ValueError: The queries have another shape, or `neighbours` is less than 1.
        """
        ...

    def describe(self, ids: Iterable[int], before: int = 16, after: int = 8) -> list[EntryText]:
        """Source of each entry, with up to `before` and `after` tokens around it.

        Raises:
            BankError: An id does not exist, or was forgotten.
        """
        ...

    def documents(self, namespaces: Iterable[str] | None = None) -> Iterator[Document]:
        """The documents with entries that can be recalled; within a namespace in the order in which they were added.

        Args:
            namespaces: Those to read; one that does not exist is skipped. None: all.
        """
        ...


class Snapshot(Described, Protocol):
    """One immutable state of a bank; any number of threads may use it.

    A search and the description of its results must come from one snapshot.
    """

    @property
    def projection(self) -> Projection | None:
        """How keys are made of states, which `search` does to queries; None: they are the states."""
        ...

    def held(self, namespaces: Iterable[str] | None) -> tuple[str, ...] | None:
        """The namespaces that still exist, for a search that skips those that are gone; None stays None."""
        ...

    def entries(self, namespaces: Iterable[str] | None = None) -> Iterator[Entries]:
        """The entries of `documents(namespaces)` in the same order, in batches, with their keys."""
        ...

    def kept_texts(self, namespaces: Iterable[str] | None = None) -> Iterator[Texts]:
        """The texts of `documents(namespaces)` with the places of their entries, in any order and parts."""
        ...

    def live_outcomes(self, namespaces: Iterable[str] | None = None) -> Tensor:
        """Which labels some entry of these namespaces has, (L,) bool; (0,) in a bank of tokens."""
        ...

    def added(self, namespace: str, source: str) -> Added:
        """Import progress of a source in a namespace; zero rows if it was never added there."""
        ...

    def free_source(self, kind: str) -> str:
        """The first of "kind-1", "kind-2", ... that names no source."""
        ...

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """The result of `make`, computed on the first call with this key and kept as long as the snapshot."""
        ...


class Bank(Described, Protocol):
    """A store of entries that changes: it is read through snapshots, and written by `append` and `forget`.

    Attributes:
        encoder: Model and tokenizer with which `add` encodes if none is given.
    """

    encoder: "tuple[Encoder, PreTrainedTokenizerBase | None] | None"

    def snapshot(self) -> Snapshot:
        """The newest state that this process knows."""
        ...

    def refresh(self) -> bool:
        """Takes in what other processes have written; returns whether there was anything."""
        ...

    def check_model(self, model: Encoder) -> None:
        """Raises a BankError unless the model predicts what the bank holds, and made its keys."""
        ...

    def writing(self) -> AbstractContextManager[Snapshot]:
        """Keeps other writers out, threads and processes, and gives the newest state; a thread may nest it.

        Raises:
            PermissionError, TimeoutError: The bank cannot be written to, or another writer has not finished in time.
        """
        ...

    def add(
        self,
        dataset: Iterable[Any],
        *,
        model: Encoder | None = None,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
        **options: Any,
    ) -> int:
        """Encodes rows and adds them; returns the number of new entries.

        Args:
            dataset: The rows.
            model, tokenizer: Those that encode; None: those of `encoder`.
            options: As in `add` of the model's entry kind.
        """
        ...

    def append(
        self,
        segments: Iterable[tuple[Segment, list[Added]]],
        namespace: str,
        labels: Sequence[str] = (),
        replaced: Iterable[int] = (),
    ) -> int:
        """Writes new segments, each as a whole together with the progress of its sources.

        Args:
            segments: The segments, with states as keys, and the progress of their sources. Their ids are replaced by
                new ones, which are larger than all before, and their keys projected if the bank's are.
            namespace: The namespace that they go to.
            labels: In a bank of labels the names of the outcomes in the segments, by their numbers there; the bank
                gives them its own numbers.
            replaced: Ids of entries that are forgotten when the first segment is written.

        Returns:
            The number of new entries.
        """
        ...

    def forget(
        self,
        ids: Iterable[int] | None = None,
        *,
        source: str | None = None,
        namespace: str | None = None,
        where: Where | None = None,
        missing_ok: bool = False,
    ) -> int:
        """Takes back the entries for which everything that is given holds; returns their number.

        Once it has returned, no search that begins finds them. Arguments and errors: `HistoryBank.forget`.
        """
        ...

    # Copies

    def save_pretrained(self, path: str | Path) -> None:
        """Writes a copy as a bank folder, as a whole or not at all."""
        ...

    def saving(self, path: str | Path) -> AbstractContextManager[None]:
        """As `save_pretrained`: checks and writes everything, and lets it take effect at the end of the block."""
        ...

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """Uploads a copy into the folder `history` of a repository on the Hub."""
        ...


class EntryKind(Protocol[EncoderType]):
    """Makes entries of rows, and names their outcomes."""

    @property
    def outcome(self) -> Outcome:
        """What an outcome is; that of the models that recall these entries."""
        ...

    def check(self, bank: Bank) -> None:
        """Raises a BankError unless the bank holds entries of this kind."""
        ...

    def add(
        self,
        bank: Bank,
        rows: Iterable[Any],
        model: EncoderType,
        tokenizer: "PreTrainedTokenizerBase",
        *args: Any,
        **options: Any,
    ) -> int:
        """Encodes rows and adds them to a bank; returns the number of new entries.

        Implementations take their options as keywords.
        """
        ...

    def name(self, outcome: int, bank: Bank | Snapshot, tokenizer: "PreTrainedTokenizerBase") -> str:
        """Name of an outcome: the text of a token, or a label."""
        ...
