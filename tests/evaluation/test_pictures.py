import builtins
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modeling_lle.evaluation import StreamEvaluation

pytest.importorskip("matplotlib")
from modeling_lle.evaluation import pictures


def make_evaluation(
    length: int = 3000, gain: float = 0.2, window: int = 50, sources: tuple[str, ...] = ()
) -> StreamEvaluation:
    random = np.random.default_rng(0)
    targets = random.zipf(1.2, length) % 400
    base = random.gamma(2, 2, length).astype(np.float32)
    return StreamEvaluation(
        targets=targets,
        position=np.arange(length),
        nats={"base": base, **dict.fromkeys(sources, base - np.float32(gain / 2)), "history": base - np.float32(gain)},
        shares={"stream": np.zeros(length, dtype=np.float32)},
        counts=np.bincount(targets, minlength=400),
        counted="evaluated text",
        window=window,
        words=length,
        bytes=length,
        seconds=1.0,
    )


def test_panels_show_the_measurements(tmp_path: Path) -> None:
    evaluation = make_evaluation()
    figure = pictures.draw_evaluation(evaluation, title="a text")
    left, right = figure.axes
    base, history = (line.get_ydata() for line in left.get_lines())
    metrics = evaluation.metrics()
    assert (base[-1], history[-1]) == pytest.approx((metrics["base_ppl"], metrics["history_ppl"]), rel=1e-4)
    assert [text.get_text() for text in right.get_legend().get_texts()] == [
        "in the window",
        "before the window",
        "new",
    ]
    assert {round(float(bar.get_height()), 4) for bar in right.patches} == {0.2}
    shares = [int(text.get_text()[:-1]) for text in right.texts]
    assert sum(shares) == pytest.approx(100, abs=len(shares))
    pictures.save_figure(figure, tmp_path / "new" / "picture.png")
    assert (tmp_path / "new" / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_every_source_has_a_curve_and_labels_stand_apart() -> None:
    left, _ = pictures.draw_evaluation(make_evaluation(sources=("stream", "bank"))).axes
    assert len(left.get_lines()) == 4
    labels = [text.get_text().split("\n")[0] for text in left.texts]
    assert labels == ["base", "with stream", "with bank", "both"]
    heights = sorted(text.xy[1] for text in left.texts)
    assert min(np.diff(heights)) >= pictures.LABEL_HEIGHT - 1e-9
    assert heights[-1] <= 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("length", [1, 2, 30])
@pytest.mark.parametrize("gain", [0.0, -0.1])
def test_short_texts_and_no_gain(tmp_path: Path, length: int, gain: float) -> None:
    figure = pictures.draw_evaluation(make_evaluation(length, gain, window=0))
    pictures.save_figure(figure, tmp_path / "picture.png")


def test_missing_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install modeling_lle\[plots\]"):
        importlib.reload(pictures)
