"""Picture of a stream evaluation: perplexity over the stream, and gains of history by token group."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from ..common.temporary import replacing
from .stream import ALL, FREQUENCIES, SEEN, StreamEvaluation

try:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import FuncFormatter, MaxNLocator
except ImportError as error:
    raise ImportError("pictures need matplotlib: pip install modeling_lle[plots]") from error

INK, FAINT, BASE, HISTORY = "#1f2933", "#d5dae0", "#8b95a1", "#0b6bcb"
SIDE_COLOURS = {
    "base": BASE,
    "stream": "#3aa6a0",
    "matches": "#c9a227",
    "bank": "#a05fc4",
    "bank_matches": "#c75a8a",
    "both": "#5a78d6",
    "update": "#e8833a",
    "history": HISTORY,
}
LABEL_HEIGHT = 0.115  # relative to the axes, with spacing
SEEN_COLOURS = dict(zip(SEEN, (HISTORY, "#86bdf0", "#e8833a"), strict=True))
LEAST_SHARE = 0.001  # groups with fewer tokens than this share are noise


def draw_evaluation(evaluation: StreamEvaluation, title: str | None = None) -> Figure:
    """Draws both panels; the figure is for a notebook or for `save_figure`."""
    figure = make_figure(12, 4.8, title)
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1, 1.15]})
    _draw_running(left, evaluation)
    _draw_gain(right, evaluation)
    return figure


def make_figure(width: float, height: float, title: str | None = None) -> Figure:
    """Empty figure, sides in inches."""
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08, wspace=0.04)
    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, color=INK, fontsize=14, fontweight="bold")
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a figure to a file and makes its folder; the ending selects the format."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=160)


def style(axes: Axes, title: str, x: str, y: str) -> None:
    """Sets title, axes, grid and colours of a panel."""
    axes.set_title(title, loc="left", color=INK, fontsize=12, pad=10)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0)


def _draw_running(axes: Axes, evaluation: StreamEvaluation) -> None:
    ends, perplexity = evaluation.running()
    for side, curve in perplexity.items():
        axes.plot(ends, curve, color=SIDE_COLOURS[side], linewidth=2.2, solid_capstyle="round")
    axes.fill_between(ends, perplexity["history"], perplexity["base"], color=HISTORY, alpha=0.10, linewidth=0)
    style(axes, "Perplexity of the text read so far", "tokens read", "perplexity per token")
    settled = slice(len(ends) // 20, None)  # else the first tokens set the scale
    shown = np.concatenate([curve[settled] for curve in perplexity.values()])
    margin = 0.15 * float(np.ptp(shown)) or 1.0
    low, high = float(shown.min()) - margin, float(shown.max()) + margin
    axes.set_ylim(low, high)
    last = {side: float(curve[-1]) for side, curve in perplexity.items()}
    heights = spread([(value - low) / (high - low) for value in last.values()], LABEL_HEIGHT)
    for (side, value), height in zip(last.items(), heights, strict=True):
        together = "with history" if len(last) == 2 else "all" if "update" in last else "both"
        name = {"base": "base", "both": "both", "history": together}.get(side, f"with {side}")
        axes.annotate(
            f"{name}\n{value:.4g}",
            (1, height),
            xycoords="axes fraction",
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=SIDE_COLOURS[side],
            fontweight="bold",
        )
    axes.set_xlim(0, ends[-1])
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def spread(heights: list[float], gap: float) -> list[float]:
    """Moves heights between 0 and 1 at least `gap` apart: upwards, then down from 1."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = list(heights)
    for below, above in itertools.pairwise(order):
        placed[above] = max(placed[above], placed[below] + gap)
    limit = 1.0
    for i in reversed(order):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - gap
    return placed


def _draw_gain(axes: Axes, evaluation: StreamEvaluation) -> None:
    rows = evaluation.breakdown()
    whole = rows[0]
    groups = {(row["frequency"], row["seen"]): row for row in rows if row["tokens"] >= LEAST_SHARE * whole["tokens"]}
    names = [name for name in FREQUENCIES if (name, ALL) in groups]
    seen = [kind for kind in SEEN if any((name, kind) in groups for name in names)]
    width = 0.8 / len(seen)
    total = whole["gain"] * whole["tokens"]
    for i, kind in enumerate(seen):
        members = [(x, groups[name, kind]) for x, name in enumerate(names) if (name, kind) in groups]
        places = [x + (i - (len(seen) - 1) / 2) * width for x, _ in members]
        heights = [row["gain"] for _, row in members]
        bars = axes.bar(places, heights, width * 0.92, color=SEEN_COLOURS[kind], label=kind)
        labels = [f"{row['gain'] * row['tokens'] / total:.0%}" for _, row in members] if total > 0 else []
        axes.bar_label(bars, labels, padding=2, fontsize=8, color=INK)
    axes.axhline(0, color=INK, linewidth=0.8)
    style(
        axes,
        "Where the gain comes from (labels: share of all of it)",
        f"occurrences in the {evaluation.counted} (share of the tokens)",
        "nats saved per token of the group",
    )
    shares: list[Any] = [groups[name, ALL]["tokens"] / whole["tokens"] for name in names]
    axes.set_xticks(range(len(names)), [f"{name}\n({share:.0%})" for name, share in zip(names, shares, strict=True)])
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.margins(y=0.12)
    axes.legend(
        title="the token's last occurrence", facecolor="white", edgecolor="none", labelcolor=INK, alignment="left"
    )
