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
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .cache_lle import Block
from .scan_lle import installed

NO_ENTRY = -math.inf


def kernel(similarity: Tensor, age: Tensor, sharpness: Tensor | float, recency: Tensor | float) -> Tensor:
    """Scores of the entries in nats, at most 0.

    Args:
        similarity: (..., N) floating, cosine of key and query.
        age: (..., N) int64, 1 for the newest entry; unused where `recency` is the number 0.
        sharpness, recency: Numbers, or scalar tensors that may need a gradient.

    Returns:
        (..., N) float32.
    """
    score = (similarity.float() - 1) * sharpness
    if isinstance(recency, Tensor) or recency != 0:
        score = score - recency * age.clamp(min=1).float().log_()
    return score


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
        if self.outcomes.shape[1] == 1 and _fused(self.weights):
            from .step_kernels_lle import recalled_probability

            return recalled_probability(self.weights, self.outcomes[:, 0], targets)
        return (self.weights * (self.outcomes == targets[..., None])).sum(-1)

    def add_to(self, distribution: Tensor, share: Tensor) -> Tensor:
        """Adds `share` (B, T) times the recalled distribution to `distribution` (B, T, V), in place."""
        index = self.outcomes.expand(self.weights.shape)
        return distribution.scatter_add_(-1, index, self.weights * share[..., None])


def _fused(tensor: Tensor) -> bool:
    """Whether a fused kernel computes what follows from this tensor: on a CPU, where no gradient is asked for."""
    return (
        tensor.device.type == "cpu"
        and tensor.numel() > 0
        and not tensor.requires_grad
        and not torch.compiler.is_compiling()
        and installed("numba")
    )


def recall_stream(block: Block, sharpness: float, recency: float) -> Recall:
    """What each position of a block recalls from the stream: `kernel` and `Recall.from_scores`, fused on a CPU."""
    similarity = block.similarity()
    if _fused(similarity):
        from .step_kernels_lle import recall_weights

        weights = similarity.float().contiguous()
        mass = recall_weights(weights, block.made, block.serial, block.window, sharpness, recency)
        return Recall(weights, block.outcomes[:, None], mass)
    scores = kernel(similarity, block.age, sharpness, recency)
    return Recall.from_scores(scores, block.valid, block.outcomes)


def base_features(log_probs: Tensor) -> Tensor:
    """Entropy and largest log probability of the base's prediction (..., V), in nats, as (..., 2) float32."""
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    return torch.stack([entropy, log_probs.amax(-1)], dim=-1)


