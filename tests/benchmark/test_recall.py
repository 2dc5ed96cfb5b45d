"""The benchmark of recall: what its tasks ask for, how it reads, and what it writes."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from modeling_lle import LLETokenizer
from modeling_lle.evaluation import read_results
from scripts.benchmark import recall, recall_tasks
from scripts.benchmark.__main__ import app
from tests.factories.language_models import make_language_model
from tests.factories.texts import make_ids, make_texts


def test_what_a_task_asks_for_stands_earlier_after_the_same_tokens() -> None:
    tasks = recall_tasks.make_tasks(torch.arange(5, 200), make_ids(1, 300)[0], [6, 40], [2, 9], [0, 100], seed=0)
    assert [(task.name, task.size) for task in tasks[:4]] == [
        ("copy", 6), ("copy", 40), ("pairs, 0 between", 2), ("pairs, 0 between", 9)
    ]  # fmt: skip
    least = {"copy": 1, "pairs, 0 between": 1, "pairs, 1 between": 2, "pairs, 3 between": 4, "phone book": 2}
    for task in tasks:
        assert int(task.asked.sum()) >= 256
        length = least[task.name]
        for row, place in task.asked.nonzero()[:20].tolist():
            text = task.tokens[row].tolist()
            same = [p for p in range(length, place) if text[p - length : p] == text[place - length : place]]
            assert text[place] in [text[p] for p in same]
            assert task.name == "copy" or {text[p] for p in same} == {text[place]} or task.name == "phone book"


def test_it_reads_as_the_model_itself_does(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = make_language_model(9), make_ids(2, 60)
    model.config.matches.window = 40
    numbers = recall.Numbers(model.config.stream, model.config.stream, model.config.matches)
    text = recall.Text(model, (recall.STREAM, recall.MATCHES), numbers)
    monkeypatch.setattr(recall, "SEGMENT", 23)
    parts = [prediction.distribution() for prediction in text.read(recall.encode(model, ids))]
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(parts, dim=1), model(ids).logits)


def test_joined_keys_compare_the_states_before_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = make_language_model(9), make_ids(1, 30)
    monkeypatch.setattr(recall, "SEGMENT", 11)
    text = recall.Text(model, (recall.JOINED,), recall.Numbers.initial())
    blocks = list(text.read(recall.encode(model, ids)))
    with torch.no_grad():
        states = torch.nn.functional.normalize(model.model(ids).last_hidden_state[0], dim=-1)
    block = blocks[-1].recalled[0].block
    cosines = block.similarity()[0, -1][block.valid[0, -1]]
    weights = [recall.DECAY**back for back in range(recall.JOINED_STATES)]
    want = [
        sum(weight * float(states[29 - back] @ states[entry - back]) for back, weight in enumerate(weights))
        / sum(weights)
        for entry in range(3, 29)
    ]
    torch.testing.assert_close(cosines.sort().values[-5:], torch.tensor(want).sort().values[-5:])


def test_the_command_writes_results_that_can_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    names = ("base", "stream", "stream + matches", "stream + joined keys + matches")
    sets = {name: recall.SETS[name] for name in names}
    for name, value in {"COPIES": (5,), "PAIRS": (2,), "DISTANCES": (0, 100_000), "SETS": sets}.items():
        monkeypatch.setattr(recall, name, value)
    monkeypatch.setattr(recall_tasks, "ASKED", 40)
    monkeypatch.setattr(recall_tasks, "ASKED_OF_BOOKS", 40)
    Path("text").mkdir()
    for split, rows in (("train", 60), ("valid", 20), ("test", 20)):
        Path("text", f"{split}.txt").write_text("\n".join(make_texts(rows, 8, seed=rows)) + "\n")
    monkeypatch.setattr(recall, "FAR", {"copy": 5})
    tokenizer = LLETokenizer.train(make_texts(60, 8), vocab_size=300)
    make_language_model(vocab_size=len(tokenizer)).save_pretrained("model")
    tokenizer.save_pretrained("model")
    result = CliRunner().invoke(
        app, ["recall", "text", "--model", "model", "--output", "recall.json"], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    results = read_results("recall.json")
    assert {row["sources"] for row in results["rows"]} == set(names)
    assert results["metrics"]["stream_matches_accuracy_copy_5"] > results["metrics"]["base_accuracy_copy_5"]
    assert results["metrics"]["stream_ppl_over_stream"] == 1
    assert len(recall.draw_recall(results).axes) == len(recall.SHOWN)
