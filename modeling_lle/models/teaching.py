"""Teaching a classifier without training: examples are added to its bank, and taken back from it exactly.

Notable: what is taught lasts as long as the bank, which `save_pretrained(save_history=True)` keeps with the model, or
which lies in a folder of its own; a text has one label at a time; examples are added whole or not at all.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from ..bank.bank import HistoryBank
from ..bank.fingerprint import fingerprint
from ..bank.manifest import BankError
from ..bank.protocol import DEFAULT, Bank, EntryKind, Outcome, Snapshot
from ..common.packages import raise_missing
from ..history.label_rule import Label, LabelSpace, check_outcomes, kind_of, names_of
from .pretrained import LLEPreTrainedModel


class TeachableModel(LLEPreTrainedModel):
    """A classifier with a bank of labelled examples beside its output layer."""

    outcome: Outcome = "label"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._trained = names_of(config.id2label)
        self._space: LabelSpace | None = None

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
        return self.config.problem_type or kind_of(len(self._trained))

    @property
    def trained_labels(self) -> tuple[str, ...]:
        """The labels that the output layer was trained on, C of them."""
        return tuple(self._trained)

    @property
    def label_space(self) -> LabelSpace | None:
        """The labels with those that only the bank knows, L; None without a bank. `config.id2label` follows."""
        bank = self.history_bank
        return None if bank is None else self.space_of(bank.snapshot())

    def space_of(self, state: Snapshot) -> LabelSpace:
        """The labels with those that a bank knows in this state, which name the logits of `forward(bank_state=state)`.

        `config.id2label` follows.
        """
        trained, kind, namespaces = tuple(self._trained), self.kind, self.history_namespaces

        def make() -> LabelSpace:
            live = state.live_outcomes(state.held(namespaces))
            return LabelSpace.of(trained, kind, state.labels or (), live)

        space = state.once((LabelSpace, trained, kind, namespaces), make)
        if self._space is not space:
            self._space = space
            self._name_labels(space.names)
        return space

    def _name_labels(self, names: Sequence[str]) -> None:
        self.config.id2label = dict(enumerate(names))
        self.config.label2id = {name: number for number, name in enumerate(names)}

    def attach_history(self, bank: Bank, *args: Any, **kwargs: Any) -> None:
        """As for every LLE model; the configuration gets the names of the labels that only the bank knows."""
        try:
            check_outcomes(bank.labels or (), self.kind)
        except ValueError as error:
            raise BankError(f"the bank {bank.name} {error}: teach the examples again") from None
        super().attach_history(bank, *args, **kwargs)
        _ = self.label_space

    def detach_history(self) -> None:
        """Ends `attach_history`; the labels are those of the output layer again."""
        super().detach_history()
        self._space = None
        self._name_labels(self._trained)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As for every LLE model; the names of labels that only the bank knows stay with the bank."""
        names = self._trained if self.label_space is None else list(self.label_space.names)
        self._name_labels(self._trained)
        try:
            super().save_pretrained(*args, **kwargs)
        finally:
            self._name_labels(names)

    def learn(
        self,
        texts: Sequence[Any],
        labels: Sequence[Any],
        tokenizer: Any = None,
        *,
        new_labels: bool = False,
        relabel: bool = False,
        source: str | None = None,
        namespace: str = DEFAULT,
    ) -> int:
        """Teaches examples: adds them to the bank that is attached, or to a new temporary one, without a gradient.

        Args:
            texts: The texts; for a classifier of tokens each is a list of words.
            labels: The label of each, as the configuration names it; a list of labels where a text may have several,
                a number in regression; for a classifier of tokens a list with a label or None for each word.
            tokenizer: The model's tokenizer; None: the one that the bank was attached or taught with.
            new_labels: Whether labels may be new: the output layer was not trained on them, and the bank has none.
            relabel: Whether texts that are in the bank with another label get the new one; else they are an error.
            source: Name of the source, by which it can be forgotten; None: the next of "taught-1", "taught-2", ...
            namespace: The namespace that they go to.

        Returns:
            The number of new examples. One that is in the namespace already is not added again.

        Raises:
            ValueError: A text is empty, a label is unknown, or a text has another label; nothing has been added then.
        """
        if isinstance(texts, str) or len(texts) != len(labels):
            raise ValueError(f"give a list of texts and as many labels: got {len(texts)} texts, {len(labels)} labels")
        self.check_history()
        bank = self._make_bank() if self.history_bank is None else self.history_bank
        own_tokenizer = bank.encoder[1] if bank.encoder is not None else None
        tokenizer = tokenizer or own_tokenizer
        if tokenizer is None:
            raise ValueError("No tokenizer: pass the model's tokenizer to learn()")
        bank.refresh()  # what others have taught or taken back counts
        added = self.entry_kind.add(
            bank,
            [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)],
            self,
            tokenizer,
            new_labels=new_labels,
            relabel=relabel,
            source=source,
            namespace=namespace,
        )
        bank.encoder = (self, tokenizer)
        if self.history_bank is None:
            self.attach_history(bank, tokenizer=tokenizer)
        _ = self.label_space
        return added

    def _make_bank(self) -> HistoryBank:
        return HistoryBank.temporary(fingerprint(self), self.key_size, self.config.vocab_size, labels=())

    def forget(
        self,
        texts: Iterable[str] | None = None,
        *,
        label: Label | None = None,
        ids: Iterable[int] | None = None,
        source: str | None = None,
        namespace: str | None = None,
    ) -> int:
        """Takes examples back; what is given must hold for all of them together. Returns how many there were.

        From now on, every prediction is as if they had never been taught.

        Args:
            texts: The texts of the examples.
            label: Their label.
            ids, source, namespace: As in `HistoryBank.forget`.

        Raises:
            BankError: A text, a label, an id, a source or a namespace does not exist in the bank, or no example fits
                all that is given.
        """
        if self.history_bank is None:
            raise ValueError("there is nothing to forget: no bank is attached, and nothing was taught")
        try:
            from modeling_lle.entries.examples import condition
        except ModuleNotFoundError as error:
            raise_missing(error)
        where = condition(self.history_bank, texts, label, self.kind)
        gone = self.history_bank.forget(ids, source=source, namespace=namespace, where=where)
        _ = self.label_space
        return gone
