"""BaseBank: what every bank has in common, derived from its snapshot: subclass it to implement `Bank`."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .fingerprint import same_backbone
from .found import Document, EntryText, Found
from .manifest import HISTORY_FOLDER, MANIFEST, BankError, Manifest
from .protocol import Bank, Encoder, Search

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_projects(model: Encoder, is_projected: bool, name: str) -> None:
    """Raises a BankError if keys are projected and the model is a translator, which reads the keys themselves."""
    if is_projected and model.outcome == "target token":
        raise BankError(
            f"{name}: a translation memory compares few candidates for a sentence and cannot project their keys: make "
            "it without a width of its keys"
        )


def upload(folder: Path, manifest: Manifest, repo_id: str, **options: Any) -> Any:
    """Uploads a folder of a bank; other arguments as in `HistoryBank.push_to_hub`."""
    from huggingface_hub import HfApi

    api = HfApi(token=options.pop("token", None))
    api.create_repo(repo_id, private=options.pop("private", None), exist_ok=True)
    patterns = [MANIFEST, *(file.name for file in manifest.files)]
    return api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        path_in_repo=HISTORY_FOLDER,
        allow_patterns=patterns,
        **{"commit_message": "Upload history", **options},
    )


class BaseBank(Bank):
    """A bank that answers questions from its newest snapshot; a subclass provides the rest of `Bank`."""

    encoder: "tuple[Encoder, PreTrainedTokenizerBase | None] | None" = None

    @property
    def name(self) -> str:
        """Name of the bank in messages: its folder or address."""
        return self.snapshot().name

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model that made the keys."""
        return self.snapshot().fingerprint

    @property
    def width(self) -> int:
        """Width of the keys."""
        return self.snapshot().width

    @property
    def state_width(self) -> int:
        """Width of the states that keys are made of."""
        return self.snapshot().state_width

    @property
    def vocab_size(self) -> int:
        """Vocabulary of the model that made the keys."""
        return self.snapshot().vocab_size

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the outcomes in a bank of labels; None in one of tokens."""
        return self.snapshot().labels

    @property
    def generation(self) -> int:
        """Number of changes so far."""
        return self.snapshot().generation

    @property
    def namespaces(self) -> list[str]:
        """The namespaces that exist, sorted."""
        return self.snapshot().namespaces

    def __len__(self) -> int:
        """Number of entries that can be recalled."""
        return len(self.snapshot())

    def __deepcopy__(self, memo: Any) -> "BaseBank":
        """The bank itself: a copy of a model recalls from the same entries."""
        return self

    def check_namespaces(self, namespaces: Iterable[str] | str) -> tuple[str, ...]:
        """As `Snapshot.check_namespaces`."""
        return self.snapshot().check_namespaces(namespaces)

    def search(
        self, queries: Tensor, neighbours: int, namespaces: Iterable[str] | None = None, how: Search = "balanced"
    ) -> Found:
        """As `Snapshot.search`."""
        return self.snapshot().search(queries, neighbours, namespaces, how)

    def describe(self, ids: Iterable[int], before: int = 16, after: int = 8) -> list[EntryText]:
        """As `Snapshot.describe`."""
        return self.snapshot().describe(ids, before, after)

    def documents(self, namespaces: Iterable[str] | None = None) -> Iterator[Document]:
        """As `Snapshot.documents`."""
        return self.snapshot().documents(namespaces)

    def check_model(self, model: Encoder) -> None:
        """Raises a BankError unless `model` predicts what the bank holds, with the backbone that encoded it."""
        if (self.labels is not None) != (model.outcome == "label"):
            held = "tokens" if self.labels is None else "labels"
            due = "that its learn() made" if model.outcome == "label" else "that HistoryBank.build made of texts"
            raise BankError(
                f"the bank {self.name} holds {held}, and a {type(model).__name__} predicts {model.outcome}s: open a "
                f"bank {due}"
            )
        check_projects(model, self.snapshot().projection is not None, self.name)
        if not same_backbone(self.fingerprint, model):
            raise BankError(
                f"the bank {self.name} was encoded by another backbone (width {self.state_width}, vocabulary "
                f"{self.vocab_size}) than this model's (width {model.key_size}, vocabulary "
                f"{model.config.vocab_size}): load the model that built it, or build a bank with this one"
            )

    def check_key_width(self, key_width: int | None) -> None:
        """Raises a BankError if a width of the keys is given, and those of this bank have another."""
        if key_width not in (None, None if self.snapshot().projection is None else self.width):
            raise BankError(f"{self.name} was begun with keys of the width {self.width}: leave key_width out")

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
            dataset: As in `HistoryBank.build`.
            model, tokenizer: Those that encode; None: those that built this bank, or that it was attached with.
            options: As in `add` of the model's entry kind: `TextEntries`, `ExampleEntries` or `PairEntries`.
        """
        own_model, own_tokenizer = self.encoder or (None, None)
        model, tokenizer = model or own_model, tokenizer or own_tokenizer
        if model is None:
            raise ValueError("No encoder: pass model= and tokenizer=, or attach the bank to the model first")
        if tokenizer is None:
            raise ValueError("No tokenizer: pass tokenizer=, or attach the bank with one")
        self.check_model(model)
        return model.entry_kind.add(self, dataset, model, tokenizer, **options)

    def save_pretrained(self, path: str | Path) -> None:
        """Writes a copy of the bank, as this process knows it, into the folder `path`, as a whole or not at all.

        The folder must be empty, or hold an older copy of this bank, which nobody has changed since. Into its own
        folder nothing needs to be written.
        """
        with self.saving(path):
            pass
