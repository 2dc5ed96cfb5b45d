"""Batches of texts of similar length."""

import pytest

from modeling_lle.common.batches import batches


def test_batches_hold_texts_of_similar_length() -> None:
    lengths = [5, 1, 9000, 3, 4096, 4096, 4096]
    made = list(batches(lengths))
    assert made == [[1, 3, 0], [4, 5], [6], [2]]
    assert list(batches([1] * 5, most=2)) == [[0, 1], [2, 3], [4]]
    with pytest.raises(ValueError, match="the tokenizer makes no token of text 1: leave it out"):
        list(batches([1, 0]))
