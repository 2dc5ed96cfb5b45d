"""Teaching a classifier without training: examples are added to its bank, and taken back from it exactly.

Notable: what is taught lasts as long as the bank, which `save_pretrained(save_history=True)` keeps with the model, or
which lies in a folder of its own; a text has one label at a time; examples are added whole or not at all.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..bank.fingerprint import fingerprint
from ..bank.manifest import BankError
from ..bank.protocol import DEFAULT, Bank, EntryKind, Outcome, Snapshot
from ..common.packages import raise_missing
from ..configuration import LLEConfig
from ..history.attachment import Attachment
from ..history.label_rule import Label, LabelSpace, check_outcomes, kind_of, names_of
from .pretrained import LLEPreTrainedModel


class TeachableModel(LLEPreTrainedModel):
    """A classifier with a bank of labelled examples beside its output layer."""

    outcome: Outcome = "label"

    def __init__(self, config: LLEConfig) -> None:
        super().__init__(config)
        self._trained = len(names_of(self._named))

    @property
    def entry_kind(self) -> EntryKind[Any]:
        """How entries for this model are made; raises an ImportError where this package is not installed."""
        try:
            from modeling_lle.entries.examples import ExampleEntries
        except ModuleNotFoundError as error:
            raise_missing(error)
        return ExampleEntries()

    @property
    def kind(self) -> str:
        """What the labels are: the `problem_type` of the configuration."""
        return self.config.problem_type or kind_of(self._trained)

    @property
    def trained_labels(self) -> tuple[str, ...]:
        """The labels that the output layer was trained on, C of them, as the configuration calls them."""
        return tuple(self._named[number] for number in range(self._trained))

    @property
    def _named(self) -> dict[int, str]:
        names: Any = self.config.id2label
        return names

    def label_names(self, history: Attachment | Bank | None = None) -> tuple[str, ...]:
        """The labels of the columns of `logits`, L of them: the trained ones, then those that only the bank knows.

        Those of a forward pass are `label_names` of its output. A bank gets and loses labels while others teach; an
        `Attachment.pinned()` does not.

        Args:
            history: As in `forward`.
        """
        return self.space_of(Attachment.of(history, self.history if self.config.use_history else None)).names

    def space_of(self, attachment: Attachment | None) -> LabelSpace:
        """The labels, with those that only the bank of an attachment knows, and what each outcome says of them.

        Raises:
            BankError: An outcome of the bank is no label of this kind.
        """
        trained, kind = self.trained_labels, self.kind
        if attachment is None:
            return LabelSpace(trained, len(trained), torch.zeros(0, len(trained)), recalls=False)
        namespaces = attachment.namespaces

        def make(state: Snapshot) -> LabelSpace:
            names = state.labels or ()
            try:
                check_outcomes(names, kind)
            except ValueError as error:
                raise BankError(f"the bank {state.name} {error}: teach the examples again") from None
            return LabelSpace.of(trained, kind, names, state.live_outcomes(state.held(namespaces)))

        return attachment.derived((LabelSpace, trained, kind), make)

    def attach_history(
        self,
        bank: Bank,
        namespaces: Sequence[str] | str | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        """As for every LLE model; the labels that only the bank knows join the trained ones (`label_names`)."""
        self.space_of(Attachment(bank))
        super().attach_history(bank, namespaces, tokenizer)

    def learn(
        self,
        texts: Sequence[Any],
        labels: Sequence[Any],
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        new_labels: bool = False,
        relabel: bool = False,
        source: str | None = None,
        namespace: str | None = None,
        places: Iterable[Mapping[str, Any]] | None = None,
        history: Attachment | Bank | None = None,
    ) -> int:
        """Teaches examples: adds them to the bank that is attached, or to a new temporary one, without a gradient.

        Args:
            texts: The texts; for a classifier of tokens each is a list of words.
            labels: The label of each, as `label_names` has it; a list of labels where a text may have several, a
                number in regression; for a classifier of tokens a list with a label or None for each word.
            tokenizer: The model's tokenizer; None: the one that the bank was attached or taught with.
            new_labels: Whether labels may be new: the output layer was not trained on them, and the bank has none.
            relabel: Whether texts that are in the bank with another label get the new one; else they are an error.
            source: Name of the source, by which it can be forgotten; None: the next of "taught-1", "taught-2", ...
            namespace: The namespace that they go to; None: the one that is recalled from, "default" where all are.
            places: Where each text comes from, mappings with `file` and `line`, which explanations show.
            history: The bank to teach, as an Attachment or alone; None: the one that is attached.

        Returns:
            The number of new examples. One that is in the namespace already is not added again.

        Raises:
            ValueError: A text is empty, a label is unknown, or a text has another label, or several namespaces are
                recalled from and none is named; nothing has been added then.
        """
        if isinstance(texts, str) or len(texts) != len(labels):
            raise ValueError(f"give a list of texts and as many labels: got {len(texts)} texts, {len(labels)} labels")
        attachment = Attachment.of(history, self.history)
        place = namespace or _namespace_of(attachment)
        bank: Bank = self._make_bank() if attachment is None else attachment.bank
        self.check_history(bank)
        of_attachment = None if attachment is None else attachment.tokenizer
        tokenizer = tokenizer or of_attachment or (None if bank.encoder is None else bank.encoder[1])
        if tokenizer is None:
            raise ValueError("No tokenizer: pass the model's tokenizer to learn()")
        bank.refresh()  # what others have taught or taken back counts
        added = self.entry_kind.add(
            bank,
            [
                {**place, "text": text, "label": label}
                for text, label, place in zip(
                    texts, labels, [{}] * len(texts) if places is None else places, strict=True
                )
            ],
            self,
            tokenizer,
            new_labels=new_labels,
            relabel=relabel,
            source=source,
            namespace=place,
            known_in=None if attachment is None else attachment.namespaces,
        )
        bank.encoder = (self, tokenizer)
        if attachment is None:
            self.attach_history(bank, tokenizer=tokenizer)
        return added

    def _make_bank(self) -> Bank:
        try:  # an absolute import: a saved classifier that is only used for prediction needs no bank of its own
            from modeling_lle.bank.bank import HistoryBank
        except ModuleNotFoundError as error:
            raise_missing(error)
        return HistoryBank.temporary(fingerprint(self), self.key_size, self.config.vocab_size, labels=())

    def forget(
        self,
        texts: Iterable[str] | None = None,
        *,
        label: Label | None = None,
        ids: Iterable[int] | None = None,
        source: str | None = None,
        namespace: str | None = None,
        history: Attachment | Bank | None = None,
    ) -> int:
        """Takes examples back; what is given must hold for all of them together. Returns how many there were.

        From now on, every prediction is as if they had never been taught.

        Args:
            texts: The texts of the examples.
            label: Their label.
            ids, source, namespace: As in `HistoryBank.forget`; without a namespace those that are recalled from.
            history: The bank that holds them, as an Attachment or alone; None: the one that is attached.

        Raises:
            BankError: A text, a label, an id, a source or a namespace does not exist in the bank, or no example fits
                all that is given.
        """
        attachment = Attachment.of(history, self.history)
        if attachment is None:
            raise ValueError("there is nothing to forget: no bank is attached, and nothing was taught")
        try:
            from modeling_lle.entries.examples import forget
        except ModuleNotFoundError as error:
            raise_missing(error)
        places: dict[str, Any] = {"namespace": namespace, "within": attachment.namespaces}
        return forget(attachment.bank, texts, label, self.kind, ids=ids, source=source, **places)


def _namespace_of(attachment: Attachment | None) -> str:
    """The namespace that examples go to: the only one that is recalled from."""
    namespaces = None if attachment is None else attachment.namespaces
    if namespaces is None or DEFAULT in namespaces:
        return DEFAULT
    if len(namespaces) != 1:
        raise ValueError(f"the history recalls from the namespaces {', '.join(namespaces)}: say which with namespace=")
    return namespaces[0]
