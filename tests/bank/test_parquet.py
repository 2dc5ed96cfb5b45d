"""Banks as Parquet: what is written is read back, and another file is refused."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from modeling_lle import HistoryBank
from modeling_lle.bank.files import BankError
from modeling_lle.bank.parquet import from_parquet, to_parquet
from tests.factories.language_models import make_language_model
from tests.factories.texts import WORD_TOKENIZER, make_ids, make_texts


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
    with pytest.raises(FileExistsError):
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
