"""The rule for labels: sums, unseen labels, the plain mixture as a special case, and the fitting of its numbers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modeling_lle.bank.found import Found
from modeling_lle.configuration_sections import BankConfig, ClassifierConfig
from modeling_lle.history.label_calibration import Answered, fit_labels
from modeling_lle.history.label_rule import (
    MULTI,
    REGRESSION,
    SINGLE,
    Features,
    LabelSpace,
    Mixture,
    RecalledLabels,
    kind_of,
    label_loss,
    logits_of,
    mix,
    outcome_name,
    scope_features,
)

GATE = [-0.5, 0.4, 0.3, -0.2]
BACKGROUND, MARGIN = 0.3, 0.1
TRAINED = ["x", "y", "z"]


def make(seed: int, outcomes: list[str], kind: str = SINGLE, texts: int = 4, neighbours: int = 6) -> tuple:
    """Random logits and neighbours, some of them missing, and the space of labels."""
    generator = torch.Generator().manual_seed(seed)
    classes = 1 if kind == REGRESSION else len(TRAINED)
    logits = torch.randn(texts, classes, generator=generator)
    similarity = (torch.rand(texts, neighbours, generator=generator) * 2 - 1).sort(1, descending=True).values
    counts = (torch.rand(texts, neighbours, generator=generator) < 0.8).int()
    chosen = torch.randint(len(outcomes), (texts, neighbours), generator=generator)
    found = Found(similarity, torch.arange(neighbours).expand(texts, -1), chosen, counts)
    trained = ["value"] if kind == REGRESSION else TRAINED
    return logits, found, LabelSpace.of(trained, kind, outcomes, torch.ones(len(outcomes), dtype=torch.bool))


def mixed(logits: Tensor, found: Found, space: LabelSpace, kind: str = SINGLE, sharpness: float = 5.0) -> Mixture:
    recalled = RecalledLabels.of(found, space, kind, sharpness, BACKGROUND, MARGIN)
    return Mixture.of(Features.of(logits, kind), recalled, GATE)


@given(st.integers(0, 2**31), st.sampled_from([["x", "y"], ["x", "new", "y", "other"], ["new"]]))
@settings(max_examples=60, deadline=None)
def test_sums_to_one_and_shares_say_why(seed: int, outcomes: list[str]) -> None:
    logits, found, space = make(seed, outcomes)
    mixture = mixed(logits, found, space)
    torch.testing.assert_close(mixture.labels.sum(-1), torch.ones(len(logits)))
    torch.testing.assert_close(mixture.base_share + mixture.shares.sum(-1), torch.ones(len(logits)))
    explained = torch.nn.functional.pad(logits.softmax(-1), (0, len(space.names) - 3)) * mixture.base_share[:, None]
    for row in range(len(logits)):
        for place, outcome in enumerate(found.outcomes[row].tolist()):
            explained[row, space.names.index(outcomes[outcome])] += mixture.shares[row, place]
    torch.testing.assert_close(mixture.labels, explained)


def reference(logits: Tensor, found: Found, outcomes: list[str], sharpness: float) -> dict[str, float]:
    """The rule of the module's docstring for one text, written plainly."""
    p = dict(zip(TRAINED, logits.softmax(-1).tolist(), strict=True))
    entries = [
        (math.exp(sharpness * (similarity - 1)), outcomes[outcome])
        for similarity, outcome, count in zip(
            found.similarity[0].tolist(), found.outcomes[0].tolist(), found.counts[0].tolist(), strict=True
        )
        if count
    ]
    seen = sum(weight for weight, label in entries if label in TRAINED)
    known = math.exp(sharpness * MARGIN) * seen + math.exp(sharpness * (BACKGROUND - 1))
    total = known + sum(weight for weight, label in entries if label not in TRAINED)
    entropy = -sum(value * math.log(value) for value in p.values())
    g1 = 0.0
    if seen:
        logit = GATE[0] + GATE[1] * math.log(seen) + GATE[2] * entropy + GATE[3] * math.log(max(p.values()))
        g1 = 1 / (1 + math.exp(-logit))
    u = sum(weight for weight, label in entries if label not in TRAINED) / total
    by_label = {n: sum(w for w, label in entries if label == n) for n in [*TRAINED, *outcomes]}
    mixed = {n: (1 - u) * ((1 - g1) * p[n] + g1 * by_label[n] / (seen or 1)) for n in TRAINED}
    return {n: mixed[n] if n in TRAINED else by_label[n] / total for n in by_label}


