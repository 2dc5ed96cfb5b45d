"""BaseState: what the snapshots of a folder and of Milvus have in common, derived from the manifest.

Notable: everything derived from a state (views, indexes, label spaces) is cached in it, so that nothing derived from
an older state can pass for that of a newer one.
"""

import itertools
import threading
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from .manifest import Added, BankError, Manifest
from .protocol import Described, Made


class BaseState:
    """A part of `Snapshot`; a subclass provides the rest.

    Args:
        manifest: The manifest.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._made: dict[Hashable, Any] = {}
        self._locks: dict[Hashable, threading.Lock] = {}

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """As `Snapshot.once`; of threads that ask at the same time, one calls `make` and the others wait."""
        if key not in self._made:
            with self._locks.setdefault(key, threading.Lock()):
                if key not in self._made:
                    self._made[key] = make()
        return self._made[key]

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model that made the keys."""
        return self.manifest.fingerprint

    @property
    def width(self) -> int:
        """Width of the keys, D."""
        return self.manifest.width

    @property
    def vocab_size(self) -> int:
        """Vocabulary of the model that made the keys."""
        return self.manifest.vocab_size

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the outcomes in a bank of labels; None in one of tokens."""
        return self.manifest.labels

    @property
    def generation(self) -> int:
        """Number of changes so far."""
        return self.manifest.generation

    def check_namespaces(self: Described, namespaces: Iterable[str] | str) -> tuple[str, ...]:
        """As `Snapshot.check_namespaces`."""
        chosen = sorted({namespaces} if isinstance(namespaces, str) else set(namespaces))
        held = self.namespaces
        unknown = [name for name in chosen if name not in held]
        if unknown:
            raise BankError(
                f"the bank {self.name} has no namespace {unknown[0]!r}; it has: {', '.join(held) or 'none'}"
            )
        return tuple(chosen)

    def added(self, namespace: str, source: str) -> Added:
        """As `Snapshot.added`."""
        own = [item for item in self.manifest.added if (item.namespace, item.source) == (namespace, source)]
        return own[0] if own else Added(namespace, source, 0)

    def free_source(self, kind: str) -> str:
        """As `Snapshot.free_source`."""
        taken = {item.source for item in self.manifest.added}
        return next(name for name in (f"{kind}-{number}" for number in itertools.count(1)) if name not in taken)

    def held(self: Described, namespaces: Iterable[str] | None) -> tuple[str, ...] | None:
        """As `Snapshot.held`."""
        return None if namespaces is None else tuple(name for name in namespaces if name in self.namespaces)
