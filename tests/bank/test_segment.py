"""Banks that a stranger made, with every checksum right: no value that cannot be is taken over."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modeling_lle import HistoryBank
from modeling_lle.bank.files import BankError
from scripts.benchmark.damage import make_bank
from tests.factories.classifiers import make_classifier, make_taught_classifier
from tests.factories.forged_banks import forge_manifest, forge_tensors
from tests.factories.texts import WORD_TOKENIZER

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bank(tmp_path_factory.mktemp("made") / "bank")


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    """A bank that a test may forge."""
    return shutil.copytree(made, tmp_path / "bank")


def put(name: str, value: Any, place: Any = 0) -> Callable[[Tensors], None]:
    return lambda tensors: tensors[name].__setitem__(place, value)


def swap(name: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.__setitem__(name, tensors[name].flip(0))


def cut(name: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.__setitem__(name, tensors[name][:-1])


def documents(change: Callable[[list[str]], None]) -> Callable[[Tensors], None]:
    def forge(tensors: Tensors) -> None:
        lines = bytes(tensors["documents"].tolist()).decode().split("\n")
        change(lines)
        tensors["documents"] = torch.frombuffer(bytearray("\n".join(lines).encode()), dtype=torch.uint8)

    return forge


def first(line: str) -> Callable[[Tensors], None]:
    return documents(lambda lines: lines.__setitem__(0, line))


LAYOUT = [
    (cut("keys"), "keys, and its manifest says"),
    (cut("ids"), "ids, and its manifest says"),
    (cut("tokens"), "tokens, and its manifest says"),
    (cut("starts"), "starts, and its manifest says"),
    (lambda tensors: tensors.pop("counts"), "holds the tensors"),
    (lambda tensors: tensors.update(more=torch.zeros(1)), "holds the tensors"),
    (lambda tensors: tensors.update(keys=tensors["keys"].float()), "has keys of torch.float32"),
    (lambda tensors: tensors.update(ids=tensors["ids"][:, None]), "has ids of torch.int64"),
    (lambda tensors: tensors.update(copies=torch.zeros(1, 3, dtype=torch.long)), "has copies of the shape"),
    (documents(lambda lines: lines.pop()), "documents, and its manifest says"),
    (first("[" * 100_000), "has documents that cannot be read"),
    (first('{"row": ' + "9" * 5000 + "}"), "has documents that cannot be read"),
    (first('{"row": 1'), "has documents that cannot be read"),
    (first("3"), "has a document 0 without source and row"),
    (first('{"source": 3, "row": 0}'), "has a document 0 without source and row"),
    (first('{"source": "a", "row": -1}'), "has a document 0 without source and row"),
    (first('{"source": "a", "row": true}'), "has a document 0 without source and row"),
]
VALUES = [
    (put("keys", 1e30), "keys that are not normalised"),
    (put("keys", torch.nan, (3, 2)), "keys that are not normalised"),
    (put("keys", torch.inf, (0, 0)), "keys that are not normalised"),
    (put("counts", 0), "never occurred"),
    (put("counts", -(2**31)), "never occurred"),
    (put("ids", 1), "ids that are not ascending"),
    (put("ids", -1), "never given"),
    (put("ids", 2**62, -1), "never given"),
    (swap("ids"), "ids that are not ascending"),
    (put("positions", -1), "stand in no text"),
    (put("positions", 2**40, -1), "stand in no text"),
    (swap("positions"), "stand in no text"),
    (put("tokens", 10**6, 1), "outcomes that are none of the"),
    (put("tokens", -1, 1), "outcomes that are none of the"),
    (put("tokens", 10**6, 0), "tokens that are not in its vocabulary"),
    (put("starts", 1), "do not follow one another"),
    (put("starts", 10**6, -1), "do not follow one another"),
    (put("starts", 10**6, 1), "do not follow one another"),
    (lambda tensors: tensors.update(copies=torch.tensor([[0, 10**6]])), "copies of no entry"),
    (lambda tensors: tensors.update(copies=torch.tensor([[10**6, 0]])), "copies of no entry"),
    (lambda tensors: tensors.update(keys=tensors["keys"].repeat(1, 2)), "keys of the width 12"),
]


@pytest.mark.parametrize(("forge", "message"), LAYOUT + VALUES, ids=range(len(LAYOUT + VALUES)))
def test_a_segment_whose_values_cannot_be(path: Path, forge: Callable[[Tensors], None], message: str) -> None:
    file = forge_tensors(path, forge)
    with pytest.raises(BankError, match=rf"{file.name} .*{message}.*: restore it from a copy, or build"):
        HistoryBank.open(path)
    if (forge, message) in LAYOUT:  # that is known without reading the values
        with pytest.raises(BankError, match=message):
            HistoryBank.open(path, verify=False)


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (put("ids", -1), "never given"),
        (put("ids", 10**6, -1), "never given"),
        (swap("ids"), "not ascending"),
        (lambda tensors: tensors.update(ids=tensors["ids"].int()), "does not hold the ids"),
        (lambda tensors: tensors.clear(), "does not hold the ids"),
    ],
)
def test_forgotten_ids_that_cannot_be(path: Path, forge: Callable[[Tensors], None], message: str) -> None:
    file = forge_tensors(path, forge, "forgotten")
    with pytest.raises(BankError, match=f"{file.name} .*{message}"):
        HistoryBank.open(path)


def test_entries_of_one_id_in_two_segments(path: Path) -> None:
    forge_tensors(path, lambda tensors: tensors["ids"].add_(1))
    with pytest.raises(BankError, match=r"manifest.json names segments with entries of one id"):
        HistoryBank.open(path)


def test_forgotten_entries_that_are_not_there(path: Path) -> None:
    forge_tensors(path, lambda tensors: tensors["ids"].__setitem__(0, 5), "segment")
    forge_tensors(path, lambda tensors: tensors.update(ids=torch.tensor([10**3])), "forgotten")
    forge_manifest(path, lambda values: values.update(next_id=10**4))
    with pytest.raises(BankError, match=r"ids that are not ascending|forgotten entries that it does not have"):
        HistoryBank.open(path)


@pytest.mark.parametrize("name", ["manifest.json", "segment"])
def test_symbolic_links_are_refused(path: Path, name: str) -> None:
    file = next(path.glob(f"{name}*"))
    shutil.move(file, path.parent / "elsewhere")
    file.symlink_to(path.parent / "elsewhere")
    for verify in (True, False):
        with pytest.raises(BankError, match=f"{file.name} is a symbolic link"):
            HistoryBank.open(path, verify)


def test_the_links_of_the_hubs_cache_are_followed(path: Path, tmp_path: Path) -> None:
    """As huggingface_hub lays out what it downloads."""
    history = tmp_path / "models--a--b" / "snapshots" / "0123" / "history"
    history.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    for number, file in enumerate(file for file in path.iterdir() if file.name != ".lock"):
        shutil.move(file, tmp_path / "models--a--b" / "blobs" / str(number))
        (history / file.name).symlink_to(f"../../../blobs/{number}")
    assert HistoryBank.from_pretrained(history.parent).verify() == []
    outside = tmp_path / "blobs"
    outside.mkdir()
    file = next(history.glob("segment*"))
    shutil.copy(file, outside / "0")
    file.unlink()
    file.symlink_to(outside / "0")
    with pytest.raises(BankError, match="is a symbolic link"):
        HistoryBank.open(history)


@pytest.mark.parametrize(
    ("kind", "label", "message"),
    [
        ("multi_label_classification", "[" * 10**5, "no list of labels"),
        ("multi_label_classification", "3", "no list of labels"),
        ("multi_label_classification", "[3]", "no list of labels"),
        ("regression", "many", "no number"),
        ("regression", "nan", "no number"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, kind: str, label: str, message: str) -> None:
    model = make_classifier(problem_type=kind, labels=1 if kind == "regression" else 3)
    model.learn(["a b"], [0.5 if kind == "regression" else ["label-1"]], WORD_TOKENIZER)
    model.history_bank.save_pretrained(tmp_path)
    model.detach_history()
    forge_manifest(tmp_path, lambda values: values.update(labels=[label]))
    with pytest.raises(BankError, match=rf"the bank .* has the label .*{message}"):
        model.attach_history(HistoryBank.open(tmp_path), tokenizer=WORD_TOKENIZER)
    assert model.history_bank is None


def test_examples_without_a_text_or_label(tmp_path: Path) -> None:
    model, _, _ = make_taught_classifier()
    model.history_bank.save_pretrained(tmp_path)
    forge_tensors(tmp_path, first(json.dumps({"source": "a", "row": 0, "text": "a"})))
    with pytest.raises(BankError, match="has a document 0 without source, text, label and row"):
        HistoryBank.open(tmp_path)
