"""Labels as they stand in files."""

from typing import Any

import pytest

from modeling_lle.history.label_rule import MULTI, REGRESSION, SINGLE, outcome_name
from modeling_lle.saved import read_label


@pytest.mark.parametrize(
    ("kind", "value", "name"),
    [
        (SINGLE, "01", "01"),
        (SINGLE, 1, "1"),
        (SINGLE, True, "true"),
        (SINGLE, "[1]", "[1]"),
        (MULTI, "a", '["a"]'),
        (MULTI, "true", '["true"]'),
        (MULTI, '["b", "a", 1]', '["1", "a", "b"]'),
        (MULTI, ["a", False], '["a", "false"]'),
        (MULTI, 3, '["3"]'),
        (REGRESSION, "1e3", "1000.0"),
        (REGRESSION, 2, "2.0"),
    ],
)
def test_labels_that_can_be_taught(kind: str, value: Any, name: str) -> None:
    assert outcome_name(read_label(value, kind), kind) == name


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *((SINGLE, value) for value in (None, "", " ", 1.5, ["a"], {"a": 1})),
        *((MULTI, value) for value in (None, " ", 1.5, [None], [["a"]], {"a": 1})),
        *((REGRESSION, value) for value in (None, "", "much", True, "nan", [1])),
    ],
)
def test_labels_that_cannot(kind: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"the label .* should be a (text|list|finite)"):
        outcome_name(read_label(value, kind), kind)
