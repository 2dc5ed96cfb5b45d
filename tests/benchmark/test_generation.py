from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from modeling_lle.evaluation import read_results

pytest.importorskip("faiss")
pytest.importorskip("numba")
from scripts.benchmark import generation
from scripts.benchmark.__main__ import app
from tests.factories.language_models import make_language_model
from tests.factories.texts import make_ids, make_texts

TEXTS = ("text", "none", "prompt", "own_0.5", "own_1")


@pytest.mark.slow
def test_a_row_for_each_length_and_way_of_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(generation, "PYTHON", "own")
    monkeypatch.setattr(generation, "WEIGHTS", (0.5, 1.0))
    monkeypatch.setattr(generation, "TOKENS", (10, 20))
    monkeypatch.setattr(generation, "PROMPTS", {"short": 6, "long": 40})
    monkeypatch.setattr(generation, "SIZES", {"model": (8, 0), "judge": (6, 1)})
    monkeypatch.setattr(generation, "SUBWORDS", {"kind": "word"})
    short = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 2, "segment_length": 6}
    monkeypatch.setattr(generation, "TRAINING", {**generation.TRAINING, **short, "calibration_tokens": 0})
    Path("own").mkdir()
    for split, rows in (("train", 60), ("valid", 20), ("test", 60)):
        (Path("own") / f"{split}.txt").write_text("\n".join(make_texts(rows, 8, seed=rows)) + "\n")
    monkeypatch.setattr(generation, "_texts", lambda source, split: generation.load_texts(source, split=split))
    arguments = ["generation", "models", "--steps", "3", "--prompts", "3", "--output", "results.json"]
    outcome = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    rows = read_results("results.json")["rows"]
    assert [(row["prompt"], row["decoding"]) for row in rows] == [
        (length, decoding) for length in ("short", "long") for decoding in ("greedy", "top-p 0.95")
    ]
    for row in rows:
        for measure in ("distinct", "distinct_20", "copied"):
            assert all(0 <= row[f"{measure}_{text}"] <= 1 for text in TEXTS)
        assert all(row[f"ppl_{text}"] > 1 for text in TEXTS)


def test_weaker_entries_lie_between_those_of_the_prompt_and_those_of_all_that_was_read() -> None:
    ids = make_ids(1, 9)
    plain = make_language_model(50)
    weak = generation.WeakRecall(plain.config).eval()
    weak.load_state_dict(plain.state_dict())
    first, rest = ids[:, :4], ids[:, 4:]

    def logits_of(model: torch.nn.Module, generated: int) -> torch.Tensor:
        with torch.no_grad():
            cache = model(first, use_cache=True).past_key_values
            parts = [
                model(t, past_key_values=cache, generated=generated, use_cache=True) for t in rest.split(1, dim=1)
            ]
        return torch.cat([part.logits for part in parts], dim=1)

    torch.testing.assert_close(logits_of(weak, 0), logits_of(plain, 0))
    weak.own_weight = 1e-6
    # The ages of the entries differ, as all tokens made some.
    plain.config.stream.recency = weak.config.stream.recency = 0.0
    torch.testing.assert_close(logits_of(weak, 0), logits_of(plain, 1), atol=1e-4, rtol=1e-4)
