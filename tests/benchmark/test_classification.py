"""The comparison of classifiers: splits, thresholds, a row a method, and teaching that is taken back exactly."""

import doctest
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

pytest.importorskip("faiss")
pytest.importorskip("sklearn")

from modeling_lle import HistoryBank, LLEConfig, LLEForSequenceClassification
from modeling_lle.evaluation import read_results

pytest.importorskip("numba")
from scripts.benchmark import classification
from scripts.benchmark.__main__ import app
from scripts.benchmark.classifier import LLEClassifier
from scripts.benchmark.intents import Answers, Examples, load_intents, old_and_new
from scripts.benchmark.peers import linear_classifier, logistic_regression, rejection, small_encoder
from scripts.benchmark.peers.rejection import choose_threshold
from tests.factories.intents import NAMES, Pairs, make_examples, make_pairs, write_intents
from tests.factories.texts import VOCAB, make_word_tokenizer

OLD, NEW = old_and_new(NAMES, 2)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set in the form of Banking77, and another in that of CLINC150."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_intents(tmp_path)
    return tmp_path


def save_model(folder: str, names: list[str], lessons: Pairs, threshold: float = 0.5) -> LLEClassifier:
    """An untrained classifier of these intents, with a bank of lessons."""
    torch.manual_seed(0)
    config = LLEConfig(
        vocab_size=VOCAB,
        hidden_size=8,
        initializer_range=1.0,
        pad_token_id=1,
        id2label=dict(enumerate(names)),
        history={"bank": {"sharpness": 30.0, "gate": [4.0, 0.0, 0.0, 0.0]}},
        classifier={"out_of_scope": {"weights": [0.0, -1.0, 0.0, 0.0], "threshold": threshold}},
    )
    model, tokenizer = LLEForSequenceClassification(config).eval(), make_word_tokenizer()
    if lessons:
        texts, labels = zip(*lessons, strict=True)
        model.learn(texts, labels, tokenizer)
    model.save_pretrained(folder, save_history=bool(lessons))
    tokenizer.save_pretrained(folder)
    return LLEClassifier(Path(folder), names)


def run(dataset: str, *options: str) -> dict[str, Any]:
    arguments = ["classification", dataset, "--output", "results.json", "--queries", "2", "--repetitions", "1"]
    arguments += [*([] if "--new-classes" in options else ["--new-classes", "2"]), *options]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return read_results("results.json")


@pytest.mark.usefixtures("folder")
def test_splits() -> None:
    banking, clinc = load_intents("bank-ing"), load_intents("clinc")
    for intents in (banking, clinc):
        assert intents.names == sorted(NAMES)
        assert set(zip(*intents.train, strict=True)) == set(make_pairs(100, 0))
    held_out = set(zip(*banking.validation, strict=True))
    assert held_out.isdisjoint(zip(*banking.tuning, strict=True))
    assert held_out.union(zip(*banking.tuning, strict=True)) == set(make_pairs(100, 0))
    assert set(banking.validation.labels) == set(NAMES)  # a tenth of every intent
    assert banking.outside_test == []
    assert clinc.tuning is clinc.train
    assert set(zip(*clinc.validation, strict=True)) == set(make_pairs(30, 1))
    assert clinc.outside_validation == clinc.outside_test == ["h h", "g h h h"]


def test_old_and_new_are_always_the_same() -> None:
    assert old_and_new(NAMES[::-1], 2) == (OLD, NEW)
    assert sorted(OLD + NEW) == sorted(NAMES)
    names = [str(number) for number in range(10, 87)]
    order = np.random.default_rng(0).permutation(77)
    assert old_and_new(names, 20)[0] == [names[place] for place in order[:57]]
    with pytest.raises(ValueError, match="choose from 1 to 4"):
        old_and_new(NAMES, 5)


@pytest.mark.usefixtures("folder")
def test_few_intents_are_refused() -> None:
    Path("few.json").write_text(json.dumps({split: [["a", "x"], ["b", "y"]] for split in ("train", "val", "test")}))
    with pytest.raises(ValueError, match="has 2 intents"):
        load_intents("few.json")


