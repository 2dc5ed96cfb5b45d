"""What is held out of data without splits: whole documents, drawn by seed."""

import pytest
from datasets import Dataset

from modeling_lle.training.held_out import hold_out_documents, hold_out_pairs


def test_lines_of_a_document_stay_on_one_side() -> None:
    rows = Dataset.from_dict(
        {
            "text": [f"line {n % 10} of file {n // 10}" for n in range(300)],
            "file": [f"{n // 10}.txt" for n in range(300)],
        }
    )
    parts = hold_out_documents(rows, "text", (0.1, 0.1), seed=0)
    files = [set(part["file"]) for part in parts]
    assert all(2 <= len(part) <= 4 for part in files[1:])
    assert sum(map(len, parts)) == 300
    assert len(files[0] | files[1] | files[2]) == 30
    again = hold_out_documents(rows, "text", (0.1, 0.1), seed=1)
    assert set(again[1]["file"]) != files[1]


def test_one_document_is_cut_into_contiguous_parts() -> None:
    text = "".join(f"line {n}\n" for n in range(100))
    parts = hold_out_documents(Dataset.from_dict({"text": [text]}), "text", (0.1, 0.1), seed=0)
    assert "".join(part["text"][0] for part in parts) == text
    assert all(part["text"][0].startswith("line ") for part in parts)


def test_pairs_of_one_source_stay_together() -> None:
    pairs = Dataset.from_dict({"source": [f"s{n % 20}" for n in range(60)], "target": [f"t{n}" for n in range(60)]})
    train, validation, test = hold_out_pairs(pairs, (0.1, 0.1), seed=0)
    assert not set(train["source"]) & (set(validation["source"]) | set(test["source"]))
    with pytest.raises(ValueError, match="too few to hold any out"):
        hold_out_pairs(pairs.select([0]), (0.5, 0.1), seed=0)
