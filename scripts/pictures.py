"""Draws the pictures of README.md and docs.

python -m scripts.pictures                             those that are made from the results files (seconds)
python -m scripts.pictures --explained runs/tiny TEXT  docs/pictures/explained.png, from a saved model (seconds)

The model of explained.png is that of the README's example, and TEXT the argparse.py of Python's standard library.
"""

import argparse
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from modeling_lle.evaluation import read_results
from modeling_lle.evaluation.pictures import BASE, HISTORY, INK, make_figure, save_figure, style
from scripts.benchmark.recall import draw_recall
from scripts.explained import draw_explained

ROOT = Path(__file__).resolve().parent.parent
LABEL_POINTS = 10.0  # between labels of lines
TITLES = {"ptb": "Penn Treebank", "wikitext-2": "WikiText-2"}
# Possible places of a label: distance from the marker, in points, and alignment.
PLACES = [
    (9, 0, "left", "center"),
    (-9, 0, "right", "center"),
    (0, 8, "center", "bottom"),
    (0, -8, "center", "top"),
    (7, 9, "left", "bottom"),
    (7, -9, "left", "top"),
    (-7, 9, "right", "bottom"),
    (-7, -9, "right", "top"),
    (7, 21, "left", "bottom"),
    (7, -21, "left", "top"),
    (-7, 21, "right", "bottom"),
    (-7, -21, "right", "top"),
]


@dataclasses.dataclass(frozen=True)
class Point:
    """A measurement in a panel: position, label and style."""

    x: float
    y: float
    text: str
    colour: str = BASE
    bold: bool = False


def draw_history(results: dict[str, Any]) -> Figure:
    """Perplexity against tokens per second of methods that learn from history, a panel per data set."""
    panels = {}
    for dataset in dict.fromkeys(row["dataset"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["dataset"] == dataset]
        points = [
            Point(
                row["tokens_per_second"],
                row["ppl"],
                f"{row['method']}  {row['ppl']:.1f}",
                HISTORY if row["method"].startswith("LLE") else INK if row["method"] == "base" else BASE,
                row["method"].startswith("LLE"),
            )
            for row in rows
        ]
        panels[TITLES.get(dataset, dataset)] = points
    labels = [("tokens per second", "perplexity per word, test set")] * len(panels)
    return _draw(panels, labels, logarithmic=True)


def draw_banks(results: dict[str, Any]) -> Figure:
    """Size of a bank against perplexity by selection of entries; speed against perplexity by selection of queries."""
    rows = results["rows"]
    asked = [row for row in rows if "asked" in row["bank"]]
    kept = [row for row in rows if row not in asked]
    size = [Point(row["mebibytes"], row["stream_and_bank_ppl"], row["bank"], HISTORY, row is kept[0]) for row in kept]
    speed = [
        Point(row["tokens_per_second"], row["stream_and_bank_ppl"], name, HISTORY, row is kept[0])
        for row, name in [(kept[0], "everywhere"), *((row, row["bank"].split(", ")[-1]) for row in asked)]
    ]
    panels = {"What a bank keeps": size, "Where it is asked": speed}
    ppl = "perplexity per word, validation text"
    return _draw(panels, [("MiB on disk", ppl), ("tokens per second", ppl)], logarithmic=False)


def draw_peers(minutes: dict[str, Any], training: dict[str, Any], contexts: dict[str, Any]) -> Figure:
    """LLE beside other language models: loss against minutes, training speed, generation against the context."""
    batch = min(row["batch"] for row in contexts["rows"])
    generated = [row for row in contexts["rows"] if row["batch"] == batch]
    panels = {
        "After minutes of training": (minutes["rows"], "minutes", "loss", "validation loss, nats per token"),
        "Training": (training["rows"], "length", "tokens_per_second", "tokens per second"),
        "A step of generation": (generated, "context", "step_ms", "milliseconds"),
    }
    figure = make_figure(6 * len(panels), 4.8)
    drawn = list(zip(figure.subplots(1, len(panels)), panels.items(), strict=True))
    for axes, (title, (rows, x, y, label)) in drawn:
        style(axes, title, x, label)
        for name, (xs, ys) in _lines(rows, x, y).items():
            line, own = "o--" if name == "LLE, history" else "o-", name.startswith("LLE")
            axes.plot(xs, ys, line, color=HISTORY if own else BASE, linewidth=2.5 if own else 1.5, markersize=4)
        if x != "minutes":
            axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.margins(x=0.25)
    figure.draw_without_rendering()  # fixes the layout before labels are placed
    for axes, (_, (rows, x, y, _)) in drawn:
        _label_ends(axes, _lines(rows, x, y))
    return figure


def _label_ends(axes: Axes, lines: dict[str, tuple[list[float], list[float]]]) -> None:
    """Labels each line at its end, and moves labels up that would cover one below."""
    ends = {name: (xs[-1], ys[-1]) for name, (xs, ys) in lines.items()}
    highest = -math.inf
    for name in sorted(ends, key=lambda name: ends[name][1]):
        _, height = axes.transData.transform(ends[name]) * 72 / axes.figure.dpi  # points
        placed = max(height, highest + LABEL_POINTS)
        colour = HISTORY if name.startswith("LLE") else INK
        offset = (6, placed - height)
        axes.annotate(name, ends[name], offset, textcoords="offset points", va="center", fontsize=8, color=colour)
        highest = placed


def _lines(rows: Sequence[Mapping[str, Any]], x: str, y: str) -> dict[str, tuple[list[float], list[float]]]:
    """Points of each model where both were measured."""
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        if y in row:
            xs, ys = lines.setdefault(row["model"], ([], []))
            xs.append(row[x])
            ys.append(row[y])
    return lines


def _draw(panels: dict[str, list[Point]], labels: list[tuple[str, str]], logarithmic: bool) -> Figure:
    """A panel per title, with points and axis labels."""
    figure = make_figure(7 * len(panels), 5.2)
    drawn = list(zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), labels, strict=True))
    for axes, (title, points), names in drawn:
        for point in points:
            axes.plot(point.x, point.y, "o", color=point.colour, markersize=8)
        style(axes, title, *names)
        if logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.margins(x=0.3, y=0.15)
    figure.draw_without_rendering()  # fixes the layout before labels are placed
    for axes, (_, points), _ in drawn:
        _label(axes, points)
    return figure


