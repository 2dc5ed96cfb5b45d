"""Draws the pictures of README.md and docs from the results files.

python -m scripts.pictures           rewrites docs/pictures/*.png (seconds)
"""

import argparse
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

ROOT = Path(__file__).resolve().parent.parent
TITLES = {"ptb": "Penn Treebank", "wikitext-2": "WikiText-2"}
# Where a label may stand: its distance from the point, in points, and its alignment.
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


def draw_history(results: dict[str, Any]) -> Figure:
    """Perplexity against tokens per second of the ways to learn from history, a panel a data set."""
    datasets = list(dict.fromkeys(row["dataset"] for row in results["rows"]))
    figure = make_figure(7 * len(datasets), 5.2)
    panels = figure.subplots(1, len(datasets), squeeze=False)[0]
    for axes, dataset in zip(panels, datasets, strict=True):
        rows = [row for row in results["rows"] if row["dataset"] == dataset]
        _draw_methods(axes, TITLES.get(dataset, dataset), rows)
    figure.draw_without_rendering()  # the layout is settled before the labels look for room
    for axes, dataset in zip(panels, datasets, strict=True):
        _label_methods(axes, [row for row in results["rows"] if row["dataset"] == dataset])
    return figure


def _colour(method: str) -> str:
    return HISTORY if method.startswith("LLE") else INK if method == "base" else BASE


def _draw_methods(axes: Axes, title: str, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        axes.plot(row["tokens_per_second"], row["ppl"], "o", color=_colour(row["method"]), markersize=8)
    style(axes, title, "tokens per second", "perplexity per word, test set")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.3, y=0.15)


def _label_methods(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Names each point, at the first of `PLACES` where the label covers nothing."""
    points = axes.transData.transform([(row["tokens_per_second"], row["ppl"]) for row in rows])
    taken = [Bbox([point - 8, point + 8]) for point in points]
    for place, row in enumerate(rows):
        others = taken[:place] + taken[place + 1 :]
        label: Annotation | None = None
        for x, y, horizontal, vertical in PLACES:
            if label is not None:
                label.remove()
            label = axes.annotate(
                f"{row['method']}  {row['ppl']:.1f}",
                (row["tokens_per_second"], row["ppl"]),
                xytext=(x, y),
                textcoords="offset points",
                ha=horizontal,
                va=vertical,
                fontsize=9,
                color=_colour(row["method"]),
                fontweight="bold" if row["method"].startswith("LLE") else "normal",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
                zorder=1.5,  # over the grid, under the points
            )
            box = label.get_window_extent()
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
            if inside and not any(box.overlaps(other) for other in others):
                break
        taken.append(box)


# Each picture's name, and the results file that it is drawn from.
PICTURES: dict[str, tuple[str, Callable[[dict[str, Any]], Figure]]] = {"history": ("history", draw_history)}


def make_parser() -> argparse.ArgumentParser:
    """The arguments of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of the repository")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws every picture whose results there are, prints what it does, and returns the exit status."""
    root = make_parser().parse_args(arguments).root
    missing = 0
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
