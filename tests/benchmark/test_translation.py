"""The comparison of translators and that of a memory: sizes, the clock, rows, what is reused, and what may be seen."""

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
from scripts.benchmark import memory, translation
from scripts.benchmark.__main__ import app
from scripts.benchmark.peers import transformer_translator as peer
from tests.factories.pairs import CAPITALS_WORDS, make_capitals_pairs, make_capitals_tokenizer
from tests.factories.translators import make_trained_translator

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


# The memory


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
    rows = [*((text, "{x} QR ab") for text in texts), (texts[0], "AB"), (texts[5], "AB")]
    Path("catalogue.tsv").write_text("en\tde\n" + "".join(f"{one}\t{two}\n" for one, two in rows) + "ab\t\n")
    return Dataset.from_dict({"source": [one for one, _ in rows], "target": [two for _, two in rows]})


def test_no_test_source_is_in_the_memory(domain: Dataset) -> None:
    kept, test = memory.split_pairs(domain, 0.1, seed=0)
    sources = [set(part["source"]) for part in (kept, test)]
    assert [len(own) for own in sources] == [len(kept), len(test)] == [58, 6]  # each source once
    assert not sources[0] & sources[1]
    assert sources[0] | sources[1] == set(domain["source"])
    assert (
        dict(zip(domain["source"][:64], domain["target"][:64], strict=True)).items()
        >= dict(zip(kept["source"][:], kept["target"][:], strict=True)).items()
    )  # the first of those with the same source
    assert memory.split_pairs(domain, 0.1, seed=0)[1]["source"][:] == test["source"][:]
    assert memory.split_pairs(domain, 0.1, seed=1)[1]["source"][:] != test["source"][:]
    spaced = Dataset.from_dict({"source": ["ab ", "ab", " ab", "cde"], "target": ["A", "B", "C", "D"]})
    assert sorted(target for part in memory.split_pairs(spaced, 0.5, 0) for target in part["target"]) == ["A", "D"]
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match="64 distinct sources cannot be split"):
            memory.split_pairs(domain, share, 0)


def test_bands() -> None:
    references = ["a b c d", "e f g h", "i j k l", "m n o p"]
    translations = {"without": ["A b c d", "x", "x", "x"], "with": ["a b c d", "e f g h", "x", "m n o p"]}
    rows = memory.by_band(translations, references, [0.99, 0.85, 0.7, 0.2])
    assert [(row["band"], row["sentences"]) for row in rows] == [
        ("all", 4),
        ("85-100 %", 2),
        ("70-85 %", 1),
        ("below 50 %", 1),
    ]
    assert rows[1]["bleu_with"] == pytest.approx(100)
    assert rows[1]["bleu_without"] < rows[1]["lowercased_bleu_without"] < 100
    assert rows[2]["bleu_with"] == 0
    assert rows[3]["chrf_with"] == pytest.approx(100)
    assert "case:mixed" in rows[0]["signature"]
    assert memory.by_band(translations, references, [0.849, 0.5, 0.499, 1.0])[1:] == [
        {
            **memory.measure({side: [own[place]] for side, own in translations.items()}, [references[place]]),
            "band": band,
        }
        for place, band in ((3, "85-100 %"), (0, "70-85 %"), (1, "50-70 %"), (2, "below 50 %"))
    ]


@pytest.mark.usefixtures("domain")
@pytest.mark.parametrize("options", [[], ["--calibrate"]])
def test_the_memory_is_measured(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "this_command", lambda: "measure memory")
    before = Path("model/config.json").read_bytes()
    speed = ["--sentences", "2", "--repetitions", "1", "--beams", "2"]
    results = run("memory", "model", "catalogue.tsv", *speed, *options)
    metrics, rows = results["metrics"], results["rows"]
    assert (metrics["memory_pairs"], metrics["test_pairs"]) == (58, 6)
    assert metrics["bleu_without"] == rows[0]["bleu_without"]
    assert metrics["chrf_with"] != metrics["chrf_without"]
    assert metrics["build_seconds"] > 0
    assert metrics["speed_ratio"] == pytest.approx(
        metrics["sentences_per_second_with"] / metrics["sentences_per_second_without"]
    )
    assert metrics["speed_ratio_1"] > 0
    assert sum(row["sentences"] for row in rows[1:]) == rows[0]["sentences"] == 6
    assert ("after_ppl" in metrics) == bool(options)
    if options:
        assert metrics["after_ppl"] <= metrics["before_ppl"]
    else:
        assert metrics["chrf_with"] > 50 > metrics["chrf_without"]
    assert ("sharpness 30," in rows[0]["numbers"]) == (not options)
    assert Path("model/config.json").read_bytes() == before
    assert not Path("model/history").exists()


@pytest.mark.usefixtures("domain")
def test_a_memory_needs_languages() -> None:
    Path("model/recipe.yaml").unlink()
    with pytest.raises(ValueError, match="the languages of model are unknown"):
        run("memory", "model", "catalogue.tsv", "--source-language", "en")
