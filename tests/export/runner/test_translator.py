"""run.py of translators translates as the model, with beams and the memory, which it searches by the same words."""

from pathlib import Path
from typing import Any

import pytest
import torch

from modeling_lle import HistoryBank
from modeling_lle.bank.lexical import fuzzy_match
from modeling_lle.entries.pairs import Memory
from modeling_lle.export import export
from modeling_lle.pipelines.translation import LLETranslationPipeline
from tests.factories.exports import load_run
from tests.factories.pairs import make_capitals_pairs
from tests.factories.translators import SUBWORD_MEMORY, make_trained_translator


@pytest.fixture(scope="module", params=[0, 12], ids=["candidates", "neighbours"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The pipeline of a translator with a memory, and the module run.py."""
    translator = {"neighbours": request.param}
    model, tokenizer = make_trained_translator(history={"bank": SUBWORD_MEMORY}, translator=translator)
    bank = HistoryBank.build(model, tokenizer, make_capitals_pairs(60, seed=9))
    model.attach_history(bank, tokenizer=tokenizer)
    folder = export(model, tokenizer, tmp_path_factory.mktemp("translator") / "exported", bank=bank)
    return LLETranslationPipeline(model=model, tokenizer=tokenizer), load_run(folder)


@pytest.mark.parametrize(("beams", "use_history"), [(1, True), (1, False), (3, True)])
def test_translations_are_those_of_the_model(exported: Any, beams: int, use_history: bool) -> None:
    translate, run = exported
    texts = make_capitals_pairs(8, seed=5)["source"][:]
    options = {"num_beams": beams, "use_history": use_history, "max_new_tokens": 12}
    due = [result["translation_text"] for result in translate(texts, **options)]
    loaded = run.load()
    assert [loaded.translate(text, beams, 12, use_history=use_history) for text in texts] == due


def test_faults_and_repetitions_are_avoided_as_by_the_model(tmp_path: Path) -> None:
    model, tokenizer = make_trained_translator()
    with torch.no_grad():
        model.lm_head.weight *= 0.3  # a translator that is unsure makes faults, and repeats itself
    model.generation_config.no_repeat_ngram_size = 2
    loaded = load_run(export(model, tokenizer, tmp_path / "unsure")).load()
    translate = LLETranslationPipeline(model=model, tokenizer=tokenizer)
    texts = make_capitals_pairs(25, seed=6)["source"][:]
    for beams in (1, 4):
        due = [found["translation_text"] for found in translate(texts, num_beams=beams, max_new_tokens=12)]
        assert [loaded.translate(text, beams, 12) for text in texts] == due
    best = [
        found[0]["translation_text"]
        for found in translate(texts, num_beams=4, num_return_sequences=2, max_new_tokens=12)
    ]
    assert due != best
    model.generation_config.no_repeat_ngram_size = None
    assert due != [found["translation_text"] for found in translate(texts, num_beams=4, max_new_tokens=12)]


def test_the_memory_finds_the_same_pairs_by_the_same_scores(exported: Any) -> None:
    translate, run = exported
    memory, loaded = Memory.of(translate.model.history), run.load()
    for text in ("ab cde", "klm %d nöp", "unknown", "ab ab ab cde qr"):
        due = [(match.score, match.text, match.translation, match.where) for match in memory.matches(text, 3)]
        assert [tuple(found.values()) for found in loaded.matches(text, 3)] == due
        assert loaded.memory.similar(text, 9) == [pair for pair in memory.index.search([text], 9)[0][0] if pair >= 0]


@pytest.mark.parametrize(
    ("a", "b"), [("", "a"), ("a b", "a b"), ("a b", "a  b"), ("Where is it?", "where is my it"), ("日本語", "日本")]
)
def test_the_fuzzy_match_score_is_that_of_the_package(exported: Any, a: str, b: str) -> None:
    assert exported[1].fuzzy_match(a, b) == pytest.approx(fuzzy_match(a, b))


def test_blank_texts_and_exact_matches_need_no_model(exported: Any) -> None:
    loaded = exported[1].load()
    loaded.graphs = {}
    source, target, _ = loaded.memory.pairs[0]
    assert loaded.translate("  ") == ""
    assert loaded.translate(source, exact_matches=True) == target


def test_the_command_translates(exported: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = exported[1]
    assert run.main(["translate", "ab cde", "--beams", "2"]) == 0
    assert capsys.readouterr().out.strip() == run.load().translate("ab cde", 2)
    assert run.main(["matches", "ab cde", "--number", "1"]) == 0
    assert '"score"' in capsys.readouterr().out
    assert not (Path(run.__file__).parent / "bank" / "lock").exists()