def test_the_example_of_the_threshold() -> None:
    (example,) = doctest.DocTestFinder(recurse=False).find(choose_threshold, globs=vars(rejection))
    assert doctest.DocTestRunner().run(example) == (0, 1)


@pytest.mark.parametrize("floor", [0.0, 0.3, 0.6, 1.0])
def test_the_threshold_is_the_best(floor: float) -> None:
    generator = np.random.default_rng(3)
    for _ in range(20):
        inside, outside = generator.integers(0, 9, 12) / 8, generator.integers(2, 12, 7) / 8
        right = generator.random(12) < 0.8

        def measured(threshold: float, inside: Any = inside, outside: Any = outside, right: Any = right) -> Any:
            kept = inside < threshold
            return (right & kept).mean(), (outside >= threshold).mean(), kept.mean()

        every = [measured(t) for t in [*np.arange(0, 2, 1 / 16), np.inf]]
        allowed = [(recall, kept) for accuracy, recall, kept in every if accuracy >= floor]
        found = choose_threshold(inside, right, outside, floor)
        if allowed:
            assert measured(found)[1:] == max(allowed)
        else:
            assert found == np.inf
    with pytest.raises(ValueError, match="got 12 and 0"):
        choose_threshold(inside, right, outside[:0], floor)


def write_recipe(**data: Any) -> None:
    """A recipe of a classifier that learns these intents in a second."""
    recipe = {
        "task": "text-classification",
        "data": {"source": "nowhere", **data},
        "tokenizer": {"kind": "word"},
        "model": {"hidden_size": 16, "num_hidden_layers": 1, "initializer_range": 0.5},
        "training": {"num_train_epochs": 8, "learning_rate": 0.03, "save_strategy": "no", "report_to": "none"},
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))


@pytest.mark.usefixtures("folder")
@pytest.mark.slow
def test_rows_and_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    write_recipe(held_out=0.2)
    methods = [part for name in ("LLE", "SVM", "small encoder") for part in ("--method", name)]
    monkeypatch.setattr(classification, "this_command", lambda: "compare bank-ing")
    results = run("bank-ing", "--recipe", "recipe.yaml", "--seeds", "2", *methods)
    folders = ["bank-ing-0", "bank-ing-0-old", "bank-ing-1", "bank-ing-1-old"]
    assert sorted(path.name for path in Path("runs").iterdir()) == folders
    assert set(json.loads(Path("runs/bank-ing-1-old/config.json").read_text())["label2id"]) == set(OLD)
    rows = {row["method"]: row for row in results["rows"]}
    assert list(rows) == ["LLE", "LLE, seed 0", "LLE, seed 1", "SVM", "small encoder"]
    lle, first, second, svm, encoder = rows.values()
    assert lle["accuracy"] == svm["accuracy"] == 1
    assert lle["macro_f1"] == 1
    assert lle["ece"] == (first["ece"] + second["ece"]) / 2
    assert first["ece"] != second["ece"]
    assert lle["forget_largest_difference"] == 0
    assert lle["old_classes_drop"] == 0
    assert lle["new_classes_accuracy"] > 0.6  # three fifths are those of the old intents
    assert lle["teach_seconds_per_1000"] > 0
    assert lle["seconds_training"] > 0
    assert lle["parameters"] == json.loads(Path("runs/bank-ing-0/metrics.json").read_text())["parameters"]
    assert "sharpness" in lle["numbers"]
    assert svm["ece"] is lle["out_of_scope_recall"] is encoder["accuracy"] is None
    assert encoder["speed_over_encoder"] == 1
    assert encoder["bytes"] > 80e6
    metrics = results["metrics"]
    assert (metrics["accuracy"], metrics["svm_accuracy"]) == (1, 1)
    assert metrics["new_classes_accuracy"] == lle["new_classes_accuracy"]
    assert not [name for name in metrics if "seed_" in name]


