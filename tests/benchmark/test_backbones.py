"""What is mixed into the predictions of a backbone is a distribution that does not see what it predicts."""

import collections
import copy
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("faiss")
pytest.importorskip("numba")

from modeling_lle.evaluation import read_results
from scripts.benchmark import backbones, families, minutes
from scripts.benchmark.__main__ import app
from scripts.benchmark.inputs import context_of, read_states, segments_of
from scripts.benchmark.peers import KneserNey, language_models, read_cache
from scripts.benchmark.peers.mixture import GatedCounts
from scripts.benchmark.peers.ngrams import Counted
from scripts.benchmark.speed import read_twice
from tests.factories.hub_models import make_wrapped_model
from tests.factories.language_models import make_language_model
from tests.factories.texts import VOCAB, make_ids, make_texts, make_word_tokenizer

CORPUS = make_ids(1, 400, seed=5)[0].numpy() ** 2 % VOCAB
PEERS: dict[str, Callable[[np.ndarray], Counted]] = {
    "cache": lambda ids: read_cache(ids, 3).smoothed(3, 0.6),
    "window": lambda ids: read_cache(ids, 3, window=6).smoothed(2, 0.6),
    "unigram": lambda ids: read_cache(ids, 0).smoothed(0, 0.0),
    "Kneser-Ney": lambda ids: KneserNey(CORPUS, VOCAB).read(ids),
    "Kneser-Ney of a short text": lambda ids: KneserNey(CORPUS[:3], VOCAB).read(ids),
}


def text(length: int, seed: int = 1) -> np.ndarray:
    return make_ids(1, length, seed)[0].numpy() ** 2 % VOCAB


def log_probs(counted: Counted) -> torch.Tensor:
    """log P by a gate that tells the orders and positions apart."""
    generator = torch.Generator().manual_seed(0)
    base = torch.full((len(counted.order),), -math.log(VOCAB))
    features = torch.rand(len(base), 2, generator=generator)
    return GatedCounts(torch.linspace(-1, 1, 6), torch.tensor([0.3, -0.5, 0.2])).log_probs(base, features, counted)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("length", [2, 3, 7, 60])
def test_a_mixture_with_counts_sums_to_one(peer: str, length: int) -> None:
    ids, total = text(length), 0.0
    for token in range(VOCAB):
        ids[-1] = token
        total += float(log_probs(PEERS[peer](ids))[-1].exp())
    assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("peer", PEERS)
def test_counts_see_only_what_came_before(peer: str) -> None:
    ids = text(40)
    whole = log_probs(PEERS[peer](ids))
    for first in (5, 17):
        other = np.concatenate([ids[:first], text(40 - first, seed=9)])
        changed = log_probs(PEERS[peer](other))
        torch.testing.assert_close(changed[: first - 1], whole[: first - 1])
        assert not torch.allclose(changed, whole)


@pytest.mark.parametrize("window", [None, 9])
def test_a_cache_counts_what_followed_each_context_in_its_window(window: int | None) -> None:
    ids = text(50)
    counts = read_cache(ids, 2, window)
    for place in range(1, 50):
        first = 1 if window is None else max(1, place - window)
        for k in range(3):
            context = tuple(ids[place - k : place]) if place >= k else None
            followed = collections.Counter(
                ids[t] for t in range(first, place) if t >= k and tuple(ids[t - k : t]) == context
            )
            due = [followed[ids[place]], sum(followed.values()), len(followed)]
            assert [float(part[place - 1, k]) for part in counts] == due


