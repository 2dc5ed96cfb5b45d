"""Banks as Parquet: nothing that was forgotten is exported, and no damaged or forged file is imported."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from modeling_lle import HistoryBank
from modeling_lle.bank.files import FORMAT, BankError
from modeling_lle.bank.parquet import SCHEMA, _take_in, from_parquet, to_parquet
from scripts.benchmark.damage import corrupt_parquet_at_random, make_bank
from tests.factories.classifiers import make_classifier
from tests.factories.language_models import make_language_model
from tests.factories.texts import WORD_TOKENIZER, make_ids, make_texts


def test_a_damaged_parquet_file_leaves_nothing_half_made(tmp_path: Path) -> None:
    path = make_bank(tmp_path / "bank")
    assert corrupt_parquet_at_random(path, 60) == 0
    with pytest.raises(FileNotFoundError, match=r"there is no file .*/none: write it with `lle bank export`"):
        from_parquet(tmp_path / "none", tmp_path / "again")


def test_an_export_holds_nothing_that_was_forgotten(tmp_path: Path) -> None:
    """The names of labels and sources are gone even before the bank is compacted, and the others keep their labels."""
    model = make_classifier()
    model.learn(["a b", "c d", "e f"], ["zebra", "label-1", "yak"], WORD_TOKENIZER, new_labels=True, source="first")
    model.learn(["g h"], ["zebra"], source="zeppelin")
    model.forget(label="zebra")
    left = tmp_path / ".lle-writing-0a1b2c3d"  # of a process that was killed
    left.mkdir()
    (left / ".alive").touch()
    (left / "bank.parquet").write_bytes(b"zebra")
    assert to_parquet(model.history_bank, tmp_path / "bank.parquet") == 2
    written = pq.read_table(tmp_path / "bank.parquet")
    assert not any(
        word in repr(part) for word in ("zebra", "zeppelin") for part in (written.to_pylist(), written.schema.metadata)
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bank.parquet"]
    again = from_parquet(tmp_path / "bank.parquet", tmp_path / "again")
    assert again.manifest.labels == ("label-1", "yak")
    labels = [again.manifest.labels[entry.outcome] for entry in again.describe(range(2))]
    assert labels == [entry.columns["label"] for entry in again.describe(range(2))]


def forge_parquet(path: Path, change: Callable[[list[dict[str, Any]], dict[str, Any]], None]) -> None:
    """Changes the rows of an exported bank and what it says of itself; its checksum is right."""
    table = pq.read_table(path)
    rows, described = table.to_pylist(), json.loads(table.schema.metadata[FORMAT.encode()])
    change(rows, described)
    changed = pa.Table.from_pylist(rows, schema=SCHEMA)
    digest = hashlib.sha256()
    _take_in(digest, changed.to_pylist())
    pq.write_table(
        changed.replace_schema_metadata({FORMAT: json.dumps(described), "sha256": digest.hexdigest()}), path
    )


def keys_of(length: float) -> bytes:
    return torch.full((6,), length).bfloat16().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows, described: rows[0].update(keys=keys_of(1e30) * len(rows[0]["counts"])), "not normalised"),
        (lambda rows, described: rows[0].update(counts=[0] * len(rows[0]["counts"])), "never occurred"),
        (lambda rows, described: rows[0].update(counts=[]), "not as many keys"),
        (lambda rows, described: rows[0].update(columns="[" * 10**5), "damaged"),
        (lambda rows, described: rows[0].update(columns='{"source": 3}'), "without source"),
        (lambda rows, described: rows[0].update(positions=[10**6] * len(rows[0]["counts"])), "stand in no text"),
        (lambda rows, described: rows[0].update(source=None), "without source"),
        (lambda rows, described: described.update(width=None), "has None as width"),
        (lambda rows, described: described.update(width=4), "damaged"),
        (lambda rows, described: described.update(labels=[3]), "has 3 as label 0"),
        (lambda rows, described: described.update(version="x"), "newer version"),
    ],
)
def test_a_strangers_parquet_file(tmp_path: Path, change: Any, message: str) -> None:
    to_parquet(HistoryBank.open(make_bank(tmp_path / "bank")), tmp_path / "bank.parquet")
    forge_parquet(tmp_path / "bank.parquet", change)
    with pytest.raises(BankError, match=rf"bank.parquet .*{message}"):
        from_parquet(tmp_path / "bank.parquet", tmp_path / "again")
    assert not (tmp_path / "again" / "manifest.json").exists()


def test_a_bank_comes_back_without_what_was_forgotten(tmp_path: Path) -> None:
    model, ids = make_language_model(window=0), make_ids(2, 9)
    rows = [{"text": text, "user": f"user {number % 2}"} for number, text in enumerate(make_texts(6, 8))]
    bank = HistoryBank.build(model, WORD_TOKENIZER, rows, namespace="ann")
    bank.forget(where={"user": "user 1"})
    assert to_parquet(bank, tmp_path / "bank.parquet") == len(bank)
    again = from_parquet(tmp_path / "bank.parquet", tmp_path / "bank")
    assert (len(again), again.namespaces, again.fingerprint) == (len(bank), ["ann"], bank.fingerprint)
    logits = []
    for held in (bank, again):
        model.attach_history(held)
        with torch.no_grad():
            logits.append(model(ids).logits)
    torch.testing.assert_close(*logits)
    assert b"user 1" not in (tmp_path / "bank.parquet").read_bytes()


def test_a_bank_is_not_written_over_another(tmp_path: Path) -> None:
    bank = HistoryBank.build(make_language_model(), WORD_TOKENIZER, ["a b"], tmp_path / "bank")
    to_parquet(bank, tmp_path / "bank.parquet")
    with pytest.raises(FileExistsError, match="there is a bank at"):
        from_parquet(tmp_path / "bank.parquet", tmp_path / "bank")


def test_other_files_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("no Parquet")
    with pytest.raises(BankError, match="does not hold a bank: write it with `lle bank export`"):
        from_parquet(tmp_path / "other.parquet", tmp_path / "bank")
    with pytest.raises(BankError, match="is no Parquet file"):
        from_parquet(tmp_path / "text.parquet", tmp_path / "bank")
    with pytest.raises(FileNotFoundError, match="lle bank export"):
        from_parquet(tmp_path / "missing.parquet", tmp_path / "bank")
    assert not (tmp_path / "bank").exists()
