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

import torch
from torch import Tensor

from ..kernels.available import fused, takes_numba
from .stream import Block

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

    def joined(self, other: "Recall") -> "Recall":
        """What the entries of both recall as one source."""
        mass = torch.logaddexp(self.mass, other.mass)
        known = mass.clamp(min=torch.finfo(mass.dtype).min)  # -inf - -inf is no number
        parts = [own.weights * (own.mass - known).exp()[..., None] for own in (self, other)]
        outcomes = [own.outcomes.expand(own.weights.shape) for own in (self, other)]
        return Recall(torch.cat(parts, -1), torch.cat(outcomes, -1), mass)

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
