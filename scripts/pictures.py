"""Draws the pictures of README.md and docs.

python -m scripts.pictures                             those that are made from the results files (seconds)
python -m scripts.pictures --explained runs/tiny TEXT  docs/pictures/explained.png, from a saved model (seconds)

The model of explained.png is that of the README's example, and TEXT the argparse.py of Python's standard library.
"""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from modeling_lle.evaluation import read_results
from modeling_lle.evaluation.pictures import BASE, HISTORY, INK, make_figure, save_figure, style
from scripts.explained import draw_explained

ROOT = Path(__file__).resolve().parent.parent
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
PICTURES: dict[str, tuple[str, Callable[[dict[str, Any]], Figure]]] = {
    "banks": ("bank-selection", draw_banks),
    "history": ("history", draw_history),
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
    if options.explained:
        path = root / "docs" / "pictures" / "explained.png"
        save_figure(draw_explained(*options.explained), path)
        print(path.relative_to(root))
        return 0
    for name, (results, draw) in PICTURES.items():
        path = root / "docs" / "pictures" / f"{name}.png"
        try:
            save_figure(draw(read_results(root / "model_cards" / "results" / f"{results}.json")), path)
            print(path.relative_to(root))
        except FileNotFoundError as error:
            print(f"not drawn: {path.relative_to(root)}: {error}")
            missing += 1
    return 1 if missing else 0


if __name__ == "__main__":
    raise SystemExit(main())
