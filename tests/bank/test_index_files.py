"""The files of search indexes: found by what they cover, one for the same namespaces, none left of what is gone."""

import json
from pathlib import Path

import pytest

from modeling_lle.bank.files import File, Folder, SegmentInfo
from modeling_lle.bank.index_files import (
    IndexFile,
    _key,
    find_indexes,
    index_files,
    index_folder,
    remove_stale_indexes,
    save_index,
    stale_indexes,
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A folder of its own, and a home, whose secret seals the indexes."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    (tmp_path / "bank").mkdir()
    return Folder(tmp_path / "bank")


def infos(sizes: dict[str, int], namespace: str = "default") -> list[SegmentInfo]:
    return [SegmentInfo(File(name, 1, ""), namespace, size, size, 1) for name, size in sizes.items()]


def save(folder: Folder, sizes: dict[str, int], maker: str = "maker 1", namespace: str = "default") -> IndexFile:
    return save_index(folder, infos(sizes, namespace), maker, lambda path: Path(path).write_text(f"{sizes}"))


def test_the_index_that_covers_most_is_found_first(folder: Folder) -> None:
    assert list(index_files(folder)) == find_indexes(folder, infos({"a": 10}), "maker 1") == []
    part, whole = save(folder, {"a": 90}, namespace="one"), save(folder, {"a": 90, "b": 5}, namespace="two")
    save(folder, {"a": 90, "b": 10}, "maker 2", "three")
    save(folder, {"c": 100}, namespace="four")
    assert find_indexes(folder, infos({"a": 90, "b": 5}), "maker 1") == [whole, part]
    assert find_indexes(folder, infos({"a": 90, "b": 40}), "maker 1") == []
    assert whole.is_own
    whole.path.write_text("other")
    assert not whole.is_own


def test_the_share_that_has_changed() -> None:
    index = IndexFile(Path("x.faiss"), known={"a": 80, "b": 20})
    assert index.changed({"a": 80, "b": 20}) == 0
    assert index.changed({"a": 80}) == pytest.approx(0.2)
    assert index.changed({"a": 80, "b": 20, "c": 100}) == pytest.approx(0.5)
    assert index.changed({"a": 79}) == 1  # another segment of the name
    assert index.changed({}) == 1


def test_an_index_replaces_the_one_for_the_same_namespaces(folder: Folder) -> None:
    other = save(folder, {"x": 5}, namespace="other")
    save(folder, {"a": 5})
    newest = save(folder, {"a": 5, "b": 5})
    assert sorted(file.path for file in index_files(folder)) == sorted([other.path, newest.path])
    assert len(list(index_folder(folder).iterdir())) == 4  # each with its list
    newest.remove()
    assert [file.path for file in index_files(folder)] == [other.path]


def test_indexes_of_what_is_gone_are_stale(folder: Folder) -> None:
    assert stale_indexes(folder, []) == []
    kept, gone = save(folder, {"a": 5}), save(folder, {"a": 5, "b": 5}, namespace="other")
    partial, foreign = index_folder(folder) / ".partial-0a", index_folder(folder) / "notes.txt"
    partial.touch()
    foreign.touch()
    assert stale_indexes(folder, ["a", "c"]) == sorted([gone.path, gone.list_path, partial])
    remove_stale_indexes(folder, ["a", "c"])
    assert sorted(index_folder(folder).iterdir()) == sorted([kept.path, kept.list_path, foreign])


@pytest.mark.parametrize(
    "values",
    [3, [], ["maker 1", ["default"], 3], ["maker 1", ["default"], [["a"]]], ["m", 3, []], ["m", [], [["a", "x"]]]],
)
def test_an_index_whose_list_is_none_covers_nothing(folder: Folder, values: object) -> None:
    made, data = save(folder, {"a": 5}), json.dumps(values).encode()
    forged = made.path.with_name(f"{_key(data)}-{'0' * 64}.faiss")
    made.path.rename(forged)
    (index_folder(folder) / f"{_key(data)}.json").write_bytes(data)
    assert [(file.path, file.known) for file in index_files(folder)] == [(forged, {})]
    assert find_indexes(folder, infos({"a": 5}), "maker 1") == []
    assert forged in stale_indexes(folder, ["a"])
