"""Training with history against a plain reference in float64, and the properties that it promises."""

import math
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from modeling_lle import LLECache, LLEForCausalLM, StreamConfig
from modeling_lle.history.stream import Stream
from modeling_lle.history.training import HistoryLoss, recall_targets, recall_targets_reference
from modeling_lle.models import causal as causal_module
from tests.factories.language_models import STREAM_PARAMETERS, make_language_model
from tests.factories.texts import VOCAB, make_ids, make_repetitive_segments

OTHERS = {"sharpness": 6.0, "gate": [-0.5, 0.2, 0.1, -0.3]}
D = 6


@pytest.fixture(params=["numba", "torch"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the kernels, and as it runs where numba is missing."""
    if request.param == "torch":
        monkeypatch.setattr("modeling_lle.kernels.available.installed", lambda package: False)
    return request.param


def make_learner(window: int = 7, other_rows: bool = True, **values: Any) -> LLEForCausalLM:
    """A language model in training mode that trains with history."""
    training = {"window": window, "other_rows": other_rows, **OTHERS}
    return make_language_model(window, history={"training": training}, **values).train()


def loss(model: LLEForCausalLM, ids: Tensor, targets: Tensor, mask: Tensor | None = None, **kwargs: Any) -> Tensor:
    """The summed loss of a segment."""
    return model(ids, mask, shift_labels=targets, num_items_in_batch=1, **kwargs).loss


class Segment:
    """Random states (B, T, D) of a segment, what the output layer reads, tokens, mask and targets."""

    def __init__(self, rows: int, length: int, seed: int, padded: bool) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.states = torch.randn(rows, length, D, generator=generator).requires_grad_()
        self.dropped = torch.randn(rows, length, D, generator=generator).requires_grad_()
        self.tokens, self.targets = make_ids(rows, length, seed), make_ids(rows, length, seed + 50)
        self.mask = torch.rand(rows, length, generator=generator) < 0.7 if padded else None
        if self.mask is not None:
            self.targets[~self.mask] = -100
        self.targets[0, 0] = -100

    def double(self) -> "Segment":
        """The same with leaves in float64."""
        other = object.__new__(Segment)
        other.__dict__ = dict(self.__dict__)
        other.states, other.dropped = (t.detach().double().requires_grad_() for t in (self.states, self.dropped))
        return other


def leaf_tensors(segments: list[Segment], module: HistoryLoss, output: nn.Linear) -> list[Tensor]:
    leaves = [leaf for segment in segments for leaf in (segment.states, segment.dropped)]
    return [*leaves, module.values, output.weight, output.bias]


def reference(segments: list[Segment], module: HistoryLoss, output: nn.Linear) -> Tensor:
    """The summed nats of consecutive segments, written plainly, entry by entry."""
    rows, window = len(segments[0].tokens), module.config.training.window
    carried: list[list[tuple[Tensor, int]]] = [[] for _ in range(rows)]
    pending: list[Tensor | None] = [None] * rows
    total = torch.zeros((), dtype=torch.float64)
    for segment in segments:
        made: list[list[tuple[Tensor, int]]] = [[] for _ in range(rows)]
        counts = []  # how many entries of this segment each position may recall
        keys = nn.functional.normalize(segment.states, dim=-1)
        for b in range(rows):
            counts.append([])
            for t in range(segment.tokens.shape[1]):
                if segment.mask is None or segment.mask[b, t]:
                    if pending[b] is not None:
                        made[b].append((pending[b], int(segment.tokens[b, t])))
                    pending[b] = keys[b, t]
                counts[b].append(len(made[b]))
        for b, t in (segment.targets != -100).nonzero().tolist():
            own = [*carried[b], *made[b][: counts[b][t]]][-window:]
            others = [entry for row in range(rows) if row != b for entry in made[row]]
            log_probs = output(segment.dropped[b, t]).log_softmax(-1)
            target = int(segment.targets[b, t])
            total = total + nats(keys[b, t], target, log_probs.detach(), [own, others], module.values)
            total = total - log_probs[target] + log_probs[target].detach()  # the base learns by its own loss
        carried = [
            [(key.detach(), outcome) for key, outcome in (*carried[b], *made[b])][-window:] for b in range(rows)
        ]
        pending = [None if key is None else key.detach() for key in pending]
    return total


def nats(query: Tensor, target: int, log_probs: Tensor, sources: list[list[Any]], values: Tensor) -> Tensor:
    """-log P of one target, by the rule."""
    probs = log_probs.exp()
    features = torch.stack([-(probs * probs.log()).sum(), probs.max().log()])
    odds, recalled = [torch.zeros(())], [log_probs[target].exp()]
    for place, (entries, value) in enumerate(zip(sources, values, strict=False)):
        if not entries:
            continue
        similarity = torch.stack([query @ key for key, _ in entries])
        ages = torch.arange(len(entries), 0, -1).double()
        scores = value[0].exp() * (similarity - 1) - (value[1] ** 2 * ages.log() if place == 0 else 0)
        mean, deviation = torch.tensor([4.0, -1.5]), torch.tensor([2.0, 1.0])
        scaled = (features - mean) / deviation
        odds.append(value[2] + value[3] * scores.logsumexp(0) + value[4:] @ scaled)
        hits = torch.tensor([outcome == target for _, outcome in entries])
        recalled.append((scores.softmax(0) * hits).sum())
    return -(torch.stack(odds).softmax(0) * torch.stack(recalled)).sum().log()


def run(segments: list[Segment], module: HistoryLoss, output: nn.Linear) -> Tensor:
    """The same by the module."""
    stream, total = Stream(module.config.training.window), torch.zeros(())
    for part in segments:
        total = total + module(stream, part.states, part.dropped, part.tokens, part.mask, part.targets, output)
    return total


def assert_equals_the_reference(
    rows: int, lengths: list[int], window: int, other_rows: bool, padded: bool, seed: int
) -> None:
    module = make_learner(window, other_rows).history_loss
    torch.manual_seed(seed)
    output = nn.Linear(D, VOCAB)
    segments = [Segment(rows, length, seed + place, padded) for place, length in enumerate(lengths)]
    got = run(segments, module, output)
    if all((segment.targets == -100).all() for segment in segments):
        assert got.item() == 0
        return
    gradients = torch.autograd.grad(got, leaf_tensors(segments, module, output))
    doubles = [segment.double() for segment in segments]
    want = reference(doubles, module.double(), output.double())
    due = torch.autograd.grad(want, leaf_tensors(doubles, module, output), allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(got.double(), want, atol=1e-4, rtol=1e-5)
    for gradient, expected in zip(gradients, due, strict=True):
        torch.testing.assert_close(gradient.double(), expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("other_rows", [False, True])
def test_value_and_every_gradient(form: str, other_rows: bool, padded: bool) -> None:
    assert_equals_the_reference(3, [4, 5, 3], 6, other_rows, padded, seed=0)


@given(
    rows=st.integers(1, 3),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    window=st.sampled_from([1, 2, 4, 50]),
    other_rows=st.booleans(),
    padded=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=25)
def test_any_segments_equal_the_reference(
    rows: int, lengths: list[int], window: int, other_rows: bool, padded: bool, seed: int
) -> None:
    """Also segments that are longer than the window."""
    assert_equals_the_reference(rows, lengths, window, other_rows, padded, seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_recall_of_targets_against_its_reference(form: str, dtype: torch.dtype) -> None:
    segment, numbers = Segment(2, 20, 0, True), torch.tensor([5.0, 0.4]).requires_grad_()
    leaves, results = [segment.states, numbers], []
    for function in (recall_targets, recall_targets_reference):
        block = Stream(9).read_whole(segment.states.to(dtype), segment.tokens, segment.mask)
        probability, mass = function(block, segment.targets, numbers[0], numbers[1])
        usable = mass > -math.inf
        total = (probability * 0.7).sum() + (mass[usable] * torch.linspace(-1, 1, int(usable.sum()))).sum()
        results.append([probability, mass, *torch.autograd.grad(total, leaves)])
    for got, want in zip(*results, strict=True):
        want = want.nan_to_num(0.0, neginf=-math.inf)  # autograd through a position without entries
        torch.testing.assert_close(got, want, atol=1e-4 if dtype == torch.float32 else 0.05, rtol=1e-4)


@pytest.mark.parametrize("other_rows", [False, True])
def test_the_mixture_sums_to_one(form: str, other_rows: bool) -> None:
    model, ids = make_learner(5, other_rows), make_ids(2, 8)
    with torch.no_grad():
        for row, position in ((0, 0), (0, 5), (1, 7)):
            targets = torch.full_like(ids, -100)
            total = 0.0
            for token in range(VOCAB):
                targets[row, position] = token
                total += math.exp(-float(loss(model, ids, targets)))
            assert total == pytest.approx(1, abs=1e-5)


@given(
    position=st.integers(0, 8), window=st.sampled_from([1, 3, 50]), other_rows=st.booleans(), seed=st.integers(0, 99)
)
@settings(deadline=None, max_examples=25)
def test_what_is_predicted_is_not_seen(position: int, window: int, other_rows: bool, seed: int) -> None:
    """The loss of a row up to a position is the same whatever the row says afterwards."""
    model, ids, targets = make_learner(window, other_rows), make_ids(2, 10, seed), make_ids(2, 10, seed + 1)
    other = ids.clone()
    other[0, position + 1 :] = (ids[0, position + 1 :] + 1) % VOCAB
    targets[1], targets[0, position + 1 :] = -100, -100
    with torch.no_grad():
        one, two = (loss(model, tokens, targets) for tokens in (ids, other))
    torch.testing.assert_close(one, two)


def test_history_takes_part_and_is_carried() -> None:
    """A text that repeats itself is predicted better, also where the passage was read in an earlier segment."""
    passage = make_ids(1, 8)
    text = passage.repeat(1, 3)
    model = make_learner(16)
    model.config.stream.sharpness, model.config.stream.gate = 300.0, [2.0, 0.5, 0.0, 0.0]
    model.history_loss.load()
    with torch.no_grad():
        cache = model(text[:, :12], shift_labels=text[:, 1:13], use_cache=True).past_key_values
        assert cache.stream.count.tolist() == [11]
        carried, alone, plain = (
            loss(model, text[:, 12:-1], text[:, 13:], past_key_values=given_cache, **kwargs)
            for given_cache, kwargs in ((cache, {}), (LLECache(), {}), (LLECache(), {"use_history": False}))
        )
    assert float(carried) < 0.85 * min(float(alone), float(plain))


def test_padded_rows_offer_nothing() -> None:
    model, ids, targets = make_learner(), make_ids(2, 8), make_ids(2, 8, 1)
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[1], targets[1] = 0, -100
    with torch.no_grad():
        torch.testing.assert_close(loss(model, ids, targets, mask), loss(model, ids[:1], targets[:1]))
        mask[1, :3] = 1
        mixed = loss(model, ids, targets, mask)
        ids[1, 3:] = 0
        torch.testing.assert_close(loss(model, ids, targets, mask), mixed)
        ids[1, 2] = targets[0, 2]
        assert not torch.isclose(loss(model, ids, targets, mask), mixed)


def test_a_window_of_zero_is_training_without_history() -> None:
    off, on = make_learner(0, output_dropout=0.4), make_learner(output_dropout=0.4)
    ids = make_ids(2, 9)
    assert off.history_loss is None
    assert len(list(off.parameters())) == len(list(make_language_model().parameters()))
    results = []
    for model, use_history in ((off, None), (on, False), (make_language_model(output_dropout=0.4).train(), None)):
        torch.manual_seed(3)
        result = model(ids, labels=ids, use_history=use_history).loss
        results.append([result, *torch.autograd.grad(result, [*model.model.parameters(), model.lm_head.bias])])
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_output_dropout_reaches_the_output_layer_only() -> None:
    model, ids, targets = make_learner(output_dropout=0.5), make_ids(2, 9), make_ids(2, 9, 1)
    states = model.model(ids, use_cache=False).last_hidden_state
    with mock.patch.object(causal_module, "variational_dropout", side_effect=lambda x, p, _: x * (p == 0)):
        got = loss(model, ids, targets)
    module, head = model.history_loss, model.lm_head
    torch.testing.assert_close(got, module(None, states, torch.zeros_like(states), ids, None, targets, head))
    assert not torch.isclose(got, module(None, states, states, ids, None, targets, head))
    assert len({loss(model, ids, targets).item() for _ in range(3)}) > 1


def test_where_history_takes_no_part() -> None:
    """Not in evaluation, which uses the calibrated stream; not where logits are built; not without tokens."""
    model, ids = make_learner(), make_ids(2, 9)
    assert model(ids).logits.requires_grad
    plain = make_language_model().train()
    with mock.patch.object(HistoryLoss, "forward", side_effect=AssertionError):
        torch.testing.assert_close(
            model(ids, labels=ids, return_logits=True).loss, plain(ids, labels=ids, return_logits=True).loss
        )
        assert model(ids, labels=ids, use_history=True, output_history=True).history is not None
        model.eval()(ids, labels=ids)
    embeddings = model.model.embed_tokens(ids)
    alone = make_learner(other_rows=False)
    torch.testing.assert_close(
        alone(inputs_embeds=embeddings, labels=ids).loss, plain(inputs_embeds=embeddings, labels=ids).loss
    )


def test_bfloat16_autocast(form: str) -> None:
    model, ids, targets = make_learner(), make_ids(2, 20), make_ids(2, 20, 1)
    results = []
    for enabled in (False, True):
        cache = LLECache(7)
        for part in (slice(10), slice(10, 20)):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                total = loss(model, ids[:, part], targets[:, part], past_key_values=cache.detach(), use_cache=True)
        results.append([total.detach(), *torch.autograd.grad(total, list(model.parameters()))])
    for want, got in zip(*results, strict=True):
        assert got.dtype == torch.float32
        assert float((got - want).norm()) < 0.05 * float(want.norm()) + 1e-3


def test_without_gradients(form: str) -> None:
    model, ids, targets = make_learner(), make_ids(2, 9), make_ids(2, 9, 1)
    want = loss(model, ids, targets)
    with torch.no_grad():
        torch.testing.assert_close(loss(model, ids, targets), want)


def test_only_ignored_targets_and_one_position(form: str) -> None:
    model = make_learner()
    for length in (1, 9):
        ids, nothing = make_ids(2, length), torch.full((2, length), -100)
        total = loss(model, ids, nothing)
        assert total.item() == 0
        assert all((gradient == 0).all() for gradient in torch.autograd.grad(total, list(model.parameters())))
    ids = make_ids(2, 1)
    torch.testing.assert_close(loss(model, ids, ids), loss(make_language_model().train(), ids, ids))


def test_the_numbers_that_come_out_are_those_of_the_stream() -> None:
    """Learned in training mode, they improve what is measured in evaluation mode."""
    model = make_learner(30)
    batches = make_repetitive_segments()
    optimizer = torch.optim.SGD([model.history_loss.values], lr=0.5)

    def evaluate() -> float:
        cache, model_nats = LLECache(30), []
        for batch in batches:
            model_nats.append(-model.eval().score(**batch, past_key_values=cache).log_probs)
        return float(torch.cat(model_nats, dim=1).mean())

    before = evaluate()
    for _ in range(20):
        cache = LLECache(30)
        for batch in batches:
            model.train()(**batch, past_key_values=cache.detach(), use_cache=True).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert model.config.stream == StreamConfig(window=30, **STREAM_PARAMETERS)
    assert evaluate() < before - 0.1
    assert model.config.stream != StreamConfig(window=30, **STREAM_PARAMETERS)
    assert model.config.training.gate != OTHERS["gate"]


def test_learned_numbers_survive_saving(tmp_path: Path) -> None:
    model = make_learner()
    model.history_loss.values.data += 0.1
    model.save_pretrained(tmp_path)
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "history" in name]
    assert model.config.stream.sharpness == pytest.approx(STREAM_PARAMETERS["sharpness"] * math.exp(0.1))
    again, info = LLEForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert again.config.stream == model.config.stream
    assert again.config.training == model.config.training
    same = torch.ones(2, 6, dtype=torch.bool)
    same[1, 1] = False  # the other rows have no recency
    torch.testing.assert_close(again.history_loss.values[same], model.history_loss.values[same])
    again.config.training.window = 0
    again.save_pretrained(tmp_path)
    assert LLEForCausalLM.from_pretrained(tmp_path).history_loss is None


def test_numbers_set_by_hand_or_calibrated_survive_saving(tmp_path: Path) -> None:
    model = make_learner()
    model.history_loss.values.data += 0.1
    model.eval().config.stream.sharpness = 3.25
    model.save_pretrained(tmp_path)
    assert LLEForCausalLM.from_pretrained(tmp_path).config.stream.sharpness == 3.25
    model.train().calibrate(make_repetitive_segments())
    fitted = model.config.stream.sharpness
    assert fitted != 3.25
    model.save_pretrained(tmp_path)
    again = LLEForCausalLM.from_pretrained(tmp_path)
    assert again.config.stream.sharpness == fitted
    torch.testing.assert_close(again.history_loss.values[0], model.history_loss.values[0])
