"""The corpus of the standard library: splits by package, always the same."""

from pathlib import Path

import pytest

from modeling_lle.data.corpus import TEST_PACKAGES, VALIDATION_PACKAGES, python_corpus


def test_python_corpus_splits_by_package() -> None:
    corpus = python_corpus(max_train_bytes=1_000_000)
    packages = {split: set(rows["package"]) for split, rows in corpus.items()}
    assert packages["validation"] == VALIDATION_PACKAGES
    assert packages["test"] == TEST_PACKAGES
    assert not packages["train"] & (VALIDATION_PACKAGES | TEST_PACKAGES)
    sizes = {split: sum(len(text.encode()) for text in rows["text"]) for split, rows in corpus.items()}
    assert 800_000 < sizes["train"] <= 1_000_000
    assert all(400_000 < sizes[split] < 600_000 for split in ("validation", "test"))
    assert not any("test/" in source or "site-packages" in source for source in corpus["train"]["source"])
    assert corpus["train"].to_dict() == python_corpus(max_train_bytes=1_000_000)["train"].to_dict()


def test_python_corpus_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="max_train_bytes is smaller"):
        python_corpus(max_train_bytes=1)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(FileNotFoundError, match="does not hold the sources of Python's standard library"):
        python_corpus()
