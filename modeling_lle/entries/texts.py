"""TextEntries: texts as entries of a bank, encoded by the model's backbone.

Notable: rows are encoded independently of each other, so that each can be forgotten exactly. Texts of similar length
share a batch; a long one is read in pieces side by side, each warmed up on the tokens before it. Threads tokenise,
encode and write at the same time, in order: each segment is written together with the progress of its source.
Shapes: N entries, D width, B batch, T time.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..bank.changes import plain
from ..bank.manifest import Added, BankError, check_names
from ..bank.parts import Parts, Unit, common_source, precision_of
from ..bank.places import LINE, PROVENANCE, LineBreaks
from ..bank.protocol import DEFAULT, Bank, Encoder, Snapshot
from ..bank.segment import Segment
from ..common.ahead import ahead
from ..common.checks import check_unicode
from ..common.modes import evaluating
from ..data.expected import Expected
from ..data.text import encode_texts
from ..history.cache import LLECache
from ..kernels.available import takes_numba

SEGMENT_ENTRIES = 131_072  # entries of a segment, before any is dropped
PIECE = 4096  # tokens of a piece of a long text
WARM_UP = 128  # tokens before a piece that are read first; the state forgets tokens further back
ROWS = 128  # pieces of a batch; more would need more padding
WRAPPED_ROWS = 8  # those of a backbone of transformers, whose layers take some hundred MB for each row of MAX_STEPS
MAX_STEPS = 256  # time steps that are read at once
TEXTS = 1000  # texts that are tokenised together
CONTEXT = 16  # duplicates have the outcome and this number of tokens before it in common


@dataclasses.dataclass(frozen=True)
class _Part:
    """Consecutive tokens of a row: `tokens[begin + 1 : end + 1]` are outcomes, `tokens[0]` is the start token."""

    row: int
    columns: dict[str, Any]
    tokens: np.ndarray
    begin: int
    end: int


class TextEncoder(Encoder, Protocol):
    """An encoder whose backbone reads text from left to right; for `keep_below` it has an output layer `lm_head`."""

    @property
    def base_model(self) -> nn.Module:
        """The backbone."""
        ...


class TextEntries:
    """Entries of texts: the key is the state after a token, the outcome the token that follows."""

    outcome: Final = "token"

    def check(self, bank: Bank) -> None:
        """Raises a BankError if the outcomes of the bank are labels."""
        if bank.labels is not None:
            raise BankError(f"the bank {bank.name} holds labels, and texts have tokens as outcomes: open another bank")

    def name(self, outcome: int, bank: Bank | Snapshot, tokenizer: PreTrainedTokenizerBase) -> str:
        """Text of a token."""
        return str(tokenizer.decode([outcome]))

    def add(
        self,
        bank: Bank,
        rows: Iterable[Any],
        model: TextEncoder,
        tokenizer: PreTrainedTokenizerBase,
        *,
        text_column: str = "text",
        source: str | None = None,
        namespace: str = DEFAULT,
        columns: Iterable[str] | None = None,
        keep_below: float | None = None,
        merge: bool = False,
        resume: bool = False,
        progress: bool = False,
        parts: str | Path | None = None,
    ) -> int:
        """Encodes texts and adds them to a bank; returns the number of new entries.

        Args:
            bank: The bank.
            rows: Texts, or mappings with a text in `text_column`.
            model: An `LLEForCausalLM`, or for `keep_below=None` any LLE model.
            tokenizer: Its tokenizer.
            text_column: Column of the text.
            source: Name of the source, by which it can be forgotten; None: the next of "added-1", "added-2", ...
            namespace: The namespace to add to.
            columns: Other columns to keep with each row, beside `file`, `line` and `row_in_file`; None: all. NumPy and
                torch scalars are kept as plain values.
            keep_below: Keep only outcomes to which the model gives less than this probability.
            merge: Whether to merge entries of one row with the same outcome and the same 16 tokens before it.
            resume: Whether to continue an interrupted import of this source; the rows must come in the same order.
            progress: Whether to show a progress bar.
            parts: Folder through which several processes, such as ranks, add this source together, each with the
                same rows and options (bank/parts.py). The bank becomes the one that a single process makes. Implies
                `resume`, and needs a `source`. A process returns when nothing is left for it to encode: others may
                be at work still, and `refresh` takes in what they append. None: this process adds alone.

        Raises:
            ValueError: There is no text, a row lacks a column, a value cannot be written as JSON, or the source is in
                the namespace already.
        """
        self.check(bank)
        if keep_below is not None and not 0 < keep_below <= 1:
            raise ValueError(f"keep_below is a probability above 0, got {keep_below}")
        check_names([("namespace", namespace)] if source is None else [("namespace", namespace), ("source", source)])
        shared_source = None if parts is None else common_source(source)
        wanted = None if columns is None else list(columns)
        device = model.device.type
        # Autocast is per thread: the segments are encoded in another thread, with the caller's setting.
        autocast = torch.autocast(device, torch.get_autocast_dtype(device), enabled=torch.is_autocast_enabled(device))
        in_precision, breaks = autocast(_encode), LineBreaks(tokenizer)

        def units(before: Added) -> Iterator[Unit[list[_Part]]]:
            return _units(_parts(rows, text_column, wanted, tokenizer, before, progress), before)

        def encode(unit: list[_Part], source: str) -> Segment:
            return in_precision(model, unit, keep_below, merge, source, breaks)

        with evaluating(model):
            if parts is None or shared_source is None:
                return _add_alone(bank, namespace, source, resume, units, encode)
            settings = {
                "text_column": text_column,
                "columns": wanted,
                "keep_below": keep_below,
                "merge": merge,
                "precision": precision_of(model),
                "rows": getattr(rows, "num_rows", None),
            }
            with Parts(parts, bank, namespace, shared_source, settings) as shared:
                return shared.add(units, functools.partial(encode, source=shared_source), _digest)


def _add_alone(
    bank: Bank,
    namespace: str,
    source: str | None,
    resume: bool,
    units: Callable[[Added], Iterator[Unit[list[_Part]]]],
    encode: Callable[[list[_Part], str], Segment],
) -> int:
    """Adds the segments that follow the progress of a source, while other writers wait."""
    with bank.writing() as state:  # nobody else can take the name of the source from here on
        name = state.free_source("added") if source is None else source
        before = state.added(namespace, name)
        if (before.rows or before.tokens) and not resume:
            raise ValueError(
                f"the source {name!r} is in the namespace {namespace!r} already: go on with resume=True, give another "
                "name, or forget it first"
            )
        segments = ((encode(unit.content, name), [unit.end]) for unit in ahead(units(before)))
        return bank.append(ahead(segments), namespace)


def _rows(
    dataset: Iterable[Any], text_column: str, wanted: list[str] | None, first: int
) -> Iterator[tuple[str, dict]]:
    """Yields the text of each row from the number `first` on, and the columns to keep with it."""
    for number, row in enumerate(_batched(dataset) if isinstance(dataset, Dataset) else dataset, start=first):
        values = {text_column: row} if isinstance(row, str) else row
        if not isinstance(values, Mapping):
            raise ValueError(
                f"row {number} is {type(row).__name__}: give texts, or mappings with a column {text_column!r}"
            )
        missing = [name for name in (text_column, *(wanted or [])) if name not in values]
        if missing:
            raise ValueError(f"row {number} has no column {missing[0]!r}; its columns are: {', '.join(values)}")
        if not isinstance(values[text_column], str):
            kind = type(values[text_column]).__name__
            raise ValueError(f"the column {text_column!r} of row {number} holds {kind}, not text")
        others = [name for name in values if name != text_column]
        names = others if wanted is None else list(dict.fromkeys([*wanted, *(n for n in PROVENANCE if n in others)]))
        check_unicode(values[text_column], f"the text of row {number}")
        kept = {name: _plain(values[name], name, number) for name in names}
        kept = {name: value for name, value in kept.items() if name not in PROVENANCE or value is not None}
        check_unicode(kept, f"row {number}")
        clash = {"source", "row"} & set(kept)
        yield values[text_column], {(f"{name}_" if name in clash else name): value for name, value in kept.items()}


def _plain(value: Any, name: str, row: int) -> Any:
    try:
        return plain(value)
    except TypeError as error:
        raise ValueError(
            f"the column {name!r} of row {row} holds {error}, which a bank cannot keep: leave it out, or name the "
            "columns to keep with columns=[...]"
        ) from None


def _batched(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Yields the rows of a data set, read in batches, which is faster."""
    for batch in dataset.iter(TEXTS):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def _parts(
    dataset: Iterable[Any],
    text_column: str,
    wanted: list[str] | None,
    tokenizer: PreTrainedTokenizerBase,
    before: Added,
    progress: bool,
) -> Iterator[_Part]:
    """Yields tokenised rows from where `before` ends; raises a ValueError if the data set is empty."""
    number, start = before.rows - 1, tokenizer.eos_token_id
    rest = _skip(dataset, before.rows)
    numbered = enumerate(_rows(rest, text_column, wanted, before.rows), start=before.rows)
    expected = Expected(rest, before.rows)
    with tqdm(total=expected.known, initial=before.rows, unit=" rows", disable=not progress, desc="Encoding") as bar:
        while batch := list(itertools.islice(numbered, TEXTS)):
            number = batch[-1][0]
            texts = [text for _, (text, _) in batch]
            bar.total = expected.count(texts)
            bar.update(len(batch))
            for (row, (_, columns)), ids in zip(batch, encode_texts(texts, tokenizer), strict=True):
                tokens = np.array([start, *ids], dtype=np.int32)
                begin = before.tokens if row == before.rows else 0
                yield _Part(row, columns, tokens, begin, len(ids))
        bar.total = bar.n
        bar.refresh()
    if number < 0:
        raise ValueError("there is no text to add: the data set has no rows")


