"""Calibration of the label rule: its parameters, and the score of "none of these", fitted on held-out texts.

Shapes: n texts, K neighbours, C trained labels, L labels.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..bank.found import Found
from ..common.precision import outside_autocast
from ..configuration_fields import MAX_FITTED, check_keys
from ..configuration_sections import BankConfig, ClassifierConfig
from .calibration import fit
from .label_rule import SINGLE, Features, LabelSpace, Mixture, RecalledLabels, label_loss, logits_of
from .loss import IGNORED

CALIBRATED = ("sharpness", "background", "gate")
_PLACES = {"sharpness": slice(0, 1), "background": slice(1, 2), "gate": slice(2, None)}  # among the values
FOLDS = 4  # each label is taken for an unseen one in one of them; of fewer labels as many as there are
PRIOR = 0.1  # nats, in all, of a step by 1 of each value of the gate: a few held-out texts set it within bounds
RIDGE = 0.1  # of the regression that tells what is out of scope: held-out texts of that side are few


@dataclass
class Answered:
    """Held-out texts with what the base and the bank say of them, to fit the parameters of the rule on.

    Attributes:
        logits: (n, C) float32, of the output layer.
        labels: (n,) int64, the right label, for `SINGLE`; (n, L) or (n,) floating for the other kinds.
        found: More neighbours than are recalled, so that there are unseen ones if only these are left.
    """

    logits: Tensor
    labels: Tensor
    found: Found

    @classmethod
    def join(cls, parts: Sequence["Answered"]) -> "Answered":
        """The texts of all parts.

        Raises:
            ValueError: There is none.
        """
        if not sum(len(part.logits) for part in parts):
            raise ValueError("there is nothing to fit on: the batches hold no text")
        names = ("similarity", "ids", "outcomes", "counts")
        found = (torch.cat([getattr(part.found, name) for part in parts]) for name in names)
        return cls(
            torch.cat([part.logits for part in parts]), torch.cat([part.labels for part in parts]), Found(*found)
        )

    def sample(self, most: int | None, seed: int) -> "Answered":
        """At most so many of the texts, drawn at random, in their order; None: all."""
        if most is None or most >= len(self.logits):
            return self
        drawn = torch.randperm(len(self.logits), generator=torch.Generator().manual_seed(seed))[: max(1, most)]
        own = drawn.sort().values.to(self.logits.device)
        return Answered(self.logits[own], self.labels[own], _of_found(self.found, lambda column: column[own]))


@outside_autocast
def fit_labels(
    answered: Answered,
    space: LabelSpace,
    bank: BankConfig,
    classifier: ClassifierConfig,
    kind: str,
    steps: int,
    fixed: Collection[str] = (),
) -> dict[str, float]:
    """Fits the parameters `CALIBRATED` of both sections, without `fixed`, by gradient descent on the mixture's loss.

    With one label a text and examples in the bank, half of the loss is that of texts and examples of labels which the
    base is made not to know, each in its turn, with the examples of the other labels and without: else a bank that
    adds nothing to what the base knows would learn to keep silent.

    Returns:
        `predictions`, and the losses `base_nats` (of the labels that the base knows), `before_nats`, `after_nats`.

    Raises:
        ValueError: No parameter has the name of one of `fixed`; the bank's may be called "bank.gate" as well.
    """
    known = [*CALIBRATED, *(f"bank.{name}" for name in CALIBRATED)]
    check_keys(fixed, known, "fixed, the parameters that calibrate leaves as they are")
    left = {name.removeprefix("bank.") for name in fixed}
    descent = _Descent.of(answered, space, bank, classifier, kind)
    mask = torch.zeros(6, dtype=torch.bool, device=answered.logits.device)
    for name in left:
        mask[_PLACES[name]] = True
    start, number = descent.start(), len(answered.logits)

    def loss(values: Tensor) -> Tensor:
        return descent.nats(values) + PRIOR / (2 * number) * (values[2:] - start[2:]).square().sum()

    found = fit(loss, start, steps, mask)
    sharpness, background, gate_numbers = descent.numbers(found.values)
    fitted = {
        "sharpness": min(MAX_FITTED, float(sharpness)),
        "background": min(1.0, max(-1.0, float(background))),
        "gate": gate_numbers.clamp(-MAX_FITTED, MAX_FITTED).tolist(),
    }
    for name in set(CALIBRATED) - left:
        setattr(classifier if name == "background" else bank, name, fitted[name])
    base = label_loss(answered.logits, _known_to_base(answered.labels, space, kind), kind)
    after = float(descent.nats(found.values).detach())
    return dataclasses.replace(found, after=after).metrics(number, float(base))


@dataclass
class _Descent:
    """The loss of the mixture as a function of the values that are descended on.

    Attributes:
        trials: Texts and labels to predict: as they are, and with labels that the base is made not to know.
        owns: What the gate sees of the base, for each trial.
        mean, deviation: (2,) float32, of the features of all texts.
    """

    trials: list[tuple[Answered, LabelSpace]]
    owns: list[Features]
    mean: Tensor
    deviation: Tensor
    bank: BankConfig
    classifier: ClassifierConfig
    kind: str

    @classmethod
    def of(
        cls, answered: Answered, space: LabelSpace, bank: BankConfig, classifier: ClassifierConfig, kind: str
    ) -> "_Descent":
        nearest = _of_found(answered.found, lambda column: column[:, : bank.neighbours])
        recalled = Answered(answered.logits, answered.labels, nearest)
        trials = [(recalled, space)]
        folds = min(FOLDS, space.trained)
        # A base that knows one label only says nothing, and neither does a bank without examples.
        if kind == SINGLE and space.trained > 2 and bool((recalled.found.counts > 0).any()):
            for fold in range(folds):
                hidden = torch.arange(space.trained) % folds == fold
                trials += [_without(recalled, space, hidden, False), _without(answered, space, hidden, True)]
        owns = [Features.of(held.logits, kind) for held, _ in trials]
        features = owns[0].features
        deviation = features.std(0, correction=0).clamp(min=1e-3)
        return cls(trials, owns, features.mean(0), deviation, bank, classifier, kind)

    def start(self) -> Tensor:
        """The values of now, (6,): log sharpness, background, and the gate's weights of standardised features."""
        bias, of_mass, *of_features = (float(number) for number in self.bank.gate)
        slopes = torch.tensor(of_features, device=self.mean.device)
        sharpness = math.log(max(self.bank.sharpness, 1e-3))
        first = torch.tensor([sharpness, self.classifier.background, bias + float(slopes @ self.mean), of_mass])
        return torch.cat([first.to(slopes), slopes * self.deviation])

    def numbers(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The inverse: sharpness and background, scalars, and the numbers of the gate (4,)."""
        weights = values[4:] / self.deviation
        gate_numbers = torch.cat([(values[2] - weights @ self.mean)[None], values[3:4], weights])
        return values[0].exp(), values[1], gate_numbers

    def nats(self, values: Tensor) -> Tensor:
        """The loss."""
        sharpness, background, gate_numbers = self.numbers(values)
        losses = []
        for own, (held, labels) in zip(self.owns, self.trials, strict=True):
            found = RecalledLabels.of(held.found, labels, self.kind, sharpness, background, self.classifier.margin)
            mixture = Mixture.of(own, found, gate_numbers)
            losses.append(label_loss(logits_of(mixture.labels, self.kind), held.labels, self.kind))
        return losses[0] if len(losses) == 1 else (losses[0] + torch.stack(losses[1:]).mean()) / 2


def _known_to_base(labels: Tensor, space: LabelSpace, kind: str) -> Tensor:
    """The labels of `Answered` without those that only the bank knows."""
    if kind == SINGLE:
        return labels.masked_fill(labels >= space.trained, IGNORED)
    return labels[:, : space.trained] if labels.dim() == 2 else labels


def _of_found(found: Found, change: Callable[[Tensor], Tensor]) -> Found:
    """What was found, with every column changed."""
    return Found(*(change(column) for column in (found.similarity, found.ids, found.outcomes, found.counts)))


def _without(answered: Answered, space: LabelSpace, hidden: Tensor, alone: bool) -> tuple[Answered, LabelSpace]:
    """The same as it is for a base that was not trained on the labels `hidden` (C,) bool; those come last now.

    With `alone`, the bank has examples of these labels only.
    """
    number = torch.arange(space.trained)
    order = torch.cat([number[~hidden], number[hidden], torch.arange(space.trained, len(space.names))])
    kept = number[~hidden].to(answered.logits.device)
    names = tuple(space.names[i] for i in order.tolist())
    moved = LabelSpace(names, len(kept), space.votes[:, order.to(space.votes.device)])
    labels = order.argsort().to(answered.labels.device)[answered.labels]
    found = answered.found
    if alone:
        strange = (moved.votes[:, moved.trained :].sum(1) > 0).to(found.outcomes.device)[found.outcomes]
        found = Found(found.similarity, found.ids, found.outcomes, found.counts * strange)
    return Answered(answered.logits[:, kept], labels, found), moved


@outside_autocast
def scope_scores(features: Tensor, weights: Tensor) -> Tensor:
    """The scores (...) of "none of these" of features (..., 4)."""
    return (features @ weights).sigmoid()


@outside_autocast
def fit_scope(inside: Tensor, outside: Tensor, steps: int) -> Tensor:
    """The weights (4,) of a logistic regression that tells features (m, 4) from others (n, 4), both counted alike."""
    features = torch.cat([inside, outside])
    target = torch.cat([inside.new_zeros(len(inside)), outside.new_ones(len(outside))])
    weight = torch.where(target > 0, 0.5 / max(1, len(outside)), 0.5 / max(1, len(inside)))
    mean, deviation = features[:, 1:].mean(0), features[:, 1:].std(0).clamp(min=1e-3)
    scaled = torch.cat([features[:, :1], (features[:, 1:] - mean) / deviation], dim=1)

    def nats(values: Tensor) -> Tensor:
        losses = nn.functional.binary_cross_entropy_with_logits(scaled @ values, target, reduction="none")
        return (losses * weight).sum() + RIDGE * values.square().sum()

    values = fit(nats, torch.zeros(4, device=features.device), steps).values
    slopes = values[1:] / deviation
    return torch.cat([(values[0] - slopes @ mean)[None], slopes])
