"""The files of search indexes: found by the segments that they know, and removed when those are gone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from modeling_lle.bank.files import Folder
from modeling_lle.bank.index_files import IndexFile, find_indexes, index_files, index_folder, save_index, stale_indexes


class Info:
    """The part of a `SegmentInfo` that indexes are found by."""

    def __init__(self, name: str, entries: int, namespace: str = "default") -> None:
        self.file, self.entries, self.namespace = type("File", (), {"name": name}), entries, namespace


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def save(folder: Folder, infos: Sequence[Any], maker: str = "maker") -> IndexFile:
    return save_index(folder, infos, maker, lambda path: Path(path).write_text(str(len(infos))))


def test_an_index_is_found_while_it_knows_most_entries(folder: Folder) -> None:
    infos: list[Any] = [Info("one", 90), Info("two", 10)]
    made = save(folder, infos)
    assert find_indexes(folder, infos, "maker") == [made]
    assert find_indexes(folder, infos, "other maker") == []
    assert find_indexes(folder, [*infos, Info("new", 10)], "maker") == [made]  # type: ignore[list-item]
    assert find_indexes(folder, [*infos, Info("new", 90)], "maker") == []  # type: ignore[list-item]
    assert made.is_own


def test_a_new_index_takes_the_place_of_that_of_its_namespaces(folder: Folder) -> None:
    first: list[Any] = [Info("one", 9)]
    other: list[Any] = [Info("three", 9, "ann")]
    save(folder, first)
    kept, newest = save(folder, other), save(folder, [*first, Info("two", 9)])  # type: ignore[list-item]
    assert sorted(file.path for file in index_files(folder)) == sorted([kept.path, newest.path])


def test_an_index_of_segments_that_are_gone_is_stale(folder: Folder) -> None:
    infos: list[Any] = [Info("one", 9), Info("two", 9)]
    made = save(folder, infos)
    assert stale_indexes(folder, ["one", "two", "three"]) == []
    assert stale_indexes(folder, ["one"]) == sorted([made.path, made.list_path])
    made.remove()
    assert list(index_folder(folder).iterdir()) == []


def test_nothing_is_known_of_an_index_whose_list_was_changed(folder: Folder) -> None:
    infos: list[Any] = [Info("one", 9)]
    made = save(folder, infos)
    made.list_path.write_text(made.list_path.read_text().replace("one", "two"))
    made.path.write_text("other")
    (found,) = index_files(folder)
    assert (found.known, found.is_own) == ({}, False)
    assert find_indexes(folder, infos, "maker") == []
