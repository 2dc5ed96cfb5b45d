import itertools
import json
import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer

from modeling_lle import HistoryBank, LLEConfig, LLEForCausalLM, LLETokenizer
from modeling_lle.data import TextTokens, collect, tokenize
from modeling_lle.evaluation import evaluate_folder, evaluate_stream, format_table, read_results
from modeling_lle.training import segments
from scripts import evaluate as script

VOCABULARY = 50


def make_model(window: int = 20, **options: Any) -> LLEForCausalLM:
    torch.manual_seed(0)
    stream = {"window": window, "gate": [0.0, 0.3, 0.1, 0.1]}
    values = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1, "history": {"stream": stream}}
    return LLEForCausalLM(LLEConfig(**{**values, **options})).eval()


def make_tokens(length: int = 101, seed: int = 0) -> TextTokens:
    ids = np.random.default_rng(seed).zipf(1.3, length) % VOCABULARY
    return TextTokens(ids.astype(np.int32), words=length // 2, bytes=3 * length)


@pytest.mark.parametrize("segment_length", [1, 7, 200])
def test_one_row_equals_one_forward(segment_length: int) -> None:
    model, tokens = make_model(), make_tokens()
    evaluation = evaluate_stream(model, tokens, segment_length=segment_length)
    ids = torch.from_numpy(tokens.ids).long()[None]
    for nats, use_history in ((evaluation.nats["base"], False), (evaluation.nats["history"], True)):
        with torch.no_grad():
            logits = model(ids[:, :-1], use_history=use_history).logits
        expected = -logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[0, :, 0]
        torch.testing.assert_close(torch.from_numpy(nats), expected, rtol=1e-4, atol=1e-4)
    assert evaluation.targets.tolist() == tokens.ids[1:].tolist()
    assert evaluation.position.tolist() == list(range(100))
    share = evaluation.shares["stream"]
    assert share[0] == 0
    assert 0 < share[1:].min() <= share.max() < 1


@pytest.mark.parametrize("rows", [2, 3, 7])
def test_rows_cover_each_target_once_and_are_apart(rows: int) -> None:
    model, tokens = make_model(), make_tokens(102)
    evaluation = evaluate_stream(model, tokens, rows=rows, segment_length=8)
    assert evaluation.targets.tolist() == tokens.ids[1:].tolist()
    borders = [row * 101 // rows for row in range(rows + 1)]
    for begin, end in itertools.pairwise(borders):
        part = TextTokens(tokens.ids[begin : end + 1], 1, 1)
        alone = evaluate_stream(model, part, segment_length=8)
        assert evaluation.position[begin:end].tolist() == alone.position.tolist()
        for name in evaluation.nats:
            np.testing.assert_allclose(evaluation.nats[name][begin:end], alone.nats[name], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(evaluation.shares["stream"][begin:end], alone.shares["stream"], atol=1e-5)


def test_metrics() -> None:
    tokens = make_tokens()
    evaluation = evaluate_stream(make_model(), tokens)
    metrics = evaluation.metrics()
    assert list(evaluation.nats) == ["base", "history"]
    for side, nats in evaluation.nats.items():
        total = float(nats.sum(dtype=np.float64))
        assert metrics[f"{side}_ppl"] == pytest.approx(math.exp(total / 100), rel=1e-5)
        assert metrics[f"{side}_word_ppl"] == pytest.approx(math.exp(total / tokens.words), rel=1e-5)
        assert metrics[f"{side}_bits_per_byte"] == pytest.approx(total / math.log(2) / tokens.bytes, rel=1e-5)
    saved = metrics["wins"] * metrics["mean_win_nats"] - metrics["losses"] * metrics["mean_loss_nats"]
    assert saved == pytest.approx(float(evaluation.gain.mean()), abs=1e-5)
    assert metrics["tokens"] == 100
    assert metrics["tokens_per_second"] == pytest.approx(100 / metrics["seconds"])
    json.dumps(metrics)
    table = format_table(metrics)
    assert f"{metrics['history_ppl'] / metrics['base_ppl']:.3f}" in table
    assert table.splitlines()[0].split() == ["base", "history", "ratio"]


@pytest.mark.parametrize("window", [0, 20])
def test_each_source_beside_both(window: int, folder: Path) -> None:
    """The sources alone are what a model with that source alone measures."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = make_model(window, vocab_size=len(tokenizer))
    tokens = collect(tokenize(TEXTS["test"], tokenizer), start=tokenizer.eos_token_id)
    alone = evaluate_stream(model, tokens)
    model.attach_history(HistoryBank.build(model, tokenizer, LINES[:7]))
    evaluation = evaluate_stream(model, tokens)
    assert list(evaluation.nats) == ["base", "stream", "bank", "history"]
    np.testing.assert_allclose(evaluation.nats["stream"], alone.nats["history"], atol=1e-5)
    model.config.stream.window = 0
    bank = evaluate_stream(model, tokens)
    np.testing.assert_allclose(evaluation.nats["bank"], bank.nats["history"], atol=1e-5)
    assert np.allclose(evaluation.nats["bank"], evaluation.nats["history"]) == (window == 0)
    assert evaluation.shares["bank"].min() > 0
    metrics = evaluation.metrics()
    gain = evaluation.nats["base"] - evaluation.nats["bank"]
    assert metrics["bank_wins"] == (gain > 0).mean()
    assert metrics["bank_mean_win_nats"] == pytest.approx(float(gain[gain > 0].mean()))
    table = format_table(metrics)
    assert table.splitlines()[0].split() == ["base", "stream", "bank", "both", "ratio"]
    assert table.splitlines()[1].split()[-1] == f"{metrics['history_ppl'] / metrics['base_ppl']:.3f}"
    assert f"The bank alone helps {metrics['bank_wins']:.0%}" in table


@pytest.mark.parametrize("with_bank", [False, True])
def test_the_update_beside_the_sources(with_bank: bool, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = make_model(20, vocab_size=len(tokenizer))
    tokens = collect(tokenize(TEXTS["test"], tokenizer), start=tokenizer.eos_token_id)
    model.collect_update_statistics(segments(tokens.ids, 60, 20))
    if with_bank:
        model.attach_history(HistoryBank.build(model, tokenizer, LINES[:7]))
    without = evaluate_stream(model, tokens)
    model.config.history.update = {"scope": "head", "every": 5, "rate": 0.1}
    evaluation = evaluate_stream(model, tokens)
    assert model.config.overlay.scope == "head"
    sides = ["base", "stream", *(["bank", "both"] if with_bank else []), "update", "history"]
    assert list(evaluation.nats) == sides
    assert np.array_equal(evaluation.nats["base"], without.nats["base"])
    assert np.array_equal(evaluation.nats["both" if with_bank else "stream"], without.nats["history"])
    assert not np.array_equal(evaluation.nats["update"], evaluation.nats["base"])
    table = format_table(evaluation.metrics())
    assert table.splitlines()[0].split() == [*sides[:-1], "all", "ratio"]
    assert "All together help " in table
    model.config.history.stream.window = 0
    model.detach_history()
    alone = evaluate_stream(model, tokens)
    np.testing.assert_allclose(alone.nats["history"], evaluation.nats["update"], atol=1e-5)


@pytest.mark.parametrize("options", [{"window": 0}, {"use_history": False}])
def test_without_history_both_sides_are_equal(options: dict[str, Any]) -> None:
    evaluation = evaluate_stream(make_model(**options), make_tokens())
    assert np.array_equal(evaluation.nats["base"], evaluation.nats["history"])
    assert not evaluation.shares["stream"].any()
    assert evaluation.metrics()["wins"] == evaluation.metrics()["mean_win_nats"] == 0
    assert {row["seen"] for row in evaluation.breakdown()} == {"all", "before the window", "new"}


@pytest.mark.parametrize("known", [True, False])
def test_breakdown_divides_the_tokens(known: bool) -> None:
    counts = np.arange(VOCABULARY) * 40
    evaluation = evaluate_stream(make_model(window=5), make_tokens(), train_counts=counts if known else None)
    assert evaluation.counted == ("training set" if known else "evaluated text")
    whole, *rest = evaluation.breakdown()
    assert (whole["frequency"], whole["seen"], whole["tokens"]) == ("all", "all", 100)
    for fixed, free in (("frequency", "seen"), ("seen", "frequency")):
        groups = [row for row in rest if row[fixed] == "all" and row[free] != "all"]
        assert sum(row["tokens"] for row in groups) == 100
        total = sum(row["tokens"] * row["gain"] for row in groups)
        assert total == pytest.approx(float(evaluation.gain.sum()), abs=1e-3)
    assert {row["seen"] for row in rest} == {"all", "in the window", "before the window", "new"}
    new = sum(row["tokens"] for row in rest if row["frequency"] == "all" and row["seen"] == "new")
    assert new == len(set(evaluation.targets.tolist()))
    if known:
        unseen = [row["tokens"] for row in rest if row["frequency"] == "0" and row["seen"] == "all"]
        assert sum(unseen) == (evaluation.targets == 0).sum()


@pytest.mark.parametrize("rows", [1, 3])
def test_running_ends_at_the_whole(rows: int) -> None:
    evaluation = evaluate_stream(make_model(), make_tokens(), rows=rows)
    ends, curves = evaluation.running(blocks=6)
    assert len(ends) == len(curves["base"]) <= 6
    assert ends[-1] == -(-100 // rows)
    metrics = evaluation.metrics()
    for side, curve in curves.items():
        assert curve[-1] == pytest.approx(metrics[f"{side}_ppl"], rel=1e-5)
        first = evaluation.position < ends[0]
        assert curve[0] == pytest.approx(float(np.exp(evaluation.nats[side][first].mean())), rel=1e-5)


def test_autocast_stays_near() -> None:
    model, tokens = make_model(), make_tokens()
    exact = evaluate_stream(model, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        fast = evaluate_stream(model, tokens)
    np.testing.assert_allclose(fast.nats["history"], exact.nats["history"], atol=0.1)


def test_mode_of_the_model_is_kept() -> None:
    model, tokens = make_model(hidden_dropout=0.5, output_dropout=0.5), make_tokens()
    model.train()
    first = evaluate_stream(model, tokens)
    assert model.training
    assert np.array_equal(first.nats["base"], evaluate_stream(model, tokens).nats["base"])


def test_errors() -> None:
    model, tokens = make_model(), make_tokens()
    with pytest.raises(ValueError, match="at least two tokens"):
        evaluate_stream(model, TextTokens(np.zeros(1, dtype=np.int32), 1, 1))
    with pytest.raises(ValueError, match="at least 71 types, the model has 50"):
        evaluate_stream(model, TextTokens(np.array([1, 70]), 1, 1))
    with pytest.raises(TypeError, match="a Linear cannot be evaluated as a stream: give an LLEForCausalLM"):
        evaluate_stream(torch.nn.Linear(2, 2), tokens)
    with pytest.raises(ValueError, match=r"train_counts must have the shape \(50,\), got \(3,\)"):
        evaluate_stream(model, tokens, train_counts=np.ones(3, dtype=int))
    with torch.no_grad():
        model.lm_head.weight[3, 2] = math.nan
    with pytest.raises(FloatingPointError, match=r"not finite .* earlier checkpoint"):
        evaluate_stream(model, tokens)


LINES = ["the cat sat on the mat", "the dog sat on the cat", "", "a cat on a mat"] * 5


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    tokenizer = LLETokenizer.train(LINES, kind="word")
    make_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


TEXTS = DatasetDict({split: Dataset.from_dict({"text": LINES}) for split in ("train", "test")})


def test_folder(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = evaluate_folder(folder, TEXTS, train_split="train", output=tmp_path / "out", command="lle evaluate")
    tokens = sum(len(line.split()) + 1 for line in LINES)
    assert results["metrics"]["tokens"] == results["metrics"]["words"] == tokens
    assert results["metrics"]["base_ppl"] == pytest.approx(results["metrics"]["base_word_ppl"])
    assert results.pop("read") == f"{tokens} tokens of the data set."
    assert read_results(tmp_path / "out" / "evaluation.json") == results
    assert results["command"] == "lle evaluate"
    assert (tmp_path / "out" / "evaluation.png").read_bytes().startswith(b"\x89PNG")


def test_folder_with_a_bank(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model, tokenizer = LLEForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    bank = HistoryBank.build(model, tokenizer, LINES, tmp_path / "bank", namespace="cats")
    bank.add(["a dog"], namespace="dogs")
    both, cats = (evaluate_folder(folder, TEXTS, bank=tmp_path / "bank", namespaces=n) for n in (None, ["cats"]))
    assert both["metrics"]["bank_ppl"] != cats["metrics"]["bank_ppl"]
    assert {"base_nats", "stream_nats", "bank_nats", "history_nats"} <= set(both["rows"][0])
    (tmp_path / "test.txt").write_text("\n".join(LINES) + "\n")
    arguments = [str(folder), str(tmp_path / "test.txt"), "--bank", str(tmp_path / "bank"), "--namespace", "cats"]
    script.main([*arguments, "--output", str(tmp_path / "out")])
    assert read_results(tmp_path / "out" / "evaluation.json")["metrics"]["bank_ppl"] == cats["metrics"]["bank_ppl"]


def test_limit_takes_whole_rows(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("\n".join(LINES) + "\n")
    lengths = [len(line.split()) + 1 for line in LINES]
    for limit, rows in ((1, 1), (13, 1), (14, 2), (10_000, len(LINES))):
        metrics = evaluate_folder(folder, tmp_path / "test.txt", limit_tokens=limit)["metrics"]
        assert metrics["tokens"] == sum(lengths[:rows])
        assert metrics["bytes"] == sum(len(line) + 1 for line in LINES[:rows])
    with pytest.raises(ValueError, match="limit_tokens must be at least 1, got 0"):
        evaluate_folder(folder, tmp_path / "test.txt", limit_tokens=0)


def test_script(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test.txt").write_text("\n".join(LINES) + "\n")
    script.main([str(folder), str(tmp_path / "test.txt"), "--limit-tokens", "14"])
    assert "perplexity / token" in capsys.readouterr().out


def test_folder_with_a_foreign_tokenizer(folder: Path) -> None:
    LLETokenizer.train([*LINES, "words that the model has never seen"], kind="word").save_pretrained(folder)
    unknown = DatasetDict({"test": Dataset.from_dict({"text": ["words that the model has never seen"]})})
    with pytest.raises(ValueError, match="use the tokenizer that was saved with the model"):
        evaluate_folder(folder, unknown)
