"""The rule of LLE for labels: a classifier joined by labelled examples, some of them of labels that it never saw.

With p the base's prediction over the labels that it was trained on, l_i the kernel of the neighbours (rule.py),
"seen" those whose label is among them and "unseen" the others:

    recall      r(y) = sum of softmax(l)_i over the seen ones of label y;   m = logsumexp(l) over the seen ones
    gate        g = softmax over (0, a + b . (m, entropy of p, max log p))
    known       k = e^(m + sharpness * margin) + e^(sharpness * (background - 1))
    unseen      u_i = e^l_i / (k + sum of e^l_j over the unseen ones);   u = sum of u_i
    prediction  P(y | h) = (1 - u) (g_0 p(y | h) + g_1 r(y | h))    for a label that the base was trained on
                P(y | h) = sum of u_i over those of label y         for one that only the history knows

So a text first is of an unseen label as far as it is nearer to their examples than to the others, by `margin`, and
than `background`, the cosine that stands for the base where there are no others; what is left is the rule of the
language model. P sums to one. With several labels a text, p and r are the probabilities of each label, all labels
count as seen, and one that only the history knows has P = r; in regression p and r are values. A score always means:
higher is nearer.
Shapes: n texts, K neighbours, C trained labels, L labels, O outcomes of the bank.
"""

import functools
import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from ..bank.found import Found
from ..common.precision import outside_autocast
from ..configuration_sections import BankConfig, ClassifierConfig
from ..kernels.available import fused
from .loss import IGNORED, check_targets
from .rule import Recall, base_features, gate, kernel

SINGLE: Final = "single_label_classification"
MULTI: Final = "multi_label_classification"
REGRESSION: Final = "regression"
Label = str | float | Sequence[str]
LEAST_LOG = math.log(torch.finfo(torch.float32).tiny)  # what a logarithm of 0 counts as in the features


def kind_of(labels: int) -> str:
    """What transformers takes so many labels for, where a configuration has no `problem_type`."""
    return REGRESSION if labels == 1 else SINGLE


def names_of(id2label: Mapping[int, str]) -> list[str]:
    """The names of the labels of a configuration, in the order of their ids.

    Raises:
        ValueError: There is none, the ids are not 0, 1, 2, ... without a gap, or two of them have one name.
    """
    if not id2label:
        raise ValueError("a classifier needs labels: set id2label={0: ..., 1: ...}, or num_labels")
    if sorted(id2label) != list(range(len(id2label))):
        raise ValueError(
            f"id2label has the ids {_listed(sorted(id2label))}: number the {len(id2label)} labels from 0 without a gap"
        )
    names = [id2label[number] for number in range(len(id2label))]
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        ids = [number for number, name in enumerate(names) if name == twice]
        raise ValueError(f"id2label calls the labels {_listed(ids)} all {twice!r}: give each a name of its own")
    return names


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")


def outcome_name(label: Label, kind: str) -> str:
    """The name of an outcome in a bank: the label itself, a JSON list of labels, or a number.

    Raises:
        ValueError: The label is not of this kind.
    """
    if kind == SINGLE and isinstance(label, str) and label.strip():
        return label
    if (
        kind == MULTI
        and isinstance(label, Collection)
        and not isinstance(label, str | Mapping)
        and all(isinstance(part, str) and part.strip() for part in label)
    ):
        return json.dumps(sorted(set(label)), ensure_ascii=False)
    if kind == REGRESSION and isinstance(label, Real) and not isinstance(label, bool) and math.isfinite(label):
        return repr(float(label))
    due = {SINGLE: "a text that is not empty", MULTI: "a list of texts", REGRESSION: "a finite number"}[kind]
    raise ValueError(f"the label {label!r} should be {due}: the model's problem_type is {kind!r}")


def labels_in(name: str, kind: str) -> list[str]:
    """The labels that an outcome of this name stands for."""
    return json.loads(name) if kind == MULTI else [name] if kind == SINGLE else []


def check_outcomes(names: Sequence[str], kind: str) -> None:
    """Raises a ValueError unless these can be the names of outcomes of this kind, whoever made them."""
    for name in names:
        try:
            if kind == REGRESSION and not math.isfinite(float(name)):
                raise ValueError
            if kind == MULTI and outcome_name(json.loads(name), kind) != name:
                raise ValueError
        except (ValueError, TypeError, RecursionError):
            due = "number" if kind == REGRESSION else "list of labels"
            raise ValueError(f"has the label {name!r:.80}, which is no {due}") from None


