import builtins
import importlib
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from modeling_lle.evaluation import confusion
from modeling_lle.evaluation.pictures import save_figure

LABELS = ["a", "b", "c"]
REFERENCES = ["a", "a", "a", "b", "b"]
PREDICTIONS = ["a", "a", "b", "b", "a"]


def cells(axes: Any) -> dict[tuple[float, float], str]:
    """The numbers that are written, by column and row."""
    return {tuple(text.get_position()): text.get_text() for text in axes.texts}


def names(labels: list) -> list[str]:
    return [label.get_text() for label in labels]


def many(classes: int = 77, examples: int = 3000) -> tuple[list[str], list[str], list[str]]:
    random = np.random.default_rng(0)
    labels = [f"class_{i}_" + "of_many_words_" * int(random.integers(5)) for i in range(classes)]
    right = random.integers(classes, size=examples)
    wrong = random.random(examples) < 0.3
    predicted = np.where(wrong, (right + random.integers(classes, size=examples)) % classes, right)
    return [labels[i] for i in right], [labels[i] for i in predicted], labels


def test_few_classes_are_drawn_in_their_order(tmp_path: Path) -> None:
    figure = confusion.draw_confusion(REFERENCES, PREDICTIONS, LABELS, title="a small one")
    (axes,) = figure.axes
    assert names(axes.get_xticklabels()) == names(axes.get_yticklabels()) == LABELS
    assert cells(axes) == {(0.5, 0.5): "2", (1.5, 0.5): "1", (1.5, 1.5): "1", (0.5, 1.5): "1"}
    assert axes.get_title(loc="left") == "5 examples, 60.0% right"
    assert figure.get_suptitle() == "a small one"
    colours = axes.collections[0].get_array()
    right, wrong, none = (
        confusion._tint(np.array(share), colour)
        for share, colour in [(2 / 3, confusion.RIGHT), (1 / 2, confusion.WRONG), (0.0, confusion.WRONG)]
    )
    assert np.allclose(colours[0, 0], right)
    assert np.allclose(colours[1, 0], wrong)
    assert np.allclose(colours[2], none)  # no example of the class, and no division by zero
    save_figure(figure, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_of_many_classes_the_most_confused_are_drawn() -> None:
    labels = list("abcdefgh")
    references = [*labels, *"aaab", "g", "e"]
    predictions = [*labels, *"cccd", "b", "g"]  # errors: c and a 3, b and g 2, d and e 1
    (axes,) = confusion.draw_confusion(references, predictions, labels, most=4).axes
    assert names(axes.get_yticklabels()) == ["a", "c", "b", "g"]
    assert names(axes.get_xticklabels()) == ["a", "c", "b", "g", "all other classes"]
    other = len("acbg") + confusion.GAP + 0.5
    diagonal = {(i + 0.5, i + 0.5): "1" for i in range(4)}
    assert cells(axes) == {**diagonal, (1.5, 0.5): "3", (2.5, 3.5): "1", (other, 2.5): "1"}
    assert axes.get_title(loc="left") == "The 4 of 8 classes with most errors\n14 examples, 57.1% right in all"


def test_rows_are_complete() -> None:
    references, predictions, labels = many()
    (axes,) = confusion.draw_confusion(references, predictions, labels).axes
    rows = [0] * 25
    for (_, y), text in cells(axes).items():
        rows[int(y)] += int(text)
    shown = {confusion._shorten(label): references.count(label) for label in labels}
    assert rows == [shown[name] for name in names(axes.get_yticklabels())]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("classes", "title"),
    [
        *((classes, "A title THAT HAS TO BE BROKEN INTO LINES " * 4) for classes in (2, 3, 12, 25, 26, 77, 150)),
        *itertools.product([2, 77], [None, "A title"]),
    ],
)
def test_nothing_is_clipped_and_names_stand_apart(classes: int, title: str | None) -> None:
    figure = confusion.draw_confusion(*many(classes), title=title)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    width, height = figure.get_size_inches() * figure.dpi
    boxes = [text.get_window_extent() for text in (axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label)]
    boxes += [label.get_window_extent() for label in axes.get_xticklabels() + axes.get_yticklabels()]
    (key,) = axes.child_axes
    boxes += [key.get_tightbbox()]
    if title:
        boxes += [figure._suptitle.get_window_extent()]
        assert not figure._suptitle.get_window_extent().overlaps(axes.get_tightbbox())
    for box in boxes:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
    rows = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(not one.overlaps(two) for one, two in itertools.pairwise(rows))
    assert not axes._left_title.get_window_extent().overlaps(key.get_tightbbox())
    numbers = [text.get_window_extent().width for text in axes.texts]
    assert max(numbers) < axes.transData.transform((1, 0))[0] - axes.transData.transform((0, 0))[0]


def test_names_are_one_line_and_no_formula() -> None:
    labels = ["$5 and $6", "two\n lines", "x" * 30 + "y" * 30]
    figure = confusion.draw_confusion(labels, labels, labels, title="from $5 to $6")
    (axes,) = figure.axes
    shown = names(axes.get_yticklabels())
    assert shown[:2] == ["$5 and $6", "two lines"]
    assert len(shown[2]) == confusion.LONGEST
    assert (shown[2][0], shown[2][-1], "…" in shown[2]) == ("x", "y", True)
    drawn = [*axes.get_xticklabels(), *axes.get_yticklabels(), figure._suptitle]
    assert not any(text.get_parse_math() for text in drawn)


@pytest.mark.parametrize(
    ("count", "text"),
    [(9999, "9999"), (10_000, "10k"), (999_999, "999k"), (1_000_000, "1M")],
)
def test_large_counts_are_short(count: int, text: str) -> None:
    assert confusion._short(count) == text


@pytest.mark.parametrize(
    ("references", "predictions", "labels", "most", "message"),
    [
        (["a"], ["x"], LABELS, 25, "prediction of example 0, 'x', is not among the labels"),
        (["a", "y"], ["a", "a"], LABELS, 25, "reference of example 1, 'y', is not among the labels"),
        (["a"], ["a", "b"], LABELS, 25, "1 references but 2 predictions"),
        ([], [], LABELS, 25, "there are no examples to draw"),
        (["a"], ["a"], ["a", "b", "a"], 25, "labels hold 'a' twice"),
        (["a"], ["a"], ["a"], 25, "labels name 1 classes: name every class once, and at least two"),
        (["a"], ["a"], LABELS, 1, "most is 1: a confusion matrix needs at least two classes"),
    ],
)
def test_errors(references: list, predictions: list, labels: list, most: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        confusion.draw_confusion(references, predictions, labels, most=most)


def test_missing_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "modeling_lle.evaluation.pictures")
    with pytest.raises(ImportError, match=r"pip install modeling_lle\[plots\]"):
        importlib.reload(confusion)