def plain_kneser_ney(length: int, discounts: list[np.ndarray], context: tuple[int, ...], token: int) -> float:
    """The formula of the paper, by counting the corpus anew."""
    if not context and length == 0:
        return 1 / VOCAB
    grams = {tuple(CORPUS[t : t + length]) for t in range(len(CORPUS) - length + 1)}
    if length == 5:
        counts = collections.Counter(tuple(CORPUS[t : t + 5]) for t in range(len(CORPUS) - 4))
    else:
        longer = {tuple(CORPUS[t : t + length + 1]) for t in range(len(CORPUS) - length)}
        counts = collections.Counter(gram[1:] for gram in longer)
        counts |= collections.Counter(dict.fromkeys(grams, 1))  # the beginning of the text has nothing before it
    following = {gram[-1]: count for gram, count in counts.items() if gram[:-1] == context}
    shorter = (length - 1, discounts, context[1:], token) if context else (0, discounts, (), token)
    total = sum(following.values())
    if not total:
        return plain_kneser_ney(*shorter)
    taken = {other: discounts[length - 1][min(count, 3)] for other, count in following.items()}
    own = following.get(token, 0) - taken.get(token, 0.0)
    return float(own / total + sum(taken.values()) / total * plain_kneser_ney(*shorter))


def test_kneser_ney_is_the_papers() -> None:
    model, ids = KneserNey(CORPUS, VOCAB), text(14)
    discounts = [order.discounts for order in model.orders]
    assert any(own[1] not in (0.5, 1.0) for own in discounts)  # not all are the usual ones
    due = []
    for place in range(1, len(ids)):
        length = min(5, place + 1)
        due.append(plain_kneser_ney(length, discounts, tuple(ids[place + 1 - length : place]), ids[place]))
    torch.testing.assert_close(model.read(ids).probability, torch.tensor(due), atol=1e-6, rtol=1e-4)


def test_a_gate_is_fitted_to_where_counts_help() -> None:
    generator = torch.Generator().manual_seed(0)
    order = torch.randint(-1, 3, (400,), generator=generator)
    base, features = torch.full((400,), -3.0), torch.rand(400, 2, generator=generator)
    counted = Counted(torch.where(order == 2, 0.9, 0.01), order, torch.zeros(400))
    gate, nats = GatedCounts.tuned(base, features, counted)
    found = gate.log_probs(base, features, counted)
    assert nats == pytest.approx(-float(found.mean()), abs=1e-5)
    assert float(found[order == 2].mean()) > -0.2
    assert float(found[order == 1].mean()) > -3.05
    assert torch.equal(found[order < 0], base[order < 0])


@pytest.mark.parametrize("make", [make_language_model, functools.partial(make_wrapped_model, "lfm2")])
def test_a_context_ends_the_state_and_not_the_stream(make: Callable[..., Any]) -> None:
    model, ids = make(window=50), text(31)
    states = torch.cat([own for own, _ in read_states(model, ids, context=10)])
    with torch.no_grad():
        due = [model.model(torch.from_numpy(ids[None, b : b + 10]), use_cache=False) for b in (0, 10, 20)]
    torch.testing.assert_close(states, torch.cat([part.last_hidden_state[0] for part in due]), atol=1e-5, rtol=1e-4)
    scored = backbones.score(model, ids, context=10)
    assert not torch.allclose(
        scored[10:], torch.cat([backbones.score(model, ids[b : b + 11], None) for b in (10, 20)])
    )
    assert len(list(segments_of(ids, backbones.LLECache(), model.device, None))) == 1
    is_wrapped = model.config.wrapped is not None
    assert context_of(model, 99) == (99 if is_wrapped else None)
    assert min(read_twice(model, torch.from_numpy(ids)[None], 1)["stream"]) > 0


def test_a_rule_fitted_within_a_context_is_that_of_calibrate() -> None:
    ids = np.tile(text(12), 8)
    one, other = make_language_model(window=20), make_language_model(window=20)
    backbones.fit_rule(one, ids, None)
    backbones.fit_rule(other, ids, 1 << 20)
    assert one.config.stream == other.config.stream


