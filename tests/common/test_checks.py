"""Whatever a kernel is given, it gives what its definition gives, or a ValueError: it never leaves its arrays."""

import dataclasses
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from modeling_lle.bank.found import Found
from modeling_lle.bank.nearest import nearest
from modeling_lle.bank.sketch import Sketch
from modeling_lle.common.checks import expect, expect_places
from modeling_lle.history.label_rule import SINGLE, Features, LabelSpace, Mixture, Recalled
from modeling_lle.history.rule import Recall, base_features, kernel, log_age, recall_bank
from modeling_lle.kernels.lstm import lstm
from modeling_lle.kernels.scan import gated_scan_reference

pytest.importorskip("numba")

from modeling_lle.kernels import labels_numba as label_kernels
from modeling_lle.kernels import nearest_numba as nearest_kernels
from modeling_lle.kernels import numba_tools as numba_tools_module
from modeling_lle.kernels import recall_numba as recall_kernels
from modeling_lle.kernels import scan_numba as scan_kernels
from modeling_lle.kernels import softmax_numba as softmax_kernels
from modeling_lle.kernels.nearest_numba import CHUNK

Values = dict[str, Any]
KINDS = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int16]


class Maker:
    """Makes the arguments of a kernel from sizes, such as B or T, that it draws when they are first asked for."""

    def __init__(self, data: Any) -> None:
        self.data, self.drawn = data, {}
        self.generator = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))

    def size(self, letter: str) -> int:
        if letter not in self.drawn:
            self.drawn[letter] = self.data.draw(st.sampled_from([0, 1, 2, 5]), label=letter)
        return self.drawn[letter]

    def floats(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=self.generator).to(dtype)

    def unit(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.nn.functional.normalize(self.floats(*shape), dim=-1).to(dtype)

    def places(self, low: int, high: int, *shape: int) -> Tensor:
        """Whole numbers in low, ..., high - 1."""
        return torch.randint(low, max(low + 1, high), shape, generator=self.generator)


@dataclasses.dataclass
class Case:
    """A function that calls a kernel, its arguments, and what it returns and then leaves in some of them."""

    function: Callable[..., Any]
    make: Callable[[Maker], Values]
    reference: Callable[..., Any]
    in_place: tuple[str, ...] = ()


def _softmax_slope(logits: Tensor, targets: Tensor, nats: Tensor, features: Tensor) -> list[Tensor]:
    own = logits.clone().requires_grad_()
    due = torch.nn.functional.cross_entropy(own, targets.masked_fill(targets < 0, -100), reduction="none")
    (slope,) = torch.autograd.grad(due.sum(), own)
    return [slope, due.detach(), base_features(logits.log_softmax(-1)) if features.shape[1] else features]


def _log_softmax(logits: Tensor) -> list[Tensor]:
    return [base_features(logits.log_softmax(-1)), logits.log_softmax(-1)]


def _recall_weights(
    similarity: Tensor, made: Tensor, serial: Tensor, window: int, sharpness: float, recency: float
) -> list[Tensor]:
    age = made[:, :, None] - serial[:, None]
    valid = (serial >= 0)[:, None] & (age >= 1) & (age <= window)
    scores = kernel(similarity, log_age(age), sharpness, recency)
    recall = Recall.from_scores(scores, valid, serial)
    return [recall.mass, recall.weights]


def _recalled_probability(weights: Tensor, outcomes: Tensor, targets: Tensor) -> Tensor:
    return (weights * (outcomes[:, None] == targets[..., None])).sum(-1)


def _recall_candidates(queries: Tensor, keys: Tensor, counts: Tensor, sharpness: float) -> list[Tensor]:
    E, _, K = keys.shape
    repeats = len(queries) // E if E else 0
    real = (torch.arange(K) < counts[:, None]).repeat_interleave(repeats, 0)
    similarity = torch.einsum("bd,bdk->bk", queries, keys.repeat_interleave(repeats, 0)) * real
    recall = recall_bank(similarity[:, None], torch.zeros_like(real).long()[:, None], real[:, None], sharpness)
    return [similarity, recall.weights[:, 0], recall.mass[:, 0]]


def _mix_few(base: Tensor, log_share: Tensor, shares: Tensor, outcomes: Tensor) -> Tensor:
    return (base + log_share[:, None]).exp().scatter_add(1, outcomes, shares).log()


def _mix_labels(
    logits: Tensor,
    similarity: Tensor,
    counts: Tensor,
    outcomes: Tensor,
    label_of: Tensor,
    labels: int,
    sharpness: float,
    background: float,
    margin: float,
    gate: list[float],
) -> list[Tensor]:
    votes = torch.zeros(len(label_of), labels)
    votes[label_of >= 0, label_of[label_of >= 0]] = 1
    space = LabelSpace(("",) * labels, logits.shape[1], votes)
    outcomes = outcomes.masked_fill(counts <= 0, 0)
    found = Found(similarity, outcomes, outcomes, counts)
    recalled = Recalled.of(found, space, SINGLE, sharpness, background, margin)
    mixture = Mixture.of(Features.of(logits, SINGLE), recalled, gate)
    return [mixture.labels, mixture.scope, mixture.base_share, mixture.shares, recalled.mass]


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


def _lstm(x: Tensor, h: Tensor, c: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor) -> list[Tensor]:
    states = []
    for t in range(x.shape[1]):
        i, f, g, o = (x[:, t] @ weight_ih.T + h @ weight_hh.T + bias).chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        states.append(h)
    return [torch.stack(states, dim=1) if states else x.new_empty(len(x), 0, h.shape[1]), h, c]


def _scan(gates: Tensor, state: Tensor) -> list[Tensor]:
    if gates.shape[1] == 0:
        return [gates.new_empty(len(gates), 0, state.shape[1]), state]
    return list(gated_scan_reference(gates, state))


def _scan_backward(gates: Tensor, state: Tensor, d_output: Tensor, d_final: Tensor) -> list[Tensor]:
    inputs = gates.clone().requires_grad_(), state.clone().requires_grad_()
    output, final = _scan(*inputs)
    loss = (output * d_output).sum() + (final * d_final).sum()
    return list(torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True))


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


