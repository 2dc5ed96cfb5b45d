"""Where rows come from: splits by their names, columns, files of one kind."""

import pytest

from modeling_lle.data.rows import check_column
from modeling_lle.data.splits import pick_split


def test_a_split_may_be_called_by_its_other_name() -> None:
    assert pick_split("test", ["train", "test"], "data") == "test"
    assert pick_split("valid", ["train", "validation"], "data") == "validation"
    assert pick_split(None, ["train"], "data") == "train"


def test_a_split_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(ValueError, match="data has no split 'dev'; it has: train, other"):
        pick_split("dev", ["train", "other"], "data")


def test_a_misspelt_column_proposes_the_near_one() -> None:
    check_column("text", ["text", "label"], "data")
    with pytest.raises(ValueError, match="did you mean 'text'"):
        check_column("txet", ["text", "label"], "data")
