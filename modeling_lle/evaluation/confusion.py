"""Confusion matrix of a classifier as a picture.

Notable: of many classes, only those with most errors are drawn, each beside the one it is confused with, so that
errors lie near the diagonal; predictions of other classes share a column. Shapes: Q examples, L classes.
"""

import textwrap
from collections.abc import Sequence

import numpy as np

from .pictures import HISTORY, INK, Axes, Figure, make_figure, style

RIGHT, WRONG, NONE = HISTORY, "#e8833a", "#f4f6f8"
LONGEST = 36  # characters of a label
LETTER, TITLE, MARGIN = 0.072, 0.24, 0.15  # inches: width of a letter, height of a line of the title, space around
OTHERS, GAP = "all other classes", 0.4  # the last column, and the cells before it
DARK = 0.62  # share of the full colour above which white text reads better than black
KEY = (0.0, 0.05, 0.25, 0.5, 1.0)  # shares in the colour key


def draw_confusion(
    references: Sequence[str],
    predictions: Sequence[str],
    labels: Sequence[str],
    title: str | None = None,
    most: int = 25,
) -> Figure:
    """Draws the confusion matrix.

    Cells show counts; their shade is the share of the row.

    Args:
        references: (Q,) names of the correct classes.
        predictions: (Q,) names of the predicted classes.
        labels: Names of all L classes, at least two; up to `most` of them are drawn in this order.
        title: Title of the figure.
        most: Maximum number of classes to draw, at least two: those with most errors, as reference or as prediction.

    Returns:
        Figure, for a notebook or for `save_figure`.

    Raises:
        ValueError: There are no examples, the lists of names differ in length, or a name is missing in `labels` or
            occurs there twice.
    """
    counts = _count(references, predictions, labels)
    if most < 2:
        raise ValueError(f"most is {most}: a confusion matrix needs at least two classes")
    order = _most_confused(counts, most) if len(labels) > most else list(range(len(labels)))
    drawn, totals = counts[order], counts[order].sum(axis=1, keepdims=True)
    names = [_shorten(labels[i]) for i in order]
    summary = f"{counts.sum():,} examples, {np.trace(counts) / counts.sum():.1%} right"
    if len(order) < len(labels):
        summary = f"The {len(order)} of {len(labels)} classes with most errors\n{summary} in all"
    side = float(np.clip(3.2 / len(order), 0.36, 0.8))
    figure = make_figure(20, 20)  # until the sizes of names are known
    axes = figure.add_axes((0.5, 0.5, 0.1, 0.1))
    style(axes, summary, "predicted class", "right class")
    _draw_cells(axes, 0, drawn[:, order], totals, np.eye(len(order), dtype=bool))
    ticks = [i + 0.5 for i in range(len(order))]
    axes.set_yticks(ticks, names)
    if len(order) < len(labels):
        rest = totals - drawn[:, order].sum(axis=1, keepdims=True)
        _draw_cells(axes, len(order) + GAP, rest, totals, np.zeros_like(rest, dtype=bool))
        ticks, names = [*ticks, len(order) + GAP + 0.5], [*names, OTHERS]
    _name_columns(axes, ticks, names, upright=LETTER * max(map(len, names)) < side)
    across, down = side * (ticks[-1] + 0.5), side * len(order)
    tall = min(1.0, 3.2 / down)
    _draw_key(axes.inset_axes((1 + 0.3 / across, 1 - tall, 0.36 / across, tall)))
    _fit(figure, axes, across, down, title)
    return figure


