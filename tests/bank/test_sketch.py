"""The search with a sketch against that without, bit for bit, and the bounds it rests on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modeling_lle import HistoryBank
from modeling_lle.bank import sketch as sketch_module
from modeling_lle.bank.nearest import nearest
from modeling_lle.bank.sketch import ExactSearch, Sketch
from tests.factories.language_models import make_language_model
from tests.factories.texts import make_texts, make_word_tokenizer

pytest.importorskip("numba")


def make(Q: int, N: int, D: int, seed: int, groups: int, spread: float) -> tuple[Tensor, Tensor]:
    """Queries (Q, D) and keys (N, D) around the same few directions, some of them twice, some of them zero."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(groups, D, generator=generator)

    def near(number: int) -> Tensor:
        own = centres[torch.randint(groups, (number,), generator=generator)]
        return torch.nn.functional.normalize(own + spread * torch.randn(number, D, generator=generator), dim=-1)

    queries, keys = near(Q), near(N).bfloat16()
    keys[::7] = keys[: len(keys[::7])].clone()
    keys[::11] = 0
    if Q > 2:
        queries[0], queries[1] = 0, keys[-1].float() if N else 0
    return queries, keys


cases = given(
    Q=st.integers(1, 4),
    N=st.integers(1, 700),
    D=st.sampled_from([1, 7, 16, 70, 130]),
    K=st.integers(1, 9),
    seed=st.integers(0, 99),
    groups=st.sampled_from([1, 5, 300]),
    spread=st.sampled_from([0.0, 0.1, 1.0]),
    share=st.sampled_from([0.0, 0.05, 0.7, 1.0]),
)


@cases
@settings(deadline=None, max_examples=150)
def test_finds_the_same_to_the_last_bit(
    Q: int, N: int, D: int, K: int, seed: int, groups: int, spread: float, share: float
) -> None:
    queries, keys = make(Q, N, D, seed, groups, spread)
    usable = torch.rand(N, generator=torch.Generator().manual_seed(seed)) < share
    due = nearest(queries, [(0, keys)], usable, K)
    *got, found = Sketch.of(keys).search(queries, keys, usable, K, N)
    assert bool(found.all())
    for one, other in zip(got, due, strict=True):
        assert torch.equal(one, other)


@cases
@settings(deadline=None, max_examples=60)
def test_bounds_hold(Q: int, N: int, D: int, K: int, seed: int, groups: int, spread: float, share: float) -> None:
    queries, keys = make(Q, N, D, seed, groups, spread)
    sketch, cosines = Sketch.of(keys), queries.double() @ keys.double().T
    assert bool((sketch.bounds(queries) >= cosines).all())
    assert bool((sketch.bounds(queries, every_axis=False) >= cosines).all())


def test_leaves_most_of_a_bank_out_where_keys_lie_near_few_directions() -> None:
    queries, keys = make(3, 3000, 128, 0, 12, 0.3)
    usable = torch.ones(3000, dtype=torch.bool)
    *_, found = Sketch.of(keys).search(queries[2:], keys, usable, 20, 600)
    assert bool(found.all())


@pytest.mark.parametrize("spread", [0.1, 3.0], ids=["answers", "cannot answer"])
def test_takes_over_after_many_searches_and_gives_up_where_it_cannot_answer(
    spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sketch_module, "LEAST", 0)
    monkeypatch.setattr(sketch_module, "PATIENCE", 5)
    queries, keys = make(60, 1000, 64, 0, 20, spread)
    usable = torch.arange(1000) % 3 > 0
    search = ExactSearch([(0, keys)], usable)
    for number, query in enumerate(queries[2:]):
        for one, other in zip(search(query[None], 8), nearest(query[None], [(0, keys)], usable, 8), strict=True):
            assert torch.equal(one, other)
        assert (search.sketch is None) == (number < 5)
    if spread < 1:
        assert search.answered + search.unanswered == 53
        assert search.answered > 40
    else:
        assert search.answered == 0
        assert search.unanswered == sketch_module.TRIES


def test_a_bank_finds_and_forgets_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sketch_module, "LEAST", 0)
    monkeypatch.setattr(sketch_module, "PATIENCE", 0)
    bank = HistoryBank.build(make_language_model(), make_word_tokenizer(), make_texts(30, 9))
    queries = next(bank.segments())[1].keys[3:60:4].float()
    gone = torch.zeros(0, dtype=torch.long)
    for _ in range(2):
        view = bank.snapshot().view(None, "exact")
        for query in queries:
            found = bank.search(query[None], 8, how="exact")
            similarity, index = nearest(query[None], view.parts, view.usable, 8)
            assert torch.equal(found.similarity, similarity)
            assert torch.equal(found.ids, view.ids[index])
            assert not torch.isin(found.ids, gone).any()
        assert view.exact.sketch is not None
        gone = found.ids[0, :3]
        bank.forget(ids=gone.tolist())


def test_keys_that_are_no_numbers_are_searched_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sketch_module, "LEAST", 0)
    monkeypatch.setattr(sketch_module, "PATIENCE", 0)
    queries, keys = make(1, 100, 16, 0, 5, 0.1)
    keys[3] = torch.nan
    usable = torch.ones(100, dtype=torch.bool)
    for one, other in zip(
        ExactSearch([(0, keys)], usable)(queries, 4), nearest(queries, [(0, keys)], usable, 4), strict=True
    ):
        assert torch.equal(one, other)
