"""The comparison of a memory with its peers: what may be seen, bands, scores, fine-tuning, and what is kept."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from datasets import Dataset
from typer.testing import CliRunner

pytest.importorskip("sacrebleu")
pytest.importorskip("bm25s")
pytest.importorskip("faiss")
pytest.importorskip("numba")

from modeling_lle.bank.lexical import fuzzy_match
from modeling_lle.evaluation import read_results
from modeling_lle.saved import load_translator
from scripts.benchmark import memory
from scripts.benchmark import memory_scores as scores
from scripts.benchmark.__main__ import app
from scripts.benchmark.peers import fine_tuned_translator as tuner
from scripts.benchmark.peers import transformer_translator as transformer
from tests.factories.pairs import CAPITALS_WORDS, make_capitals_tokenizer
from tests.factories.translators import make_trained_translator

CERTAIN = {"bank": {"sharpness": 30.0, "gate": [4.0, 0.0, 0.0, 0.0]}}
QUICK = ["--sentences", "2", "--repetitions", "1", "--beams", "1", "--no-confidence"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(memory, "this_command", lambda: "measure catalogue.tsv")
    for name, size in {"WIDTH": 16, "LAYERS": 1, "HEADS": 2}.items():
        monkeypatch.setattr(transformer, name, size)


@pytest.fixture
def domain() -> Dataset:
    """A model in "model" that writes capitals, and a catalogue of another domain, in which all is called the same."""
    model, tokenizer = make_trained_translator(history=CERTAIN, translator={"sentences": 8})
    model.save_pretrained("model")
    tokenizer.save_pretrained("model")
    Path("model/recipe.yaml").write_text(yaml.safe_dump({"data": {"source_language": "en", "target_language": "de"}}))
    texts = [
        f"{one} {two} {three}"
        for one in CAPITALS_WORDS[:4]
        for two in CAPITALS_WORDS[2:6]
        for three in CAPITALS_WORDS[4:8]
    ]
    rows = [*((text, "QR ab ab") for text in texts), (texts[0], "AB"), (texts[5], "AB")]
    Path("catalogue.tsv").write_text("en\tde\n" + "".join(f"{one}\t{two}\n" for one, two in rows) + "ab\t\n")
    return Dataset.from_dict({"source": [one for one, _ in rows], "target": [two for _, two in rows]})


def run(*arguments: str) -> dict[str, Any]:
    command = ["memory", "model", *arguments, *QUICK, "--output", "results.json"]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return read_results("results.json")


def test_no_test_source_is_in_the_memory(domain: Dataset) -> None:
    kept, test = scores.split_pairs(domain, 0.1, seed=0)
    sources = [set(part["source"]) for part in (kept, test)]
    assert [len(own) for own in sources] == [len(kept), len(test)] == [58, 6]  # each source once
    assert not sources[0] & sources[1]
    assert sources[0] | sources[1] == set(domain["source"])
    assert (
        dict(zip(domain["source"][:64], domain["target"][:64], strict=True)).items()
        >= dict(zip(kept["source"][:], kept["target"][:], strict=True)).items()
    )  # the first of those with the same source
    assert scores.split_pairs(domain, 0.1, seed=0)[1]["source"][:] == test["source"][:]
    assert scores.split_pairs(domain, 0.1, seed=1)[1]["source"][:] != test["source"][:]
    spaced = Dataset.from_dict({"source": ["ab ", "ab", " ab", "cde"], "target": ["A", "B", "C", "D"]})
    assert sorted(target for part in scores.split_pairs(spaced, 0.5, 0) for target in part["target"]) == ["A", "D"]
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match="64 distinct sources cannot be split"):
            scores.split_pairs(domain, share, 0)


def test_fewer_test_pairs_leave_the_memory_as_it_is(domain: Dataset) -> None:
    kept, test = scores.split_pairs(domain, 0.1, seed=0)
    same, fewer = scores.split_pairs(domain, 0.1, seed=0, most=2)
    assert same["source"][:] == kept["source"][:]
    assert len(fewer) == 2
    assert set(fewer["source"]) < set(test["source"])


def test_the_copies_are_of_the_most_similar_source_of_all() -> None:
    sources = ["Open a file", "Delete the files now", "delet", "Delete the file now", "x"]
    texts = ["Delete the file", "Delete", "Open file now, please"]
    by_words = scores.best_by_words(texts, sources)
    assert by_words == [
        max(range(len(sources)), key=lambda place, text=text: fuzzy_match(text, sources[place])) for text in texts
    ]
    assert by_words[:2] == [3, 1]
    assert scores.best_by_characters(texts, sources)[:2] == [3, 2]
    memory_pairs = Dataset.from_dict({"source": sources, "target": list("abcde")})
    assert memory.copying(memory_pairs, scores.best_by_characters)(texts[:2], 1) == ["d", "c"]
    test = Dataset.from_dict({"source": texts[:1], "target": ["z"]})
    assert scores.Tested.of(test, memory_pairs).scores == [0.75]


def test_bands() -> None:
    references = ["a b c d", "e f g h", "i j k l", "m n o p"]
    tested = scores.Tested(["%s", "x", "x", "x"], references, [0.99, 0.85, 0.7, 0.2])
    rows = tested.rows(["a b c D", "e f g h", "x", "m n o p"])
    assert [(row["band"], row["sentences"]) for row in rows] == [
        ("all", 4),
        ("85-100 %", 2),
        ("70-85 %", 1),
        ("below 50 %", 1),
    ]
    assert [row["edits"] for row in rows] == [5 / 16, 1 / 8, 1, 0]
    assert [row["placeholders_right"] for row in rows] == [0.75, 0.5, 1, 1]
    assert 0 < rows[1]["bleu"] < 100  # case counts
    assert rows[2]["bleu"] == 0
    assert rows[3]["chrf"] == pytest.approx(100)
    assert "case:mixed" in rows[0]["signature"]
    bands = scores.Tested(references, references, [0.849, 0.5, 0.499, 1.0]).rows(references)[1:]
    assert [row["band"] for row in bands] == ["85-100 %", "70-85 %", "50-70 %", "below 50 %"]
    rows = [
        {"method": method, "band": band, "edits": edits}
        for method, *all_edits in (("copy", 0.5, 0.0), ("copy_characters", 0.4, 0.2), ("memory", 0.3, 0.1))
        for band, edits in zip(("all", "85-100 %"), all_edits, strict=True)
    ]
    scores.add_saved(rows)
    assert [row["edits_saved"] for row in rows] == [pytest.approx(-0.25), None, 0, None, pytest.approx(0.25), None]


def test_the_calibration_error() -> None:
    probability, right = np.array([0.05, 0.95, 0.95, 0.95, 0.95]), np.array([False, True, True, True, False])
    assert scores.calibration_error(probability, right) == pytest.approx((0.05 + 0.8) / 5)
    assert scores.calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0


def test_the_confidence_in_drafts_beside_that_in_copies(domain: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CONFIDENT", 0.0)  # all drafts
    targets = ["QR ab ab" if place % 7 else "AB" for place in range(len(domain))]
    pairs = Dataset.from_dict({"source": domain["source"][:], "target": targets})
    kept, test = scores.split_pairs(pairs, 0.4, seed=0)
    model, tokenizer = load_translator(Path("model"))
    memory.remember(model, tokenizer, kept, calibrate=False)
    tested = scores.Tested.of(test, kept)
    found = memory.trust(model, tokenizer, kept, tested, beams=1, seed=0)
    drafts = memory.drafting(model, tokenizer, 1, True)(tested.sources, 4)
    assert found["unedited"] == tested.right(drafts).mean()
    assert 0 <= found["calibration_error"] < 0.5
    copies = memory.copying(kept, scores.best_by_words)(tested.sources, 4)
    assert (found["confident"], found["confident_unedited"]) == (1, found["unedited"])
    assert found["copied_unedited"] == tested.right(copies).mean()


def test_climbing_asks_each_place_once() -> None:
    asked: list[int] = []

    def score(place: int) -> float:
        asked.append(place)
        return -abs(place - 4)

    assert tuner.climb(score, 1) == 4
    assert sorted(asked) == [0, 1, 2, 3, 4, 5]
    assert tuner.climb(lambda _: 0.0, 7) == 7


def test_fine_tuning_keeps_the_best_weights(domain: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(1 << 40))
    monkeypatch.setattr(tuner.time, "perf_counter", lambda: next(now))  # each step takes a second
    monkeypatch.setattr(tuner, "TRIAL", 0.2)
    monkeypatch.setattr(tuner, "START", -3)
    load = functools.partial(load_translator, Path("model"))
    pairs = domain.select(range(64))
    tuned = tuner.fine_tune(load, pairs, minutes=0.5)
    model, tokenizer = load()
    data = tuner._Data(pairs, tuned.held_out, tokenizer, 0)
    before, after = tuner.share_right(model, data.held_out), tuner.share_right(tuned.model, data.held_out)
    assert len(tuned.held_out) == 6
    assert len(tuned.rates) >= 3
    assert before < max(tuned.rates.values()) <= after == tuned.best.right
    assert 0 < tuned.best.steps == tuned.best.seconds <= tuned.best.spent <= 30
    assert tuned.search_seconds > 0
    assert not tuned.model.training
    nothing = tuner._train(model, data, minutes=tuner.LOOKS / 60, rate=0.0)
    assert (nothing.steps, nothing.spent) == (0, tuner.PATIENCE)  # those of the base stay


@pytest.mark.usefixtures("domain")
def test_every_method_drafts_the_same_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "LOOKS", 2)
    tokenizer = make_capitals_tokenizer()
    transformer.make_transformer(tokenizer, 9000).save_pretrained("peer")
    tokenizer.save_pretrained("peer")
    before = Path("model/config.json").read_bytes()
    options = ["--project", "pretix", "--transformer", "peer", "--minutes", "0.001"]
    results = run("catalogue.tsv", *options)
    metrics, rows = results["metrics"], results["rows"]
    whole = {row["method"]: row for row in rows if row["band"] == "all"}
    tuned = [f"fine_tuned{suffix}" for suffix in ("_short", "_short_memory", "", "_memory")]
    assert list(whole) == ["copy", "copy_characters", "base", "memory", "transformer", *tuned]
    for method, row in whole.items():
        own = [row for row in rows if row["method"] == method]
        assert sum(row["sentences"] for row in own[1:]) == row["sentences"] == 6
        assert row["sentences_per_second_1"] > 0
        assert row["sentences_per_second_32"] > 0
        assert (row["project"], row["languages"]) == ("pretix", "en-de")
    assert (metrics["memory_pairs"], metrics["test_pairs"]) == (58, 6)
    assert metrics["bleu_copy"] == max(whole[name]["bleu"] for name in ("copy", "copy_characters"))
    assert metrics["chrf_without"] == whole["base"]["chrf"] != metrics["chrf_with"] == whole["memory"]["chrf"]
    assert metrics["bleu_fine_tuned"] == whole["fine_tuned"]["bleu"]
    assert metrics["speed_ratio"] == pytest.approx(
        metrics["sentences_per_second_with"] / metrics["sentences_per_second_without"]
    )
    assert metrics["speed_ratio_1"] > 0
    assert metrics["build_seconds"] > 0
    assert metrics["memory_megabytes"] > 0.003
    assert metrics["after_ppl"] <= metrics["before_ppl"]
    assert whole["fine_tuned_memory"]["memory_pairs"] == 58
    assert Path("model/config.json").read_bytes() == before
    assert not Path("model/history").exists()


@pytest.mark.usefixtures("domain")
def test_other_projects_and_languages_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = ["--minutes", "0", "--no-calibrate"]
    first = run("catalogue.tsv", "--project", "pretix", *quick)
    assert first["metrics"]["chrf_with"] > 50 > first["metrics"]["chrf_without"]
    assert "after_ppl" not in first["metrics"]
    assert "sharpness 30," in first["rows"][-2]["numbers"]
    Path("other.tsv").write_text(Path("catalogue.tsv").read_text())
    monkeypatch.setattr(memory, "this_command", lambda: "measure other.tsv")
    both = run("other.tsv", *quick, "--sentences-tested", "3")
    monkeypatch.setattr(memory, "this_command", lambda: "measure catalogue.tsv again")
    again = run("catalogue.tsv", "--project", "pretix", *quick)
    assert both["command"] == "measure catalogue.tsv && measure other.tsv"
    assert again["command"] == "measure other.tsv && measure catalogue.tsv again"
    assert both["rows"][: len(first["rows"])] == first["rows"]
    assert both["metrics"]["other_en_de_test_pairs"] == 3
    assert both["metrics"]["bleu_with"] == again["metrics"]["bleu_with"] == first["metrics"]["bleu_with"]
    assert len(again["rows"]) == len(both["rows"])
    old = json.loads(Path("results.json").read_text())
    old["rows"] = [{"band": "all"}]
    Path("results.json").write_text(json.dumps(old))
    with pytest.raises(ValueError, match=r"results.json has rows without project or languages: remove it"):
        run("catalogue.tsv", *quick)


@pytest.mark.usefixtures("domain")
def test_a_memory_needs_languages() -> None:
    Path("model/recipe.yaml").unlink()
    with pytest.raises(ValueError, match="the languages of model are unknown"):
        run("catalogue.tsv", "--source-language", "en")
