"""PairEntries: sentence pairs as entries of a bank; Memory: the pairs that are similar to a sentence.

Notable: retrieval has two stages, which is fast on a CPU (after SK-MT, Dai et al. 2023, arXiv:2302.12188): BM25 finds
the pairs with the most similar source; all target positions of these pairs are the candidates of this sentence, which
the rule weighs by their keys. A pair's document holds its source as `text` and its target as `translation`; a
namespace has each pair once.
Shapes: B batch, T time, N entries, K candidates, D width.
"""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..bank.found import Document
from ..bank.manifest import Added, BankError, check_names
from ..bank.parts import Parts, Unit, common_source, precision_of
from ..bank.places import place_of, provenance
from ..bank.protocol import DEFAULT, Bank, Encoder, Search, Snapshot
from ..bank.segment import Segment
from ..common.batches import batches
from ..common.checks import check_unicode
from ..common.modes import evaluating
from ..common.precision import outside_autocast
from ..data.text import encode_sentences
from ..history.attachment import Attachment
from ..history.candidates import NOWHERE, Candidates, Others
from ..history.loss import IGNORED

WRITTEN = 65_536  # pairs that are written together
CANDIDATES = 16  # pairs whose fuzzy match score is computed
SAMPLED = 32  # pairs of a batch for calibration
SPARE = 8  # additional pairs to find where some are left out
NONE = torch.zeros(0, dtype=torch.long)


@dataclass(frozen=True)
class Match:
    """A pair of a memory that is similar to a sentence.

    Attributes:
        score: Fuzzy match score of the sources, in [0, 1]; 1 only if they are equal.
        text, translation: Source and target of the pair.
        source, row: Where it was added.
        where: The same as it is shown: "file:line" or, if that is unknown, "source:row".
    """

    score: float
    text: str
    translation: str
    source: str
    row: int
    where: str = ""


