"""ExampleEntries: labelled examples as entries of a bank, with the key of a text or word and its label as the outcome.

Notable: an example's document holds its text and its label, so that it can be shown, found and taken back; its tokens
are those of the text, followed by the outcomes. A text has one label in a namespace.
Shapes: B batch, T time, N entries, D width.
"""

import difflib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..bank.manifest import Added, BankError, check_names
from ..bank.places import provenance
from ..bank.protocol import DEFAULT, Bank, Encoder, Snapshot
from ..bank.segment import Segment
from ..common.batches import batches
from ..common.checks import check_unicode
from ..common.modes import evaluating
from ..history.label_rule import REGRESSION, SINGLE, Label, labels_in, outcome_name

logger = logging.getLogger(__name__)


class ExampleEncoder(Encoder, Protocol):
    """An encoder that makes one key of a text, or one of each token."""

    @property
    def kind(self) -> str:
        """What the labels are: a `problem_type` of transformers."""
        ...

    @property
    def trained_labels(self) -> tuple[str, ...]:
        """Labels of the output layer."""
        ...

    @property
    def pooling(self) -> Any:
        """Pooling of the states of a text into one; None in a classifier of tokens."""
        ...

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Keys of texts (B, T): (B, D), or of tokens (B, T, D)."""
        ...


class ExampleEntries:
    """Entries of labelled examples: the key is that of a text, or of one of its words, the outcome its label."""

    outcome: Final = "label"

    def check(self, bank: Bank) -> None:
        """Raises a BankError if the outcomes of the bank are tokens."""
        if bank.labels is None:
            raise BankError(
                f"the bank {bank.name} holds tokens, and examples have labels as outcomes: open a bank that learn() "
                "made"
            )

    def name(self, outcome: int, bank: Bank | Snapshot, tokenizer: PreTrainedTokenizerBase) -> str:
        """Name of a label; where a text has several, a JSON list of them."""
        return (bank.labels or ())[outcome]

    def add(
        self,
        bank: Bank,
        rows: Iterable[Any],
        model: ExampleEncoder,
        tokenizer: PreTrainedTokenizerBase,
        *,
        text_column: str = "text",
        label_column: str = "label",
        new_labels: bool = False,
        relabel: bool = False,
        source: str | None = None,
        namespace: str = DEFAULT,
        known_in: Sequence[str] | None = None,
    ) -> int:
        """Encodes labelled examples and adds them to a bank; returns the number of new examples.

        Args:
            bank: The bank.
            rows: Mappings with a text and a label; `file`, `line` and `row_in_file` are kept with them.
            model: The classifier that encodes.
            tokenizer: Its tokenizer.
            text_column, label_column: Their columns.
            new_labels, relabel, source, namespace: As in `TeachableModel.learn`.
            known_in: The namespaces whose labels are not new, beside their own; None: all.

        Raises:
            ValueError: As in `TeachableModel.learn`, or a row lacks a column.
        """
        self.check(bank)
        check_names([("namespace", namespace)] if source is None else [("namespace", namespace), ("source", source)])
        (texts, labels), places = _columns(rows, text_column, label_column)
        before = bank.snapshot()
        known = (
            None
            if new_labels or model.kind == REGRESSION
            else _known(before, model, None if known_in is None else {*known_in, namespace})
        )
        examples = _Examples(texts, labels, model, known)
        chosen, _ = examples.compare(_present(before, namespace), relabel)
        if not chosen:
            return 0
        segment, names = _segment(model, tokenizer, [examples.items[i] for i in chosen])
        with bank.writing() as state:
            was_chosen = chosen
            chosen, replaced = examples.compare(_present(state, namespace), relabel)
            if chosen != was_chosen:  # somebody has taught some of the texts, or taken them back, meanwhile
                segment, names = _segment(model, tokenizer, [examples.items[i] for i in chosen])
            source = source or state.free_source("taught")
            first = state.added(namespace, source).rows
            for row, (document, example) in enumerate(zip(segment.documents, chosen, strict=True), start=first):
                document |= {"source": source, "row": row, **places[example]}
            added = [Added(namespace, source, first + len(chosen))]
            return bank.append([(segment, added)], namespace, names, replaced) if chosen else 0


def _columns(rows: Iterable[Any], *names: str) -> tuple[list[list[Any]], list[dict[str, Any]]]:
    """The values of columns, and where each row comes from; raises a ValueError if a row lacks a column."""
    columns: list[list[Any]] = [[] for _ in names]
    places: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(
                f"row {number} is {type(row).__name__}: give mappings with the columns {', '.join(names)}"
            )
        for name, values in zip(names, columns, strict=True):
            if name not in row:
                raise ValueError(f"row {number} has no column {name!r}; its columns are: {', '.join(row)}")
            values.append(row[name])
        places.append(provenance(row))
    return columns, places


def _known(state: Snapshot, model: ExampleEncoder, namespaces: Iterable[str] | None) -> set[str]:
    """The labels that the output layer or an entry of these namespaces (None: of all) has."""
    names = state.labels or ()
    live = [names[number] for number in state.live_outcomes(state.held(namespaces)).nonzero()[:, 0].tolist()]
    return {*model.trained_labels, *(label for name in live for label in labels_in(name, model.kind))}


class _Examples:
    """Texts with the names of their outcomes, checked.

    Attributes:
        items: For each example its text or list of words, the text by which it is shown and found, and the outcome of
            the text or of each word, None where a word has no label.
        of_words: Whether each word has a label of its own.
    """

    def __init__(
        self, texts: Sequence[Any], labels: Sequence[Any], model: ExampleEncoder, known: set[str] | None
    ) -> None:
        self.items: list[tuple[Any, str, list[str | None]]] = []
        self.of_words = model.pooling is None
        for row, (text, label) in enumerate(zip(texts, labels, strict=True)):
            self.items.append(self._words(row, text, label) if self.of_words else self._text(row, text, label, model))
        if known is not None:
            self._check_known(known, model)
        self._check_each_other()

    def _text(self, row: int, text: Any, label: Any, model: ExampleEncoder) -> tuple[Any, str, list[str | None]]:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"text {row} is {text!r}: an example needs a text that is not empty")
        check_unicode((text, label), f"text {row} or its label")
        try:
            return text, text, [outcome_name(label, model.kind)]
        except ValueError as error:
            raise ValueError(f"text {row}, {_short(text)}: {error}") from None

    def _words(self, row: int, words: Any, labels: Any) -> tuple[Any, str, list[str | None]]:
        if isinstance(words, str) or not words or not all(isinstance(word, str) and word.strip() for word in words):
            raise ValueError(f"text {row} is {words!r}: give a list of words, none of them empty")
        if isinstance(labels, str) or len(labels) != len(words):
            raise ValueError(f"text {row} has {len(words)} words: give as many labels, None where a word has none")
        check_unicode((words, labels), f"text {row} or its label")
        names = [None if label is None else outcome_name(label, SINGLE) for label in labels]
        return list(words), " ".join(words), names

    def _check_known(self, known: set[str], model: ExampleEncoder) -> None:
        for row, (_, shown, names) in enumerate(self.items):
            for name in names:
                for label in [] if name is None else json.loads(name) if model.kind.startswith("multi") else [name]:
                    if label not in known:
                        near = difflib.get_close_matches(label, sorted(known), n=1)
                        hint = f" (did you mean {near[0]!r}?)" if near else ""
                        raise ValueError(
                            f"the label {label!r} of text {row}, {_short(shown)}, is new{hint}: "
                            "pass new_labels=True if that is meant"
                        )

    def _check_each_other(self) -> None:
        first: dict[str, int] = {}
        for row, (_, shown, names) in enumerate(self.items):
            other = first.setdefault(shown, row)
            if self.items[other][2] != names:
                raise ValueError(
                    f"the text {_short(shown)} has two labels: {_shown(self.items[other][2])} (text {other}) and "
                    f"{_shown(names)} (text {row}); give it one"
                )

    def compare(self, before: dict[str, tuple[str, list[int]]], relabel: bool) -> tuple[list[int], list[int]]:
        """Indices of the new examples, each text once, and the ids of the entries that they replace."""
        chosen, replaced = [], []
        seen: set[str] = set()
        for row, (_, shown, names) in enumerate(self.items):
            label, ids = before.get(shown, ("", []))
            if shown in seen or (ids and label == _shown(names)):
                continue
            if ids and not relabel:
                raise ValueError(
                    f"the bank has the text {_short(shown)} with the label {label}, text {row} has {_shown(names)}: "
                    "pass relabel=True to change it, or forget it first"
                )
            seen.add(shown)
            chosen.append(row)
            replaced += ids
        return chosen, replaced


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _shown(names: Sequence[str | None]) -> str:
    """The label as a document holds it."""
    return str(names[0]) if len(names) == 1 else json.dumps(names, ensure_ascii=False)


def _present(state: Snapshot, namespace: str) -> dict[str, tuple[str, list[int]]]:
    """For each text in a namespace its label and the ids of its entries."""
    return {
        document.columns["text"]: (document.columns["label"], document.ids)
        for document in state.documents([namespace])
    }


def held_out(bank: Bank, texts: Sequence[str]) -> list[int]:
    """Indices of the texts that are not in a bank, to calibrate on.

    Raises:
        ValueError: All texts are in the bank.
    """
    known = {document.columns["text"] for document in bank.documents()}
    places = [place for place, text in enumerate(texts) if text not in known]
    if not places:
        raise ValueError(
            f"the bank {bank.name} has all of these texts: give held-out ones, or the rule would learn to "
            "trust what it has seen"
        )
    if len(places) < len(texts):
        logger.warning("%d of the %d texts are in the bank, and left out", len(texts) - len(places), len(texts))
    return places


def forget(
    bank: Bank,
    texts: Iterable[str] | None,
    label: Label | None,
    kind: str,
    *,
    ids: Iterable[int] | None = None,
    source: str | None = None,
    namespace: str | None = None,
    within: Sequence[str] | None = None,
) -> int:
    """Takes examples back for which everything that is given holds; returns how many there were.

    Args:
        bank: The bank.
        texts, label: Their texts and their label.
        kind: What the labels are.
        ids, source, namespace: As in `HistoryBank.forget`.
        within: The namespaces to look in, if none is given; None: all.

    Raises:
        BankError: A text, label, id, source or namespace does not exist, or no example fits everything that is given.
        ValueError: Nothing was given.
    """
    numbers = None if ids is None else list(ids)
    if all(given is None for given in (texts, label, numbers, source, namespace)):
        raise ValueError("nothing to forget: give texts, label, ids, source or namespace")
    with bank.writing() as state:
        places = within if namespace is None else [namespace]
        where = _condition(state, texts, label, kind, places)
        if places is None:
            return bank.forget(numbers, source=source, where=where)
        if len(places) == 1:
            return bank.forget(numbers, source=source, namespace=places[0], where=where)
        chosen = [
            entry
            for document in state.documents(places)
            if source in (None, document.source) and (where is None or where(document.columns))
            for entry in document.ids
            if numbers is None or entry in numbers
        ]
        if not chosen:
            raise BankError(f"the bank {state.name} has no such example in the namespaces {', '.join(places)}")
        return bank.forget(chosen)


def _condition(
    state: Snapshot, texts: Iterable[str] | None, label: Label | None, kind: str, namespaces: Sequence[str] | None
) -> Callable[[dict[str, Any]], bool] | None:
    """The `where` of `Bank.forget` for examples with one of these texts and this label; None if neither is given.

    Args:
        bank: The bank.
        texts: The texts; None: any.
        label: The label; None: any.
        kind: The `problem_type` of the classifier.

    Raises:
        BankError: No document of the namespaces (None: of all) has such a text or label.
    """
    if texts is None and label is None:
        return None
    wanted = None if texts is None else {texts} if isinstance(texts, str) else set(texts)
    name = None if label is None else outcome_name(label, kind)
    documents = [document.columns for document in state.documents(namespaces)]
    if wanted is not None:
        missing = sorted(wanted - {document["text"] for document in documents})
        if missing:
            raise BankError(f"the bank {state.name} has no example with the text {_short(missing[0])}")
    if name is not None and not any(document["label"] == name for document in documents):
        held = sorted({document["label"] for document in documents})
        near = difflib.get_close_matches(name, held, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise BankError(f"the bank {state.name} has no example with the label {name!r}{hint}")
    return lambda columns: (wanted is None or columns["text"] in wanted) and name in (None, columns["label"])


@torch.no_grad()
def _segment(
    model: ExampleEncoder, tokenizer: PreTrainedTokenizerBase, items: list[tuple[Any, str, list[str | None]]]
) -> tuple[Segment, list[str]]:
    """Encodes examples as a segment without a source; its outcomes are indices in the list of names beside it."""
    of_words = model.pooling is None
    encoded = tokenizer([text for text, _, _ in items], is_split_into_words=of_words, return_attention_mask=False)
    places = [_places(encoded, row, names) if of_words else [0] for row, (_, _, names) in enumerate(items)]
    lengths = torch.tensor([len(place) for place in places])
    first = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    keys = torch.empty(int(first[-1]), model.key_size, dtype=torch.bfloat16)
    with evaluating(model):
        for rows in batches([len(ids) for ids in encoded["input_ids"]]):
            padded = tokenizer.pad({"input_ids": [encoded["input_ids"][row] for row in rows]}, return_tensors="pt")
            batch = {name: value.to(model.device) for name, value in padded.items()}
            states = model.encode(batch["input_ids"], batch["attention_mask"]).bfloat16().cpu()
            for number, row in enumerate(rows):
                if of_words:
                    real = batch["attention_mask"][number].bool().cpu()
                    keys[first[row] : first[row + 1]] = states[number][real][places[row]]
                else:
                    keys[first[row]] = states[number]
    names = list(dict.fromkeys(name for _, _, own in items for name in own if name is not None))
    number_of = {name: number for number, name in enumerate(names)}
    tokens: list[int] = []
    positions: list[int] = []
    starts = [0]
    for ids, (_, _, own) in zip(encoded["input_ids"], items, strict=True):
        outcomes = [number_of[name] for name in own if name is not None]
        positions += range(starts[-1] + len(ids), starts[-1] + len(ids) + len(outcomes))
        tokens += [*ids, *outcomes]
        starts.append(len(tokens))
    segment = Segment(
        keys=keys,
        ids=torch.arange(len(keys)),
        positions=torch.tensor(positions, dtype=torch.long),
        counts=torch.ones(len(keys), dtype=torch.int32),
        copies=torch.zeros(0, 2, dtype=torch.long),
        tokens=torch.tensor(tokens, dtype=torch.int32),
        starts=torch.tensor(starts, dtype=torch.long),
        documents=[{"source": "", "row": 0, "text": shown, "label": _shown(own)} for _, shown, own in items],
    )
    return segment, names


def _places(encoded: Any, row: int, names: list[str | None]) -> list[int]:
    """Index of the first token of each word that has a label."""
    words = encoded.word_ids(row)
    places = {word: place for place, word in reversed(list(enumerate(words))) if word is not None}
    missing = [word for word, name in enumerate(names) if name is not None and word not in places]
    if missing:
        raise ValueError(f"word {missing[0]} of text {row} has a label, but the tokenizer makes no token of it")
    return [places[word] for word, name in enumerate(names) if name is not None]
