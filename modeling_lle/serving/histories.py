"""Histories: the banks of a model, a folder for each tenant.

Notable: one folder a tenant rather than one bank with a namespace for each. So no search, label, id, size or cache of
a tenant depends on what another has taught, and a teach of one neither rebuilds anything of another's nor waits for
it. What all may recall is copied into a tenant's bank when it is made, and never written by a tenant.
"""

import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..bank.bank import HistoryBank
from ..bank.files import MANIFEST
from ..bank.found import Document
from ..bank.manifest import BankError
from ..bank.protocol import Described
from ..data.text import encode_texts
from ..entries.examples import forget as forget_examples
from ..history.attachment import Attachment
from ..models.pretrained import LLEPreTrainedModel
from ..models.teaching import TeachableModel
from ..tasks import CLASSIFICATION, LANGUAGE, Task
from .errors import ServingError, invalid, unknown

DEFAULT = "default"  # the namespace of what is taught without one
REFRESHED = 1.0  # seconds between two looks at what other processes have written


class Histories:
    """What the tenants of a model recall from.

    Args:
        model, tokenizer: The model and its tokenizer.
        task: The model's task.
        fingerprint: Fingerprint of the model.
        folder: Where the folders of the tenants lie.
        shared: A bank that all tenants recall from too, which is never written; None: none.
        namespaces: The namespaces of it; None: all.

    Raises:
        BankError: The shared bank does not fit the model, or has no such namespace.
    """

    def __init__(
        self,
        model: LLEPreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        fingerprint: str,
        folder: Path,
        shared: HistoryBank | None = None,
        namespaces: Sequence[str] | None = None,
    ) -> None:
        self.model, self.tokenizer, self.task, self.fingerprint = model, tokenizer, task, fingerprint
        self.folder, self._shared = folder, shared
        self._of_all: Attachment | None = None
        if shared is not None:
            model.check_history(shared)
            held = shared.namespaces if namespaces is None else shared.check_namespaces(namespaces)
            self._of_all = Attachment(shared, tuple(held), tokenizer)
        self._banks: dict[str, HistoryBank] = {}
        self._looked: dict[str, float] = {}
        self._opening, self._locks = threading.Lock(), dict[str, threading.Lock]()

    def attachment(self, tenant: str) -> Attachment | None:
        """What a tenant recalls from now, pinned; None if there is nothing."""
        bank = self._bank(tenant)
        if bank is None:
            return None if self._of_all is None else self._of_all.pinned()
        return Attachment(bank, None, self.tokenizer).pinned() if len(bank) else None

    def entries(self) -> int:
        """Entries in all the tenants' banks that are open."""
        return sum(len(bank) for bank in list(self._banks.values()))

    def _bank(self, tenant: str) -> HistoryBank | None:
        """The bank of a tenant, if there is one, with what other processes have written a moment ago."""
        bank, now = self._banks.get(tenant), time.monotonic()
        if bank is not None:
            if now - self._looked[tenant] <= REFRESHED:
                return bank
            self._looked[tenant] = now
            if (self.folder / tenant / MANIFEST).exists():
                bank.refresh()
                return bank
            self._banks.pop(tenant, None)  # somebody has removed it
        with self._opening:
            opening = self._locks.setdefault(tenant, threading.Lock())
        with opening:  # a large one of another tenant is not waited for
            path = self.folder / tenant
            if tenant not in self._banks and (path / MANIFEST).exists():
                opened = HistoryBank.open(path)
                self.model.check_history(opened)
                self._looked[tenant], self._banks[tenant] = now, opened
            return self._banks.get(tenant)

    def _made(self, tenant: str) -> HistoryBank:
        """The bank of a tenant, which is made if there is none; it appears as a whole."""
        bank = self._bank(tenant)
        if bank is not None:
            return bank
        path, partial = self.folder / tenant, self.folder / f".making-{tenant}"
        shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._of_all is None:
            labels = () if self.model.outcome == "label" else None
            size = self.model.key_size, self.model.config.vocab_size
            HistoryBank.create(partial, self.fingerprint, *size, labels)
        else:
            assert self._shared is not None
            self._shared.save_pretrained(partial)
            copy = HistoryBank.open(partial)
            for namespace in set(copy.namespaces) - set(self._of_all.namespaces or ()):
                copy.forget(namespace=namespace)
            copy.compact()
        partial.rename(path)
        bank = self._bank(tenant)
        assert bank is not None
        return bank

    # Teaching, in a thread of its own

    def teach(
        self, tenant: str, rows: Sequence[Mapping[str, Any]], source: str | None, namespace: str, **options: Any
    ) -> dict[str, Any]:
        """Adds rows to the bank of a tenant; once it returns, they are on the disk.

        Args:
            tenant: The tenant.
            rows: Texts with other columns, texts with labels, or pairs, as the entry kind of the model takes them.
            source, namespace: As in `HistoryBank.add`; the namespace is one of the tenant's.
            options: As in `add` of the entry kind.

        Raises:
            ServingError: The rows cannot be taught; nothing has been added then.
        """
        bank = self._made(tenant)
        with self._reported(bank):
            name = source or bank.snapshot().free_source("taught")
            space = own_namespace(tenant, namespace)
            if self.task == CLASSIFICATION:
                held = Attachment(bank, tuple({*bank.namespaces, space}), self.tokenizer)
                assert isinstance(self.model, TeachableModel)
                places: dict[str, Any] = {"namespace": space, "source": name, "history": held}
                texts, labels = ([row[column] for row in rows] for column in ("text", "label"))
                added = self.model.learn(texts, labels, self.tokenizer, **places, **options)
            else:
                if self.task == LANGUAGE:
                    options["resume"] = False
                where = {"source": name, "namespace": space}
                added = bank.add(rows, model=self.model, tokenizer=self.tokenizer, **where, **options)
        return {"added": added, "entries": len(bank), "source": name, "namespace": namespace}

    def forget(
        self,
        tenant: str,
        ids: Sequence[int] | None = None,
        source: str | None = None,
        namespace: str | None = None,
        texts: Sequence[str] | None = None,
        label: Any = None,
    ) -> dict[str, Any]:
        """Takes back the entries of a tenant's own for which all that is given holds.

        Raises:
            ServingError: There is no such entry, or nothing was given.
        """
        given = (ids, source, namespace, texts, label)
        if all(value is None for value in given):
            raise invalid("nothing to forget: give ids, source, namespace, texts or label")
        bank = self._bank(tenant)
        own = [] if bank is None else own_namespaces(bank, tenant)
        if namespace is not None:
            own = [space for space in own if space == own_namespace(tenant, namespace)]
        if bank is None or not own:
            raise unknown("there is nothing to forget: nothing was taught here")
        with self._reported(bank, missing=True):
            if self.task == CLASSIFICATION:
                assert isinstance(self.model, TeachableModel)
                places: dict[str, Any] = {"within": own, "ids": ids, "source": source}
                if all(value is None for value in (ids, source, texts, label)):
                    places["ids"] = [entry for document in bank.documents(own) for entry in document.ids]
                count = forget_examples(bank, texts, label, self.model.kind, **places)
            else:
                if label is not None:
                    raise invalid("only the examples of classifiers have labels")
                with bank.writing():
                    count = self._forget(bank, own, ids, source, texts)
            bank.compact()
        return {"forgotten": count, "entries": len(bank)}

    def _forget(
        self,
        bank: HistoryBank,
        namespaces: list[str],
        ids: Sequence[int] | None,
        source: str | None,
        texts: Sequence[str] | None,
    ) -> int:
        """Takes back entries of texts or pairs."""
        wanted = None if ids is None else set(ids)
        encoded = None if texts is None else list(zip(texts, encode_texts(list(texts), self.tokenizer), strict=True))
        chosen: list[int] = []
        for document in bank.documents(namespaces):
            if source not in (None, document.source):
                continue
            if not (encoded is None or any(is_of(document, text, ids) for text, ids in encoded)):
                continue
            chosen += [entry for entry in document.ids if wanted is None or entry in wanted]
        if not chosen or (wanted is not None and len(wanted) > len(chosen)):
            raise unknown("there is no entry for which all of this holds")
        return bank.forget(chosen)

    def _reported(self, bank: HistoryBank, missing: bool = False) -> "_Reported":
        return _Reported(bank.name, missing)

    # Listing

    def size(self, tenant: str) -> dict[str, Any]:
        """What a tenant has taught: entries, and documents of each source and namespace."""
        bank = self._bank(tenant)
        found: dict[tuple[str, str], list[int]] = {}
        if bank is not None:
            state = bank.snapshot()
            for document in state.documents(own_namespaces(state, tenant)):
                place = found.setdefault((_shown(document.namespace, tenant), document.source), [0, 0])
                place[0] += 1
                place[1] += len(document.ids)
        sources = [
            {"namespace": namespace, "source": source, "documents": documents, "entries": entries}
            for (namespace, source), (documents, entries) in sorted(found.items())
        ]
        return {"entries": sum(item["entries"] for item in sources), "sources": sources}

    def documents(
        self, tenant: str, source: str | None, namespace: str | None, search: str | None
    ) -> Iterator[dict[str, Any]]:
        """Yields what a tenant has taught, the oldest first."""
        bank = self._bank(tenant)
        if bank is None:
            return
        state = bank.snapshot()
        own = own_namespaces(state, tenant)
        if namespace is not None:
            own = [space for space in own if space == own_namespace(tenant, namespace)]
        for document in state.documents(own):
            if source not in (None, document.source):
                continue
            columns = dict(document.columns)
            text = columns.pop("text", None) or text_of(document, self.tokenizer)
            shown = {"text": text}
            shown |= {name: columns.pop(name) for name in ("label", "translation") if name in columns}
            if search is not None and not any(search.lower() in str(value).lower() for value in shown.values()):
                continue
            place = {"namespace": _shown(document.namespace, tenant), "source": document.source, "row": document.row}
            yield {"ids": list(document.ids), **place, **shown, "columns": columns}


