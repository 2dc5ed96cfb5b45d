"""What a bank in Milvus does beyond the conformance suite: crashes, several clients, damage, bfloat16, credentials."""

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

from modeling_lle import HistoryBank
from modeling_lle.bank.address import Address
from modeling_lle.bank.copying import copy_to
from modeling_lle.bank.manifest import BankError
from modeling_lle.bank.milvus.engine import Engine
from modeling_lle.bank.milvus.layout import Collections
from modeling_lle.entries import texts as texts_module
from tests.bank.conformance import FINGERPRINT, VOCABULARY, WIDTH, check_search, queries, rows, segment
from tests.factories.language_models import make_language_model
from tests.factories.milvus import MilvusBank, address_of, in_file, make_bank, make_subject, normalised
from tests.factories.texts import WORD_TOKENIZER, make_texts

TEXTS = make_texts(12, 9)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> str:
    return in_file(tmp_path_factory.mktemp("lite"))


@pytest.fixture
def bank(place: str) -> MilvusBank:
    made = make_subject(place).filled()
    assert isinstance(made, MilvusBank)
    return made


def stored(bank: MilvusBank, condition: str = "id >= 0") -> list[int]:
    """Ids of the entries that the engine has, whatever the head says."""
    return sorted(row["id"] for row in bank.engine.query(bank.names.entries, condition, ["id"]))


class CutError(RuntimeError):
    """A process that ends."""


