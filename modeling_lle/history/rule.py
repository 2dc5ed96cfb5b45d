"""The rule of LLE: how entries of the history become a prediction, and how its few numbers are fitted.

For each source s with entries i = (key k_i, outcome y_i), a normalised state h and the base's prediction p:

    kernel     l_i = sharpness_s * (h . k_i - 1) - recency_s * log(age_i)
    recall     p_s(y | h) = sum_i softmax(l)_i [y_i = y]
    mass       m_s = logsumexp(l)
    gate       g = softmax over (0, a_s + b_s . (m_s, entropy of p, max log p)) for the sources that have entries
    prediction P(y | h) = g_0 p(y | h) + sum_s g_s p_s(y | h)

The kernel with cosine keys and the mixture generalise the continuous cache (Grave et al. 2016, arXiv:1612.04426,
equations 2 and 3) and kNN-LM (Khandelwal et al. 2020, arXiv:1911.00172, equations 2 and 3) by a gate that sees how
much the history has to say. Shapes: B batch, T time, D width, V vocabulary, N entries, S sources; a score always
means: higher is nearer.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..common.precision import outside_autocast
from ..configuration_fields import MAX_FITTED
from ..kernels.available import fused, takes_numba
from .cache import Block

NO_ENTRY = -math.inf
FEW = 8  # so many times as many outcomes as entries: then a kernel works on the entries alone


def kernel(
    similarity: Tensor, log_age: Tensor | None, sharpness: Tensor | float, recency: Tensor | float = 0.0
) -> Tensor:
    """Scores of the entries in nats, at most 0.

    Args:
        similarity: (..., N) floating, cosine of key and query.
        log_age: (..., N) float32, logarithm of the age, which is 1 for the newest entry; None for entries without age.
        sharpness, recency: Numbers, or scalar tensors that may need a gradient.

    Returns:
        (..., N) float32.
    """
    score = (similarity.float() - 1) * sharpness
    return score if log_age is None else score - recency * log_age


def log_age(age: Tensor) -> Tensor:
    """Logarithm of ages (int64) as float32; 0 where there is no entry."""
    return age.clamp(min=1).float().log_()


@dataclass
class Recall:
    """What one source recalls at each position.

    Attributes:
        weights: (B, T, N) float32, softmax of the kernel; all zero at a position that has no entries.
        outcomes: (B, 1 or T, N) int64.
        mass: (B, T) float32, logsumexp of the kernel; -inf at a position that has no entries.
    """

    weights: Tensor
    outcomes: Tensor
    mass: Tensor

    @classmethod
    def from_scores(cls, scores: Tensor, valid: Tensor, outcomes: Tensor) -> "Recall":
        """From kernel scores (B, T, N), which of them may be used, and the outcomes (B, N) or (B, T, N)."""
        if outcomes.dim() == 2:
            outcomes = outcomes[:, None]
        if scores.shape[-1] == 0:
            return cls(scores, outcomes, scores.new_full(scores.shape[:-1], NO_ENTRY))
        scores = scores.masked_fill(~valid, NO_ENTRY)
        mass = scores.logsumexp(-1)
        weights = (scores - mass.clamp(min=torch.finfo(mass.dtype).min)[..., None]).exp()
        return cls(weights, outcomes, mass)

    def probability(self, targets: Tensor) -> Tensor:
        """p_s of the targets (B, T) int64, as (B, T) float32."""
        if self.outcomes.shape[1] == 1 and fused(self.weights):
            from ..kernels.recall_numba import recalled_probability

            return recalled_probability(self.weights, self.outcomes[:, 0], targets)
        return (self.weights * (self.outcomes == targets[..., None])).sum(-1)

    def add_to(self, distribution: Tensor, share: Tensor) -> Tensor:
        """Adds `share` (B, T) times the recalled distribution to `distribution` (B, T, V), in place."""
        index = self.outcomes.expand(self.weights.shape)
        return distribution.scatter_add_(-1, index, self.weights * share[..., None])


def recall_stream(
    block: Block, sharpness: Tensor | float, recency: Tensor | float, similarity: Tensor | None = None
) -> Recall:
    """What each position of a block recalls from its entries: `kernel` and `Recall.from_scores`, fused on a CPU.

    `similarity` (B, T, N) is that of the block, if it is known already; float32 is overwritten.
    """
    similarity = block.similarity() if similarity is None else similarity
    if fused(similarity):
        from ..kernels.recall_numba import recall_weights

        weights = similarity.float().contiguous()
        mass = recall_weights(weights, block.made, block.serial, block.window, float(sharpness), float(recency))
        return Recall(weights, block.outcomes[:, None], mass)
    scores = kernel(similarity, log_age(block.age), sharpness, recency)
    return Recall.from_scores(scores, block.valid, block.outcomes)


def recall_bank(similarity: Tensor, outcomes: Tensor, counts: Tensor, sharpness: float) -> Recall:
    """What each position recalls from its nearest entries of a bank.

    Args:
        similarity: (B, T, K) float32, cosines.
        outcomes: (B, T, K) int64.
        counts: (B, T, K) integers, how often each entry occurred; 0 where there is none.
        sharpness: As in `kernel`.
    """
    scores = kernel(similarity, None, sharpness) + counts.clamp(min=1).log()
    return Recall.from_scores(scores, counts > 0, outcomes)


def base_features(log_probs: Tensor) -> Tensor:
    """Entropy and largest log probability of the base's prediction (..., V), in nats, as (..., 2) float32."""
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    return torch.stack([entropy, log_probs.amax(-1)], dim=-1)


