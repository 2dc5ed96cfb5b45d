"""Measuring translators: scores against sacrebleu's own, the order of sentences, the memory, and what is not fit."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from typer.testing import CliRunner

pytest.importorskip("sacrebleu")
pytest.importorskip("bm25s")

import sacrebleu

from modeling_lle import HistoryBank
from modeling_lle.cli import main as cli
from modeling_lle.evaluation import (
    TranslationMetric,
    evaluate_translator,
    evaluate_translator_folder,
    format_translation,
    metrics,
    read_results,
    translate,
)
from modeling_lle.saved import load_translator
from tests.factories.classifiers import make_classifier
from tests.factories.pairs import capitals, make_capitals_pairs, make_capitals_tokenizer
from tests.factories.translators import make_trained_translator, make_translator

CERTAIN = {"bank": {"sharpness": 60.0, "gate": [9.0, 0.0, 0.0, 0.0]}}  # what is recalled is believed


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A saved translator in "run", and test pairs in "data"."""
    monkeypatch.chdir(tmp_path)
    model, tokenizer = make_trained_translator()
    model.save_pretrained("run")
    tokenizer.save_pretrained("run")
    Path("run/metrics.json").write_text(json.dumps({"train_minutes": 1.5}))
    Path("run/recipe.yaml").write_text(yaml.safe_dump({"data": {"source_language": "en", "target_language": "de"}}))
    pairs = make_capitals_pairs(12, seed=5)
    Path("data").mkdir()
    for language, side in (("en", "source"), ("de", "target")):
        Path("data", f"test.{language}").write_text("\n".join(pairs[side]) + "\n")
    return tmp_path


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, ["evaluate", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("lowercase", [False, True])
def test_the_metric_is_sacrebleus(lowercase: bool) -> None:
    predictions = ["Ein Hund rennt am Strand .", "eine Frau liest ein Buch .", "", "Zwei Kinder."]
    references = ["Ein Hund rennt am Meer .", "Eine Frau liest ein Buch .", "Nichts", "Drei Kinder spielen."]
    metric = TranslationMetric(keep_in_memory=True)
    for one, other in zip(predictions, references, strict=True):
        metric.add(prediction=one, reference=other)
    found = metric.compute(lowercase=lowercase)
    assert found == {
        "bleu": sacrebleu.corpus_bleu(predictions, [references], lowercase=lowercase).score,
        "chrf": sacrebleu.metrics.CHRF(lowercase=lowercase).corpus_score(predictions, [references]).score,
        "ter": sacrebleu.corpus_ter(predictions, [references], case_sensitive=not lowercase).score,
    }
    case = "lc" if lowercase else "mixed"
    assert list(metric.signatures) == list(found)
    for signature in metric.signatures.values():
        assert f"case:{case}" in signature
        assert f"version:{sacrebleu.__version__}" in signature
    assert "tok:13a" in metric.signatures["bleu"]


OTHERS = {
    "zh": ("猫坐在垫子上。", "猫躺在垫子上。"),
    "ja": ("猫がマットの上に座っています。", "猫がマットの上で寝ています。"),
    "ko": ("고양이가 매트 위에 앉아 있다.", "고양이가 매트 위에서 잔다."),
    "th": ("แมวนั่งอยู่บนเสื่อ", "แมวนอนอยู่บนเสื่อ"),
}


@pytest.mark.parametrize("language", OTHERS)
@pytest.mark.parametrize("known", [True, False])
def test_languages_without_spaces_have_their_tokenizer(language: str, known: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)  # no MeCab
    prediction, reference = OTHERS[language]
    texts = {"predictions": [prediction] * 3, "references": [reference] * 3}
    metric = TranslationMetric(keep_in_memory=True)
    found = metric.compute(**texts, language=f"{language}-XX" if known else None)
    tokenizer = "zh" if language == "zh" else "char"
    assert f"tok:{tokenizer}|" in metric.signatures["bleu"]
    bleu = sacrebleu.corpus_bleu(texts["predictions"], [texts["references"]], tokenize=tokenizer).score
    assert found["bleu"] == bleu > 20
    assert found["chrf"] == sacrebleu.corpus_chrf(texts["predictions"], [texts["references"]]).score
    assert (found["ter"] < 60) == (language in ("zh", "ja"))
    assert ("asian:yes" in metric.signatures["ter"]) == (language in ("zh", "ja"))


def test_the_tokenizer_is_that_of_the_language_or_else_of_the_script(monkeypatch: Any) -> None:
    tell = metrics.language_without_spaces
    names = ["zho_Hant", "cmn", "JA", "jpn-Jpan", "kor", "tha", "de", "english", None]
    assert [tell(["ein Hund"], name) for name in names] == ["zh", "zh", "ja", "ja", "ko", "th", None, None, None]
    mixed = {
        "HTTP 请求失败请再试一次": "zh",
        "東京都庁舎": "zh",
        "東京に行く": "ja",
        "the word 猫 means cat": None,
        "12, 5!": None,
        "": None,
    }
    assert [tell([text], "target") for text in mixed] == list(mixed.values())
    with_mecab = [metrics.bleu_tokenizer(code) for code in (None, "zh", "th")]
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: name)
    assert [*with_mecab, *map(metrics.bleu_tokenizer, ("ja", "ko"))] == ["13a", "zh", "char", "ja-mecab", "ko-mecab"]