def make_labels(m: Maker) -> Values:
    n, K, C, O = m.size("n"), m.size("K"), m.size("C"), m.size("O")  # noqa: E741
    counts = m.places(0, 3 if O else 1, n, K).int()
    return {
        "logits": m.floats(n, C),
        "similarity": m.floats(n, K).clamp(-1, 1),
        "counts": counts,
        "outcomes": m.places(0, O, n, K).masked_fill(counts == 0, -7),
        "label_of": m.places(-1, C + 2, O),
        "labels": C + 2,
        "sharpness": 3.0,
        "background": 0.7,
        "margin": 0.1,
        "gate": [0.1, 0.2, 0.3, 0.4],
    }


CASES = {
    "scan": Case(
        scan_kernels.scan_forward,
        lambda m: {
            "gates": m.floats(m.size("B"), m.size("T"), 3 * m.size("D")),
            "state": m.floats(m.size("B"), m.size("D")),
        },
        _scan,
    ),
    "scan backward": Case(
        lambda *parts: torch.ops.lle.gated_scan_backward(*parts),
        lambda m: {
            "gates": m.floats(m.size("B"), m.size("T"), 3 * m.size("D")),
            "state": m.floats(m.size("B"), m.size("D")),
            "d_output": m.floats(m.size("B"), m.size("T"), m.size("D")),
            "d_final": m.floats(m.size("B"), m.size("D")),
        },
        _scan_backward,
    ),
    "lstm": Case(
        lstm,
        lambda m: {
            "x": m.floats(m.size("B"), m.size("T"), m.size("I")),
            "h": m.floats(m.size("B"), m.size("H")),
            "c": m.floats(m.size("B"), m.size("H")),
            "weight_ih": m.floats(4 * m.size("H"), m.size("I")),
            "weight_hh": m.floats(4 * m.size("H"), m.size("H")),
            "bias": m.floats(4 * m.size("H")),
        },
        _lstm,
    ),
    "softmax_slope": Case(
        softmax_kernels.softmax_slope,
        lambda m: {
            "logits": m.floats(m.size("N"), 14 * m.size("V")),
            "targets": m.places(-2, 14 * m.size("V"), m.size("N")).masked_fill_(torch.arange(m.size("N")) == 1, -100),
            "nats": m.floats(m.size("N")),
            "features": m.floats(m.size("N"), 2 * min(1, m.size("F"))),
        },
        _softmax_slope,
        ("logits", "nats", "features"),
    ),
    "log_softmax": Case(
        softmax_kernels.log_softmax_,
        lambda m: {"logits": m.floats(m.size("N"), 14 * m.size("V"))},
        _log_softmax,
        ("logits",),
    ),
    "recall_weights": Case(
        recall_kernels.recall_weights,
        lambda m: {
            "similarity": m.floats(m.size("B"), m.size("T"), 14 * m.size("N")).clamp(-1, 1),
            "made": m.places(0, 40, m.size("B"), m.size("T")),
            "serial": m.places(-1, 30, m.size("B"), 1) + torch.arange(14 * m.size("N")) % 9 - 1,
            "window": 5 * m.size("window"),
            "sharpness": 3.0,
            "recency": 0.5,
        },
        _recall_weights,
        ("similarity",),
    ),
    "recalled_probability": Case(
        recall_kernels.recalled_probability,
        lambda m: {
            "weights": m.floats(m.size("B"), m.size("T"), 14 * m.size("N")),
            "outcomes": m.places(-3, 3, m.size("B"), 14 * m.size("N")),
            "targets": m.places(-3, 3, m.size("B"), m.size("T")),
        },
        _recalled_probability,
    ),
    "recall_candidates": Case(
        recall_kernels.recall_candidates,
        lambda m: {
            "queries": m.unit(m.size("E") * m.size("R"), m.size("D")),
            "keys": m.unit(m.size("E"), m.size("D"), m.size("K")),
            "counts": m.places(0, m.size("K") + 1, m.size("E")),
            "sharpness": 3.0,
        },
        _recall_candidates,
    ),
    "mix_few": Case(
        recall_kernels.mix_few,
        lambda m: {
            "base": m.floats(m.size("B"), m.size("V")).log_softmax(-1),
            "log_share": -m.floats(m.size("B")).abs(),
            "shares": m.floats(m.size("B"), m.size("N")).clamp(min=0),
            "outcomes": m.places(0, m.size("V"), m.size("B"), m.size("N")),
        },
        _mix_few,
    ),
    "mix_labels": Case(label_kernels.mix_labels, make_labels, _mix_labels),
    "fill_similarities": Case(
        nearest_kernels.fill_similarities,
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
        nearest_kernels.nearest_of_scores,
        make_scores,
        _nearest_of_scores,
    ),
    "nearest": Case(
        lambda queries, keys, usable, neighbours: nearest(queries, [(0, keys)], usable, neighbours),
        make_search,
        _nearest,
    ),
    "store_keys": Case(
        nearest_kernels.store_keys,
        lambda m: {
            "states": m.floats(m.size("B"), m.size("T"), m.size("D")),
            "places": torch.arange(m.size("B") * m.size("T")).view(m.size("B"), m.size("T")) - 1,
            "keys": m.floats(m.size("B") * m.size("T"), m.size("D"), dtype=torch.bfloat16),
        },
        _store_keys,
        ("keys",),
    ),
}