def base_prediction(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The base's log probabilities (..., V) float32 from its logits, which may be overwritten, and `base_features`."""
    differentiate = torch.is_grad_enabled() and logits.requires_grad
    logits = logits.float()
    if not differentiate and not torch.compiler.is_compiling() and takes_numba(logits):
        from ..kernels.softmax_numba import log_softmax_

        rows = logits.detach().contiguous().flatten(0, -2)
        features = log_softmax_(rows)
        return rows.view(logits.shape), features.view(*logits.shape[:-1], 2)
    log_probs = logits.log_softmax(-1)
    return log_probs, base_features(log_probs)


def gate(masses: list[Tensor], features: Tensor, weights: list[Tensor | list[float]]) -> Tensor:
    """Log shares of the base and of each source in the mixture.

    Args:
        masses: One (B, T) tensor for each source, -inf where it has no entries.
        features: (B, T, 2), from `base_features`.
        weights: For each source its four numbers: bias, and weights of mass, entropy and max log p.

    Returns:
        (B, T, 1 + S) float32 log shares, the base's first; their exponentials add up to 1.
    """
    logits = [torch.zeros_like(features[..., 0])]
    for mass, weight in zip(masses, weights, strict=True):
        bias, of_mass, of_entropy, of_max = weight
        empty = mass == NO_ENTRY
        logit = (
            bias + of_mass * mass.masked_fill(empty, 0.0) + of_entropy * features[..., 0] + of_max * features[..., 1]
        )
        logits.append(logit.masked_fill(empty, NO_ENTRY))
    return torch.stack(logits, dim=-1).log_softmax(-1)


def mixed_log_prob(base: Tensor, recalled: list[Tensor], log_shares: Tensor) -> Tensor:
    """log P of targets: base log probabilities (B, T), the sources' probabilities (B, T), log shares (B, T, 1 + S)."""
    parts = [base, *(probability.clamp(min=1e-38).log() for probability in recalled)]
    return (torch.stack(parts, dim=-1) + log_shares).logsumexp(-1)


def mixed_distribution(base: Tensor, recalls: list[Recall], log_shares: Tensor) -> Tensor:
    """log P of every outcome; the base's (B, T, V) float32 is overwritten where no gradient is needed."""
    shares = log_shares.exp()
    entries = sum(recall.weights.shape[-1] for recall in recalls)
    if fused(base) and not shares.requires_grad and base.is_contiguous() and FEW * entries <= base.shape[-1]:
        from ..kernels.recall_numba import mix_few

        own = [recall.weights * shares[..., place : place + 1] for place, recall in enumerate(recalls, start=1)]
        outcomes = [recall.outcomes.expand(recall.weights.shape) for recall in recalls]
        rows = (torch.cat(parts, dim=-1).flatten(0, -2) for parts in (own, outcomes))
        return mix_few(base.flatten(0, -2), log_shares[..., 0].flatten(), *rows).view(base.shape)
    mixed = base.exp() * shares[..., :1] if base.requires_grad else base.exp_().mul_(shares[..., :1])
    for source, recall in enumerate(recalls):
        recall.add_to(mixed, shares[..., source + 1])
    return mixed.clamp_(min=torch.finfo(mixed.dtype).tiny).log_()


@dataclass
class Evidence:
    """What a source offers at n positions, before its numbers are applied.

    Attributes:
        similarity: (n, N) float32, cosines.
        log_age: (n, N) float32, or None for entries without age.
        log_count: (n, N) float32, logarithm of how often each entry occurred, or None for once.
        valid: (n, N) bool, whether the position may recall the entry.
        hit: (n, N) bool, whether the entry's outcome is the target.
    """

    similarity: Tensor
    log_age: Tensor | None
    log_count: Tensor | None
    valid: Tensor
    hit: Tensor

    def recall(self, sharpness: Tensor, recency: Tensor) -> tuple[Tensor, Tensor]:
        """Mass and probability of the target, (n,) float32 each."""
        scores = kernel(self.similarity, self.log_age, sharpness, recency)
        scores = scores if self.log_count is None else scores + self.log_count
        recall = Recall.from_scores(scores[:, None], self.valid[:, None], self.hit.long()[:, None])
        return recall.mass[:, 0], recall.probability(torch.ones_like(recall.mass, dtype=torch.long))[:, 0]

    def select(self, keep: Tensor) -> "Evidence":
        """The positions where `keep` (n,) bool."""
        return self._map(lambda column: column[keep])

    @classmethod
    def join(cls, parts: list["Evidence"]) -> "Evidence":
        """The positions of all parts, their entries padded to one width."""
        width = max(part.valid.shape[1] for part in parts)
        padded = [
            part._map(lambda column: torch.nn.functional.pad(column, (0, width - column.shape[1]))) for part in parts
        ]
        columns = zip(*([getattr(part, name) for name in cls.__dataclass_fields__] for part in padded), strict=True)
        joined: Any = (None if column[0] is None else torch.cat(column) for column in columns)
        return cls(*joined)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Evidence":
        columns = (getattr(self, name) for name in self.__dataclass_fields__)
        changed: Any = (None if column is None else change(column) for column in columns)
        return Evidence(*changed)


@dataclass
class _Sample:
    """Positions to fit on: the base's log probability of the target (n,), its features (n, 2), the evidence."""

    base: Tensor
    features: Tensor
    sources: list[Evidence]

    def select(self, keep: Tensor) -> "_Sample":
        keep = keep.to(self.base.device)
        return _Sample(self.base[keep], self.features[keep], [source.select(keep) for source in self.sources])


class Calibration:
    """Fits the numbers of the sources together on held-out text, by gradient descent on the mixture's cross entropy.

    Args:
        numbers: The sources' sections of the config (`sharpness`, `gate`, and `recency` if it has one), which are
            read and written.
        max_positions: Positions to keep; more are thinned out evenly at random.
        seed: Seed of the thinning.
    """

    def __init__(self, numbers: list[Any], max_positions: int, seed: int = 0) -> None:
        self.numbers = numbers
        self.max_positions = max_positions
        self.generator = torch.Generator().manual_seed(seed)
        self.samples: list[_Sample] = []
        self.kept = 0
        self.rate = 1.0

    def choose(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column, (n,) int64 each, of the positions of a block to take, from its targets (B, T)."""
        chosen = (targets >= 0) & (torch.rand(targets.shape, generator=self.generator) < self.rate).to(targets.device)
        row, column = chosen.nonzero(as_tuple=True)
        return row, column

    def add(self, base: Tensor, features: Tensor, sources: list[Evidence]) -> None:
        """Takes n positions: the base's log probability of the target (n,), `base_features` (n, 2), the evidence."""
        self.samples.append(_Sample(base, features, sources))
        self.kept += len(base)
        if self.kept > 2 * self.max_positions:
            self._thin(0.5)
            self.rate *= 0.5

    def _thin(self, share: float) -> None:
        self.samples = [
            sample.select(torch.rand(len(sample.base), generator=self.generator) < share) for sample in self.samples
        ]
        self.kept = sum(len(sample.base) for sample in self.samples)

    @outside_autocast
    def fit(self, steps: int) -> dict[str, float]:
        """Descends, writes the best numbers found into the config, and returns the perplexities."""
        if self.kept > self.max_positions:
            self._thin(self.max_positions / self.kept)
        if self.kept < 2:
            raise ValueError("calibration needs held-out text of at least a few tokens; the batches hold none")
        base = torch.cat([sample.base for sample in self.samples])
        features = torch.cat([sample.features for sample in self.samples])
        sources = [Evidence.join(list(parts)) for parts in zip(*(s.sources for s in self.samples), strict=True)]
        mean, deviation = features.mean(0), features.std(0).clamp(min=1e-3)
        scaled = (features - mean) / deviation
        start = [to_values(numbers, mean.cpu(), deviation.cpu()) for numbers in self.numbers]
        values = torch.stack(start).to(base.device).requires_grad_()

        def nats() -> Tensor:
            recalls = [
                source.recall(value[0].exp(), value[1].square()) for source, value in zip(sources, values, strict=True)
            ]
            log_shares = gate([mass for mass, _ in recalls], scaled, [value[2:] for value in values])
            return -mixed_log_prob(base, [probability for _, probability in recalls], log_shares).mean()

        optimizer = torch.optim.LBFGS([values], max_iter=steps, history_size=10, line_search_fn="strong_wolfe")
        best = (math.inf, values.detach().clone())
        first = math.nan

        def closure() -> Tensor:
            nonlocal best, first
            optimizer.zero_grad()
            loss = nats()
            loss.backward()
            first = float(loss.detach()) if math.isnan(first) else first
            if float(loss.detach()) < best[0]:
                best = (float(loss.detach()), values.detach().clone())
            return loss

        optimizer.step(closure)
        for numbers, value in zip(self.numbers, best[1].cpu(), strict=True):
            store_values(numbers, value, mean.cpu(), deviation.cpu())
        return {
            "positions": float(len(base)),
            "base_ppl": math.exp(float(-base.mean())),
            "before_ppl": math.exp(first),
            "after_ppl": math.exp(best[0]),
        }


def to_values(numbers: Any, mean: Tensor, deviation: Tensor) -> Tensor:
    """What is descended on, (6,): log sharpness, root of recency, and the gate's weights of standardised features.

    They are well-conditioned and unbounded.
    """
    bias, of_mass, *of_features = (float(number) for number in numbers.gate)
    weights = torch.tensor(of_features)
    kernel_values = [math.log(max(numbers.sharpness, 1e-3)), math.sqrt(max(getattr(numbers, "recency", 0.0), 1e-3))]
    return torch.cat([torch.tensor([*kernel_values, bias + float(weights @ mean), of_mass]), weights * deviation])


def from_values(values: Tensor, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `to_values` made the values (6,) of: sharpness and recency, scalars, and the numbers of the gate (4,)."""
    slopes = values[4:] / deviation
    return values[0].exp(), values[1].square(), torch.cat([(values[2] - slopes @ mean)[None], values[3:4], slopes])


def store_values(numbers: Any, values: Tensor, mean: Tensor, deviation: Tensor) -> None:
    """Writes what `to_values` made of the numbers back into them."""
    sharpness, recency, weights = from_values(values, mean, deviation)
    numbers.sharpness = float(sharpness.clamp(max=MAX_FITTED))
    if hasattr(numbers, "recency"):
        numbers.recency = float(recency.clamp(max=MAX_FITTED))
    numbers.gate = weights.clamp(-MAX_FITTED, MAX_FITTED).tolist()