def _skip(dataset: Iterable[Any], rows: int) -> Iterable[Any]:
    """The rows of a data set after the first `rows`."""
    if not rows:
        return dataset
    if isinstance(dataset, Dataset):
        return dataset.skip(rows) if rows < dataset.num_rows else []
    if isinstance(dataset, IterableDataset):
        return dataset.skip(rows)
    return itertools.islice(dataset, rows, None)


def _units(parts: Iterable[_Part], before: Added) -> Iterator[Unit[list[_Part]]]:
    """Yields the parts of one segment each."""
    buffer: list[_Part] = []
    room, begin, rows = SEGMENT_ENTRIES, before, before.rows
    for part in parts:
        while part.end - part.begin > room:
            cut = part.begin + room
            end = dataclasses.replace(before, rows=part.row, tokens=cut)
            yield Unit(begin, end, [*buffer, dataclasses.replace(part, end=cut)])
            buffer, room, begin = [], SEGMENT_ENTRIES, end
            part = dataclasses.replace(part, begin=cut)
        buffer.append(part)
        room -= part.end - part.begin
        rows = part.row + 1
    if buffer:
        yield Unit(begin, dataclasses.replace(before, rows=rows, tokens=0), buffer)


def _digest(parts: list[_Part]) -> str:
    """Digest of the rows of a segment."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps([part.row, part.begin, part.end, part.columns]).encode())
        digest.update(part.tokens[part.begin : part.end + 1].tobytes())
    return digest.hexdigest()


@torch.no_grad()
def _encode(
    model: TextEncoder,
    parts: list[_Part],
    keep_below: float | None,
    merge: bool,
    source: str,
    breaks: LineBreaks,
) -> Segment:
    """Encodes parts as a segment; the bank gives the ids."""
    lengths = [part.end - part.begin for part in parts]
    total = sum(lengths)
    first = np.concatenate([[0], np.cumsum(lengths)])
    keys = torch.empty(total, model.key_size, dtype=torch.bfloat16)
    probability = torch.empty(total) if keep_below is not None else None
    config: Any = model.config
    wrapped = getattr(config, "wrapped", None) is not None
    for pieces in _batches(parts, first, WRAPPED_ROWS if wrapped else ROWS):
        _read(model, pieces, keys, probability)
    tokens = np.concatenate(
        [np.concatenate([_start(part), part.tokens[part.begin + 1 : part.end + 1]]) for part in parts]
    )
    starts = first + np.arange(len(parts) + 1)
    owner = np.repeat(np.arange(len(parts)), lengths)
    positions = np.arange(total) + owner + 1
    kept = np.ones(total, dtype=bool) if probability is None else (probability < float(keep_below or 1)).numpy()
    chosen = np.flatnonzero(kept)
    counts, copies = np.ones(len(chosen), dtype=np.int32), np.zeros((0, 2), dtype=np.int64)
    if merge:
        original = _originals(parts, chosen, first, owner)
        unique, inverse = np.unique(original, return_inverse=True)
        copy = original != chosen
        copies = np.stack([inverse[copy], positions[chosen[copy]]], axis=1)
        chosen, counts = unique, np.bincount(inverse, minlength=len(unique)).astype(np.int32)
    segment = Segment(
        keys=keys if len(chosen) == total else keys[torch.from_numpy(chosen)],
        ids=torch.arange(len(chosen)),
        positions=torch.from_numpy(positions[chosen]),
        counts=torch.from_numpy(counts),
        copies=torch.from_numpy(copies),
        tokens=torch.from_numpy(tokens.astype(np.int32)),
        starts=torch.from_numpy(starts.astype(np.int64)),
        documents=[_document(part, source, breaks) for part in parts],
    )
    return segment if len(chosen) == total else segment.without(torch.zeros(len(segment), dtype=torch.bool))


def _document(part: _Part, source: str, breaks: LineBreaks) -> dict[str, Any]:
    """Document of a part; one within a row has the line in which it begins."""
    columns = dict(part.columns)
    if part.begin and isinstance(columns.get(LINE), int):
        columns[LINE] += breaks.count(torch.from_numpy(part.tokens[1 : part.begin + 1]))
    return {"source": source, "row": part.row, **columns}


def _start(part: _Part) -> np.ndarray:
    """The token before the outcomes of a part: the start token, or -1 within a row."""
    return part.tokens[:1] if part.begin == 0 else np.array([-1], dtype=np.int32)


@dataclasses.dataclass(frozen=True)
class _Piece:
    """Tokens to read; those from `skip` on make entries, the first of which has the index `place`."""

    tokens: np.ndarray
    targets: np.ndarray
    skip: int
    place: int


def _batches(parts: list[_Part], first: np.ndarray, rows: int) -> Iterator[list[_Piece]]:
    """Yields all parts in batches of at most `rows` pieces of similar length."""
    pieces = []
    for part, place in zip(parts, first, strict=False):
        for begin in range(part.begin, part.end, PIECE):
            end, warm = min(begin + PIECE, part.end), max(0, begin - WARM_UP)
            pieces.append(
                _Piece(
                    part.tokens[warm:end], part.tokens[warm + 1 : end + 1], begin - warm, place + begin - part.begin
                )
            )
    pieces.sort(key=lambda piece: -len(piece.tokens))
    for start in range(0, len(pieces), rows):
        yield pieces[start : start + rows]


def _read(model: TextEncoder, pieces: list[_Piece], keys: Tensor, probability: Tensor | None) -> None:
    """Fills the keys (N, D), and the base's probability of the outcomes (N,), of a batch of pieces."""
    lengths = np.array([len(piece.tokens) for piece in pieces])
    ids = np.zeros((len(pieces), lengths[0]), dtype=np.int64)
    targets = np.zeros_like(ids)
    place = np.full(ids.shape, -1)
    for row, piece in enumerate(pieces):
        ids[row, : len(piece.tokens)] = piece.tokens
        targets[row, : len(piece.tokens)] = piece.targets
        place[row, piece.skip : len(piece.tokens)] = piece.place + np.arange(len(piece.tokens) - piece.skip)
    cache = LLECache()
    for begin in range(0, ids.shape[1], MAX_STEPS):
        active = int((lengths > begin).sum())  # the pieces are sorted: the longer ones come first
        if active < cache.batch_size:
            cache.batch_select_indices(torch.arange(active))
        part = slice(begin, begin + MAX_STEPS)
        given = torch.from_numpy(ids[:active, part]).to(model.device)
        states = model.base_model(given, past_key_values=cache, use_cache=False).last_hidden_state
        where = torch.from_numpy(place[:active, part])
        if states.dtype == torch.float32 and takes_numba(states):
            from ..kernels.nearest_numba import store_keys

            store_keys(states, where, keys)
        else:
            chosen = states[(where >= 0).to(states.device)]
            keys[where[where >= 0]] = torch.nn.functional.normalize(chosen.float(), dim=-1).bfloat16().cpu()
        if probability is not None:
            outcomes = torch.from_numpy(targets[:active, part])[where >= 0]
            probability[where[where >= 0]] = _probabilities(model, states[(where >= 0).to(states.device)], outcomes)


