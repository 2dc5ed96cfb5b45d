"""Which texts to label next: splits without a common text, and a row for each method and round."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from modeling_lle import LLETextClassificationPipeline
from modeling_lle.evaluation import read_results

pytest.importorskip("faiss")
pytest.importorskip("numba")
from scripts.benchmark import suggest
from scripts.benchmark.__main__ import app
from tests.factories.classifiers import make_classifier
from tests.factories.texts import WORD_TOKENIZER, make_texts

TEXTS = list(dict.fromkeys(make_texts(120, 6, seed=2)))
LABELS = [f"label-{number % 3}" for number in range(len(TEXTS))]


def test_the_parts_have_no_text_in_common() -> None:
    parts = suggest.draw(LABELS, 0, 2, 5, 20)
    assert len({*parts.examples, *parts.pool, *parts.held_out}) == 3 * 2 + 20 + 3 * 5
    for part, count in ((parts.examples, 2), (parts.held_out, 5)):
        assert set(Counter(LABELS[row] for row in part).values()) == {count}
    assert parts == suggest.draw(LABELS, 0, 2, 5, 20)
    assert parts != suggest.draw(LABELS, 1, 2, 5, 20)


def test_every_method_and_round_has_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []

    def teach(texts: Sequence[str], labels: Sequence[str], seed: int) -> LLETextClassificationPipeline:
        model = make_classifier()
        model.learn(texts, labels, WORD_TOKENIZER)
        trained.append(len(texts))
        return LLETextClassificationPipeline(model=model, tokenizer=WORD_TOKENIZER)

    monkeypatch.setattr(suggest.few, "teach", teach)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    lines = [f"{text},{label}" for text, label in zip(TEXTS, LABELS, strict=True)]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *lines]))
    options = ["--seeds", "1", "--rounds", "2", "--held-out", "4", "--trained-after", "2"]
    outcome = CliRunner().invoke(app, ["suggest", str(tmp_path), *options, "--output", str(tmp_path / "results.json")])
    assert outcome.exit_code == 0, outcome.output
    results = read_results(tmp_path / "results.json")
    assert [(row["method"], row["round"], row["examples"]) for row in results["rows"]] == [
        (method, number, 6 + 3 * number) for method in ("random", "margin", "suggest") for number in range(3)
    ]
    assert trained == [6, 12] * 3
    assert all((row["trained_accuracy"] is None) == (row["round"] == 1) for row in results["rows"])
    assert results["metrics"]["suggest_accuracy"] == results["rows"][-1]["accuracy"]