def test_matches_take_part_only_among_their_sources() -> None:
    model, ids = make_language_model(window=20), text(60)
    before, scored = copy.deepcopy(model.config.history), {}
    for sources in (("stream",), ("stream", "matches")):
        with backbones.recalling(model, sources, 30):
            backbones.fit_rule(model, ids, 10)
            scored[sources] = backbones.score(model, ids, 10)
            assert model.config.stream.window == 30
            assert (model.config.matches.gate == before.matches.gate) == ("matches" not in sources)
        assert model.config.history == before
    assert float(scored["stream", "matches"].mean()) > float(scored["stream",].mean())


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(backbones, "keep_freed_pages", lambda: None)  # it would hold for all tests
    monkeypatch.setattr(backbones, "ORDERS", (2,))
    monkeypatch.setattr(backbones, "DISCOUNTS", (0.5,))
    for split, rows in (("train", 200), ("valid", 90), ("test", 30)):
        Path("texts").mkdir(exist_ok=True)
        Path("texts", f"{split}.txt").write_text("\n".join(make_texts(rows, 8, seed=rows)) + "\n")
    return Path("texts")


def run(*arguments: Any) -> dict[str, Any]:
    options = ["--repeats", "1", "--window", "50", "--output", "results.json"]
    outcome = CliRunner().invoke(app, ["backbones", *map(str, arguments), *options], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return read_results("results.json")


@pytest.mark.slow
def test_every_method_has_a_row_and_is_fitted_on_validation_text(source: Path) -> None:
    model = make_language_model(vocab_size=len(make_word_tokenizer()), bos_token_id=None)
    model.save_pretrained("model")
    make_word_tokenizer().save_pretrained("model")
    results = run("model", source, "--without", "kNN-LM", "--test-tokens", 60)
    rows = {row["method"]: row for row in results["rows"]}
    assert list(rows) == [
        "base",
        "LLE stream",
        "LLE bank",
        "LLE stream + bank",
        "LLE stream + matches",
        "LLE stream + matches + bank",
        "LLE all",
        "neural cache",
        "n-gram cache",
        "n-gram cache of 50",
        "unigram cache",
        "Kneser-Ney 5-gram",
    ]
    assert rows["base"]["over_base"] == 1
    assert all(rows[name]["over_base"] < 0.99 for name in ("LLE bank", "Kneser-Ney 5-gram", "unigram cache"))
    assert rows["LLE stream + bank"]["numbers"].count("sharpness") == 2
    assert [name for name, row in rows.items() if row["time"]] == ["LLE stream", "LLE stream + matches"]
    assert results["metrics"]["texts_model_stream_over_base"] == rows["LLE stream"]["over_base"]
    assert {
        "texts_model_both_over_best_other",
        "texts_model_stream_time",
        "texts_model_stream_matches_bank_over_base",
    } <= set(results["metrics"])


def test_without_a_model_the_command_says_what_is_missing(source: Path) -> None:
    outcome = CliRunner().invoke(app, ["backbones", str(source)])
    assert outcome.exit_code == 2
    assert "give a model before it" in " ".join(outcome.output.split())


@pytest.mark.slow
def test_models_of_the_families_are_trained_once_and_measured(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minutes, "CARRIED", (4, 8))
    monkeypatch.setattr(minutes, "WINDOWS", (2, 16))
    monkeypatch.setattr(families, "HELD_OUT", 256)
    monkeypatch.setattr(language_models, "TOLERANCE", 0.3)  # widths come in steps that are large for such models
    options = ("--train", "runs", "--minutes", 0.01, "--vocabulary", 300, "--width", 96, "--rate", 0.002)
    results = run(source, *options, "--without", "kNN-LM")
    assert [row["model"] for row in results["rows"] if row["method"] == "base"] == ["Mamba2", "LFM2", "LSTM"]
    assert {row["type"] for row in results["rows"]} == {"mamba2", "lfm2", "lstm"}
    saved = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*.safetensors")}
    run(source, *options, "--without", "kNN-LM")
    assert saved == {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*.safetensors")}
