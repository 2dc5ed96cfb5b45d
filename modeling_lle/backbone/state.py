"""Operations on the opaque state of a backbone: a nest of tuples, lists and dictionaries of tensors, batch first.

Only the backbone that made a state knows what its parts mean; everyone else holds it and calls these functions. A
tensor alone is a state too; None is the state at the beginning of a text. Shapes: B batch.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

OpaqueState = Any
Nest = TypeVar("Nest")


def change_tensors(change: Callable[[Tensor], Tensor], state: Nest) -> Nest:
    """Returns a state of the same layout with `change(tensor)` in place of every tensor."""
    return state if state is None else _change(change, state)


def _change(change: Callable[[Tensor], Tensor], nest: Any) -> Any:
    if isinstance(nest, Tensor):
        return change(nest)
    if type(nest) is tuple or type(nest) is list:
        return type(nest)(_change(change, part) for part in nest)
    if type(nest) is dict:
        return {name: _change(change, part) for name, part in nest.items()}
    raise TypeError(
        f"a backbone's state may nest tuples, lists and dictionaries of tensors; this one holds {type(nest).__name__}"
    )


def tensors_of(state: OpaqueState) -> list[Tensor]:
    """Returns the tensors of a state, in a fixed order."""
    found: list[Tensor] = []
    change_tensors(lambda tensor: found.append(tensor) or tensor, state)  # type: ignore[func-returns-value]
    return found


def rows_of(state: OpaqueState) -> int:
    """Returns the batch size B of a state; -1 if it holds no tensor, as at the beginning of a text."""
    tensors = tensors_of(state)
    return tensors[0].shape[0] if tensors else -1


def reorder(state: Nest, order: Tensor) -> Nest:
    """Returns a state whose row i is row `order[i]`; order (rows,) int64."""
    return change_tensors(lambda tensor: tensor.index_select(0, order.to(tensor.device)), state)


def select(state: Nest, rows: Tensor | slice) -> Nest:
    """Returns some rows of a state: (rows,) int64, (B,) bool or a slice."""
    if isinstance(rows, slice):
        return change_tensors(lambda tensor: tensor[rows], state)
    return change_tensors(lambda tensor: tensor[rows.to(tensor.device)], state)


def repeat(state: Nest, repeats: int) -> Nest:
    """Returns a state in which every row stands `repeats` times, side by side."""
    return change_tensors(lambda tensor: tensor.repeat_interleave(repeats, dim=0), state)


def detach(state: Nest) -> Nest:
    """Returns a state through which no gradient flows."""
    return change_tensors(Tensor.detach, state)


def move(state: Nest, device: torch.device | str) -> Nest:
    """Returns a state on another device."""
    return change_tensors(lambda tensor: tensor.to(device), state)


def join(states: list[Nest]) -> Nest:
    """Returns one state with the rows of several states, which have the same layout."""
    columns: Iterator[tuple[Tensor, ...]] = zip(*map(tensors_of, states), strict=True)
    return change_tensors(lambda _: torch.cat(next(columns)), states[0])


def named_tensors(state: OpaqueState, name: str) -> dict[str, Tensor]:
    """Returns the tensors of a state by names from which `from_named_tensors` restores the layout.

    Args:
        state: The state.
        name: The beginning of the names; part 3 of a tuple adds ".3", part 3 of a list ".[3]", part "a" of a
            dictionary, whose names begin with a letter and have no dot, ".a".
    """
    if state is None:
        return {}
    if isinstance(state, Tensor):
        return {name: state}
    form = "{}.[{}]" if isinstance(state, list) else "{}.{}"
    places = state.items() if isinstance(state, dict) else enumerate(state)
    parts = [named_tensors(part, form.format(name, place)) for place, part in places]
    return {key: tensor for part in parts for key, tensor in part.items()}


def from_named_tensors(tensors: dict[str, Tensor], name: str) -> OpaqueState:
    """Returns the state that `named_tensors` gave these names; None if no tensor's name begins with `name`."""
    if name in tensors:
        return tensors[name]
    places = dict.fromkeys(key[len(name) + 1 :].split(".")[0] for key in tensors if key.startswith(f"{name}."))
    if not places:
        return None
    if any(place[0].isalpha() for place in places):
        return {place: from_named_tensors(tensors, f"{name}.{place}") for place in places}
    parts = [from_named_tensors(tensors, f"{name}.{place}") for place in sorted(places, key=_number)]
    return parts if any(place.startswith("[") for place in places) else tuple(parts)


def _number(place: str) -> int:
    return int(place.strip("[]"))
