"""run.py of language models gives what the model gives, with all sources, and refuses what it cannot read."""

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modeling_lle import HistoryBank
from modeling_lle.export import export
from tests.factories.exports import load_run
from tests.factories.language_models import make_language_model
from tests.factories.texts import WORD_TOKENIZER, make_ids, make_texts

IDS = make_ids(1, 600, 3, vocab=8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, HistoryBank, Any]:
    """A model, its bank and the module run.py; the window is shorter than a block, and the text has three of these."""
    matches = {"window": 100, "longest": 4, "neighbours": 8}
    model = make_language_model(window=40, history={"matches": matches, "bank": {"neighbours": 4, "skip_above": 0.4}})
    bank = HistoryBank.build(
        model, WORD_TOKENIZER, [{"text": text} for text in make_texts(30, 12, seed=4)], merge=True
    )
    folder = tmp_path_factory.mktemp("language") / "exported"
    return model, bank, load_run(export(model, WORD_TOKENIZER, folder, bank=bank))


@pytest.mark.parametrize("use_history", [True, False])
def test_a_text_of_several_blocks_is_scored_as_by_the_model(exported: Any, use_history: bool) -> None:
    model, bank, run = exported
    due = model.score(IDS[:, :-1], IDS[:, 1:], use_history=use_history, history=bank)
    found = run.load().score(IDS[0].tolist(), use_history)
    for name in ("log_probs", "base_log_probs"):
        np.testing.assert_allclose(found[name], due[name][0], atol=1e-4)
    assert found["perplexity"] == pytest.approx(float((-due.log_probs.mean()).exp()), rel=1e-4)


def test_a_bank_with_projected_keys_is_recalled_as_by_the_model(tmp_path: Path) -> None:
    model = make_language_model(window=0)
    bank = HistoryBank.build(model, WORD_TOKENIZER, make_texts(9, 12, seed=4), key_width=3)
    run = load_run(export(model, WORD_TOKENIZER, tmp_path / "out", bank=bank))
    due = model.score(IDS[:, :40], IDS[:, 1:41], history=bank)
    np.testing.assert_allclose(run.load().score(IDS[0, :41].tolist())["log_probs"], due.log_probs[0], atol=1e-4)


@pytest.mark.parametrize("generated", [True, False])
@pytest.mark.parametrize("use_history", [True, False])
def test_greedy_text_is_that_of_the_model(exported: Any, use_history: bool, generated: bool) -> None:
    model, bank, run = exported
    loaded = run.load()
    model.config.stream.generated = loaded.export["history"]["stream"]["generated"] = generated
    options = {"max_new_tokens": 60, "do_sample": False, "eos_token_id": None}
    due = model.generate(IDS[:, :290], use_history=use_history, history=bank, **options)[0, 290:]
    model.config.stream.generated = False
    assert list(loaded.stream(IDS[0, :290].tolist(), 60, use_history=use_history)) == due.tolist()


def test_a_seed_gives_the_same_sample_and_limits_hold(exported: Any) -> None:
    loaded = exported[2].load()
    samples = [list(loaded.stream([1, 2], 30, True, top_k=2, top_p=0.9, seed=seed)) for seed in (1, 1, 2)]
    assert samples[0] == samples[1] != samples[2]
    assert list(loaded.stream([1, 2], 9, True, top_k=1, seed=1)) == list(loaded.stream([1, 2], 9))


def test_drawn_tokens_have_the_probabilities_of_transformers(exported: Any) -> None:
    import torch
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = torch.randn(1, 12, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    warped = scores
    for warper in (TemperatureLogitsWarper(0.7), TopKLogitsWarper(7), TopPLogitsWarper(0.8)):
        warped = warper(None, warped)

    class Recorder:
        def choice(self, number: int, p: Any) -> int:
            self.probabilities = p
            return 0

    random = Recorder()
    exported[2]._drawn(scores[0].numpy(), random, 0.7, 7, 0.8)
    np.testing.assert_allclose(random.probabilities, warped[0].softmax(-1), atol=1e-6)


def test_generation_ends_with_the_end_token(exported: Any) -> None:
    loaded = exported[2].load()
    tokens = list(loaded.stream([1, 2, 3], 40))
    loaded.tokens["eos"] = [tokens[3]]
    assert list(loaded.stream([1, 2, 3], 40)) == tokens[: tokens.index(tokens[3]) + 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.generate(""), "no token"),
        (lambda model: list(model.stream([])), "no token"),
        (lambda model: list(model.stream([1], max_new_tokens=0)), "at least 1 token"),
        (lambda model: list(model.stream([3, 11])), "the token 11, and ids are 0 to 10"),
        (lambda model: model.score("a"), "one token"),
    ],
)
def test_texts_that_cannot_be_read_are_refused(exported: Any, call: Any, message: str) -> None:
    run = exported[2]
    with pytest.raises(run.RunError, match=message):
        call(run.load())


def test_the_command_generates_scores_and_checks(exported: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = exported[2]
    assert run.main(["generate", "a b c", "--max-new-tokens", "5", "--no-history"]) == 0
    assert capsys.readouterr().out.strip() == "a b c" + run.load().generate(
        "a b c", max_new_tokens=5, use_history=False
    )
    assert run.main(["score", "a b c"]) == 0
    assert '"perplexity"' in capsys.readouterr().out
    assert run.main(["check"]) == 0
    assert run.main(["generate", ""]) == 2
    assert "no token" in capsys.readouterr().err


def test_it_imports_neither_torch_nor_this_package(exported: Any) -> None:
    text = Path(exported[2].__file__).read_text()
    assert "torch" not in text.replace("needs no torch", "").replace("`torch", "")
    assert "modeling_lle" not in text
    assert "import ." not in text


def test_without_its_packages_it_says_what_to_install(exported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match="pip install onnxruntime numpy tokenizers"):
        load_run(Path(exported[2].__file__).parent)
    with pytest.raises(SystemExit, match=r"run.py: .*pip install onnxruntime numpy tokenizers"):
        runpy.run_path(exported[2].__file__, run_name="__main__")