def test_case_counts_unless_it_is_told_not_to() -> None:
    texts = {"predictions": ["ein hund rennt am strand"], "references": ["Ein Hund rennt am Strand"]}
    cased = TranslationMetric(keep_in_memory=True).compute(**texts)
    lowercased = TranslationMetric(keep_in_memory=True).compute(**texts, lowercase=True)
    assert cased["bleu"] < 50
    assert cased["ter"] == 60
    assert lowercased == pytest.approx({"bleu": 100, "chrf": 100, "ter": 0})


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a", None], ["a", "b"], "sentence 1 of the predictions is missing"),
        (["a", "b"], ["a", None], "sentence 1 of the references is missing"),
    ],
)
def test_the_metric_needs_every_sentence(predictions: list, references: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TranslationMetric(keep_in_memory=True).compute(predictions=predictions, references=references)


@pytest.mark.parametrize("beams", [1, 3])
def test_sentences_come_back_in_their_order(beams: int) -> None:
    model, tokenizer = make_trained_translator()
    texts = make_capitals_pairs(23, seed=3)["source"][:]
    alone = [translate(model, tokenizer, [text], beams)[0] for text in texts]
    assert translate(model.train(), tokenizer, texts, beams, batch_size=4) == alone
    assert model.training
    assert sum(one == capitals(text) for one, text in zip(alone, texts, strict=True)) > 10
    assert translate(model, tokenizer, []) == []


def test_of_the_beams_the_best_that_keeps_placeholders_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = make_trained_translator()
    monkeypatch.setattr(tokenizer, "batch_decode", lambda found, **_: ["AB", "AB {x}", "{x} AB"] * (len(found) // 3))
    assert translate(model, tokenizer, ["ab {x}", "ab"], 3) == ["AB {x}", "AB"]


def test_nothing_is_cut_and_an_endless_translation_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_capitals_tokenizer()
    model = make_translator(tokenizer)
    torch.nn.init.constant_(model.lm_head.weight, 0.0)
    model.lm_head.bias.data[tokenizer.convert_tokens_to_ids("AB")] = 9.0
    lengths = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **kw: lengths.append(kw["input_ids"].shape[1]) or generate(**kw))
    found = translate(model, tokenizer, ["ab " * 30, "ab"], beams=1, batch_size=1)
    assert lengths == [2, 31]
    assert [len(text.split()) for text in found] == [2 * 31 + 16, 2 * 2 + 16]
    assert translate(model, tokenizer, ["ab"], beams=1, max_new_tokens=3) == ["AB AB AB"]


def test_names_of_special_tokens_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make_capitals_tokenizer("bpe")
    model = make_translator(tokenizer)
    seen: list[Any] = []
    monkeypatch.setattr(model, "generate", lambda **options: seen.append(options) or options["input_ids"])
    assert translate(model, tokenizer, ["<pad> ab<eos>"]) == ["<pad> ab<eos>"]
    assert seen[0]["input_ids"][0].tolist().count(tokenizer.eos_token_id) == 1
    assert tokenizer.pad_token_id not in seen[0]["input_ids"]


def test_autocast_and_the_memory_reach_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = make_trained_translator()
    seen: list[Any] = []

    def generate(**options: Any) -> torch.Tensor:
        seen.append((torch.is_autocast_enabled("cpu"), options.get("use_history"), options["num_beams"]))
        return options["input_ids"]

    monkeypatch.setattr(model, "generate", generate)
    with torch.autocast("cpu", torch.bfloat16):
        translate(model, tokenizer, ["ab"], 4, use_history=False)
    translate(model, tokenizer, ["ab"])
    assert seen == [(True, False, 4), (False, None, 5)]


def test_without_a_memory_there_are_plain_names_only() -> None:
    model, tokenizer = make_trained_translator()
    pairs = make_capitals_pairs(20, seed=7)
    seen = evaluate_translator(model, tokenizer, pairs, beams=1, batch_size=8)
    metrics = seen.metrics()
    assert set(seen.translations) == {"base"}
    assert not [name for name in metrics if name.startswith("base_")]
    assert metrics["bleu"] == sacrebleu.corpus_bleu(seen.translations["base"], [pairs["target"][:]]).score
    assert 50 < metrics["bleu"] <= 100
    assert metrics["sentences_per_second"] == pytest.approx(20 / seen.seconds["base"])
    assert (metrics["sentences"], metrics["entries"], metrics["pairs"]) == (20, 0, 0)
    assert [row["metric"] for row in seen.table()] == ["bleu", "chrf", "ter"]
    assert seen.table()[0]["base"] == metrics["bleu"]
    assert seen.examples()[3] == {
        "source": pairs["source"][3],
        "reference": pairs["target"][3],
        "translation": seen.translations["base"][3],
    }
    assert "history" not in format_translation(metrics)
    assert re.search(rf"BLEU +{metrics['bleu']:.2f}", format_translation(metrics))


def test_with_a_memory_both_sides_are_measured() -> None:
    model, tokenizer = make_trained_translator(history=CERTAIN)
    pairs = make_capitals_pairs(12, seed=7)
    model.attach_history(HistoryBank.build(model, tokenizer, [{"source": "qr ab", "target": "AB AB AB"}]))
    told = Dataset.from_dict({"source": [*pairs["source"], "qr ab"], "target": [*pairs["target"], "AB AB AB"]})
    seen = evaluate_translator(model, tokenizer, told, beams=1)
    metrics = seen.metrics()
    assert (metrics["pairs"], metrics["entries"]) == (1, 4)
    assert seen.translations["history"][-1] == "AB AB AB"
    assert seen.translations["base"][-1] != "AB AB AB"
    assert metrics["base_bleu"] == seen.scores["base"]["bleu"] != metrics["bleu"] == seen.scores["history"]["bleu"]
    assert {f"base_{name}" for name in ("bleu", "chrf", "ter", "sentences_per_second")} < set(metrics)
    assert seen.examples()[-1]["base_translation"] == seen.translations["base"][-1]
    assert {"base", "history", "signature"} < set(seen.table()[0])
    assert metrics["placeholders_added"] == metrics["base_placeholders_added"] == 0
    table = format_translation(metrics)
    assert re.search(r"base +history", table)
    assert "a memory of 1 pair" in table
    model.detach_history()
    assert evaluate_translator(model, tokenizer, told, beams=1).scores["base"] == seen.scores["base"]


def test_placeholders_are_counted_by_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = make_trained_translator()
    made = ["{x}", "{y} {y}", "%d", "a"]
    monkeypatch.setattr("modeling_lle.evaluation.translation.translate", lambda *args, **options: made)
    sources = ["{x}", "{x} {x}", "%d %d", "b"]
    metrics = evaluate_translator(model, tokenizer, Dataset.from_dict({"source": sources, "target": made})).metrics()
    assert (metrics["placeholders_lost"], metrics["placeholders_added"]) == (2, 1)


@pytest.mark.parametrize(
    ("sources", "targets", "message"),
    [
        ([], [], "no sentence pairs to measure"),
        (["ab", " "], ["AB", "B"], "the source in row 1 is blank: remove the row"),
        (["ab"], [None], "the target in row 0 is missing"),
    ],
)
def test_what_cannot_be_measured(sources: list[Any], targets: list[Any], message: str) -> None:
    tokenizer = make_capitals_tokenizer()
    with pytest.raises(ValueError, match=message):
        evaluate_translator(
            make_translator(tokenizer), tokenizer, Dataset.from_dict({"source": sources, "target": targets})
        )


def test_weights_that_are_not_finite() -> None:
    tokenizer = make_capitals_tokenizer()
    model = make_translator(tokenizer)
    torch.nn.init.constant_(model.lm_head.bias, float("nan"))
    with pytest.raises(FloatingPointError, match=r"lm_head.bias holds NaN"):
        evaluate_translator(model, tokenizer, make_capitals_pairs(2))


@pytest.mark.usefixtures("folder")
def test_the_command_writes_everything() -> None:
    pytest.importorskip("matplotlib")
    output = run("run", "data", "--beams", "2", "--output", "seen", "--results", "results.json")
    assert re.search(r"BLEU +\d+\.\d\d", output)
    assert Path("seen/attention.png").read_bytes().startswith(b"\x89PNG")
    written, released = read_results("seen/evaluation.json"), read_results("results.json")
    assert released["metrics"] == written["metrics"]
    metrics = released["metrics"]
    assert metrics["train_minutes"] == 1.5
    assert metrics["parameters"] == make_translator(make_capitals_tokenizer()).num_parameters()
    assert {"bleu", "chrf", "ter"} < set(metrics)
    assert [row["metric"] for row in released["rows"]] == ["bleu", "chrf", "ter"]
    assert written["rows"][:3] == released["rows"]
    assert len(written["rows"]) == 3 + 12
    assert written["rows"][3]["source"] == make_capitals_pairs(12, seed=5)["source"][0]
    assert "ü" in json.dumps(written["rows"], ensure_ascii=False)


@pytest.mark.usefixtures("folder")
def test_the_command_reads_the_memory_that_lies_with_the_model() -> None:
    model, tokenizer = load_translator("run")
    model.attach_history(HistoryBank.build(model, tokenizer, make_capitals_pairs(12, seed=5)))
    model.save_pretrained("run", save_history=True)
    assert re.search(r"base +history", run("run", "data", "--beams", "1"))
    model.history_bank.save_pretrained("elsewhere")
    plain, given = (
        evaluate_translator_folder("run", "data", beams=1, bank=bank, lowercase=True)["metrics"]
        for bank in (None, "elsewhere")
    )
    assert plain["pairs"] == given["pairs"] == 12
    assert plain["bleu"] == given["bleu"]


@pytest.mark.usefixtures("folder")
def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"--label-column is not for run, a translator: leave it out"):
        run("run", "data", "--label-column", "label")
    with pytest.raises(ValueError, match=r"--text-column is not for run, a translator"):
        run("run", "data", "--text-column", "text")
    make_classifier().save_pretrained("classifier")
    with pytest.raises(ValueError, match=r"--beams is not for classifier, a classifier of texts"):
        run("classifier", "data", "--beams", "2")
    with pytest.raises(ValueError, match="a translator is needed: use lle classify"):
        load_translator("classifier")
    with pytest.raises(ValueError, match="run has no bank"):
        run("run", "data", "--namespace", "client")
    Path("run/recipe.yaml").unlink()
    with pytest.raises(ValueError, match="languages of run are unknown: give --source-language"):
        run("run", "data", "--source-language", "en")
    assert "BLEU" in run("run", "data", "--source-language", "en", "--target-language", "de", "--beams", "1")


def test_missing_sacrebleu_names_the_extra(without: Callable[[str], None]) -> None:
    without("sacrebleu")
    with pytest.raises(ImportError, match=r"pip install \"modeling_lle\[translation\]\""):
        TranslationMetric(keep_in_memory=True)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def leave_out(package: str) -> None:
        monkeypatch.setitem(__import__("sys").modules, package, None)

    return leave_out