class PairEncoder(Encoder, Protocol):
    """A translator: its decoder states are keys, its target tokens outcomes."""

    @property
    def start_token_id(self) -> int:
        """The token that every target begins after."""
        ...

    def encode(self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Keys of target positions (B, T, D)."""
        ...


class PairEntries:
    """Entries of sentence pairs: the key is the decoder's state before a token of the target, which is the outcome."""

    outcome: Final = "target token"

    def check(self, bank: Bank) -> None:
        """Raises a BankError unless every document of the bank is a sentence pair."""
        for document in bank.documents():
            _check_pair(document, bank)

    def name(self, outcome: int, bank: Bank | Snapshot, tokenizer: PreTrainedTokenizerBase) -> str:
        """Text of a token."""
        return str(tokenizer.decode([outcome]))

    def add(
        self,
        bank: Bank,
        rows: Iterable[Any],
        model: PairEncoder,
        tokenizer: PreTrainedTokenizerBase,
        *,
        source_column: str = "source",
        target_column: str = "target",
        source: str | None = None,
        namespace: str = DEFAULT,
        progress: bool = False,
        parts: str | Path | None = None,
    ) -> int:
        """Encodes sentence pairs and adds them to a bank; returns the number of new entries, target tokens.

        Args:
            bank: The bank.
            rows: Mappings with a source and a target; `file`, `line` and `row_in_file` are kept with them.
            model: The translator that encodes.
            tokenizer: Its tokenizer.
            source_column, target_column: Their columns.
            source: Name of the source, by which it can be forgotten; None: the next of "added-1", "added-2", ...
            namespace: The namespace to add to: a client, a domain.
            progress: Whether to show a progress bar.
            parts: As in `TextEntries.add`: a folder through which several processes add this source together. What is
                in the bank of this source is then taken for the beginning of `rows`.

        Raises:
            ValueError: There is no pair, a row lacks a column, or one is blank or no text.
        """
        pairs = _pairs(rows, source_column, target_column)
        check_names([("namespace", namespace)] if source is None else [("namespace", namespace), ("source", source)])
        bar = tqdm(desc="Encoding", unit=" pairs", disable=not progress)
        if parts is not None:
            with evaluating(model), bar:
                return _add_together(bank, pairs, model, tokenizer, common_source(source), namespace, parts, bar)
        with evaluating(model), bank.writing() as state, bar:
            name = source or state.free_source("added")
            new = _new_pairs(state, pairs, namespace, state.added(namespace, name).rows)
            bar.reset(total=len(new))
            segments = (
                (_segment(model, tokenizer, unit.content, name, bar), [unit.end])
                for unit in _units(new, Added(namespace, name, 0))
            )
            return bank.append(segments, namespace)


def _add_together(
    bank: Bank,
    pairs: Sequence[tuple[str, str, Mapping[str, Any]]],
    model: PairEncoder,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    namespace: str,
    parts: str | Path,
    bar: tqdm,
) -> int:
    """Adds pairs with other processes: those that the namespace has from other sources are left out."""
    settings = {"rows": len(pairs), "precision": precision_of(model)}
    with Parts(parts, bank, namespace, source, settings) as shared:
        bank.refresh()
        new = _new_pairs(bank.snapshot(), pairs, namespace, 0, but=source)
        bar.reset(total=len(new))
        units = _units(new, Added(namespace, source, 0))
        return shared.add(
            lambda before: (unit for unit in units if unit.end.rows > before.rows),
            lambda unit: _segment(model, tokenizer, unit, source, bar),
            _digest,
        )


def _units(pairs: Sequence["_Pair"], before: Added) -> Iterator[Unit[Sequence["_Pair"]]]:
    """Yields the pairs of one segment each."""
    for start in range(0, len(pairs), WRITTEN):
        part = pairs[start : start + WRITTEN]
        end = replace(before, rows=part[-1].row + 1)
        yield Unit(before, end, part)
        before = end


def _digest(pairs: Sequence["_Pair"]) -> str:
    """Digest of the pairs of a segment."""
    values = [[pair.row, pair.text, pair.translation, dict(pair.columns)] for pair in pairs]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _check_pair(document: Document, bank: Bank | Snapshot) -> None:
    """Raises a BankError unless a document is a sentence pair."""
    if not all(isinstance(document.columns.get(name), str) for name in ("text", "translation")):
        raise BankError(
            f"the bank {bank.name} does not hold sentence pairs: make a memory with `lle memory`, or with "
            "HistoryBank.build and a translator"
        )


@dataclass(frozen=True)
class _Pair:
    """A sentence pair, its row, and where that comes from."""

    row: int
    text: str
    translation: str
    columns: Mapping[str, Any]


def _new_pairs(
    state: Snapshot,
    pairs: Iterable[tuple[str, str, Mapping[str, Any]]],
    namespace: str,
    first: int,
    but: str | None = None,
) -> list[_Pair]:
    """The pairs that no source of a namespace has, `but` one, each once; their rows are counted from `first`."""
    seen = set()
    for document in state.documents([namespace]):
        _check_pair(document, state)
        if document.source != but:
            seen.add((document.columns["text"], document.columns["translation"]))
    new: list[_Pair] = []
    for row, (text, translation, columns) in enumerate(pairs, start=first):
        if (text, translation) not in seen:
            seen.add((text, translation))
            new.append(_Pair(row, text, translation, columns))
    return new


def _pairs(dataset: Iterable[Any], source_column: str, target_column: str) -> list[tuple[str, str, Mapping[str, Any]]]:
    """The sides of each pair, and where it comes from."""
    pairs: list[tuple[str, str, Mapping[str, Any]]] = []
    for number, row in enumerate(dataset):
        if not isinstance(row, Mapping):
            raise ValueError(f"row {number} is {type(row).__name__}: give mappings with a source and a target")
        for name in (source_column, target_column):
            if name not in row:
                raise ValueError(f"row {number} has no column {name!r}; its columns are: {', '.join(row)}")
            if not isinstance(row[name], str) or not row[name].strip():
                raise ValueError(f"the column {name!r} of row {number} is {row[name]!r}, not a sentence: leave it out")
            check_unicode(row[name], f"the column {name!r} of row {number}")
        pairs.append((row[source_column], row[target_column], provenance(row)))
    if not pairs:
        raise ValueError("there is no sentence pair to add")
    return pairs


@torch.no_grad()
def _segment(
    model: PairEncoder, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[_Pair], source: str, bar: tqdm
) -> Segment:
    """Encodes pairs as a segment with an entry for each token of their targets."""
    texts = encode_sentences([pair.text for pair in pairs], tokenizer)
    targets = encode_sentences([pair.translation for pair in pairs], tokenizer)
    lengths = torch.tensor([len(target) for target in targets])
    first = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))  # entry of each pair, and the number of all
    keys = torch.empty(int(first[-1]), model.key_size, dtype=torch.bfloat16)
    for rows in batches([max(len(text), len(target)) for text, target in zip(texts, targets, strict=True)]):
        batch = padded([texts[row] for row in rows], [targets[row] for row in rows], tokenizer.pad_token_id)
        states = model.encode(**{name: value.to(model.device) for name, value in batch.items()}).bfloat16().cpu()
        for number, row in enumerate(rows):
            keys[first[row] : first[row + 1]] = states[number, : lengths[row]]
        bar.update(len(rows))
    owners = torch.repeat_interleave(torch.arange(len(pairs)), lengths)
    return Segment(
        keys=keys,
        ids=torch.arange(len(keys)),
        positions=torch.arange(len(keys)) + owners + 1,
        counts=torch.ones(len(keys), dtype=torch.int32),
        copies=torch.zeros(0, 2, dtype=torch.long),
        tokens=torch.tensor([id for target in targets for id in (model.start_token_id, *target)], dtype=torch.int32),
        starts=first + torch.arange(len(first)),
        documents=[
            {"source": source, "row": pair.row, **pair.columns, "text": pair.text, "translation": pair.translation}
            for pair in pairs
        ],
    )


