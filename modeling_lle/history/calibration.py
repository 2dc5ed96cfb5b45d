"""Calibration: the numbers of the rule fitted on held-out predictions, by one gradient descent for every head.

Shapes: n predictions, N entries of a source, S sources.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..common.precision import outside_autocast
from ..configuration_fields import MAX_FITTED, check_keys
from .prediction import Prediction
from .rule import gate, mixed_log_prob
from .source import MORE, Evidence


@dataclass(frozen=True)
class Fit:
    """The result of a descent.

    Attributes:
        values: The best values found.
        before, after: The loss at the initial and at the best values.
    """

    values: Tensor
    before: float
    after: float

    def metrics(self, predictions: int, base_nats: float) -> dict[str, float]:
        """What `calibrate` of every head returns, in nats a prediction; `base_nats` is the loss without history."""
        nats = {"base_nats": base_nats, "before_nats": self.before, "after_nats": self.after}
        return {"predictions": float(predictions), **nats}


def fit(loss: Callable[[Tensor], Tensor], start: Tensor, steps: int, fixed: Tensor | None = None) -> Fit:
    """Minimises a loss by LBFGS (Liu and Nocedal 1989) with a strong Wolfe line search.

    Args:
        loss: Scalar loss of values that have the shape of `start`.
        start: Initial values, floating.
        steps: Iterations at most.
        fixed: Mask (bool) of the values that do not change, broadcast to `start`; None: all change.
    """
    with torch.enable_grad():
        values = start.detach().clone().requires_grad_()
        optimizer = torch.optim.LBFGS([values], max_iter=steps, history_size=10, line_search_fn="strong_wolfe")
        best, first = (math.inf, values.detach().clone()), math.nan

        def closure() -> Tensor:
            nonlocal best, first
            optimizer.zero_grad()
            own = loss(values)
            own.backward()
            if fixed is not None and values.grad is not None:
                values.grad.masked_fill_(fixed, 0.0)
            nats = float(own.detach())
            first = nats if math.isnan(first) else first
            if nats < best[0]:
                best = (nats, values.detach().clone())
            return own

        optimizer.step(closure)
    return Fit(best[1], first, best[0])


@dataclass
class _Sample:
    """Predictions to fit on: base log probability of the target (n,), `base_features` (n, 2), evidence by source."""

    base: Tensor
    features: Tensor
    sources: list[Evidence]

    def select(self, keep: Tensor) -> "_Sample":
        keep = keep.to(self.base.device)
        return _Sample(self.base[keep], self.features[keep], [source.select(keep) for source in self.sources])


PARAMETERS = {"sharpness": [0], "recency": [1], "gate": [2, 3, 4, 5]}  # places
PARAMETERS |= {name: [place] for place, name in enumerate(MORE, start=6)}


class Calibration:
    """Fits the numbers of the sources of token predictions together, on the cross entropy of the mixture.

    Args:
        numbers: The sections of the configuration by the names of their sources ("stream", "bank"), with `sharpness`,
            `gate`, and `recency` and those of `MORE` if the source has them; `fit` writes them.
        fixed: What stays as it is: one of `PARAMETERS` of every source, or of one as in "bank.gate".
        max_predictions: Predictions to keep; more are thinned out evenly at random.
        seed: Seed of the thinning.

    Raises:
        ValueError: There is no source, or no number has the name of one of `fixed`.
    """

    def __init__(
        self, numbers: dict[str, Any], fixed: Collection[str] = (), max_predictions: int = 3000, seed: int = 0
    ) -> None:
        known = [f"{source}.{name}" for source in numbers for name in PARAMETERS]
        check_keys(fixed, [*PARAMETERS, *known], "fixed, the parameters that calibrate leaves as they are")
        self.numbers, self.fixed = numbers, frozenset(fixed)
        self.max_predictions = max_predictions
        self.generator = torch.Generator().manual_seed(seed)
        self.samples: list[_Sample] = []
        self.kept = 0
        self.rate = 1.0

    def take(self, prediction: Prediction, targets: Tensor) -> None:
        """Takes a sample of a block of predictions.

        Args:
            prediction: The block.
            targets: (B, T) int64, the right tokens of all positions of its segment; -100 counts nothing.
        """
        own = targets[:, prediction.positions]
        chosen = (own >= 0) & (torch.rand(own.shape, generator=self.generator) < self.rate).to(own.device)
        row, column = chosen.nonzero(as_tuple=True)
        if not len(row):
            return
        self.samples.append(_Sample(*prediction.evidence(row, column, own[row, column])))
        self.kept += len(row)
        if self.kept > 2 * self.max_predictions:
            self._thin(0.5)
            self.rate *= 0.5

    def _thin(self, share: float) -> None:
        self.samples = [
            sample.select(torch.rand(len(sample.base), generator=self.generator) < share) for sample in self.samples
        ]
        self.kept = sum(len(sample.base) for sample in self.samples)

    @outside_autocast
    def fit(self, steps: int) -> dict[str, float]:
        """Descends, writes the best numbers into the configuration, and returns `Fit.metrics`."""
        if self.kept > self.max_predictions:
            self._thin(self.max_predictions / self.kept)
        if self.kept < 2:
            raise ValueError("calibration needs held-out text of at least a few tokens; the batches hold none")
        base = torch.cat([sample.base for sample in self.samples])
        features = torch.cat([sample.features for sample in self.samples])
        sources = [Evidence.join(list(parts)) for parts in zip(*(s.sources for s in self.samples), strict=True)]
        mean, deviation = features.mean(0), features.std(0).clamp(min=1e-3)
        scaled = (features - mean) / deviation
        numbers = list(self.numbers.values())
        start = torch.stack([to_values(own, mean.cpu(), deviation.cpu()) for own in numbers])
        more = torch.tensor([[float(getattr(own, name, 0.0)) for name in MORE] for own in numbers])
        start = torch.cat([start, more], dim=1).to(base.device)

        def nats(values: Tensor) -> Tensor:
            recalls = [
                source.recall(value[0].exp(), value[1].square(), value[6:])
                for source, value in zip(sources, values, strict=True)
            ]
            log_shares = gate([mass for mass, _ in recalls], scaled, [value[2:6] for value in values])
            return -mixed_log_prob(base, [probability for _, probability in recalls], log_shares).mean()

        found = fit(nats, start, steps, self._mask().to(base.device))
        for (source, own), value in zip(self.numbers.items(), found.values.cpu(), strict=True):
            fixed = self._fixed_of(source)
            store_values(own, value[:6], mean.cpu(), deviation.cpu(), fixed)
            for name, number in zip(MORE, value[6:], strict=True):
                if hasattr(own, name) and name not in fixed:
                    setattr(own, name, float(number.clamp(-MAX_FITTED, MAX_FITTED)))
        return found.metrics(len(base), float(-base.mean()))

    def _fixed_of(self, source: str) -> set[str]:
        return {name for name in PARAMETERS if {name, f"{source}.{name}"} & self.fixed}

    def _mask(self) -> Tensor:
        """Which values (S, 6 + len(MORE)) bool do not change."""
        mask = torch.zeros(len(self.numbers), 6 + len(MORE), dtype=torch.bool)
        for row, source in zip(mask, self.numbers, strict=True):
            for name in self._fixed_of(source):
                row[PARAMETERS[name]] = True
        return mask


def to_values(numbers: Any, mean: Tensor, deviation: Tensor) -> Tensor:
    """Values to descend on, (6,): log sharpness, root of recency, and the gate's weights of standardised features.

    They are well-conditioned and unbounded.
    """
    bias, of_mass, *of_features = (float(number) for number in numbers.gate)
    weights = torch.tensor(of_features)
    kernel_values = [math.log(max(numbers.sharpness, 1e-3)), math.sqrt(max(getattr(numbers, "recency", 0.0), 1e-3))]
    return torch.cat([torch.tensor([*kernel_values, bias + float(weights @ mean), of_mass]), weights * deviation])


def from_values(values: Tensor, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of `to_values`: sharpness and recency, scalars, and the numbers of the gate (4,)."""
    slopes = values[4:] / deviation
    return values[0].exp(), values[1].square(), torch.cat([(values[2] - slopes @ mean)[None], values[3:4], slopes])


def store_values(numbers: Any, values: Tensor, mean: Tensor, deviation: Tensor, fixed: Collection[str] = ()) -> None:
    """Writes values of `to_values` back into the numbers, but for those that are `fixed`."""
    sharpness, recency, weights = from_values(values, mean, deviation)
    if "sharpness" not in fixed:
        numbers.sharpness = float(sharpness.clamp(max=MAX_FITTED))
    if hasattr(numbers, "recency") and "recency" not in fixed:
        numbers.recency = float(recency.clamp(max=MAX_FITTED))
    if "gate" not in fixed:
        numbers.gate = weights.clamp(-MAX_FITTED, MAX_FITTED).tolist()