@pytest.mark.parametrize(
    "outcomes", [["x", "y", "z"], ["x", "new", "other"], ["new"]], ids=["trained", "both", "unseen"]
)
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_rule_as_it_is_written(outcomes: list[str], seed: int) -> None:
    logits, found, space = make(seed, outcomes, texts=1)
    got = dict(zip(space.names, mixed(logits, found, space).labels[0].tolist(), strict=True))
    assert got == pytest.approx(reference(logits[0], found, outcomes, 5.0), abs=1e-6)


@given(
    st.integers(0, 2**31),
    st.sampled_from([["x", "y"], ["x", "new", "y", "other"], ["new"]]),
    st.sampled_from([0.0, 5.0, 900.0]),
)
@settings(max_examples=60, deadline=None)
def test_the_kernel_gives_what_the_rule_gives(seed: int, outcomes: list[str], sharpness: float) -> None:
    pytest.importorskip("numba")
    logits, found, space = make(seed, outcomes)
    found.counts[0] = 0
    found.counts[1:] *= 1 + found.outcomes[1:].int()
    sections = BankConfig(sharpness=sharpness, gate=GATE), ClassifierConfig(background=BACKGROUND, margin=0.03)
    got, mass = mix(logits, found, space, SINGLE, *sections)
    due, due_mass = mix(logits.requires_grad_(), found, space, SINGLE, *sections)
    assert due.labels.requires_grad
    assert not got.labels.requires_grad
    for name in ("labels", "scope", "base_share", "shares"):
        torch.testing.assert_close(getattr(got, name), getattr(due, name).detach(), atol=5e-5, rtol=1e-4)
    torch.testing.assert_close(mass, due_mass)


def test_a_margin_keeps_what_was_known() -> None:
    logits, found, space = make(0, ["x", "new", "y"])
    own, shares = Features.of(logits, SINGLE), []
    for margin in (0.0, 0.1, 0.5):
        recalled = RecalledLabels.of(found, space, SINGLE, 5.0, BACKGROUND, margin)
        mixture = Mixture.of(own, recalled, GATE)
        torch.testing.assert_close(mixture.labels.sum(-1), torch.ones(len(logits)))
        shares.append(mixture.labels[:, 3])
    assert bool((shares[0] > shares[1]).all())
    assert bool((shares[1] > shares[2]).all())


def test_without_neighbours_it_is_the_base() -> None:
    logits, found, space = make(0, ["x", "new"])
    found.counts.zero_()
    torch.testing.assert_close(mixed(logits, found, space).labels[:, :3], logits.softmax(-1))


def test_a_bank_of_unseen_labels_alone_leaves_far_texts_to_the_base() -> None:
    logits, found, space = make(0, ["new"])
    for similarity, low, high in ((0.0, 0.95, 1.0), (1.0, 0.0, 0.05)):
        found.similarity.fill_(similarity)
        found.counts.fill_(1)
        mixture = mixed(logits, found, space, sharpness=20.0)
        assert bool(((mixture.base_share >= low) & (mixture.base_share <= high)).all())


def test_the_scope_is_told_from_the_base_and_the_unseen_labels() -> None:
    logits, found, space = make(3, ["x", "y", "x"])
    torch.testing.assert_close(mixed(logits, found, space).scope, logits.softmax(-1))
    logits, found, space = make(3, ["x", "new", "y"])
    mixture = mixed(logits, found, space)
    torch.testing.assert_close(mixture.scope.sum(-1), torch.ones(len(logits)))
    torch.testing.assert_close(mixture.scope[:, 3], mixture.labels[:, 3])
    due = (1 - mixture.labels[:, 3:]) * logits.softmax(-1)
    torch.testing.assert_close(mixture.scope[:, :3], due)


