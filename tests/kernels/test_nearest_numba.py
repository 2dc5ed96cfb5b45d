"""The kernels of the search against plain arithmetic."""

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from modeling_lle.bank.nearest import nearest
from modeling_lle.bank.sketch import Sketch
from tests.kernels.contract import Case, Maker, Values, check, few_examples

pytest.importorskip("numba")
from modeling_lle.kernels.nearest_numba import CHUNK, fill_from_file, fill_similarities, nearest_of_scores, store_keys


def _fill_similarities(cosines: Tensor, candidates: Tensor, queries: Tensor, keys: Tensor, first: int) -> list[Tensor]:
    own = (candidates >= first) & (candidates < first + len(keys))
    row, column = own.nonzero(as_tuple=True)
    filled = cosines.clone()
    filled[row, column] = (queries[row] * keys[candidates[row, column] - first].float()).sum(-1)
    return [filled]


def _nearest(queries: Tensor, keys: Tensor, usable: Tensor, neighbours: int) -> list[Tensor]:
    cosines = (queries[:, None] * keys.float()).sum(-1)
    found = usable & ~cosines.isnan()
    places = cosines.masked_fill(~found, -math.inf).sort(dim=1, descending=True, stable=True)
    similarity = torch.nn.functional.pad(places.values, (0, neighbours), value=-math.inf)[:, :neighbours]
    index = torch.nn.functional.pad(places.indices, (0, neighbours), value=-1)[:, :neighbours]
    return [similarity.masked_fill(similarity == -math.inf, 0), index.masked_fill(similarity == -math.inf, -1)]


def _nearest_of_scores(
    scores: Tensor, queries: Tensor, keys: Tensor, usable: Tensor, slack: float, neighbours: int
) -> list[Tensor]:
    assert scores.shape == (len(queries), len(keys))
    return _nearest(queries, keys, usable, neighbours)


def _store_keys(states: Tensor, places: Tensor, keys: Tensor) -> list[Tensor]:
    stored = keys.clone()
    for state, place in zip(states.flatten(0, 1), places.flatten().tolist(), strict=True):
        if place >= 0:
            stored[place] = torch.nn.functional.normalize(state, dim=0).bfloat16()
    return [stored]


def make_search(m: Maker) -> Values:
    Q, N, D = m.size("Q"), m.size("N") * 130, m.size("D")
    queries, keys = m.unit(Q, D), m.unit(N, D, dtype=torch.bfloat16)
    if m.data.draw(st.booleans(), label="keys or queries that are no numbers"):
        queries[:1], keys[::3] = m.data.draw(st.sampled_from([math.nan, 0.5])), math.nan
    usable, K = m.places(0, 2, N).bool(), 1 + m.size("K")
    return {"queries": queries, "keys": keys, "usable": usable, "neighbours": K}


def make_scores(m: Maker) -> Values:
    own = make_search(m)
    neighbours = own.pop("neighbours")
    scores = own["queries"] @ own["keys"].float().T
    return {"scores": scores, **own, "slack": 0.01, "neighbours": neighbours}


CASES = {
    "fill_similarities": Case(
        fill_similarities,
        lambda m: {
            "cosines": m.floats(m.size("Q"), m.size("C")),
            "candidates": m.places(-1, m.size("N") + 4, m.size("Q"), m.size("C")),
            "queries": m.unit(m.size("Q"), m.size("D")),
            "keys": m.unit(m.size("N"), m.size("D"), dtype=torch.bfloat16),
            "first": m.size("first"),
        },
        _fill_similarities,
        ("cosines",),
    ),
    "nearest_of_scores": Case(
        nearest_of_scores,
        make_scores,
        _nearest_of_scores,
    ),
    "nearest": Case(
        lambda queries, keys, usable, neighbours: nearest(queries, [(0, keys)], usable, neighbours),
        make_search,
        _nearest,
    ),
    "store_keys": Case(
        store_keys,
        lambda m: {
            "states": m.floats(m.size("B"), m.size("T"), m.size("D")),
            "places": torch.arange(m.size("B") * m.size("T")).view(m.size("B"), m.size("T")) - 1,
            "keys": m.floats(m.size("B") * m.size("T"), m.size("D"), dtype=torch.bfloat16),
        },
        _store_keys,
        ("keys",),
    ),
}


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@few_examples
def test_a_kernel_gives_what_its_definition_gives_or_a_value_error(name: str, data: Any) -> None:
    check(CASES[name], data)


def keys_in_file(folder: Path, number: int) -> int:
    """An open file of 16 bytes, and after them as many keys of 3 channels."""
    path = folder / "keys"
    path.write_bytes(bytes(16 + 6 * number))
    return os.open(path, os.O_RDONLY)


@pytest.mark.parametrize(("offset", "count"), [(16, 6), (17, 5), (10**9, 5), (1 << 62, 5), (-1, 5), (16, 1 << 60)])
def test_keys_beyond_the_end_of_a_file_are_an_error(tmp_path: Path, offset: int, count: int) -> None:
    file = keys_in_file(tmp_path, 5)
    candidates, queries = torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, 3)
    with pytest.raises(OSError, match=r"should lie in bytes -?\d+ to \d+ of their file, which has 46"):
        fill_from_file(torch.zeros(2, 1), candidates, queries, file, offset, 0, count)
    os.close(file)


@pytest.mark.parametrize("change", ["axes", "steps", "codes", "others", "rest", "keys", "usable", "neighbours"])
def test_a_sketch_of_other_keys_is_refused(change: str) -> None:
    keys = torch.nn.functional.normalize(torch.randn(CHUNK + 4, 16), dim=-1).bfloat16()
    sketch, usable = Sketch.of(keys), torch.ones(len(keys), dtype=torch.bool)
    neighbours = 0 if change == "neighbours" else 2
    if change == "keys":
        keys = keys[:CHUNK]
    elif change == "usable":
        usable = usable[1:]
    elif change != "neighbours":
        sketch = dataclasses.replace(sketch, **{change: getattr(sketch, change)[:1]})
    with pytest.raises(ValueError, match=r"should be|at least"):
        sketch.search(torch.zeros(1, 16), keys, usable, neighbours, 3)


def test_a_query_that_is_no_number_is_left_to_the_search_without_a_sketch() -> None:
    keys = torch.nn.functional.normalize(torch.randn(CHUNK, 16), dim=-1).bfloat16()
    queries = torch.tensor([[0.25] * 16, [math.nan] * 16, [math.inf] * 16])
    usable = torch.ones(CHUNK, dtype=torch.bool)
    *_, found = Sketch.of(keys).search(queries, keys, usable, 2, CHUNK)
    assert found.tolist() == [True, False, False]


@pytest.mark.parametrize("transposed", [False, True])
def test_keys_are_normalised_states_in_their_places(transposed: bool) -> None:
    states = torch.randn(3, 4, 70, generator=torch.Generator().manual_seed(0))
    states[0, 0] = 0
    places = torch.tensor([[2, -1, 0, 5], [1, 3, -1, -1], [4, 6, 7, -1]])
    given = states.transpose(0, 1).contiguous().transpose(0, 1) if transposed else states
    keys = torch.full((9, 70), 7.0, dtype=torch.bfloat16)
    store_keys(given, places, keys)
    want = torch.full((9, 70), 7.0)
    want[places[places >= 0]] = torch.nn.functional.normalize(states[places >= 0], dim=-1)
    torch.testing.assert_close(keys.float(), want.bfloat16().float(), atol=2e-3, rtol=8e-3)