def base_prediction(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The base's log probabilities (..., V) float32 from its logits, which may be overwritten, and `base_features`."""
    differentiate = torch.is_grad_enabled() and logits.requires_grad
    logits = logits.float()
    if logits.device.type == "cpu" and installed("numba") and not differentiate and not torch.compiler.is_compiling():
        from .step_kernels_lle import log_softmax_

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
    mixed = base.exp() * shares[..., :1] if base.requires_grad else base.exp_().mul_(shares[..., :1])
    for source, recall in enumerate(recalls):
        recall.add_to(mixed, shares[..., source + 1])
    return mixed.clamp_(min=torch.finfo(mixed.dtype).tiny).log_()


class Calibration:
    """Fits the numbers of a source on held-out text, by gradient descent on the mixture's cross entropy.

    Args:
        numbers: The source's section of the config (`sharpness`, `recency`, `gate`), read and written.
        max_positions: Positions to keep; more are thinned out evenly at random.
        seed: Seed of the thinning.
    """

    def __init__(self, numbers: Any, max_positions: int, seed: int = 0) -> None:
        self.numbers = numbers
        self.max_positions = max_positions
        self.generator = torch.Generator().manual_seed(seed)
        self.samples: list[tuple[Tensor, ...]] = []
        self.kept = 0
        self.rate = 1.0

    def add(self, base: Tensor, block: Block, targets: Tensor) -> None:
        """Takes a block's positions: base log probabilities (B, T, V), what can be recalled, targets (B, T)."""
        chosen = (targets >= 0) & (torch.rand(targets.shape, generator=self.generator) < self.rate).to(targets.device)
        row, column = chosen.nonzero(as_tuple=True)
        if not len(row):
            return
        target = targets[row, column]
        self.samples.append(
            (
                base[row, column, target],
                base_features(base[row, column]),
                block.similarity()[row, column].float(),
                block.age[row, column].clamp(min=1).float().log_(),
                block.valid[row, column],
                block.outcomes[row] == target[:, None],
            )
        )
        self.kept += len(row)
        if self.kept > 2 * self.max_positions:
            self._thin(0.5)
            self.rate *= 0.5

    def _thin(self, share: float) -> None:
        thinned = []
        for sample in self.samples:
            keep = (torch.rand(len(sample[0]), generator=self.generator) < share).to(sample[0].device)
            thinned.append(tuple(column[keep] for column in sample))
        self.samples = thinned
        self.kept = sum(len(sample[0]) for sample in thinned)

    def _columns(self) -> list[Tensor]:
        """The samples side by side, their entries padded to one width."""
        width = max(sample[2].shape[-1] for sample in self.samples)

        def padded(tensor: Tensor) -> Tensor:
            return torch.nn.functional.pad(tensor, (0, width - tensor.shape[-1])) if tensor.dim() == 2 else tensor

        columns = []
        for index in range(6):
            parts = [sample[index] for sample in self.samples]
            columns.append(torch.cat([padded(part) if index > 1 else part for part in parts]))
        return columns

    def fit(self, steps: int) -> dict[str, float]:
        """Descends, writes the best numbers found into the config, and returns the perplexities."""
        if self.kept > self.max_positions:
            self._thin(self.max_positions / self.kept)
        if self.kept < 2:
            raise ValueError("calibration needs held-out text of at least a few tokens; the batches hold none")
        base, features, similarity, log_age, valid, hit = self._columns()
        mean, deviation = features.mean(0), features.std(0).clamp(min=1e-3)
        start = self.numbers
        bias, of_mass, *of_features = (float(number) for number in start.gate)
        weights = torch.tensor(of_features, device=base.device)
        # Descend on standardised features, log sharpness and the root of recency: well-conditioned and unbounded.
        values = torch.cat(
            [
                torch.tensor(
                    [math.log(max(start.sharpness, 1e-3)), math.sqrt(max(start.recency, 1e-3)), 0.0, of_mass]
                ),
                (weights * deviation).cpu(),
            ]
        )
        values[2] = bias + float(weights @ mean)
        values = values.to(base.device).requires_grad_()

        def nats() -> Tensor:
            scores = (similarity - 1) * values[0].exp() - values[1].square() * log_age
            recall = Recall.from_scores(scores[:, None], valid[:, None], hit.long()[:, None])
            recalled = recall.probability(torch.ones_like(base, dtype=torch.long)[:, None])[:, 0]
            scaled = (features - mean) / deviation
            log_shares = gate([recall.mass[:, 0]], scaled, [values[2:]])
            return -mixed_log_prob(base, [recalled], log_shares).mean()

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
        self._store(best[1].cpu(), mean.cpu(), deviation.cpu())
        return {
            "positions": float(len(base)),
            "base_ppl": math.exp(float(-base.mean())),
            "before_ppl": math.exp(first),
            "after_ppl": math.exp(best[0]),
        }

    def _store(self, values: Tensor, mean: Tensor, deviation: Tensor) -> None:
        slopes = values[4:] / deviation
        self.numbers.sharpness = float(values[0].exp())
        self.numbers.recency = float(values[1].square())
        self.numbers.gate = [float(values[2] - slopes @ mean), float(values[3]), *(float(slope) for slope in slopes)]
