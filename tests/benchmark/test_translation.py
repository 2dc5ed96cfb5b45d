"""The comparison of translators: sizes, the clock, rows, and what is reused."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.trainer_pt_utils import LabelSmoother
from typer.testing import CliRunner

pytest.importorskip("sacrebleu")
pytest.importorskip("bm25s")
pytest.importorskip("faiss")

from modeling_lle.evaluation import TranslationMetric, read_results, translate
from modeling_lle.training.translation import encode

pytest.importorskip("numba")
from scripts.benchmark import translation
from scripts.benchmark.__main__ import app
from scripts.benchmark.peers import transformer_translator as peer
from tests.factories.pairs import make_capitals_pairs, make_capitals_tokenizer

CERTAIN = {"bank": {"sharpness": 30.0, "gate": [4.0, 0.0, 0.0, 0.0]}}
TOKENIZER = make_capitals_tokenizer()
NONE = torch.tensor(-100)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for name, size in {"WIDTH": 16, "LAYERS": 1, "HEADS": 2}.items():
        monkeypatch.setattr(peer, name, size)


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Makes the clock of the Transformer go on by so many seconds each time that it is read."""

    def every(seconds: float) -> None:
        now = iter(range(1 << 40))
        monkeypatch.setattr(peer.time, "perf_counter", lambda: seconds * next(now))

    return every


def write_pairs(folder: str, **splits: Dataset) -> None:
    Path(folder).mkdir()
    for split, pairs in splits.items():
        for language, side in (("en", "source"), ("de", "target")):
            Path(folder, f"{split}.{language}").write_text("\n".join(pairs[side]) + "\n")


def run(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*arguments, "--output", "results.json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return read_results("results.json")


@pytest.mark.parametrize("width", [1, 30])
def test_the_transformer_has_as_many_parameters(width: int) -> None:
    exact = peer.trainable(peer.MarianMTModel(peer._config(TOKENIZER, width)))
    each = 2 * (2 * 16 + 1)  # of the encoder's and of the decoder's layer, for each unit of the feed-forward layer
    for wanted in (exact, exact + each // 2 - 1, exact - each // 2 + 1):
        model = peer.make_transformer(TOKENIZER, wanted)
        assert model.config.encoder_ffn_dim == model.config.decoder_ffn_dim == width
        assert peer.trainable(model) == exact
    assert exact == model.num_parameters(only_trainable=True) < model.num_parameters()  # positions are not learned
    assert model.lm_head.weight is model.model.encoder.embed_tokens.weight is model.model.decoder.embed_tokens.weight
    with pytest.raises(ValueError, match="parameters or more, not 100"):
        peer.make_transformer(TOKENIZER, 100)


def test_the_rate_follows_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, now = peer.Minutes(10, warm_up=0.1), [5.0]
    monkeypatch.setattr(peer.time, "perf_counter", lambda: now[0])
    control = peer.TrainerControl()
    nothing: Any = None
    assert clock.rate(7) == 0
    clock.on_train_begin(nothing, nothing, control)
    for minutes, rate in ((0.5, 0.5), (1, 1), (5.5, 0.5), (10, 0), (11, 0)):
        now[0] = 5 + 60 * minutes
        assert clock.rate(step=123) == pytest.approx(rate)
        clock.on_step_end(nothing, nothing, control)
        assert control.should_training_stop == (minutes >= 10)


@pytest.mark.slow
def test_the_transformer_learns_and_is_saved(ticks: Callable[[float], None]) -> None:
    ticks(1)  # three readings a step
    train, validation = (encode(make_capitals_pairs(rows, seed=rows), TOKENIZER) for rows in (200, 20))
    folder = Path("peer")
    peer.train_transformer(folder, TOKENIZER, train, validation, 9000, 4, learning_rate=0.02, batch_size=16)
    model, tokenizer = peer.load_transformer(folder)
    trained = json.loads((folder / "metrics.json").read_text())
    assert not model.training
    assert trained["parameters"] == peer.trainable(model)
    assert 75 < trained["train_steps"] < 85
    assert trained["train_minutes"] == pytest.approx(4, abs=0.1)
    assert trained["eval_loss"] < 0.85 * math.log(len(TOKENIZER))
    batch = {name: torch.tensor(validation[name][:1]) for name in ("input_ids", "labels")}
    assert model(**batch).loss < math.log(len(TOKENIZER))
    texts = ["ab cde", "klm"]
    found = translate(model, tokenizer, texts, beams=2)
    assert found == [translate(model, tokenizer, [text], beams=2)[0] for text in texts]
    no_cache = model.generate(**tokenizer(texts[0], return_tensors="pt"), use_cache=False, max_new_tokens=9)
    cached = model.generate(**tokenizer(texts[0], return_tensors="pt"), max_new_tokens=9)
    assert torch.equal(no_cache, cached)
    assert model.config.use_cache


def test_the_fused_loss_is_the_trainers() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 9, generator=generator, dtype=torch.float64)
    labels = torch.randint(9, (3, 4), generator=generator).index_put(
        (torch.tensor([0, 2]), torch.tensor([3, 1])), NONE
    )
    outputs = Seq2SeqLMOutput(logits=logits)
    for smoothing in (0.0, 0.1, 0.4):
        expected = LabelSmoother(epsilon=smoothing)(outputs, labels)
        torch.testing.assert_close(
            peer.smoothed_loss(smoothing)(outputs, labels).double(), expected, atol=1e-5, rtol=0
        )
        counted = peer.smoothed_loss(smoothing)(outputs, labels, num_items_in_batch=5)
        torch.testing.assert_close(counted.double(), 2 * expected, atol=1e-5, rtol=0)  # ten of twelve are counted


def test_attention_written_out_is_torchs() -> None:
    model = peer.make_transformer(TOKENIZER, 9000).eval()
    rows = encode(make_capitals_pairs(6), TOKENIZER)
    batch = DataCollatorForSeq2Seq(TOKENIZER, model)([rows[place] for place in range(6)])
    with torch.no_grad():
        fused = model(**batch).logits
        model.set_attn_implementation("eager")
        torch.testing.assert_close(model(**batch).logits, fused, atol=1e-5, rtol=1e-4)


def test_a_loss_that_is_not_finite(ticks: Callable[[float], None]) -> None:
    ticks(10)
    data = encode(make_capitals_pairs(20), TOKENIZER)
    with pytest.raises(FloatingPointError, match="lower --learning-rate"):
        peer.train_transformer(Path("peer"), TOKENIZER, data, data, 9000, 2, learning_rate=1e30)
    assert not Path("peer/metrics.json").exists()


def write_recipe() -> None:
    recipe = {
        "task": "translation",
        "data": {"source_language": "en", "target_language": "de"},
        "tokenizer": {"kind": "word"},
        "model": {"hidden_size": 16, "num_hidden_layers": 1, "translator": {"num_attention_heads": 2}},
        "training": {
            "output_dir": "runs/tiny",
            "max_steps": 3,
            "per_device_train_batch_size": 8,
            "label_smoothing_factor": 0.1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        },
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))


