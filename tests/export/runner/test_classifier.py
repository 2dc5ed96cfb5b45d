"""run.py of classifiers gives the model's labels and shares, and learns and forgets as the model does."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modeling_lle import HistoryBank
from modeling_lle.export import export
from tests.factories.classifiers import make_classifier
from tests.factories.exports import load_run
from tests.factories.texts import WORD_TOKENIZER, encode_texts, make_texts

TEXTS = list(dict.fromkeys(make_texts(20, 5, seed=3)))
QUERIES = make_texts(6, 6, seed=8)
SCOPE = {"classifier": {"out_of_scope": {"weights": [0.1, 0.2, 0.3, 0.4], "threshold": 0.7}, "margin": 0.1}}
KINDS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "single": (SCOPE, ["new", *(f"label-{len(text) % 3}" for text in TEXTS[1:])]),
    "multi": (
        {"problem_type": "multi_label_classification"},
        [["new", "label-0"], *([f"label-{n}" for n in range(len(text) % 3)] for text in TEXTS[1:])],
    ),
    "projected": (SCOPE, [f"label-{len(text) % 3}" for text in TEXTS]),
    "regression": ({"labels": 1}, [float(len(text)) for text in TEXTS]),
}


def compare(model: Any, loaded: Any) -> None:
    """The runner's results are those of the model."""
    for text, found in zip(QUERIES, loaded.classify(QUERIES), strict=True):
        with torch.no_grad():
            output = model(**encode_texts(text), output_history=True, output_out_of_scope=True)
        links = {"single": torch.Tensor.softmax, "multi": torch.Tensor.sigmoid}
        link: Any = links.get(model.kind.partition("_")[0], lambda logits: logits)
        scores = link(output.logits[0], -1) if link is torch.Tensor.softmax else link(output.logits[0])
        due = dict(zip(output.label_names, scores.tolist(), strict=True))
        assert found["scores"] == pytest.approx(due, abs=1e-5)
        assert found["label"] == max(due, key=due.__getitem__)
        if output.history is not None:
            share, row = output.history.bank_shares[0].max(0)
            assert found["base_share"] == pytest.approx(float(output.history.base_share), abs=1e-5)
            assert found["examples"][0]["share"] == pytest.approx(float(share), abs=1e-5)
            (told,) = model.history_bank.snapshot().describe([int(output.history.bank_ids[0, row])])
            assert found["examples"][0]["text"] == told.columns["text"]
        if "out_of_scope" in found:
            assert found["out_of_scope"] == pytest.approx(float(output.out_of_scope), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_and_shares_are_those_of_the_model_before_and_after_teaching(tmp_path: Path, kind: str) -> None:
    values, labels = KINDS[kind]
    model = make_classifier(**values)
    if kind == "projected":
        rows = [{"text": text, "label": label} for text, label in zip(TEXTS[:10], labels, strict=False)]
        model.attach_history(HistoryBank.build(model, WORD_TOKENIZER, rows, key_width=4))
    else:
        model.learn(TEXTS[:10], labels[:10], WORD_TOKENIZER, new_labels=True)
    run = load_run(export(model, WORD_TOKENIZER, tmp_path / "out", bank=model.history_bank))
    loaded = run.load()
    compare(model, loaded)
    model.learn(TEXTS[8:], labels[8:], WORD_TOKENIZER)
    assert loaded.learn(TEXTS[8:], labels[8:]) == len(TEXTS) - 10
    compare(model, loaded)
    model.forget(TEXTS[:3])
    assert loaded.forget(TEXTS[:3]) == 3
    compare(model, run.load())


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """run.py of a classifier without a bank."""
    return load_run(export(make_classifier(**SCOPE), WORD_TOKENIZER, tmp_path / "out"))


def test_what_is_forgotten_is_gone_from_the_disk(run: Any) -> None:
    loaded, folder = run.load(), Path(run.__file__).parent / "bank"
    assert "out_of_scope" in loaded.classify(["a b"])[0]
    assert loaded.learn(["a b", "c d"], ["new", "label-1"], new_labels=True) == 2
    assert run.load().classify(["a b"])[0]["scores"].keys() == {"label-0", "label-1", "label-2", "new"}
    assert loaded.forget(label="new") == 1
    assert "a b" not in "".join(file.read_text(errors="replace") for file in folder.iterdir())
    assert loaded.forget(source="taught") == 1
    compare(make_classifier(**SCOPE), run.load())
    assert loaded.learn(["a b"], ["label-2"]) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.learn(["a"], ["new"]), "'new' is new.*--new-labels"),
        (lambda model: model.learn(["c d"], ["label-0"]), "has the label 'label-1'.*--relabel"),
        (lambda model: model.learn(["a"], [3.5]), "does not suit the model"),
        (lambda model: model.learn([" "], ["label-0"]), "no token"),
        (lambda model: model.forget(["b"]), "no example with the text 'b'"),
        (lambda model: model.forget(label="label-0"), "no example with all"),
        (lambda model: model.forget(), "nothing to forget"),
        (lambda model: model.classify([""]), "no token"),
        (lambda model: model.classify("c d"), r"texts are a list: give \['c d'\]"),
        (lambda model: model.learn("c d", ["label-0"]), "texts are a list"),
        (lambda model: model.forget("c d"), "texts are a list"),
    ],
)
def test_what_cannot_be_taught_is_refused_and_changes_nothing(run: Any, call: Any, message: str) -> None:
    loaded = run.load()
    loaded.learn(["c d"], ["label-1"])
    with pytest.raises(run.RunError, match=message):
        call(loaded)
    assert run.load().bank.arrays["examples"] == [["c d", "label-1", "taught"]]


