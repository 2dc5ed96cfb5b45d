"""Comparing two checkouts: no bit that differs, and no value that is missing, passes unnoticed."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from scripts import compare as script
from scripts.compare import Row, compare
from scripts.probe import flat

VALUES = {"a/loss": torch.tensor(2.0), "a/ids": torch.tensor([3, 4]), "b/text": torch.tensor([97], dtype=torch.uint8)}


def rows_that_differ(**changes: Tensor) -> list[Row]:
    return [
        row
        for row in compare(VALUES, {**VALUES, **{f"a/{name}": value for name, value in changes.items()}})
        if not row.identical
    ]


def test_equal_values_are_identical() -> None:
    rows = compare(VALUES, {name: value.clone() for name, value in VALUES.items()})
    assert [row.name for row in rows] == sorted(VALUES)
    assert all(row.identical and row.difference == 0 for row in rows)


def test_the_last_bit_counts() -> None:
    (row,) = rows_that_differ(loss=torch.tensor(2.0).nextafter(torch.tensor(3.0)))
    assert (row.name, row.difference) == ("a/loss", 2**-22)


@pytest.mark.parametrize(
    ("loss", "difference"),
    [
        (torch.tensor(2.0, dtype=torch.float64), 0.0),
        (torch.tensor([2.0]), None),
        (torch.tensor(torch.nan), torch.inf),
        (torch.tensor(-torch.inf), torch.inf),
    ],
)
def test_type_shape_and_infinities_count(loss: Tensor, difference: float | None) -> None:
    (row,) = rows_that_differ(loss=loss)
    assert row.difference == difference


def test_the_sign_of_zero_counts() -> None:
    (row,) = compare({"x": torch.tensor(0.0)}, {"x": torch.tensor(-0.0)})
    assert (row.identical, row.difference) == (False, 0.0)


def test_missing_values_count_on_either_side() -> None:
    fewer = {name: value for name, value in VALUES.items() if name != "a/ids"}
    for one, other, digests in ((VALUES, fewer, (True, False)), (fewer, VALUES, (False, True))):
        (row,) = [row for row in compare(one, other) if not row.identical]
        assert (row.name, row.before != "-", row.after != "-", row.difference) == ("a/ids", *digests, None)


@pytest.mark.parametrize(("changed", "status"), [(False, 0), (True, 1)])
def test_the_table_and_the_exit_status(
    changed: bool, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    after = {**VALUES, "b/text": torch.tensor([98], dtype=torch.uint8)} if changed else VALUES
    monkeypatch.setattr(script, "run_probe", lambda checkout: {Path("one"): VALUES, Path("two"): after}[checkout])
    assert script.main(["one", "two"]) == status
    printed = capsys.readouterr().out
    assert ("b/text" in printed) == changed
    assert ("1 of 3 values differ" if changed else "3 values are identical") in printed
    script.main(["one", "two", "--all"])
    assert "a/loss" in capsys.readouterr().out


def test_a_folder_without_the_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no package at {tmp_path}"):
        script.run_probe(tmp_path)


def test_everything_but_measured_time_is_written_down() -> None:
    values = {"loss": 0.5, "names": ["x", "yz"], "ids": [1, 2], "all": [{"w": torch.ones(2)}], "eval_runtime": 3.0}
    found = flat(values, "part")
    assert set(found) == {"part/loss", "part/names/0", "part/names/1", "part/ids", "part/all/0/w"}
    assert found["part/names/1"].tolist() == list(b"yz")