def padded(texts: Sequence[list[int]], targets: Sequence[list[int]], pad_token_id: int) -> dict[str, Tensor]:
    """Pads token ids of sources and targets on the right.

    Returns:
        `input_ids` (B, T) int64, `attention_mask` (B, T) of 0 and 1, and `labels` int64, -100 at padding.
    """
    pad = torch.nn.utils.rnn.pad_sequence
    inputs = [torch.tensor(ids) for ids in texts]
    return {
        "input_ids": pad(inputs, batch_first=True, padding_value=pad_token_id),
        "attention_mask": pad([torch.ones_like(ids) for ids in inputs], batch_first=True),
        "labels": pad([torch.tensor(ids) for ids in targets], batch_first=True, padding_value=IGNORED),
    }


def pair_batches(
    sources: Sequence[str], targets: Sequence[str], tokenizer: PreTrainedTokenizerBase, size: int = SAMPLED
) -> Iterator[dict[str, Tensor]]:
    """Yields sentence pairs in batches of at most `size` for `forward` of a translator, short ones first."""
    texts, labels = (encode_sentences(list(side), tokenizer) for side in (sources, targets))
    for rows in batches([max(map(len, pair)) for pair in zip(texts, labels, strict=True)], size):
        yield padded([texts[row] for row in rows], [labels[row] for row in rows], tokenizer.pad_token_id)