def spoil(values: Values, maker: Maker) -> Values:
    """The arguments with one tensor changed as a caller might get it wrong, or only laid out otherwise in memory."""
    name = maker.data.draw(st.sampled_from([name for name, value in values.items() if isinstance(value, Tensor)]))
    tensor, change = values[name], maker.data.draw(st.sampled_from(["dtype", "size", "dim", "layout", "range"]))
    if change == "dtype":
        tensor = tensor.to(maker.data.draw(st.sampled_from([kind for kind in KINDS if kind != tensor.dtype])))
    elif change == "size":
        dim = maker.data.draw(st.integers(0, tensor.dim() - 1))
        shorter = maker.data.draw(st.booleans()) and tensor.shape[dim] > 0
        size = tensor.shape[dim] + (-1 if shorter else 2)
        longer = torch.cat([tensor, tensor.new_zeros(*tensor.shape[:dim], 2, *tensor.shape[dim + 1 :])], dim)
        tensor = longer.narrow(dim, 0, size)
    elif change == "dim":
        tensor = tensor[None] if maker.data.draw(st.booleans()) or tensor.dim() == 1 else tensor.flatten(0, 1)
    elif change == "layout":
        tensor = torch.stack([tensor, tensor], dim=-1)[..., 0]
    elif not tensor.dtype.is_floating_point and tensor.dtype != torch.bool and tensor.numel():
        tensor = tensor.clone()
        place = maker.data.draw(st.integers(0, tensor.numel() - 1))
        info = torch.iinfo(tensor.dtype)
        tensor.view(-1)[place] = maker.data.draw(st.sampled_from([info.min, -101, -1, 14, 651, 1 << 30, info.max]))
    return {**values, name: tensor}


