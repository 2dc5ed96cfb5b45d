"""Measurements of one streaming pass."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_lle.evaluation.stream import ages


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=20), min_size=1, max_size=4))
def test_ages(rows: list[list[int]]) -> None:
    expected = []
    for row in rows:
        last: dict[int, int] = {}
        for place, token in enumerate(row):
            expected.append(place - last.get(token, place))
            last[token] = place
    targets = np.array([token for row in rows for token in row])
    position = np.concatenate([np.arange(len(row)) for row in rows])
    assert ages(targets, position).tolist() == expected
