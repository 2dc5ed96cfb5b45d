"""Draws one prediction of a language model with the entries that moved it: the first picture of the README.

Every number is of the model: the shares of the base, of the drawn entries and of all others add up to the probability.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modeling_lle.evaluation.pictures import BASE, FAINT, HISTORY, INK, make_figure
from modeling_lle.history.explanation import Explanation, as_values
from modeling_lle.saved import load_language_model

ENTRIES = 4  # rows of the picture
LEAST_AGE = 50  # tokens: a nearer repetition is seen by the eye as well
LETTERS = 4  # of a token that is worth a picture
LEAST_BEFORE, BEFORE, AFTER = 16, 40, 18  # characters around an outcome
BARS, AGES, OUTCOMES = (0.0, 0.18), 0.25, 0.75  # columns, in shares of the width
MONOSPACED: dict[str, Any] = {"family": "monospace", "fontsize": 11, "va": "center"}


def draw_explained(model_path: str | Path, text_path: str | Path, tokens: int = 6000) -> Figure:
    """Reads a text and draws the prediction that history improved most.

    Args:
        model_path: Folder of a saved language model.
        text_path: The text, UTF-8.
        tokens: Tokens to read of it.
    """
    model, tokenizer = load_language_model(model_path)
    ids = tokenizer(Path(text_path).read_text(encoding="utf-8"), return_tensors="pt").input_ids[0, :tokens]
    explanations = model.explain(ids, top=ENTRIES)
    values = as_values(explanations, tokenizer)
    chosen = choose(explanations, values)
    position = explanations[chosen].position
    return draw(values[chosen], str(tokenizer.decode(ids[max(0, position - BEFORE) : position])), Path(text_path).name)


def choose(explanations: Sequence[Explanation], values: Sequence[Mapping[str, Any]]) -> int:
    """The number of the prediction to draw: of a word or a part of one, recalled from some way back.

    Args:
        explanations: Predictions of a text.
        values: The same, as `as_values` gives them.
    """
    fit = [
        number
        for number, (explanation, value) in enumerate(zip(explanations, values, strict=True))
        if value["text"].strip().isalpha()
        and len(value["text"].strip()) >= LETTERS
        and len(explanation.causes) == ENTRIES
        and all(cause.outcome == explanation.target for cause in explanation.causes)
        and all(cause.age is None or cause.age >= LEAST_AGE for cause in explanation.causes)
        and all(len(_last_line(cause["before"])) >= LEAST_BEFORE for cause in value["causes"])
    ]
    if not fit:
        raise ValueError("no prediction of this text has enough entries to draw: give a longer text")
    return max(fit, key=lambda number: explanations[number].prob - explanations[number].base_prob)


def draw(value: Mapping[str, Any], before: str, name: str) -> Figure:
    """Draws a prediction.

    Args:
        value: As `as_values` gives it, all of its causes with its outcome.
        before: The text before it.
        name: Name of the text.
    """
    text, causes = value["text"].strip(), value["causes"]
    by_base = value["base_share"] * value["base_prob"]
    others = value["prob"] - by_base - sum(cause["share"] for cause in causes)
    figure = make_figure(12, 4.4)
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(len(causes) + 3.4, -1.5))
    axes.text(0, -1.1, f"What comes next in {name}, and why", color=INK, fontsize=12, fontweight="bold", va="center")
    for x, side, chance, colour in ((0, "model alone", "base_prob", BASE), (0.18, "with history", "prob", HISTORY)):
        text_of = f"{side}  {_percent(value[chance])}"
        axes.text(x, 0, text_of, color=colour, fontsize=12, fontweight="bold", va="center")
    _line(axes, 0, before, text, "")
    for x, heading in ((BARS[0], "share of the prediction"), (AGES, "entry"), (OUTCOMES, "its text")):
        axes.text(x, 1, heading, color=BASE, fontsize=10, va="center", ha="right" if x == OUTCOMES else "left")
    largest = max(others, *(cause["share"] for cause in causes))
    for row, cause in enumerate(causes, start=2):
        _bar(axes, row, cause["share"], largest, HISTORY)
        axes.text(AGES, row, cause["where"], color=INK, fontsize=10, va="center")
        _line(axes, row, cause["before"], cause["outcome"], cause["after"])
    rest = (("all other entries", others, HISTORY), ("the model alone, after the gate", by_base, BASE))
    for row, (name, share, colour) in enumerate(rest, start=2 + len(causes)):
        _bar(axes, row, share, largest, colour)
        axes.text(AGES, row, name, color=INK, fontsize=10, va="center")
    return figure


def _bar(axes: Axes, row: int, share: float, largest: float, colour: str) -> None:
    start, stop = BARS
    width = (stop - start) * share / largest
    axes.barh(row, width, 0.62, left=start, color=colour)
    axes.text(start + width + 0.008, row, _percent(share), color=INK, fontsize=10, va="center")


def _line(axes: Axes, row: int, before: str, outcome: str, after: str) -> None:
    """A line of text, its outcome in the column of the outcomes; of several lines, that of the outcome."""
    axes.text(OUTCOMES, row, _last_line(before)[-BEFORE:], color=INK, ha="right", **MONOSPACED)
    box = {"facecolor": HISTORY, "edgecolor": HISTORY, "pad": 1.5}
    label = axes.text(OUTCOMES + 0.003, row, outcome.strip("\n"), color="white", bbox=box, **MONOSPACED)
    first = after.split("\n", 1)[0][:AFTER]
    axes.annotate(first, (1, 0.5), (4, 0), xycoords=label, textcoords="offset points", color=BASE, **MONOSPACED)
    axes.axhline(row + 0.5, color=FAINT, linewidth=0.5)


def _last_line(text: str) -> str:
    return text.rsplit("\n", 1)[-1].lstrip()


def _percent(share: float) -> str:
    """A share in per cent, with a digit that is not zero."""
    return f"{share:.1%}" if share >= 0.001 else f"{100 * share:.1g}%"