def _probabilities(model: TextEncoder, states: Tensor, outcomes: Tensor, chunk: int = 1024) -> Tensor:
    """Probabilities (N,) that the output layer gives to the outcomes (N,) after the states (N, D)."""
    parts = []
    head = getattr(model, "lm_head", None)
    if head is None:
        raise ValueError(
            f"keep_below needs a language model, whose output layer predicts tokens; got {type(model).__name__}"
        )
    for i in range(0, len(states), chunk):
        logits = head(states[i : i + chunk]).float()
        target = logits.gather(1, outcomes[i : i + chunk, None].to(logits.device))[:, 0]
        parts.append((target - logits.logsumexp(1)).exp().cpu())
    return torch.cat(parts) if parts else torch.zeros(0)


def _originals(parts: list[_Part], chosen: np.ndarray, first: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Index of the first entry of the same row with the same outcome and context, for each chosen entry."""
    windows = []
    for part in parts:
        padded = np.concatenate([np.full(CONTEXT, -1, dtype=np.int32), part.tokens[: part.end + 1]])
        every = np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + 1)
        windows.append(every[part.begin + 1 : part.end + 1])
    table = np.concatenate([owner[:, None].astype(np.int32), np.concatenate(windows)], axis=1)[chosen]
    rows = np.ascontiguousarray(table).view(np.dtype((np.void, table.dtype.itemsize * table.shape[1])))[:, 0]
    _, earliest, inverse = np.unique(rows, return_index=True, return_inverse=True)
    return chosen[earliest[inverse]]