def copied(values: Values) -> Values:
    """The arguments anew; a tensor keeps its strides."""
    return {
        name: torch.empty_strided(value.shape, value.stride(), dtype=value.dtype).copy_(value)
        if isinstance(value, Tensor)
        else value
        for name, value in values.items()
    }


def parts(returned: Any) -> list[Tensor]:
    return [] if returned is None else [returned] if isinstance(returned, Tensor) else list(returned)


@pytest.mark.parametrize("name", CASES)
@given(data=st.data())
@settings(deadline=None, max_examples=30, derandomize=True, database=None, phases=[Phase.generate])
def test_a_kernel_gives_what_its_definition_gives_or_a_value_error(name: str, data: Any) -> None:
    case, maker = CASES[name], Maker(data)
    values = case.make(maker)
    spoilt = data.draw(st.booleans())
    values = copied(spoil(values, maker) if spoilt else values)
    try:
        due = parts(case.reference(**copied(values)))
    except (RuntimeError, IndexError, ValueError, AssertionError):
        due = None
    try:
        got = parts(case.function(*values.values()))
    except ValueError:
        if not spoilt and 0 not in maker.drawn.values():
            raise
        return
    got += [values[name] for name in case.in_place]
    if due is None and not any(part.numel() for part in got):
        return
    assert due is not None, "the definition refuses this"
    for part, want in zip(got, due, strict=True):
        tolerance = 2e-2 if part.dtype == torch.bfloat16 else 3e-5
        torch.testing.assert_close(part, want, atol=tolerance, rtol=1e-4, equal_nan=True)


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
        nearest_kernels.fill_from_file(torch.zeros(2, 1), candidates, queries, file, offset, 0, count)
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


def test_rows_of_a_kernel_go_together() -> None:
    with pytest.raises(ValueError, match=r"the same number of rows, got \(3, 2\), \(2,\)"):
        numba_tools_module.run(lambda *arrays: None, torch.zeros(3, 2), torch.zeros(2))


@pytest.mark.parametrize(
    ("tensor", "given"),
    [
        (torch.zeros(3, 2), r"\(3, 2\) in torch.float32, on cpu"),
        (torch.zeros(2, 3, dtype=torch.float64), r"\(2, 3\) in torch.float64, on cpu"),
        (torch.zeros(2, 3, device="meta"), r"\(2, 3\) in torch.float32, on meta"),
        (torch.zeros(2, 3).to_sparse(), r"\(2, 3\) in torch.float32, on cpu"),
        (torch.zeros(3, 2).T, r"\(2, 3\) in torch.float32, on cpu"),
    ],
    ids=["shape", "dtype", "device", "layout", "strides"],
)
def test_an_error_names_the_tensor_and_both_shapes(tensor: Tensor, given: str) -> None:
    due = r"x \(Q, D\) should be \(2, 3\) in torch.float32, on the CPU, and contiguous; got "
    with pytest.raises(ValueError, match=due + given):
        expect(tensor, "x (Q, D)", (2, 3), torch.float32, in_place=True)
    expect(torch.zeros(2, 3), "x (Q, D)", (2, 3), torch.float32, in_place=True)


def test_places_are_checked_at_both_ends() -> None:
    expect_places(torch.tensor([0, 4]), "x", 5)
    expect_places(torch.tensor([-9, 4]), "x", 5, start=None)
    expect_places(torch.zeros(0, dtype=torch.long), "x", 0)
    for wrong, start in (([0, 5], 0), ([-1, 4], 0), ([-2, 4], -1)):
        with pytest.raises(ValueError, match=f"x should be at least {start} and less than 5; got {wrong[0]} to"):
            expect_places(torch.tensor(wrong), "x", 5, start)
