"""Opaque states: whatever the nest, rows go where they are sent, and names tell the layout."""

from typing import Any

import pytest
import torch
from torch import Tensor

from modeling_lle.backbone.state import (
    change_tensors,
    detach,
    from_named_tensors,
    join,
    move,
    named_tensors,
    reorder,
    repeat,
    rows_of,
    select,
    tensors_of,
)

ROWS = torch.arange(3.0)
NESTS: dict[str, Any] = {
    "flat": (ROWS, ROWS[:, None] + 10),
    "nested": [ROWS, (ROWS + 10, [ROWS[:, None] + 20, ROWS + 30])],
    "tensor": ROWS,
    "named": {"mask": ROWS, "layer10": {"conv_0": ROWS[:, None] + 10}, "layer2": (ROWS + 20,)},
    "long": tuple(ROWS + number for number in range(12)),
}
every_nest = pytest.mark.parametrize("state", NESTS.values(), ids=NESTS)


def layout(state: Any) -> Any:
    if isinstance(state, dict):
        return {name: layout(part) for name, part in state.items()}
    return "tensor" if isinstance(state, Tensor) else type(state)(map(layout, state))


def assert_rows(state: Any, like: Any, rows: list[int]) -> None:
    assert layout(state) == layout(like)
    assert rows_of(state) == len(rows)
    for got, old in zip(tensors_of(state), tensors_of(like), strict=True):
        assert torch.equal(got, old[rows])


@every_nest
def test_rows_go_where_they_are_sent(state: Any) -> None:
    assert_rows(reorder(state, torch.tensor([2, 0, 0])), state, [2, 0, 0])
    assert_rows(select(state, torch.tensor([2, 1])), state, [2, 1])
    assert_rows(select(state, torch.tensor([True, False, True])), state, [0, 2])
    assert_rows(select(state, slice(1, 2)), state, [1])
    assert_rows(repeat(state, 2), state, [0, 0, 1, 1, 2, 2])
    assert_rows(join([select(state, slice(1, 3)), select(state, slice(1))]), state, [1, 2, 0])


@every_nest
def test_names_tell_the_layout(state: Any) -> None:
    named = named_tensors(state, "state")
    assert all(name == "state" or name.startswith("state.") for name in named)
    assert_rows(from_named_tensors({**named, "stream.keys": ROWS}, "state"), state, [0, 1, 2])


def test_names_of_a_flat_state_are_those_of_older_checkpoints() -> None:
    assert list(named_tensors(NESTS["flat"], "state")) == ["state.0", "state.1"]


@every_nest
def test_tensors_are_detached_and_moved(state: Any) -> None:
    tracked = change_tensors(lambda tensor: tensor.clone().requires_grad_(), state)
    assert not any(tensor.requires_grad for tensor in tensors_of(detach(tracked)))
    assert all(tensor.is_meta for tensor in tensors_of(move(state, "meta")))


def test_none_begins_a_text() -> None:
    assert rows_of(None) == -1
    assert select(None, slice(1)) is reorder(None, ROWS.long()) is None
    assert named_tensors(None, "state") == {}
    assert from_named_tensors({"stream.keys": ROWS}, "state") is None


def test_other_parts_are_an_error_that_names_them() -> None:
    with pytest.raises(TypeError, match="nest tuples, lists and dictionaries of tensors; this one holds set"):
        detach(({"h"},))
