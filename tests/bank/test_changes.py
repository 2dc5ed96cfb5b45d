"""Changes of a bank: forgetting says what it did, small segments are joined, and what is compacted is gone."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modeling_lle import HistoryBank
from modeling_lle.bank.changes import is_same, plain
from modeling_lle.bank.files import BankError, Folder
from modeling_lle.bank.index_files import index_files, index_folder
from modeling_lle.bank.parquet import to_parquet
from tests.factories.classifiers import make_taught_classifier
from tests.factories.language_models import make_language_model
from tests.factories.texts import WORD_TOKENIZER, encode_texts, make_ids, make_texts

MODEL = make_language_model()
TEXTS = make_texts(12, 9)
ROWS = [
    {"text": "a b", "user": "ann", "flag": True, "n": 1},
    {"text": "c", "user": "bob", "flag": False, "n": 2},
    {"text": "d e f", "user": "bob", "flag": True, "n": 1.0, "namespace": "x", "source": "own"},
]
SIZES = [3, 2, 4]  # entries of each row


def build(texts: Any = TEXTS, **options: Any) -> HistoryBank:
    return HistoryBank.build(MODEL, WORD_TOKENIZER, texts, **options)


def everything_on_disk(path: Path) -> bytes:
    return b"".join(str(file).encode() + file.read_bytes() for file in path.rglob("*") if file.is_file())


# Forgetting


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ({"user": "bob"}, [1, 2]),
        ({"flag": True}, [0, 2]),
        ({"n": 1}, [0, 2]),
        ({"n": np.float32(1), "user": "ann"}, [0]),
        ({"flag": torch.tensor(False)}, [1]),
        ({"row": 1}, [1]),
        ({"namespace": "x"}, [2]),
        ({"source_": "own"}, [2]),
        (lambda columns: columns["n"] > 1, [1]),
    ],
)
def test_forgets_where_values_are_the_same(where: Any, rows: list[int]) -> None:
    bank = build(ROWS, source="rows")
    assert bank.forget(where=where) == sum(SIZES[row] for row in rows)
    assert len(bank) == sum(SIZES) - sum(SIZES[row] for row in rows)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"where": {"usr": "bob"}}, r"no column 'usr' \(did you mean 'user'\?\); its columns are: flag, n, namespace"),
        ({"where": {"flag": 1}}, r"for which all of this holds: where=\{'flag': 1\}\. Nothing was forgotten"),
        ({"where": {"n": True}}, "for which all of this holds"),
        ({"where": {"user": "eve"}}, "for which all of this holds"),
        ({"where": {"user": "ann"}, "ids": [4]}, r"holds: ids=\[4\], where="),
        ({"ids": []}, r"holds: ids=\[\]"),
        ({"namespace": ""}, "no namespace ''; it has: default"),
        ({"source": "rowz"}, r"no source 'rowz' \(did you mean 'rows'\?\); it has: rows"),
        (
            {"where": lambda columns: False},
            r"this holds: the condition\. Nothing was forgotten; pass missing_ok",
        ),
    ],
)
def test_what_fits_nothing_is_an_error_unless_asked_for(given: dict[str, Any], message: str) -> None:
    bank = build(ROWS, source="rows")
    generation = bank.manifest.generation
    with pytest.raises(BankError, match=message):
        bank.forget(**given)
    assert bank.forget(**given, missing_ok=True) == 0
    assert bank.manifest.generation == generation
    assert len(bank) == sum(SIZES)


def test_columns_that_are_none() -> None:
    with pytest.raises(ValueError, match=r"'source' is no column: give source=.* of that name is 'source_'"):
        build(ROWS).forget(where={"source": "own"}, missing_ok=True)
    with pytest.raises(BankError, match=r"no column 'namespace': give namespace=\.\.\. beside the columns"):
        build(ROWS[:2]).forget(where={"namespace": "default"})


@pytest.mark.parametrize("given", [{}, {"where": {}}, {"ids": 3}, {"ids": [1.5]}, {"ids": ["1"]}])
def test_what_says_nothing(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"nothing to forget|ids are a list of whole numbers"):
        build(ROWS).forget(**given)


def test_ids_that_are_given_twice_count_once() -> None:
    bank = build(ROWS)
    assert bank.forget([0, 0, np.int64(1), torch.tensor(1)]) == 2
    with pytest.raises(BankError, match="no entry 1: it was never made, or was forgotten"):
        bank.forget([1, 2])
    assert bank.forget([1, 2], missing_ok=True) == 1


def test_a_source_without_an_entry_is_forgotten_all_the_same() -> None:
    bank = build(ROWS)
    bank.append([], "default")
    sure = make_language_model()
    sure.lm_head.bias.data[:] = 0
    bank.add(["a"], source="known", keep_below=1e-9)
    assert bank.forget(source="known") == 0
    with pytest.raises(BankError, match="no source 'known'"):
        bank.forget(source="known")


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (np.float64(0.5), 0.5),
        (np.int32(3), 3),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (torch.tensor(2), 2),
        (np.array(4), 4),
        (math.nan, None),
        (None, None),
        (["a", np.int64(1)], ["a", 1]),
        ({"a": (1, 2)}, {"a": [1, 2]}),
    ],
)
def test_values_are_kept_as_plain_ones(value: Any, kept: Any) -> None:
    assert json.dumps(plain(value)) == json.dumps(kept)
    bank = build([{"text": "a", "value": value}])
    assert bank.describe([0])[0].columns == {"value": kept}
    assert bank.forget(where={"value": value}) == 2


@pytest.mark.parametrize(
    "value", [b"a", {1, 2}, {1: 2}, math.inf, object(), torch.zeros(2), np.datetime64("2020-01-01")]
)
def test_what_cannot_be_kept_names_the_column(value: Any) -> None:
    with pytest.raises(ValueError, match=r"the column 'value' of row 1 holds .*: leave it out, or name the columns"):
        build(["a", {"text": "a", "value": value}])
    assert len(build(["a", {"text": "a", "value": value}], columns=[])) == 4


def test_kinds_of_values() -> None:
    assert is_same([1, {"a": 2.0}], [1.0, {"a": 2}])
    assert not is_same([1, True], [1, 1])
    assert not is_same("1", 1)
    assert not is_same({"a": 1}, {"b": 1})


# Joining


def test_many_small_adds_make_few_segments() -> None:
    rows, bank = (
        [{"text": text, "number": number} for number, text in enumerate(TEXTS * 2)],
        build(["a b"], source="s"),
    )
    for number, row in enumerate(rows):
        bank.add([row], source=f"source-{number}", namespace="ann" if number % 3 else "bob")
    by_name = {name: [i.entries for i in bank.manifest.segments if i.namespace == name] for name in bank.namespaces}
    for sizes in by_name.values():
        assert sizes == sorted(sizes, reverse=True)
        assert len(sizes) <= math.log2(sum(sizes))
    assert sorted(path.name for path in bank.folder.path.glob("segment-*")) == sorted(
        info.file.name for info in bank.manifest.segments
    )
    numbers = [text.columns["number"] for text in bank.describe(range(3, len(bank)))]
    assert numbers == [n for n, row in enumerate(rows) for _ in range(len(row["text"].split()) + 1)]
    model, ids = make_language_model(), make_ids(2, 9)
    model.attach_history(bank)
    joined = model(ids).logits
    never = build(["a b"], source="s")
    for name in ("bob", "ann"):  # in another order, and at once
        never.add([row for n, row in enumerate(rows) if ("ann" if n % 3 else "bob") == name], namespace=name)
    model.attach_history(never)
    assert torch.equal(model(ids).logits, joined)
    assert bank.forget(source="source-7") == len(rows[7]["text"].split()) + 1
    again = HistoryBank.open(bank.folder.path)
    assert len(again) == len(never) - len(rows[7]["text"].split()) - 1


def test_what_was_forgotten_is_left_out_of_what_is_joined(tmp_path: Path) -> None:
    bank = build(["a b c", "d"], path=tmp_path, source="first")
    bank.forget([0, 1])
    bank.add(["e f g h e f"], source="second")
    assert bank.manifest.forgotten is None
    assert [info.entries for info in bank.manifest.segments] == [len(bank)]
    with pytest.raises(BankError, match="no entry 1"):
        bank.describe([1])
    assert bank.describe([2])[0].before[-1] == -1
    bank.forget(source="second")
    bank.add(["a"], source="third")  # not even one entry of the large one is left, and it is larger
    assert bank.verify() == []


def test_large_segments_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modeling_lle.bank.changes.LARGE", 12)
    bank = build(["a"], source="0")
    for number in range(1, 10):
        bank.add(["a"], source=str(number))
    sizes = [info.entries for info in bank.manifest.segments]
    assert sum(sizes) == 20
    assert max(sizes) <= 12


@pytest.mark.parametrize("stop", ["write_segment", "write_manifest", "remove_leftovers"])
def test_a_joining_that_is_cut_short(tmp_path: Path, stop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = build(["a b"], path=tmp_path, source="one")
    before = len(bank)

    def cut(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        write = Folder.write_manifest
        if stop == "remove_leftovers":  # after the manifest counts
            patch.setattr(Folder, "write_manifest", lambda *given: (write(*given), patch.setattr(Folder, stop, cut)))
        else:
            patch.setattr(Folder, stop, cut)
        with pytest.raises(KeyboardInterrupt):
            bank.add(["c d e"], source="two")
    again = HistoryBank.open(tmp_path)
    assert len(again) == before + 4 * (stop == "remove_leftovers")
    again.add(["a b c d e f"], source="three", model=MODEL, tokenizer=WORD_TOKENIZER)
    assert again.verify() == []
    assert len(HistoryBank.open(tmp_path)) == len(again) == before + 4 * (stop == "remove_leftovers") + 7


# Names


def test_two_handles_take_different_names(tmp_path: Path) -> None:
    one = build(["a"], path=tmp_path)
    two = HistoryBank.open(tmp_path)
    one.add(["b"])
    two.add(["c"], model=MODEL, tokenizer=WORD_TOKENIZER)
    one.add(["d"])
    assert [item.source for item in one.manifest.added] == ["added-1", "added-2", "added-3", "added-4"]
    with pytest.raises(ValueError, match="the source 'added-4' is in the namespace 'default' already"):
        two.add(["e"], source="added-4", model=MODEL, tokenizer=WORD_TOKENIZER)


# Compaction


def test_names_of_labels_and_sources_go(tmp_path: Path) -> None:
    model, texts, _ = make_taught_classifier(6)
    model.learn(["a a a"], ["secret-label"], new_labels=True, source="secret-source")
    model.learn(["b b b", "c c c"], ["later", "other"], new_labels=True, source="kept")
    ids = encode_texts("b b b", *texts[:3])
    bank = model.history_bank
    model.forget(label="secret-label")
    expected = model(**ids).logits
    assert to_parquet(bank, tmp_path / "bank.parquet") == len(bank)
    assert b"secret" not in (tmp_path / "bank.parquet").read_bytes()
    bank.compact()
    assert b"secret" not in everything_on_disk(bank.folder.path)
    assert model.label_names()[-2:] == ("later", "other")
    assert torch.equal(model(**ids).logits, expected)
    model.attach_history(HistoryBank.open(bank.folder.path))
    assert torch.equal(model(**ids).logits, expected)
    generation = model.history_bank.manifest.generation
    assert model.history_bank.compact() == 0
    assert model.history_bank.manifest.generation == generation
    assert model.learn(["a a a"], ["again"], WORD_TOKENIZER, new_labels=True) == 1
    assert model.label_names()[-3:] == ("later", "other", "again")


@pytest.mark.parametrize("given", [{"ids": range(3)}, {"where": {"user": "ann"}}])
def test_a_source_that_has_no_entry_left_is_none(given: dict[str, Any], tmp_path: Path) -> None:
    bank = build(ROWS[1:], path=tmp_path, source="kept")
    bank.add(ROWS[:1], source="private")
    bank.forget(**({"ids": range(6, 9)} if "ids" in given else given))
    assert [item.source for item in bank.manifest.added] == ["kept"]
    bank.compact()
    assert b"private" not in everything_on_disk(tmp_path)


def test_a_compaction_that_is_cut_short_leaves_no_index_of_what_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr("modeling_lle.bank.state.EXACT_ENTRIES", 0)
    bank = build(make_texts(80, 9), path=tmp_path, source="one")
    bank.add(["a b"], source="two")
    bank.search(torch.eye(6)[:1], 2)
    (index,) = index_files(bank.folder)
    kept = {file: (index_folder(bank.folder) / file.name).read_bytes() for file in (index.path, index.list_path)}
    bank.forget([0, 1])
    write = Folder.write_manifest

    def cut(*arguments: Any) -> Any:
        write(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write_manifest", cut)
        with pytest.raises(KeyboardInterrupt):
            bank.compact()
    assert list(index_files(bank.folder)) == []
    # And where it was cut short before: what knows more than the bank is reported, and a second compaction removes it.
    for path, data in kept.items():
        path.write_bytes(data)
    again = HistoryBank.open(tmp_path)
    stale = [name for name in again.verify() if name.startswith("index/")]
    assert stale == sorted(f"index/{path.name}" for path in kept)
    foreign = index_folder(bank.folder) / "notes.faiss"
    foreign.write_text("not the bank's")
    assert again.compact() == 0
    assert again.verify() == []
    assert foreign.read_text() == "not the bank's"


def test_an_index_serves_when_small_segments_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = pytest.importorskip("modeling_lle.bank.faiss_index")
    monkeypatch.setattr("modeling_lle.bank.state.EXACT_ENTRIES", 0)
    monkeypatch.setitem(index.SETTINGS, "balanced", index.Setting(1.0, 1000))  # it proposes everything
    bank = build(make_texts(80, 9), path=tmp_path, source="large", namespace="m")
    bank.add(["a b"], source="0", namespace="z")
    query = torch.nn.functional.normalize(torch.randn(9, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    bank.search(query, 5)

    def refuse(*given: Any) -> Any:
        raise AssertionError("an index is made")

    monkeypatch.setattr(index, "_make", refuse)
    for number, name in enumerate("zamza", start=1):  # before, within and after what it knows
        bank.add(["a b c d"], source=str(number), namespace=name)
        state = bank.snapshot()
        exact, found = state.search(query, 5, how="exact"), state.search(query, 5)
        assert torch.equal(exact.ids, found.ids)
        assert torch.equal(exact.similarity, found.similarity)
    (file,) = index_files(bank.folder)
    assert not file.known.keys() <= {info.file.name for info in bank.manifest.segments}
