"""What larger banks take follows from what is measured; the whole of both benchmarks runs on a tiny model."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from modeling_lle import HistoryBank
from modeling_lle.evaluation import read_results
from scripts.benchmark.__main__ import app
from scripts.benchmark.bank_ranks import _different
from scripts.benchmark.bank_scale import PLANNED, _continued, _plan
from tests.factories.language_models import make_language_model
from tests.factories.texts import WORD_TOKENIZER, make_texts

MODEL = make_language_model()


def test_values_are_continued_from_the_two_largest_sizes() -> None:
    rows = [{"entries": 4.0, "it": 9.0}, {"entries": 100.0, "it": 30.0}, {"entries": 400.0, "it": 60.0}]
    assert _continued(rows, "it", 1000) == pytest.approx(120)
    assert _continued(rows[2:], "it", 800) == pytest.approx(120)
    cubes = [{"entries": n, "it": 5 + n**1.5} for n in (100.0, 400.0)]
    assert _continued(cubes, "it", 900, 1.5) == pytest.approx(5 + 27_000)
    falling = [{"entries": 100.0, "it": 3.0}, {"entries": 400.0, "it": 2.0}]
    assert _continued(falling, "it", 10_000) == 2


def test_a_plan_adds_up() -> None:
    encoded = {"other_bytes": 10.0, "text_memory_bytes": 3.0, "encoding_microseconds": 36.0, "open_microseconds": 1.0}
    row = {"entries": 10**6, "width": 8, "index_bytes": 4.0, "index_seconds": 3.6}
    row |= {"exact_milliseconds": 5.0, "balanced_milliseconds": 1.0}
    exact = _plan(encoded, [row], 10**8, "folder, exact", 8)
    assert (exact["disk_gb"], exact["memory_gb"]) == pytest.approx((2.6, 3.6))
    assert (exact["encoding_core_hours"], exact["index_core_hours"]) == pytest.approx((1, 0))
    assert (exact["open_seconds"], exact["search_milliseconds"]) == pytest.approx((100, 500))
    index = _plan(encoded, [row], 10**8, "folder, index", 16)
    assert (index["disk_gb"], index["memory_gb"], index["index_core_hours"]) == pytest.approx((3, 2.4, 1))
    assert (exact["keys"], index["keys"]) == ("states", "projected")


def test_banks_that_differ_are_told() -> None:
    texts = make_texts(12, 9)
    one, other = (HistoryBank.build(MODEL, WORD_TOKENIZER, rows, source="it") for rows in (texts, [*texts[:-1], "a"]))
    assert _different(one, one) == 0
    assert _different(one, other) == max(len(one), len(other))


@pytest.mark.slow
def test_both_run(tmp_path: Path) -> None:
    for saved in (MODEL, WORD_TOKENIZER):
        saved.save_pretrained(tmp_path / "model")
    (tmp_path / "train.txt").write_text("\n".join(make_texts(60, 9)))
    given = ["--model", str(tmp_path / "model"), "--source", str(tmp_path / "train.txt"), "--tokens", "200"]
    for command, options in (
        ("bank-scale", ["--entries", "100", "--entries", "200", "--key-width", "4"]),
        ("bank-ranks", ["--ranks", "2", "--repeats", "1"]),
    ):
        output = tmp_path / f"{command}.json"
        done = CliRunner().invoke(app, [command, *given, *options, "--output", str(output)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    scale = read_results(tmp_path / "bank-scale.json")
    assert [row["entries"] for row in scale["rows"] if row["table"] == "measured"] == [100, 200] * 2
    assert len([row for row in scale["rows"] if row["table"] == "planned"]) == 2 * 2 * len(PLANNED)
    assert scale["metrics"]["width"] == MODEL.key_size
    ranks = read_results(tmp_path / "bank-ranks.json")
    assert {row["entries_that_differ"] for row in ranks["rows"]} == {0}
    assert ranks["metrics"]["build_ratio_2_ranks"] > 0