def test_labels_without_a_live_example_are_gone() -> None:
    space = LabelSpace.of(TRAINED, SINGLE, ["y", "new", "other"], torch.tensor([True, False, True]))
    assert space.names == ("x", "y", "z", "other")
    assert space.votes.tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert space.label_of.tolist() == [1, -1, 3]


def test_several_labels_a_text() -> None:
    outcomes = [outcome_name(labels, MULTI) for labels in (["x", "new"], [], ["y"])]
    logits, found, space = make(1, outcomes, MULTI)
    mixture = mixed(logits, found, space, MULTI)
    recalled = RecalledLabels.of(found, space, MULTI, 5.0, BACKGROUND)
    torch.testing.assert_close(mixture.labels[:, 3], recalled.labels[:, 3])  # history only
    share = mixture.base_share[:, None]
    due = share * logits.sigmoid() + (1 - share) * recalled.labels[:, :3]
    torch.testing.assert_close(mixture.labels[:, :3], due)
    torch.testing.assert_close(logits_of(mixture.labels, MULTI).sigmoid(), mixture.labels, rtol=1e-4, atol=1e-6)


def test_regression_takes_the_mean_of_values() -> None:
    logits, found, space = make(2, ["1.5", "-2.0"], REGRESSION)
    mixture = mixed(logits, found, space, REGRESSION)
    recalled = RecalledLabels.of(found, space, REGRESSION, 5.0, BACKGROUND)
    values = torch.tensor([1.5, -2.0])[found.outcomes]
    torch.testing.assert_close(recalled.labels[:, 0], (recalled.weights * values).sum(-1))
    share = mixture.base_share
    torch.testing.assert_close(
        logits_of(mixture.labels, REGRESSION)[:, 0], share * logits[:, 0] + (1 - share) * recalled.labels[:, 0]
    )


@pytest.mark.parametrize(
    ("label", "kind"),
    [("", SINGLE), (3, SINGLE), ("a", MULTI), ([1], MULTI), ("a", REGRESSION), (math.nan, REGRESSION)],
)
def test_labels_of_another_kind_are_refused(label: object, kind: str) -> None:
    with pytest.raises(ValueError, match="problem_type"):
        outcome_name(label, kind)  # type: ignore[arg-type]


def test_loss_is_that_of_transformers() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, -100, 1])
    due = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(label_loss(logits, labels, SINGLE), due)
    torch.testing.assert_close(label_loss(logits, labels, SINGLE, 6), due / 2)
    assert (kind_of(1), kind_of(2)) == (REGRESSION, SINGLE)


def test_mass_of_an_empty_bank_counts_as_the_farthest() -> None:
    features = scope_features(torch.zeros(2, 3), torch.tensor([-math.inf, -1.0]), SINGLE, 7.0)
    torch.testing.assert_close(features[:, 1], torch.tensor([-14.0, -1.0]))
    torch.testing.assert_close(features[:, 2], torch.full((2,), math.log(3)))


def test_fitting_lowers_the_loss_and_trusts_a_bank_that_is_right() -> None:
    generator = torch.Generator().manual_seed(0)
    names = [f"label-{i}" for i in range(8)]
    labels = torch.randint(8, (200,), generator=generator)
    keys = torch.nn.functional.normalize(torch.randn(8, 16, generator=generator), dim=-1)
    queries = torch.nn.functional.normalize(keys[labels] + 0.3 * torch.randn(200, 16, generator=generator), dim=-1)
    similarity, order = (queries @ keys.T).sort(1, descending=True)
    found = Found(similarity, order, order, torch.ones_like(order).int())
    logits = torch.randn(200, 8, generator=generator)  # a base that knows nothing
    space = LabelSpace.of(names, SINGLE, names, torch.ones(8, dtype=torch.bool))
    bank, classifier = BankConfig(), ClassifierConfig()
    measured = fit_labels(Answered(logits, labels, found), space, bank, classifier, SINGLE, 40)
    assert measured["after_nats"] < measured["before_nats"]
    recalled = RecalledLabels.of(found, space, SINGLE, bank.sharpness, classifier.background)
    mixture = Mixture.of(Features.of(logits, SINGLE), recalled, bank.gate)
    assert float((mixture.labels.argmax(-1) == labels).float().mean()) > 0.9
    assert float(mixture.base_share.mean()) < 0.5