@pytest.mark.usefixtures("folder")
@pytest.mark.slow
def test_what_is_trained_is_not_trained_again(monkeypatch: pytest.MonkeyPatch) -> None:
    write_recipe(out_of_scope="oos")
    options = ["--recipe", "recipe.yaml", "--seeds", "1", "--method", "LLE", "--method", "SVM"]
    results = run("clinc", *options, "--new-classes", "0")
    assert [path.name for path in Path("runs").iterdir()] == ["clinc-0"]
    for row in results["rows"]:
        assert 0 <= row["out_of_scope_recall"] <= 1
        assert row["in_scope_accuracy"] <= row["accuracy"]
        assert row["speed_over_encoder"] is row["new_classes_accuracy"] is None
    monkeypatch.setattr(classification, "run", lambda *_: pytest.fail("trained again"))
    again = run("clinc", *options, "--new-classes", "0")
    assert again["metrics"]["accuracy"] == results["metrics"]["accuracy"]


@pytest.mark.usefixtures("folder")
def test_what_was_taught_is_taken_back_from_a_copy() -> None:
    lessons = [pair for pair in make_pairs(100, 0) if pair[1] in OLD]
    old = save_model("old", OLD, lessons)
    manifest = Path("old/history/manifest.json").read_bytes()
    comparison = classification.Comparison(load_intents("bank-ing"), floor=0.5, new=2)
    before = old.read(comparison.intents.test.texts)[0]
    values = comparison.teach(old)
    assert values["new_classes_accuracy"] == values["taught_classes_accuracy"] == 1
    old.forget()
    assert torch.equal(old.read(comparison.intents.test.texts)[0], before)
    assert Path("old/history/manifest.json").read_bytes() == manifest


@pytest.mark.usefixtures("folder")
def test_what_does_not_fit_is_refused() -> None:
    save_model("runs/bank-ing-0", OLD, [], threshold=1.0)
    Path("runs/bank-ing-0/metrics.json").write_text("{}")
    write_recipe(held_out=0.2)
    recipe = ["--recipe", "recipe.yaml", "--new-classes", "0", "--seeds", "1"]
    with pytest.raises(ValueError, match=r"bank-ing-0 knows 3 intents, not the 5"):
        run("bank-ing", *recipe, "--method", "LLE")
    with pytest.raises(ValueError, match="bank-ing-0 has no threshold"):
        _ = LLEClassifier(Path("runs/bank-ing-0"), OLD).threshold
    for options in (["--method", "LLE"], [*recipe, "--method", "SVM"]):
        with pytest.raises(ValueError, match="trained by --recipe"):
            run("bank-ing", *options)
    with pytest.raises(ValueError, match="did you mean 'SVM'"):
        run("bank-ing", "--method", "SVN")


@pytest.mark.usefixtures("folder")
def test_lle_answers_as_the_model_does() -> None:
    classifier = save_model("all", NAMES, make_pairs(100, 0))
    texts = make_examples(30, 2).texts
    answers = classifier.answer(texts)
    assert [classifier.predict(text) for text in texts] == answers.labels.tolist()
    with torch.no_grad():
        alone = classifier.model(**classifier.tokenizer(texts[3], return_tensors="pt"), output_out_of_scope=True)
    assert answers.confidences is not None
    assert answers.confidences[3] == pytest.approx(float(alone.logits.exp().max()), abs=1e-5)
    assert answers.out_of_scope[3] == pytest.approx(float(alone.out_of_scope), abs=1e-5)
    outside = classifier.answer(["<unk> <unk> <unk>"]).out_of_scope
    assert outside.min() > answers.out_of_scope.max()  # higher: none of these
    files = [*Path("all").glob("model*.safetensors"), *Path("all").glob("tokenizer*")]
    bank = HistoryBank.from_pretrained("all").info()["bytes"]
    assert len(files) == 3
    assert classifier.bytes == sum(file.stat().st_size for file in files) + bank