@dataclass(frozen=True)
class LabelSpace:
    """The labels of a classifier, and what each outcome of its bank says of them.

    Attributes:
        names: The L labels, the C trained ones first, then those that only the bank knows, in the order of their ids.
        trained: C.
        votes: (O, L) float32, what an outcome gives to each label: 1 or 0, in regression its value.
        recalls: Whether there is anything to recall.
    """

    names: tuple[str, ...]
    trained: int
    votes: Tensor
    recalls: bool = True

    @functools.cached_property
    def label_of(self) -> Tensor:
        """The label of each outcome where a text has one, (O,) int64; -1 where no entry of it is left."""
        return self.votes.argmax(1).masked_fill(self.votes.sum(1) == 0, -1)

    @classmethod
    def of(cls, trained: Sequence[str], kind: str, outcomes: Sequence[str], live: Tensor) -> "LabelSpace":
        """That of a classifier trained on some labels, and of a bank.

        Args:
            trained: Names of the trained labels.
            kind: What the labels are.
            outcomes: Names of the bank's outcomes.
            live: (O,) bool, whether there is an entry of this outcome that may be recalled.
        """
        if kind == REGRESSION:
            values = torch.tensor([[float(name)] for name in outcomes]).view(-1, 1)
            return cls(tuple(trained), len(trained), values, bool(live.any()))
        each = [labels_in(name, kind) for name in outcomes]
        alive = [label for labels, is_live in zip(each, live.tolist(), strict=True) if is_live for label in labels]
        names = tuple(dict.fromkeys([*trained, *alive]))
        place = {name: number for number, name in enumerate(names)}
        votes = torch.zeros(len(outcomes), len(names))
        for number, labels in enumerate(each):
            votes[number, [place[label] for label in labels if label in place]] = 1.0
        return cls(names, len(trained), votes, bool(live.any()))


@dataclass
class Features:
    """What the gate sees of a base's prediction, and the prediction itself.

    Attributes:
        base: (n, C) float32, probabilities, or values in regression.
        features: (n, 2) float32, entropy and largest log probability in nats, the mean over labels if there may be
            several; 0 in regression.
    """

    base: Tensor
    features: Tensor

    @classmethod
    def of(cls, logits: Tensor, kind: str) -> "Features":
        """From the logits (n, C) of the output layer."""
        logits = logits.float()
        if kind == SINGLE:
            log_probs = logits.log_softmax(-1)
            return cls(log_probs.exp(), base_features(log_probs.clamp(min=LEAST_LOG)))
        if kind == MULTI:
            both = torch.stack([functional.logsigmoid(logits), functional.logsigmoid(-logits)], dim=-1)
            return cls(logits.sigmoid(), base_features(both.clamp(min=LEAST_LOG)).mean(-2))
        return cls(logits, logits.new_zeros(*logits.shape[:-1], 2))


@dataclass
class RecalledLabels:
    """What a bank recalls of the labels.

    Attributes:
        weights: (n, K) float32, the weights of the seen neighbours; they add up to 1, or to 0 where there are none.
        unseen: (n, K) float32, u_i of the unseen ones.
        labels: (n, L) float32, r of the trained labels, then P of those that only the bank knows.
        seen_mass, mass: (n,) float32, of the seen neighbours and of all; -inf where there are none.
    """

    weights: Tensor
    unseen: Tensor
    labels: Tensor
    seen_mass: Tensor
    mass: Tensor

    @classmethod
    @outside_autocast
    def of(
        cls,
        found: Found,
        space: LabelSpace,
        kind: str,
        sharpness: Tensor | float,
        background: Tensor | float,
        margin: float = 0.0,
    ) -> "RecalledLabels":
        """From what a search found, and the bank's numbers."""
        votes = space.votes.to(found.similarity.device)
        if not len(votes):
            votes = votes.new_zeros(1, len(space.names))
        real, strange = found.counts > 0, torch.zeros_like(found.counts, dtype=torch.bool)
        if kind == SINGLE:
            strange = (votes[:, space.trained :].sum(1) > 0)[found.outcomes]
        scores = kernel(found.similarity, None, sharpness) + found.counts.clamp(min=1).log()
        seen, unseen = (
            Recall.from_scores(scores[None], (real & chosen)[None], found.outcomes[None])
            for chosen in (~strange, strange)
        )
        stand_in = torch.as_tensor(sharpness * (background - 1)).to(scores)
        known = (seen.mass[0] + sharpness * margin).logaddexp(stand_in)
        shares = unseen.weights[0] * (unseen.mass[0] - known).sigmoid()[:, None]
        by_outcome = scores.new_zeros(len(scores), len(votes))
        labels = by_outcome.scatter_add(1, found.outcomes, seen.weights[0] + shares) @ votes
        return cls(seen.weights[0], shares, labels, seen.mass[0], seen.mass[0].logaddexp(unseen.mass[0]))