def _count(references: Sequence[str], predictions: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """(L, L) int64: examples of the row's class that are predicted as the column's class."""
    index = {label: i for i, label in enumerate(labels)}
    if len(index) < 2 or len(index) < len(labels):
        twice = next((label for i, label in enumerate(labels) if label in labels[:i]), None)
        wrong = f"hold {twice!r} twice" if twice is not None else f"name {len(labels)} classes"
        raise ValueError(f"labels {wrong}: name every class once, and at least two")
    if len(references) != len(predictions):
        raise ValueError(f"there are {len(references)} references but {len(predictions)} predictions")
    if len(references) == 0:
        raise ValueError("there are no examples to draw")
    for kind, names in (("reference", references), ("prediction", predictions)):
        strange = next((i for i, name in enumerate(names) if name not in index), None)
        if strange is not None:
            raise ValueError(f"the {kind} of example {strange}, {names[strange]!r}, is not among the labels")
    counts = np.zeros((len(index), len(index)), dtype=np.int64)
    np.add.at(counts, ([index[name] for name in references], [index[name] for name in predictions]), 1)
    return counts


def _most_confused(counts: np.ndarray, most: int) -> list[int]:
    """Classes with most errors, each followed by the one most confused with it."""
    confused = counts + counts.T
    np.fill_diagonal(confused, 0)
    errors = confused.sum(axis=1)
    left = [int(i) for i in np.argsort(-errors, kind="stable")[:most]]
    order = [left.pop(0)]
    while left:
        nearest = max(left, key=lambda i: (confused[order[-1], i], errors[i]))
        left.remove(nearest)
        order.append(nearest)
    return order


def _shorten(label: str) -> str:
    """Label in one line; the middle of a long one is cut out."""
    label = " ".join(label.split())
    if len(label) <= LONGEST:
        return label
    return f"{label[: LONGEST // 2]}…{label[-(LONGEST // 2 - 1) :]}"


def _tint(shares: np.ndarray, colour: str) -> np.ndarray:
    """Colours of shares, (..., 3) floats; the square root makes rare errors visible."""
    low, high = (np.frombuffer(bytes.fromhex(name[1:]), dtype=np.uint8) / 255 for name in (NONE, colour))
    return low + np.sqrt(shares)[..., None] * (high - low)


def _draw_cells(axes: Axes, left: float, counts: np.ndarray, totals: np.ndarray, right: np.ndarray) -> None:
    """Draws (rows, columns) counts from x = `left` on; `right` marks correct predictions."""
    shares = counts / np.maximum(totals, 1)
    colours = np.where(right[..., None], _tint(shares, RIGHT), _tint(shares, WRONG))
    rows, columns = counts.shape
    axes.pcolormesh(left + np.arange(columns + 1), np.arange(rows + 1), colours, edgecolors="white", linewidth=1.2)
    for row, column in np.argwhere(counts):
        dark = right[row, column] and np.sqrt(shares[row, column]) > DARK
        axes.text(
            left + column + 0.5,
            row + 0.5,
            _short(int(counts[row, column])),
            ha="center",
            va="center",
            fontsize=8,
            color="white" if dark else INK,
        )


def _short(count: int) -> str:
    """Count in at most four characters, the width of a cell; billions take more."""
    if count < 10_000:
        return str(count)
    return f"{count // 1000}k" if count < 1_000_000 else f"{count // 1_000_000}M"


def _name_columns(axes: Axes, ticks: list[float], names: list[str], upright: bool) -> None:
    if upright:
        axes.set_xticks(ticks, names)
    else:
        axes.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor")
    axes.invert_yaxis()
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(labelsize=9, pad=3)
    for label in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
        label.set_parse_math(False)  # a name with dollar signs is not a formula


def _draw_key(axes: Axes) -> None:
    """Draws the colour key."""
    heights = np.linspace(0, 1, 101)
    shares = ((heights[1:] + heights[:-1]) / 2) ** 2
    colours = np.stack([_tint(shares, RIGHT), _tint(shares, WRONG)], axis=1)
    axes.pcolormesh([0, 1, 2], heights, colours)
    axes.set_yticks(np.sqrt(KEY), [f"{share:.0%}" for share in KEY])
    axes.set_xticks([0.5, 1.5], ["right", "wrong"], rotation=90)
    axes.yaxis.tick_right()
    axes.tick_params(colors=INK, length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    axes.yaxis.set_label_position("right")
    axes.set_ylabel("share of the row", color=INK, fontsize=8)


def _fit(figure: Figure, axes: Axes, across: float, down: float, title: str | None) -> None:
    """Sets the size of cells in inches, and that of the figure to fit names and title."""
    figure.set_layout_engine("none")
    width, height = figure.get_size_inches()
    axes.set_position((0.5, 0.5, across / width, down / height))
    box = axes.get_tightbbox()
    assert box is not None
    around = np.abs(np.array(box.extents) - np.array(axes.bbox.extents)) / figure.dpi
    left, bottom, right, top = MARGIN + around
    width = left + across + right
    lines = textwrap.wrap(title, int(width / (1.8 * LETTER))) if title else []
    above = TITLE * len(lines) + (MARGIN if lines else 0)
    height = bottom + down + top + above
    figure.set_size_inches(width, height)
    axes.set_position((left / width, bottom / height, across / width, down / height))
    if lines:
        heading = figure.suptitle("\n".join(lines), y=1 - MARGIN / height, color=INK, fontsize=14, fontweight="bold")
        heading.set_parse_math(False)
        needed = heading.get_window_extent().width / figure.dpi + 2 * MARGIN
        heading.set_fontsize(14 * min(1.0, width / needed))  # capitals are wider than most letters