def _label(axes: Axes, points: list[Point]) -> None:
    """Labels each point at the first of `PLACES` where the label covers nothing."""
    centres = axes.transData.transform([(point.x, point.y) for point in points])
    taken = [Bbox([centre - 8, centre + 8]) for centre in centres]
    for place, point in enumerate(points):
        others = taken[:place] + taken[place + 1 :]
        label: Annotation | None = None
        for x, y, horizontal, vertical in PLACES:
            if label is not None:
                label.remove()
            label = axes.annotate(
                point.text,
                (point.x, point.y),
                xytext=(x, y),
                textcoords="offset points",
                ha=horizontal,
                va=vertical,
                fontsize=9,
                color=point.colour,
                fontweight="bold" if point.bold else "normal",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
                zorder=1.5,  # above the grid, below the points
            )
            box = label.get_window_extent()
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
            if inside and not any(box.overlaps(other) for other in others):
                break
        taken.append(box)


# Pictures, and their results files.
PICTURES: dict[str, tuple[tuple[str, ...], Callable[..., Figure]]] = {
    "banks": (("bank-selection",), draw_banks),
    "history": (("history",), draw_history),
    "recall": (("recall",), draw_recall),
    "peers": (("peers-minutes", "peers-training", "peers-contexts"), draw_peers),
}


def make_parser() -> argparse.ArgumentParser:
    """The arguments of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of the repository")
    parser.add_argument(
        "--explained", nargs=2, type=Path, metavar=("MODEL", "TEXT"), help="draw a prediction of a model on a text"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws every picture whose results there are, prints what it does, and returns the exit status."""
    options = make_parser().parse_args(arguments)
    root, missing = options.root, 0
    measured = root / "model_cards" / "results"
    if options.explained:
        path = root / "docs" / "pictures" / "explained.png"
        save_figure(draw_explained(*options.explained), path)
        print(path.relative_to(root))
        return 0
    for name, (results, draw) in PICTURES.items():
        path = root / "docs" / "pictures" / f"{name}.png"
        try:
            save_figure(draw(*(read_results(measured / f"{each}.json") for each in results)), path)
            print(path.relative_to(root))
        except FileNotFoundError as error:
            print(f"not drawn: {path.relative_to(root)}: {error}")
            missing += 1
    return 1 if missing else 0


if __name__ == "__main__":
    raise SystemExit(main())
