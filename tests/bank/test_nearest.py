"""Exact search against a sort of all cosines."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modeling_lle.bank import nearest as nearest_module
from modeling_lle.bank.nearest import best, nearest, similarities


@pytest.fixture(params=["numba", "torch"], autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr("modeling_lle.kernels.available.installed", lambda name: False)
    else:
        pytest.importorskip("numba")
    return request.param


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=str, autouse=True)
def first_product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest_module, "has_fast_bfloat16", lambda device: request.param == torch.bfloat16)


def make(Q: int, N: int, D: int, seed: int = 0, distinct: int | None = None) -> tuple[Tensor, Tensor]:
    """Queries (Q, D) and keys (N, D), of which only `distinct` differ."""
    generator = torch.Generator().manual_seed(seed)
    queries = torch.nn.functional.normalize(torch.randn(Q, D, generator=generator), dim=-1)
    keys = torch.nn.functional.normalize(torch.randn(distinct or N, D, generator=generator), dim=-1)
    return queries, keys[torch.arange(N) % (distinct or N)].bfloat16()


def by_sorting(queries: Tensor, keys: Tensor, usable: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    cosine = (queries[:, None] * keys.float()).sum(-1).masked_fill(~usable, -torch.inf)
    similarity, index = cosine.sort(dim=1, descending=True, stable=True)
    found = similarity.isfinite()
    similarity, index = similarity.masked_fill(~found, 0.0), index.masked_fill(~found, -1)
    missing = max(0, neighbours - len(keys))
    similarity = torch.nn.functional.pad(similarity, (0, missing))
    index = torch.nn.functional.pad(index, (0, missing), value=-1)
    return similarity[:, :neighbours], index[:, :neighbours]


@given(
    Q=st.integers(0, 5),
    N=st.integers(0, 700),
    D=st.sampled_from([1, 8, 70]),
    K=st.integers(1, 9),
    seed=st.integers(0, 9),
    share=st.sampled_from([0.0, 0.05, 0.7, 1.0]),
)
@settings(deadline=None, max_examples=30)
def test_finds_what_a_sort_finds(Q: int, N: int, D: int, K: int, seed: int, share: float) -> None:
    queries, keys = make(Q, N, D, seed)
    usable = torch.rand(N, generator=torch.Generator().manual_seed(seed)) < share
    similarity, index = nearest(queries, [(0, keys)], usable, K)
    expected, expected_index = by_sorting(queries, keys, usable, K)
    torch.testing.assert_close(similarity, expected, atol=2e-6, rtol=0)
    differs = index != expected_index  # only where two cosines are equal but for the order of a sum
    assert ((index < 0) == (expected_index < 0)).all()
    torch.testing.assert_close(similarity[differs], expected[differs], atol=2e-6, rtol=0)


def test_equal_scores_go_to_the_older_entry() -> None:
    queries, keys = make(4, 600, 16, distinct=3)
    _, index = nearest(queries, [(0, keys)], torch.ones(600, dtype=torch.bool), 5)
    best = index[:, 0]
    assert (best < 3).all()
    assert (index == best[:, None] + 3 * torch.arange(5)).all()


@pytest.mark.parametrize("distinct", [None, 7])
def test_other_entries_change_nothing(distinct: int | None) -> None:
    """Bit for bit: unusable entries are as good as absent, wherever they stand and however many they are."""
    queries, keys = make(16, 3000, 33, distinct=distinct)
    usable = torch.rand(3000, generator=torch.Generator().manual_seed(1)) < 0.3
    similarity, index = nearest(queries, [(0, keys)], usable, 20)
    places = usable.nonzero()[:, 0]
    alone, alone_index = nearest(queries, [(0, keys[places])], torch.ones(len(places), dtype=torch.bool), 20)
    assert torch.equal(similarity, alone)
    assert torch.equal(index, places[alone_index])


def test_blocks_of_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys = make(11, 50, 8)
    usable = torch.ones(50, dtype=torch.bool)
    whole = nearest(queries, [(0, keys)], usable, 4)
    monkeypatch.setattr(nearest_module, "SCORES", 120)
    for one, other in zip(whole, nearest(queries, [(0, keys)], usable, 4), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("cuts", [[50], [3, 47], [0, 1, 2, 47]])
def test_parts_change_nothing(cuts: list[int]) -> None:
    queries, keys = make(7, 50, 8, distinct=9)
    usable = torch.arange(50) % 5 > 0
    starts = torch.tensor([0, *cuts]).cumsum(0).tolist()
    parts = [(first, keys[first : first + size]) for first, size in zip(starts, cuts, strict=False)]
    for one, other in zip(nearest(queries, [(0, keys)], usable, 12), nearest(queries, parts, usable, 12), strict=True):
        assert torch.equal(one, other)


def test_candidates_get_the_same_cosines() -> None:
    queries, keys = make(5, 90, 70)
    similarity, index = nearest(queries, [(0, keys)], torch.ones(90, dtype=torch.bool), 6)
    candidates = torch.cat([index, torch.full((5, 2), -1)], dim=1).sort(1).values
    parts = [(0, keys[:40]), (40, keys[40:])]
    cosines = similarities(queries, candidates, parts)
    assert not cosines[candidates < 0].any()
    for one, other in zip(best(cosines, candidates, 6), (similarity, index), strict=True):
        assert torch.equal(one, other)
    fewer = best(cosines[:, :4], candidates[:, :4], 3)
    assert (fewer[1][:, -1] == -1).all()
    assert (fewer[0][:, -1] == 0).all()
