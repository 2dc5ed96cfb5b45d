"""Names: which are files of this machine, and which may be repositories of the Hub."""

from pathlib import Path

import pytest

from modeling_lle.common.paths import looks_like_file, may_be_on_hub, not_found


def test_only_names_that_can_be_repositories_are_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    names = {"gpt2": True, "owner/name-1.5": True, "runs/mine": False, "runs/yours": False, "runs": False}
    names |= {"a.txt": False, "owner/data.csv": False, "./a": False, "/a/b": False, "a/b/c": False, "~/a": False}
    names |= {"two words": False, "train.xx": True}
    assert {name: may_be_on_hub(name) for name in names} == names
    assert not may_be_on_hub("train.xx", endings=(".xx",))


def test_a_text_is_no_file_name() -> None:
    names = {"a.txt": True, "b/c.MD": True, "what is in a.txt": False, "e.g.": False, "": False, "v1.5": False}
    assert {name: looks_like_file(name) for name in names} == names


def test_a_missing_path_is_named_with_near_ones(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    assert "holds no 'texst'; near names there: texts" in not_found(tmp_path / "texst" / "a.txt")