class Fixed:
    """Answers what it was made with; a query is the number of its answer."""

    bytes = 1

    def __init__(self, answers: Answers) -> None:
        self.answers = answers

    def answer(self, texts: list[str]) -> Answers:
        chosen = [int(text) for text in texts]
        return Answers(self.answers.labels[chosen], self.answers.out_of_scope[chosen])


def test_rejection_is_counted() -> None:
    texts, labels = [str(i) for i in range(4)], np.array(["x", "x", "y", "z"])
    inside = Examples(texts, labels)
    intents = classification.Intents(["x", "y", "z"], inside, inside, inside, inside, ["4", "5"], ["4", "5"])
    answers = Answers(np.array(["x", "x", "y", "x", "x", "y"]), np.array([0.1, 0.6, 0.2, 0.3, 0.9, 0.5]))
    comparison = classification.Comparison(intents, floor=0.75, new=1)
    found = comparison.measure(Fixed(answers))
    assert found["accuracy"] == found["in_scope_accuracy"] == 0.75
    assert (found["out_of_scope_recall"], found["out_of_scope_precision"]) == (0.5, 1.0)
    assert "ece" not in found
    found = comparison.measure(Fixed(answers), threshold=0.5)
    assert (found["in_scope_accuracy"], found["out_of_scope_recall"]) == (0.5, 1.0)
    strict = classification.Comparison(intents, floor=0.8, new=1)
    assert "out_of_scope_recall" not in strict.measure(Fixed(answers))  # accuracy is below the floor with none refused


def test_the_linear_classifier_is_scikit_learns() -> None:
    train, texts = make_examples(100, 0), make_examples(30, 2).texts
    peer = linear_classifier.LinearClassifier.fit(train, 1.0)
    machine = linear_classifier.LinearSVC(C=1.0, random_state=0).fit(peer.features(train.texts), train.labels)
    answers = peer.answer(texts)
    assert answers.labels.tolist() == machine.predict(peer.features(texts)).tolist()
    expected = -machine.decision_function(peer.features(texts)).max(1)
    np.testing.assert_allclose(answers.out_of_scope, expected, atol=1e-5)
    assert answers.confidences is None


def test_the_small_encoder() -> None:
    peer = small_encoder.SmallEncoder(5)
    assert peer.predict("what is the moon?") in range(5)
    tokens = small_encoder.made_tokens("The moon, the moon?")
    assert (len(tokens), tokens[0], tokens[-1]) == (8, 101, 102)
    assert tokens[1:3] == tokens[4:6]
    assert len(small_encoder.made_tokens("a " * 1000)) == 512


@pytest.fixture
def embedding() -> Any:
    pytest.importorskip("wordllama")
    return importlib.import_module("scripts.benchmark.peers.sentence_embedding")


def test_embeddings(embedding: Any) -> None:
    embed = embedding.SentenceEmbedding()
    train, test = make_examples(100, 0), make_examples(30, 2)
    classifier = logistic_regression.EmbeddingClassifier.fit(embed, train, 10.0)
    answers = classifier.answer(test.texts)
    assert (answers.labels == test.labels).mean() > 0.8
    assert ((answers.confidences > 0.2) & (answers.confidences <= 1)).all()
    peer = embedding.EmbeddingNeighbours.tuned(embed, train.of(OLD), train.of(OLD)).add(train.of(OLD))
    assert set(peer.answer(test.texts).labels) <= set(OLD)
    taught = peer.add(train.of(NEW)).answer(test.texts)
    assert (taught.labels == test.labels).mean() > 0.8
    again = peer.answer([train.texts[0], "the weather of tomorrow"]).out_of_scope
    assert again[0] == pytest.approx(-1, abs=1e-5)  # what it keeps is nearest to itself
    assert again[1] > again[0]


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for package, module in (("wordllama", "sentence_embedding"), ("sklearn", "linear_classifier")):
        name = f"scripts.benchmark.peers.{module}"
        for loaded in [key for key in sys.modules if key.partition(".")[0] == package or key == name]:
            monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=r"pip install modeling_lle\[benchmark\]"):
            importlib.import_module(name)