class Memory:
    """The sentence pairs of one state of a bank, with a lexical index of their sources.

    Args:
        state: The state of the bank.
        tokenizer: Tokenizer of the translator.
        namespaces: Namespaces to recall from, those that do not exist being skipped; None: all.

    Attributes:
        pairs: For each pair its `source`, `row`, `text`, `translation` and other columns, and `where` it comes from,
            the oldest first.
        keys, outcomes, ids: (N, D) bfloat16, (N,) int64 and (N,) int64 ascending, the entries of all pairs.
        first: Index of the first entry of each pair, and N at the end.
        exact: Index of the pair that counts for a source: the newest of the first namespace given, else of all.
    """

    @classmethod
    def of(cls, attachment: Attachment) -> "Memory":
        """The pairs that an attachment sees, indexed once for each state, tokenizer and choice of namespaces.

        Raises:
            ValueError: The attachment has no tokenizer.
        """
        tokenizer = attachment.tokenizer
        if tokenizer is None:
            raise ValueError(
                "a memory finds similar sentences by their words: give history=Attachment(bank, tokenizer=tokenizer)"
            )
        return attachment.derived(
            (cls, tokenizer), lambda state: cls(state, tokenizer, state.held(attachment.namespaces))
        )

    @outside_autocast
    def __init__(
        self, state: Snapshot, tokenizer: PreTrainedTokenizerBase, namespaces: Iterable[str] | None = None
    ) -> None:
        from ..bank.lexical import SentenceIndex, fuzzy_match  # here, as nothing else in this file needs the extra

        self.tokenizer, self._fuzzy_match = tokenizer, fuzzy_match
        namespaces = None if namespaces is None else tuple(namespaces)
        self._state, self._namespaces = state, namespaces
        self.pairs: list[dict[str, Any]] = []
        sizes: list[int] = []
        first_choice: list[bool] = []
        for document in state.documents(namespaces):
            _check_pair(document, state)
            where = place_of(document.source, document.row, document.columns)
            self.pairs.append({"source": document.source, "row": document.row, **document.columns, "where": where})
            sizes.append(len(document.ids))
            first_choice.append(document.namespace in (namespaces or ())[:1])
        keys, outcomes, ids = [torch.zeros(0, state.width, dtype=torch.bfloat16)], [NONE], [NONE]
        for batch in state.entries(namespaces):
            keys.append(batch.keys)
            outcomes.append(batch.outcomes)
            ids.append(batch.ids)
        self.keys, self.outcomes, self.ids = torch.cat(keys), torch.cat(outcomes), torch.cat(ids)
        if bool((self.ids.diff() < 0).any()):  # joined segments of several namespaces: the oldest pair first again
            oldest = self.ids[torch.tensor([0, *sizes[:-1]]).cumsum(0)].argsort().tolist()
            self.pairs, sizes = [self.pairs[pair] for pair in oldest], [sizes[pair] for pair in oldest]
            first_choice = [first_choice[pair] for pair in oldest]
            order = self.ids.argsort()
            self.keys, self.outcomes, self.ids = self.keys[order], self.outcomes[order], self.ids[order]
        self.first = torch.tensor([0, *sizes]).cumsum(0).tolist()  # entry of each pair, and the number of all
        self.index = SentenceIndex([pair["text"] for pair in self.pairs])
        self._versions: dict[str, list[int]] = {}  # the pairs of each source, the one that counts first
        for number in sorted(range(len(self.pairs)), key=lambda number: (not first_choice[number], -number)):
            self._versions.setdefault(self.pairs[number]["text"], []).append(number)
        self._sources: dict[str, list[int]] = {}  # the pairs of each source, whatever its case
        for number, pair in enumerate(self.pairs):
            self._sources.setdefault(_plain(pair["text"]), []).append(number)
        self.exact = {text: versions[0] for text, versions in self._versions.items()}

    def candidates(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        sentences: int,
        leave_out: bool = False,
        neighbours: int = 0,
        search: Search = "balanced",
    ) -> Candidates:
        """The candidates of source sentences: the entries of the pairs with the most similar source.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T) of 0 and 1, 0 at padding.
            sentences: Number of pairs for each sentence.
            leave_out: Whether to leave out the pairs that have the sentence itself as their source.
            neighbours, search: As in `Others`; 0 for none.
        """
        rows = (
            input_ids.cpu() if attention_mask is None else input_ids.cpu().masked_fill(attention_mask.cpu() == 0, -1)
        )
        texts = [str(self.tokenizer.decode(row[row >= 0], skip_special_tokens=True)) for row in rows]
        places, before, match, left_out = [], [], [], []
        nearest, _ = self.index.search(texts, sentences + leave_out * SPARE)
        for text, found in zip(texts, nearest.tolist(), strict=True):
            own = self._sources.get(_plain(text), []) if leave_out else []
            left_out.append(torch.cat([NONE, *(self.ids[self.first[pair] : self.first[pair + 1]] for pair in own)]))
            pairs = [pair for pair in found if pair >= 0 and pair not in own]
            pairs = pairs[:sentences]
            sizes = torch.tensor([self.first[pair + 1] - self.first[pair] for pair in pairs], dtype=torch.long)
            entries = [range(self.first[pair], self.first[pair + 1]) for pair in pairs]
            places.append(torch.tensor([entry for own in entries for entry in own], dtype=torch.long))
            follows = torch.nn.functional.pad(self.ids[places[-1]].diff() == 1, (1, 0))[: len(places[-1])]
            follows[sizes.cumsum(0) - sizes] = False  # nor does an entry follow one that is forgotten
            before.append(torch.arange(-1, len(places[-1]) - 1).where(follows, NOWHERE))
            scores = torch.tensor([self._fuzzy_match(text, self.pairs[pair]["text"]) for pair in pairs])
            match.append(scores.float().repeat_interleave(sizes))
        pad = torch.nn.utils.rnn.pad_sequence
        place = pad(places, batch_first=True, padding_value=-1)
        befores = pad(before, batch_first=True, padding_value=NOWHERE)
        scored = pad(match, batch_first=True)
        others = None
        if neighbours:
            unknown = pad(left_out, batch_first=True, padding_value=NOWHERE)
            others = Others(self._state, self._namespaces, neighbours, search, unknown)
        if not len(self.keys):
            return Candidates(torch.zeros(len(rows), self.keys.shape[1], 0), place, place, befores, scored, others)
        safe = place.clamp(min=0)
        keys = self.keys[safe].transpose(1, 2).float().contiguous()
        ids = self.ids[safe].masked_fill(place < 0, NOWHERE)
        return Candidates(keys, self.outcomes[safe], ids, befores, scored, others)

    def sample(self, most: int, seed: int) -> Iterator[dict[str, Tensor]]:
        """Draws at most `most` pairs by a seed, and yields them in batches for `forward` of a translator."""
        chosen = random.Random(seed).sample(self.pairs, min(most, len(self.pairs)))
        sources, targets = ([pair[side] for pair in chosen] for side in ("text", "translation"))
        yield from pair_batches(sources, targets, self.tokenizer)

    def owners(self, ids: Tensor) -> Tensor:
        """Indices (n,) int64 into `pairs` of the pairs that the entries with the ids (n,) int64 belong to."""
        return torch.searchsorted(torch.tensor(self.first), torch.searchsorted(self.ids, ids), right=True) - 1

    def matches(self, text: str, number: int = 1) -> list[Match]:
        """The pairs with the highest fuzzy match score of their source with a text, at most `number`; ties by BM25."""
        found, _ = self.index.search([text], max(number, CANDIDATES))
        sources = [text, *(self.pairs[pair]["text"] for pair in found[0].tolist() if pair >= 0)]
        chosen = dict.fromkeys(pair for source in sources for pair in self._versions.get(source, []))
        scored = [(self._fuzzy_match(text, self.pairs[pair]["text"]), pair) for pair in chosen]
        best = sorted(scored, key=lambda item: -item[0])[:number]
        names = ("text", "translation", "source", "row", "where")
        return [Match(score, *(self.pairs[pair][name] for name in names)) for score, pair in best]

    def alternatives(self, text: str) -> list[dict[str, Any]]:
        """The pairs with other translations of a source than the one that counts, in the order in which they do."""
        different: dict[str, dict[str, Any]] = {}
        for pair in self._versions.get(text, []):
            different.setdefault(self.pairs[pair]["translation"], self.pairs[pair])
        return list(different.values())[1:]


def _plain(text: str) -> str:
    """A source without its case and the space around it."""
    return text.strip().lower()