@contextlib.contextmanager
def cut_at(bank: MilvusBank, collection: str, monkeypatch: pytest.MonkeyPatch, away: bool = False) -> Iterator[None]:
    """Ends what is done at the first write to a collection, and from then on all is away if `away`."""
    write, call, is_over = bank.engine.write, bank.engine.call, []

    def cut(name: str, *args: Any, **options: Any) -> None:
        if name == collection:
            is_over.append(away)
            raise CutError
        write(name, *args, **options)

    def gone(*args: Any, **options: Any) -> Any:
        if any(is_over):
            raise BankError("away")
        return call(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(bank.engine, "write", cut)
        patched.setattr(bank.engine, "call", gone)
        with pytest.raises(CutError):
            yield


# Opening


def test_what_is_no_bank_is_refused(place: str, bank: MilvusBank, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no bank at milvus\+file.*lle bank build"):
        HistoryBank.open(place.format("nothing"))
    with pytest.raises(FileExistsError, match="open it, or choose another name"):
        HistoryBank.create(address_of(bank), FINGERPRINT, WIDTH, VOCABULARY)
    bank.engine.drop(bank.names.log)
    with pytest.raises(BankError, match="is no bank: choose another name"):
        HistoryBank.open(address_of(bank))
    with pytest.raises(FileExistsError):
        HistoryBank.create(address_of(bank), FINGERPRINT, WIDTH, VOCABULARY)


def test_a_bank_whose_making_was_cut_short_is_made_again(
    place: str, bank: MilvusBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = address_of(bank)
    bank.engine.delete(bank.names.log, ["head"])
    with pytest.raises(BankError, match="has no head: it was being made"):
        HistoryBank.open(address)
    assert len(HistoryBank.create(address, FINGERPRINT, WIDTH, VOCABULARY)) == 0


@pytest.mark.parametrize("damage", ["cut", "edited", "newer"])
def test_a_damaged_head_is_named(bank: MilvusBank, damage: str) -> None:
    *parts, _ = bank.snapshot().head.to_rows()
    text = parts[0]["text"]
    if damage == "cut":
        parts[0]["text"] = text[: len(text) // 2]
    else:
        import base64
        import json
        import zlib

        values = json.loads(zlib.decompress(base64.b64decode(text)))
        old, new = ('"version": 2', '"version": 9') if damage == "newer" else ('"width": 8', '"width": 9')
        values["manifest"] = values["manifest"].replace(old, new)
        parts[0]["text"] = base64.b64encode(zlib.compress(json.dumps(values).encode())).decode()
    bank.engine.write(bank.names.log, parts, 64)
    with pytest.raises(BankError, match="upgrade with" if damage == "newer" else "damaged"):
        HistoryBank.open(address_of(bank))


def test_keys_of_another_width_than_the_head_says_are_refused(bank: MilvusBank) -> None:
    Collections("narrow").drop(bank.engine)
    names = Collections("narrow")
    names.create(bank.engine, WIDTH - 1)
    bank.engine.write(names.log, bank.snapshot().head.to_rows(), 64)
    with pytest.raises(BankError, match="has other keys than its head says"):
        HistoryBank.open(address_of(bank).replace(bank.names.entries, "narrow"))


def test_a_server_that_is_away_is_a_clear_error() -> None:
    with pytest.raises(BankError, match=r"milvus://127\.0\.0\.1:9/mine does not answer within 1 seconds: see that"):
        HistoryBank.open("milvus://127.0.0.1:9/mine?timeout=1")


def test_credentials_of_the_environment_are_in_no_message(
    bank: MilvusBank, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LLE_MILVUS_TOKEN", "ann:open-sesame")
    error = bank.engine._error("search", RuntimeError("UNAUTHENTICATED for ann:open-sesame"))
    assert "set LLE_MILVUS_TOKEN" in str(error)
    with pytest.raises(BankError) as caught:
        HistoryBank.open("milvus://127.0.0.1:9/mine?timeout=0.5")
    for text in (str(error), str(caught.value), repr(bank), str(bank.info()), caplog.text):
        assert "sesame" not in text


# Changes that are cut short


@pytest.mark.parametrize("where", ["documents", "entries", "log"])
def test_a_change_that_fails_leaves_nothing(bank: MilvusBank, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, generation = rows(bank), bank.generation
    with cut_at(bank, getattr(bank.names, where), monkeypatch):
        bank.append([segment([[3, 4]], "third", seed=5)], "ann", replaced=[0])
    assert (rows(bank), bank.generation, stored(bank)) == (before, generation, [*range(11)])
    assert not stored(bank, "died < 4000000000000000000")
    assert bank.append([segment([[3, 4]], "third", seed=5)], "ann", replaced=[0]) == 2
    check_search(bank)


@pytest.mark.parametrize("where", ["entries", "log"])
def test_a_client_that_died_is_passed_over_and_swept(
    bank: MilvusBank, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = MilvusBank(Engine(bank.engine.address), seconds=0.4)
    before = rows(bank)
    with cut_at(bank, getattr(bank.names, where), monkeypatch, away=True):
        bank.append([segment([[3, 4]], "third", seed=5)], "ann", replaced=[0])
    assert rows(other) == before
    check_search(other)
    if where == "log":
        assert (stored(bank), stored(bank, "died < 4000000000000000000")) == ([*range(13)], [0])
        assert bank.verify() == ["2 entries"]
    assert other.forget([10]) == 1  # it waits until the ticket is dead
    assert stored(other) == [*range(11)]
    assert stored(other, "died < 4000000000000000000") == [10]
    assert rows(bank) == rows(other)
    assert not other.engine.query(bank.names.tickets, "number >= 0", ["id"])


def test_a_writer_that_was_taken_for_dead_writes_no_more(bank: MilvusBank) -> None:
    before = rows(bank)

    def segments() -> Iterator[Any]:
        yield segment([[3]], "third", seed=5)
        bank.engine.delete(bank.names.tickets, [bank._lease._own])  # by another client
        yield segment([[4]], "third", seed=6, first=1)

    with pytest.raises(BankError, match="gave no sign of life for 60 seconds"):
        bank.append(segments(), "ann")
    assert rows(bank) == sorted([*before, ("ann", "third", 0, [3])])


def test_writers_wait_for_each_other_and_give_up_in_time(bank: MilvusBank) -> None:
    other = MilvusBank(bank.engine, wait=0.2)
    with bank.writing():
        with pytest.raises(TimeoutError, match=r"have not finished within 0\.2 seconds: try again"):
            other.forget([0])
        assert bank.forget([1]) == 1
    assert other.forget([0]) == 1
    assert len(bank) == len(other) == 9


def test_threads_with_handles_of_their_own_lose_nothing(bank: MilvusBank) -> None:
    def write(number: int) -> None:
        handle = MilvusBank.open(address_of(bank))
        for row in range(3):
            made = segment([[number, row]], f"source-{number}", f"space-{number}", 100 + 10 * number + row, row)
            handle.append([made], f"space-{number}")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(bank) == 11 + 4 * 3 * 2
    expected = [(f"space-{n}", f"source-{n}", row, [n, row]) for n in range(4) for row in range(3)]
    assert [row for row in rows(bank) if row[0].startswith("space")] == expected
    assert sorted(stored(bank)) == [*range(35)]
    check_search(bank)


# Forgetting


def test_what_one_client_forgot_no_other_finds_and_compacting_takes_it_from_the_storage(bank: MilvusBank) -> None:
    other = MilvusBank.open(address_of(bank))
    bank.forget(source="second")
    assert not {5, 6, 7, 8, 9, 10} & set(other.search(queries(), 11).ids.flatten().tolist())
    bank.forget([0])
    assert other.describe([1])[0].before == [2, -1]
    assert bank.compact() == 7 * WIDTH * 4
    assert stored(bank) == [1, 2, 3, 4]
    texts = "".join(row["text"] for row in bank.engine.query(bank.names.documents, "id >= 0", ["text"]))
    assert ('"first 0"' in texts, "[2, -1, 4, 5]" in texts, "second" in texts) == (True, True, False)
    assert [item.source for item in other.snapshot().manifest.added] == ["first"]
    assert rows(other) == [("ann", "first", 0, [4, 5]), ("ann", "first", 1, [6, 7])]
    names = {row["id"] for row in bank.engine.query(bank.names.log, 'id != ""', ["id"])}
    assert names == {"head", f"{bank.generation}-0"}
    assert bank.verify() == []


def files_with(folder: Path, word: str) -> list[str]:
    """Names of the files of milvus-lite that hold a word."""
    import pyarrow.parquet

    found = []
    for file in (path for path in folder.rglob("*") if path.is_file()):
        if file.suffix == ".parquet":
            text = str(pyarrow.parquet.read_table(file).to_pylist())
        else:
            text = file.read_bytes().decode(errors="replace")
        found += [file.name] if word in text else []
    return found


def test_the_bytes_of_what_was_forgotten_are_gone_with_the_collection_that_held_them(tmp_path: Path) -> None:
    bank = make_bank(in_file(tmp_path), FINGERPRINT, WIDTH, VOCABULARY, None)
    bank.append([segment([[3, 4]], "zebra", seed=1)], "ann")
    bank.append([segment([[3, 4]], "horse", seed=2)], "ann")
    bank.settle()
    bank.forget(source="zebra")
    bank.compact()
    assert files_with(tmp_path, "horse")
    copy = copy_to(bank, in_file(tmp_path).format("fresh"))
    bank.drop()
    assert rows(copy) == [("ann", "horse", 0, [3, 4])]
    assert files_with(tmp_path, "horse")
    assert not files_with(tmp_path, "zebra")


def test_labels_that_no_entry_has_leave_the_storage(place: str) -> None:
    bank = make_bank(place, FINGERPRINT, WIDTH, VOCABULARY, ())
    bank.append([segment([[1, 0, 2]], "taught", "ann", 3)], "ann", ("ant", "bee", "cow"))
    bank.forget([0, 2])
    bank.compact()
    assert bank.labels == ("ant",)
    bank.append([segment([[0, 1]], "taught", "ann", 2, 1)], "ann", ("dog", "elk"))
    bank.forget(ids=[1])
    bank.compact()
    assert bank.labels == ("forgotten 0", "dog", "elk")
    assert bank.snapshot().live_outcomes().tolist() == [False, True, True]


def test_long_names_and_strange_ones(bank: MilvusBank) -> None:
    strange = "a \"b\" \\ ü\u2028\n'c'"
    bank.append([segment([[3]], strange, strange, seed=5)], strange)
    check_search(bank, 1, [strange])
    assert bank.forget(source=strange, namespace=strange) == 1
    with pytest.raises(BankError, match=r"the name of the namespace 'nnn.*more than 4,096 bytes"):
        bank.append([segment([[3]], "third", "n" * 5000)], "n" * 5000)


def test_a_text_longer_than_a_field_of_milvus_is_whole(place: str) -> None:
    bank = make_bank(place, FINGERPRINT, WIDTH, VOCABULARY, None)
    made, added = segment([[number % 40 for number in range(900)]], "long", seed=1)
    made.documents[0]["text"] = "ü" * 40_000
    bank.append([(made, added)], "ann")
    bank.forget([7])
    (document,) = bank.documents()
    assert (len(document.tokens), len(document.ids), document.tokens[8]) == (901, 899, -1)
    assert document.columns["text"] == "ü" * 40_000
    bank.compact()
    assert next(iter(bank.documents())) == document


# Precision


class AsBFloat16:
    """A client of an engine with vectors of bfloat16, as Milvus has and milvus-lite has not."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    @staticmethod
    def _floats(vector: Any) -> Any:
        assert isinstance(vector, bytes)
        return torch.frombuffer(bytearray(vector), dtype=torch.bfloat16).float().tolist()

    def upsert(self, collection: str, data: Any, **options: Any) -> Any:
        data = [row | {"key": self._floats(row["key"])} if "key" in row else row for row in data]
        return self.client.upsert(collection, data, **options)

    def search(self, collection: str, data: Any, **options: Any) -> Any:
        return self.client.search(collection, data=[self._floats(vector) for vector in data], **options)

    def get(self, collection: str, ids: Any, **options: Any) -> Any:
        found = self.client.get(collection, ids, **options)
        for row in found:
            if "key" in row:
                row["key"] = [torch.tensor(row["key"]).bfloat16().view(torch.uint8).numpy().tobytes()]
        return found


def test_an_engine_with_bfloat16_gives_exact_scores(place: str) -> None:
    bank = make_bank(place, FINGERPRINT, WIDTH, VOCABULARY, None)
    bank.engine._client = AsBFloat16(bank.engine._client)
    bank._state.of_floats = False
    made, added = segment([[3] * 300, [4] * 300], seed=1)
    bank.append([(made, added)], "ann")
    assert torch.equal(next(bank.segments())[1].keys, made.keys)
    asked = normalised(20, WIDTH)
    found, exact = bank.search(asked, 40, how="exact"), asked @ made.keys.float().T
    assert torch.allclose(found.similarity, exact.gather(1, found.ids), atol=1e-6)
    assert (found.similarity.diff(dim=1) <= 0).all()
    assert torch.equal(found.outcomes, (found.ids >= 300).long() + 3)
    assert (found.ids[:, :30].sort(1).values == exact.topk(30).indices.sort(1).values).float().mean() > 0.97
    assert (bank.search(asked[:2], 700).ids[:, 600:] == -1).all()


# Models


def test_a_model_recalls_from_milvus_as_from_a_folder(place: str, tmp_path: Path) -> None:
    model, texts = make_language_model(), TEXTS
    folder = HistoryBank.build(model, WORD_TOKENIZER, texts, tmp_path / "bank", source="texts")
    bank = HistoryBank.build(model, WORD_TOKENIZER, texts, place.format("of_a_model"), source="texts")
    assert isinstance(bank, MilvusBank)
    assert rows(bank) == rows(folder)
    ids = torch.tensor([WORD_TOKENIZER(texts[3])["input_ids"]])
    logits = [model(ids, history=one).logits for one in (folder, bank)]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=0)
    for one in (folder, bank):
        one.forget([3, 5])
    logits = [model(ids, history=one).logits for one in (folder, bank)]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=0)
    again = HistoryBank.open(Address.parse(place.format("of_a_model")).__str__())
    again.add(texts[:2], model=model, tokenizer=WORD_TOKENIZER, source="more", namespace="ann")
    assert bank.namespaces == ["ann", "default"]


def test_projected_keys_are_those_of_a_folder(place: str, tmp_path: Path) -> None:
    size = FINGERPRINT, 3 * WIDTH, VOCABULARY, None, WIDTH
    folder, bank = HistoryBank.create(tmp_path / "bank", *size), make_bank(place, *size)
    for one in (folder, bank):
        made, added = segment([[3, 4, 5]], seed=1)
        made.keys = normalised(3, 3 * WIDTH).bfloat16()
        one.append([(made, added)], "ann")
    assert torch.equal(next(bank.segments())[1].keys, next(folder.segments())[1].keys)
    asked = normalised(4, 3 * WIDTH, seed=2)
    torch.testing.assert_close(bank.search(asked, 3).similarity, folder.search(asked, 3).similarity)
    assert bank.info()["is_projected"]
    bank.save_pretrained(tmp_path / "copy")
    assert torch.equal(HistoryBank.open(tmp_path / "copy").search(asked, 3).ids, folder.search(asked, 3).ids)


def test_processes_that_build_together_make_the_bank_of_one(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts_module, "SEGMENT_ENTRIES", 20)
    model, options = make_language_model(), {"source": "texts", "parts": tmp_path / "parts"}
    folder = HistoryBank.build(model, WORD_TOKENIZER, TEXTS, tmp_path / "bank", source="texts")
    with ThreadPoolExecutor(2) as pool:
        together = [
            pool.submit(HistoryBank.build, model, WORD_TOKENIZER, TEXTS, place.format("of_two"), **options)
            for _ in range(2)
        ]
        made = [one.result() for one in together]
    assert [rows(one) for one in made] == [rows(folder)] * 2
    with pytest.raises(BankError, match="keys of the width"):
        HistoryBank.build(model, WORD_TOKENIZER, TEXTS, place.format("of_two"), key_width=2, **options)