@pytest.mark.slow
def test_both_are_trained_once_and_measured(monkeypatch: pytest.MonkeyPatch, ticks: Callable[[float], None]) -> None:
    ticks(1)
    write_recipe()
    write_pairs(
        "data", train=make_capitals_pairs(60), val=make_capitals_pairs(8, seed=1), test=make_capitals_pairs(10, seed=2)
    )
    options = ["--minutes", "0.2", "--sentences", "3", "--repetitions", "2", "--beams", "2", "--lowercase"]
    monkeypatch.setattr(translation, "this_command", lambda: "compare tiny")
    command = ["translation", "data", "data", "--recipe", "recipe.yaml", *options]
    results = run(*command)
    assert results["command"] == "compare tiny"
    lle, transformer = results["rows"]
    assert (lle["method"], transformer["method"]) == ("LLE", "Transformer")
    own, other = (json.loads(Path(f"runs/tiny{end}/metrics.json").read_text()) for end in ("", "-transformer"))
    assert (lle["parameters"], lle["train_steps"]) == (own["parameters"], 3)
    assert transformer["parameters"] == other["parameters"]
    assert abs(lle["parameters"] - transformer["parameters"]) <= 33
    assert transformer["train_minutes"] == pytest.approx(0.2, abs=0.1)
    assert lle["speed_ratio_1"] == lle["speed_ratio_32"] == 1
    metrics = results["metrics"]
    assert metrics["speed_ratio_1"] == transformer["speed_ratio_1"] > 0
    names = ("parameters", "train_minutes", "bleu", "chrf", "ter", "sentences_per_second_1", "sentences_per_second_32")
    for name in names:
        assert (metrics[name], metrics[f"transformer_{name}"]) == (lle[name], transformer[name])
    assert "case:lc" in lle["signature"] == transformer["signature"]
    files = {path.name: path.read_bytes() for path in Path("runs/tiny-transformer").iterdir() if path.is_file()}
    assert (
        json.loads(files["config.json"])["vocab_size"]
        == json.loads(Path("runs/tiny/config.json").read_text())["vocab_size"]
    )
    monkeypatch.setattr(translation, "run", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(translation, "train_transformer", lambda *_, **__: pytest.fail("trained again"))
    again = run(*command)
    assert again["metrics"]["transformer_chrf"] == metrics["transformer_chrf"]
    model = translation.load(Path("runs/tiny"), "LLE")
    pairs = make_capitals_pairs(10, seed=2)
    metric = TranslationMetric(keep_in_memory=True)
    found = translate(model.model, model.tokenizer, pairs["source"][:], beams=2)
    assert metric.compute(predictions=found, references=pairs["target"][:], lowercase=True)["chrf"] == metrics["chrf"]


def test_the_transformer_gets_the_minutes_of_lle(monkeypatch: pytest.MonkeyPatch) -> None:
    write_recipe()
    write_pairs("data", train=make_capitals_pairs(30), val=make_capitals_pairs(8, seed=1))
    recipe = translation.load_recipe("recipe.yaml", ["data.source=data", "training.max_steps=1"])
    seen: list[Any] = []
    monkeypatch.setattr(translation, "train_transformer", lambda *given, **options: seen.append((given, options)))
    translation.train_both(recipe, Path("runs/tiny-transformer"), None, 1e-3)
    (folder, tokenizer, train, validation, parameters, minutes), options = seen[0]
    trained = json.loads(Path("runs/tiny/metrics.json").read_text())
    assert minutes == trained["train_minutes"]
    assert parameters == trained["parameters"]
    assert (len(train), len(validation)) == (30, 8)
    assert tokenizer.decode(train[0]["labels"][:-1]) == make_capitals_pairs(30)["target"][0]
    assert options["batch_size"] == 8
    assert options["label_smoothing"] == 0.1
    del trained["train_minutes"]
    Path("runs/tiny/metrics.json").write_text(json.dumps(trained))
    with pytest.raises(ValueError, match="does not state its training time: give --minutes"):
        translation.train_both(recipe, folder, None, 1e-3)


def test_another_recipe_is_refused() -> None:
    Path("other.yaml").write_text(yaml.safe_dump({"task": "text-classification"}))
    with pytest.raises(ValueError, match=r"other.yaml is a recipe for text-classification"):
        run("translation", "data", "data", "--recipe", "other.yaml")