class _Reported:
    """A context in which errors of a bank become those of the server, without the folder of the bank."""

    def __init__(self, name: str, missing: bool) -> None:
        self.name, self.missing = name, missing

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, ServingError):
            return
        message = str(error).replace(f"the bank {self.name}", "the history").replace(self.name, "history")
        if isinstance(error, BankError) and self.missing:
            raise unknown(message) from None
        if isinstance(error, ValueError | TypeError):  # a BankError is a ValueError
            raise invalid(message, "not_taught") from None
        if isinstance(error, TimeoutError):
            raise ServingError(503, "busy", "another process writes to the history: try later", retry=True) from None


def own_namespace(tenant: str, name: str) -> str:
    """The namespace that a tenant calls `name`."""
    return f"{tenant}/{name}"


def own_namespaces(bank: Described, tenant: str) -> list[str]:
    """The namespaces that a tenant has taught."""
    return [name for name in bank.namespaces if name.startswith(f"{tenant}/")]


def _shown(namespace: str, tenant: str) -> str:
    return namespace.removeprefix(f"{tenant}/")


def text_of(document: Document, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a document, as it was given, or from its tokens."""
    text = document.columns.get("text")
    if isinstance(text, str):
        return text
    return str(tokenizer.decode([token for token in document.tokens if token >= 0], skip_special_tokens=True))


def is_of(document: Document, text: str, ids: Sequence[int]) -> bool:
    """Whether a document was made of a text with these token ids."""
    own = document.columns.get("text")
    return own == text if isinstance(own, str) else document.tokens[-len(ids) :] == list(ids)
