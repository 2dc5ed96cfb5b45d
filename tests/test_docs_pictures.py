"""The pictures of the docs are drawn from the results files, and their labels can be read."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from modeling_lle.evaluation import write_results
from modeling_lle.history.explanation import Cause, Explanation

pytest.importorskip("matplotlib")
from scripts import explained, pictures

METHODS = {"base": (74, 5500), "LLE stream": (66, 5100), "neural cache": (66.1, 5000), "kNN-LM": (66.2, 4900)}


def make_results(path: Path) -> dict[str, Any]:
    rows = [
        {"dataset": dataset, "method": method, "ppl": ppl, "tokens_per_second": speed}
        for dataset in ("ptb", "mine")
        for method, (ppl, speed) in METHODS.items()
    ]
    return write_results(path / "model_cards" / "results" / "history.json", "x", {}, rows)


def test_history_has_a_panel_a_data_set_and_a_label_a_method(tmp_path: Path) -> None:
    figure = pictures.draw_history(make_results(tmp_path))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Penn Treebank", "mine"]
    for axes in figure.axes:
        assert [text.get_text() for text in axes.texts] == [
            f"{method}  {ppl:.1f}" for method, (ppl, _) in METHODS.items()
        ]
        colours = {text.get_text().split("  ")[0]: text.get_color() for text in axes.texts}
        assert colours["LLE stream"] == pictures.HISTORY
        assert colours["neural cache"] == colours["kNN-LM"] == pictures.BASE
        boxes = [text.get_window_extent() for text in axes.texts]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        points = axes.transData.transform([(speed, ppl) for ppl, speed in METHODS.values()])
        assert not any(box.contains(*point) for box in boxes for point in points)


def make_banks(path: Path) -> dict[str, Any]:
    names = ["everything", "duplicates merged", "probability below 0.5", "everything, asked below 0.9"]
    rows = [
        {"bank": name, "mebibytes": 900.0 - 200 * i, "stream_and_bank_ppl": 60.0 + i, "tokens_per_second": 900.0 + i}
        for i, name in enumerate(names)
    ]
    return write_results(path / "model_cards" / "results" / "bank-selection.json", "x", {}, rows)


def test_banks_show_what_is_kept_and_where_it_is_asked(tmp_path: Path) -> None:
    kept, asked = pictures.draw_banks(make_banks(tmp_path)).axes
    texts = [[text.get_text() for text in axes.texts] for axes in (kept, asked)]
    assert texts[0] == ["everything", "duplicates merged", "probability below 0.5"]
    assert texts[1] == ["everywhere", "asked below 0.9"]
    assert [list(line.get_xdata()) for line in kept.get_lines()] == [[900], [700], [500]]


def make_peers(path: Path) -> list[dict[str, Any]]:
    """Results of three models, of which nn.LSTM has no measurement at the longest context."""
    parts: dict[str, list[dict[str, Any]]] = {"minutes": [], "training": [], "contexts": []}
    for place, name in enumerate(("LLE", "LLE, history", "nn.LSTM")):
        parts["minutes"] += [{"model": name, "minutes": m, "loss": 7 - m / 10 + place / 1000} for m in (1, 10)]
        parts["training"] += [{"model": name, "length": n, "tokens_per_second": 1000 + place} for n in (64, 256)]
        for batch in (1, 16):
            parts["contexts"].append({"model": name, "batch": batch, "context": 512, "step_ms": 5.0 * batch})
            parts["contexts"].append({"model": name, "batch": batch, "context": 2048, "skipped": "more than 60 s"})
            if name != "nn.LSTM":
                parts["contexts"][-1] |= {"step_ms": 5.0 * batch}
    folder = path / "model_cards" / "results"
    return [write_results(folder / f"peers-{part}.json", "x", {}, rows) for part, rows in parts.items()]


def test_peers_show_a_line_a_model_with_a_label_that_can_be_read(tmp_path: Path) -> None:
    figure = pictures.draw_peers(*make_peers(tmp_path))
    for axes in figure.axes:
        texts = {text.get_text(): text for text in axes.texts}
        assert set(texts) == {"LLE", "LLE, history", "nn.LSTM"}
        boxes = [text.get_window_extent() for text in texts.values()]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        assert texts["LLE"].get_color() == pictures.HISTORY != texts["nn.LSTM"].get_color()
    assert [list(line.get_xdata()) for line in figure.axes[2].get_lines()] == [[512, 2048], [512, 2048], [512]]
    assert list(figure.axes[2].get_lines()[0].get_ydata()) == [5, 5]  # one row, not sixteen


def make_explained(age: int, before: str = "        tup = self._current_in") -> tuple[Explanation, dict[str, Any]]:
    causes = [
        Cause("stream", share, 0.9 * share, 7, [], [], age=age + i) for i, share in enumerate((0.3, 0.2, 0.1, 0.05))
    ]
    explanation = Explanation(400, 7, base_prob=0.004, prob=0.7, base_share=0.25, causes=causes, rest=0.01)
    values = [
        {
            "share": cause.share,
            "where": f"{cause.age} tokens ago",
            "before": before,
            "outcome": "dent",
            "after": ", 1\nx",
        }
        for cause in causes
    ]
    return explanation, {"text": "dent", "base_prob": 0.004, "prob": 0.7, "base_share": 0.25, "causes": values}


def test_an_explained_prediction_shows_shares_that_add_up_to_its_probability() -> None:
    _, value = make_explained(60)
    (axes,) = explained.draw(value, "x\n    tup = self._current_in", "argparse.py").axes
    texts = [text.get_text() for text in axes.texts]
    shares = ["30.0%", "20.0%", "10.0%", "5.0%", "4.9%", "0.1%"]
    assert [text for text in texts if text in shares] == shares
    assert sum(float(share.rstrip("%")) for share in shares) == pytest.approx(70)
    assert "model alone  0.4%" in texts
    assert "with history  70.0%" in texts
    assert texts.count("tup = self._current_in") == 5
    assert texts.count("dent") == 5


def test_the_prediction_to_draw_is_recalled_from_some_way_back_and_has_a_line_before_it() -> None:
    near, short, good = make_explained(3), make_explained(90, "\n  in"), make_explained(60)
    explanations, values = zip(near, short, good, strict=True)
    assert explained.choose(explanations, values) == 2
    with pytest.raises(ValueError, match="give a longer text"):
        explained.choose(explanations[:2], values[:2])


def test_script_draws_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_banks(tmp_path)
    assert pictures.main(["--root", str(tmp_path)]) == 1
    assert "not drawn: docs/pictures/history.png: there are no results at" in capsys.readouterr().out
    make_results(tmp_path)
    make_peers(tmp_path)
    rows = [{"model": "LSTM", "task": "copy", "size": n, "sources": "stream", "accuracy": 0.5} for n in (16, 64)]
    write_results(tmp_path / "model_cards" / "results" / "recall.json", "x", {}, rows)
    assert pictures.main(["--root", str(tmp_path)]) == 0
    for name in pictures.PICTURES:
        assert (tmp_path / "docs" / "pictures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
