"""Splits of a run: documents, labelled texts or sentence pairs to train on, to validate on, and for a final test.

Notable: where the data has no validation split, whole documents are held out, drawn by seed: a file, or a row of a
table. Lines of one document never stand on both sides. A single document is cut into contiguous parts.
"""

import random
from collections import defaultdict
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, concatenate_datasets

from ..data.rows import TABLES

TABLE_ENDINGS = (*TABLES, ".parquet")
TOO_FEW = 0.5  # of the share wanted: documents that hold less are too few to draw from
TOO_MANY = 1.5  # of the share wanted: a document that would lead beyond is not drawn


def check_shares(shares: Sequence[float]) -> None:
    """Raises a ValueError unless `data.held_out` and `data.held_out_test` leave something to train on."""
    for name, share in zip(("held_out", "held_out_test"), shares, strict=False):
        if not 0 <= share < 1:
            raise ValueError(f"data.{name} is {share}: give a share between 0 and 1, or 0 with a validation split")
    if sum(shares) >= 1:
        raise ValueError(f"data.held_out and data.held_out_test are {sum(shares):g} together: leave some to train on")


def hold_out_documents(rows: Dataset, text_column: str, shares: Sequence[float], seed: int) -> list[Dataset]:
    """Splits texts by document into what remains and one part for each share of the bytes.

    Args:
        rows: Texts. Rows of a text file are one document, if they name it in a column `file`; any other row is one.
        text_column: Column of the text.
        shares: Shares of the bytes, each between 0 and 1; a share of 0 gives a part without rows.
        seed: Of the draw.

    Returns:
        The rest, and a part for each share. Where whole documents cannot make up a share, the parts are cut from the
        end of the largest document, at line ends.
    """
    check_shares(shares)
    sizes = _bytes(rows, text_column)
    documents = _documents(rows)
    weights = [sum(sizes[row] for row in document) for document in documents]
    order = list(range(len(documents)))
    random.Random(seed).shuffle(order)
    taken: list[list[int]] = []
    left = order
    for share in shares:
        part = _draw(left, weights, share * sum(weights))
        if part is None:
            return _cut(rows, text_column, documents, weights, shares)
        taken.append(part)
        left = [place for place in left if place not in set(part)]
    if not left:
        return _cut(rows, text_column, documents, weights, shares)
    groups = [left, *taken]
    return [rows.select(sorted(row for place in group for row in documents[place])) for group in groups]


def _bytes(rows: Dataset, text_column: str) -> list[int]:
    column = rows.with_format("arrow")[:][text_column]
    return pc.fill_null(pc.binary_length(column.cast(pa.large_binary())), 0).to_pylist()


def _documents(rows: Dataset) -> list[list[int]]:
    """Rows of each document."""
    if "file" not in rows.column_names:
        return [[row] for row in range(len(rows))]
    found: dict[object, list[int]] = {}
    for row, file in enumerate(rows["file"]):
        alone = file is None or str(file).lower().endswith(TABLE_ENDINGS)
        found.setdefault(row if alone else file, []).append(row)
    return list(found.values())


def _draw(order: Sequence[int], weights: Sequence[int], wanted: float) -> list[int] | None:
    """Documents of about the wanted bytes, the first in order that fit; None: there are none."""
    part: list[int] = []
    total = 0
    for place in order:
        if total >= wanted:
            break
        if total + weights[place] <= TOO_MANY * wanted:
            part.append(place)
            total += weights[place]
    return part if total >= TOO_FEW * wanted else None


def _cut(
    rows: Dataset,
    text_column: str,
    documents: Sequence[Sequence[int]],
    weights: Sequence[int],
    shares: Sequence[float],
) -> list[Dataset]:
    """The parts as contiguous pieces of the largest document, and the rest."""
    total = sum(weights)
    largest = max(range(len(documents)), key=lambda place: weights[place])
    inside = documents[largest]
    texts = rows.select(inside)[text_column][:]
    pieces = texts if len(texts) > 1 else texts[0].splitlines(keepends=True)
    if len(pieces) < 2 * (1 + len(shares)):  # a document without lines
        length = max(1, len(texts[0]) // 100)
        pieces = [texts[0][start : start + length] for start in range(0, len(texts[0]), length)]
    parts: list[list[str]] = []
    for share in reversed(shares):
        part: list[str] = []
        size = 0
        while share and size < share * total and len(pieces) > 1:
            part.insert(0, pieces[-1])
            size += len(pieces[-1].encode())
            pieces = pieces[:-1]
        parts.insert(0, part)
    joined = len(texts) == 1
    made = [_rows_of(part, joined, text_column) for part in (pieces, *parts)]
    others = rows.select_columns([text_column]).select([row for row in range(len(rows)) if row not in set(inside)])
    rest = concatenate_datasets([others, made[0].cast(others.features)])
    return [rest, *(part.cast(others.features) for part in made[1:])]


def _rows_of(pieces: Sequence[str], joined: bool, text_column: str) -> Dataset:
    texts = ["".join(pieces)] if joined and pieces else list(pieces)
    return Dataset.from_dict({text_column: texts})


def hold_out_labelled(examples: Dataset, share: float, seed: int, least: int = 1) -> tuple[Dataset, Dataset]:
    """Splits off a share of the examples of each label; returns the rest and the share.

    Args:
        examples: Columns `text` and `label`.
        share: Of the examples of a label, rounded.
        seed: Of the draw.
        least: Examples of a label with two or more that are split off at least; one remains in any case.
    """
    if not 0 < share < 1:
        raise ValueError(f"data.held_out is {share}: give a share between 0 and 1, or 0 with a validation split")
    rows: dict[str, list[int]] = defaultdict(list)
    for row, label in enumerate(examples["label"]):
        rows[label].append(row)
    chosen: set[int] = set()
    draw = random.Random(seed)
    for label in sorted(rows):
        if len(rows[label]) > 1:
            count = min(max(least, round(share * len(rows[label]))), len(rows[label]) - 1)
            chosen.update(draw.sample(rows[label], count))
    kept = [row for row in range(len(examples)) if row not in chosen]
    return examples.select(kept), examples.select(sorted(chosen))


def hold_out_pairs(pairs: Dataset, shares: Sequence[float], seed: int) -> list[Dataset]:
    """Splits sentence pairs; pairs of the same source stay together.

    Args:
        pairs: Columns `source` and `target`.
        shares: Shares of the pairs, as in `hold_out_documents`.
        seed: Of the draw.

    Raises:
        ValueError: There are too few different sources.
    """
    check_shares(shares)
    found: dict[str, list[int]] = defaultdict(list)
    for row, source in enumerate(pairs["source"]):
        found[source].append(row)
    order = sorted(found)
    random.Random(seed).shuffle(order)
    parts: list[list[int]] = []
    for share in shares:
        part: list[int] = []
        while share and order and len(part) < max(1, round(share * len(pairs))):
            part += found[order.pop()]
        parts.append(part)
    if not order:
        raise ValueError(f"{len(found)} different source sentences are too few to hold any out: give more pairs")
    rest = [row for source in order for row in found[source]]
    return [pairs.select(sorted(part)) for part in (rest, *parts)]


def at_most(rows: Dataset, most: int | None, seed: int) -> Dataset:
    """At most so many rows, drawn by seed, in their order."""
    if most is None or len(rows) <= most:
        return rows
    return rows.select(sorted(random.Random(seed).sample(range(len(rows)), most)))