def test_leftovers_of_a_program_that_was_killed_are_removed(run: Any) -> None:
    loaded, folder = run.load(), Path(run.__file__).parent / "bank"
    loaded.learn(["c d"], ["label-1"])
    (folder / "examples-0.json").write_text("forgotten")
    loaded.learn(["e"], ["label-1"])
    assert {path.name for path in folder.iterdir()} == {"bank.json", "lock", "keys-2.npy", "examples-2.json"}
    (folder / "keys-2.npy").unlink()
    with pytest.raises(run.RunError, match=r"keys-2.npy is missing or damaged"):
        run.load()


def test_a_label_is_changed_where_that_is_asked_for(run: Any) -> None:
    loaded = run.load()
    loaded.learn(["c d", "e"], ["label-1", "label-1"])
    assert loaded.learn(["c d"], ["label-0"], relabel=True) == 1
    assert sorted(run.load().bank.arrays["examples"])[0][:2] == ["c d", "label-0"]


def test_programs_that_teach_at_once_lose_nothing(run: Any) -> None:
    pytest.importorskip("fcntl")
    loaded = [run.load() for _ in range(4)]
    texts = ["a", "b", "c", "d"]
    threads = [
        threading.Thread(target=own.learn, args=([text], ["label-0"])) for own, text in zip(loaded, texts, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {text for text, _, _ in run.load().bank.arrays["examples"]} == set(texts)


def test_the_command_teaches_and_forgets(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["learn", "a b", "--label", "new", "--new-labels"],
        ["classify", "a b"],
        ["forget", "a b"],
        ["check"],
    ):
        assert run.main(arguments) == 0
    said = capsys.readouterr().out
    assert "Learned 1 examples." in said
    assert '"new"' in said
    assert "Forgot 1 examples." in said


def test_tokens_are_labelled_as_by_the_model(tmp_path: Path) -> None:
    model = make_classifier(of_tokens=True)
    model.learn([["a", "b"], ["c", "d"]], [["label-0", "label-1"], ["label-2", None]], WORD_TOKENIZER)
    loaded = load_run(export(model, WORD_TOKENIZER, tmp_path / "out", bank=model.history_bank)).load()
    for text, found in zip(("a d c", "b"), loaded.classify(["a d c", "b"]), strict=True):
        due = model(**encode_texts(text)).logits[0].softmax(-1)
        np.testing.assert_allclose([list(own["scores"].values()) for own in found], due.detach(), atol=1e-5)