@dataclass
class Mixture:
    """The prediction with history.

    Attributes:
        labels: (n, L) float32, the probability of each label, or the value in regression.
        scope: (n, L) float32, the same with nothing recalled of the trained labels: by the base and the unseen ones.
        base_share: (n,) float32.
        shares: (n, K) float32, of the neighbours.
    """

    labels: Tensor
    scope: Tensor
    base_share: Tensor
    shares: Tensor

    @classmethod
    def of(cls, own: Features, recalled: RecalledLabels, numbers: Tensor | Sequence[float]) -> "Mixture":
        """Mixes what the base and the bank say; `numbers` (4,) are those of the gate."""
        share = gate([recalled.seen_mass], own.features, [numbers]).exp()  # type: ignore[list-item]
        known = 1 - recalled.unseen.sum(-1, keepdim=True)
        of_base, of_bank = known * share[:, :1], known * share[:, 1:]
        C = own.base.shape[-1]
        trained, novel = recalled.labels[:, :C], recalled.labels[:, C:]
        return cls(
            labels=torch.cat([of_base * own.base + of_bank * trained, novel], dim=-1),
            scope=torch.cat([known * own.base, novel], dim=-1),
            base_share=of_base[:, 0],
            shares=recalled.weights * of_bank + recalled.unseen,
        )


def mix(
    logits: Tensor, found: Found, space: LabelSpace, kind: str, bank: BankConfig, classifier: ClassifierConfig
) -> tuple[Mixture, Tensor]:
    """The prediction with history from the logits (n, C) of the output layer, and the mass (n,) of the recall."""
    if kind == SINGLE and fused(logits):
        from ..kernels.labels_numba import mix_labels

        parts = logits.float(), found.similarity, found.counts, found.outcomes, space.label_of  # none in float16
        own = bank.sharpness, classifier.background, classifier.margin, bank.gate
        *mixture, mass = mix_labels(*parts, len(space.names), *own)
        return Mixture(*mixture), mass
    recalled = RecalledLabels.of(found, space, kind, bank.sharpness, classifier.background, classifier.margin)
    return Mixture.of(Features.of(logits, kind), recalled, bank.gate), recalled.mass


def logits_of(labels: Tensor, kind: str) -> Tensor:
    """What makes transformers' softmax or sigmoid give probabilities (n, L) back; the values in regression."""
    if kind == REGRESSION:
        return labels
    tiny = torch.finfo(labels.dtype).tiny
    log = labels.clamp(min=tiny).log()
    return log if kind == SINGLE else log - (1 - labels).clamp(min=tiny).log()


def scope_features(logits: Tensor, mass: Tensor, kind: str, sharpness: float) -> Tensor:
    """What tells "none of these", (..., 4): 1, the mass of the recall, entropy and largest log probability.

    Args:
        logits: (..., L), those of the `scope` of a mixture, or the output layer's.
        mass: (...) float32; where the bank is empty it counts as that of an example which is as far as can be.
        kind: What the labels are.
        sharpness: The bank's.
    """
    own = Features.of(logits, kind)
    mass = mass.clamp(min=-2 * sharpness)
    return torch.cat([torch.stack([torch.ones_like(mass), mass], dim=-1), own.features], dim=-1)


def label_loss(logits: Tensor, labels: Tensor, kind: str, number: Tensor | int | None = None) -> Tensor:
    """The mean loss of logits (..., L), as transformers defines it for each kind.

    Args:
        logits: (..., L) floating.
        labels: (...) int64; (..., L) for several labels; (...) in regression. Of the first two, -100 counts nothing.
        kind: What the labels are.
        number: What the sum is divided by, such as the number of labels of all parts of a batch whose gradients are
            accumulated; None: the number of labels, those of several labels a text counted one by one.
    """
    if kind == SINGLE:
        labels = check_targets(labels, logits.shape[:-1], logits.shape[-1])
    elif labels.shape != logits.shape and (kind == MULTI or labels.shape != logits.shape[:-1]):
        raise ValueError(f"labels have the shape {tuple(labels.shape)}, the predictions {tuple(logits.shape)}")
    logits, used = logits.float(), labels != IGNORED
    if kind == REGRESSION:
        used = torch.ones_like(used)
        total = functional.mse_loss(logits.view(labels.shape), labels.float(), reduction="sum")
    elif kind == MULTI:
        nats = functional.binary_cross_entropy_with_logits(
            logits, labels.float().masked_fill(~used, 0.0), reduction="none"
        )
        total = nats.masked_fill(~used, 0.0).sum()
    else:
        flat = logits.flatten(0, -2), labels.flatten()
        total = functional.cross_entropy(*flat, ignore_index=IGNORED, reduction="sum")
    return total / (used.sum().clamp(min=1) if number is None else number)
