"""Predictions of labels: what the output layer gives, the examples that a bank recalls, and the mixture of both.

Notable: the counterpart of prediction.py for classifiers, whose rule is label_rule.py. A prediction recalls when it is
made, and mixes when it is first asked. Shapes: ... of texts (B,) or of tokens (B, T); n texts or tokens that recall,
which are all without a mask; K neighbours, C trained labels, L labels.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..bank.found import Found
from ..configuration_sections import BankConfig, ClassifierConfig
from .explanation import Explained
from .label_calibration import Answered, scope_scores
from .label_rule import (
    MULTI,
    Features,
    LabelSpace,
    Mixture,
    RecalledLabels,
    label_loss,
    logits_of,
    mix,
    scope_features,
)
from .prediction import HistoryOutput


@dataclass
class LabelPrediction:
    """The labels of a batch of texts, or of their tokens.

    Attributes:
        base: (..., C) floating, logits of the output layer.
        kind: What the labels are.
        space: The labels.
        bank, classifier: The sections of the configuration that hold the numbers.
        found: The nearest examples, (n, K); None without a bank.
        real: (B, T) bool, which n tokens recall; None: all.
    """

    base: Tensor
    kind: str
    space: LabelSpace
    bank: BankConfig
    classifier: ClassifierConfig
    found: Found | None = None
    real: Tensor | None = None

    @functools.cached_property
    def _mixed(self) -> tuple[Mixture, Tensor]:
        assert self.found is not None
        return mix(self._chosen(self.base), self.found, self.space, self.kind, self.bank, self.classifier)

    @functools.cached_property
    def _plain(self) -> Tensor:
        """The logits (..., L) float32 of what recalls nothing, in which a label of the bank alone has no share."""
        new_labels = len(self.space.names) - self.base.shape[-1]
        return nn.functional.pad(self.base.float(), (0, new_labels), value=-torch.inf)

    def _chosen(self, values: Tensor) -> Tensor:
        """Values (..., x) of what recalls, (n, x)."""
        return values.flatten(0, -2) if self.real is None else values[self.real]

    def _placed(self, values: Tensor, elsewhere: Tensor | float) -> Tensor:
        """Values (n, ...) in their places (..., ...), and what stands elsewhere."""
        shape = self.base.shape[:-1]
        if self.real is None:
            return values.unflatten(0, shape)
        whole = torch.as_tensor(elsewhere).to(values).expand(*shape, *values.shape[1:]).clone()
        whole[self.real] = values
        return whole

    def logits(self) -> Tensor:
        """(..., L), of which softmax, or sigmoid, gives the probabilities of the mixture; in regression the values."""
        if self.found is None:
            return self.base
        return self._placed(logits_of(self._mixed[0].labels, self.kind), self._plain)

    def mass(self) -> Tensor:
        """(...) float32, the mass of what is recalled; -inf where it is nothing."""
        if self.found is None:
            return self.base.new_full(self.base.shape[:-1], -torch.inf, dtype=torch.float32)
        return self._placed(self._mixed[1], -torch.inf)

    def scope(self) -> tuple[Tensor, Tensor]:
        """The score of "none of these" (...) float32, and the features (..., 4) that it is made of."""
        own = self.base
        if self.found is not None:
            own = self._placed(logits_of(self._mixed[0].scope, self.kind), self._plain)
        features = scope_features(own, self.mass(), self.kind, self.bank.sharpness)
        return scope_scores(features, features.new_tensor(self.classifier.out_of_scope.weights)), features

    def loss(self, labels: Tensor, number: Tensor | int | None = None) -> Tensor:
        """The mean loss; see `label_loss`."""
        return label_loss(self.logits(), labels, self.kind, number)

    def evidence(self, labels: Tensor) -> Answered:
        """What base and bank say of n texts or tokens, to calibrate on; `labels` are theirs."""
        assert self.found is not None
        return Answered(self._chosen(self.base).float(), labels, self.found)

    def history(self) -> HistoryOutput:
        """The examples and their shares, (...) and (..., K)."""
        if self.found is None:
            return HistoryOutput(base_share=self.base.new_ones(self.base.shape[:-1], dtype=torch.float32))
        mixture = self._mixed[0]
        return HistoryOutput(
            base_share=self._placed(mixture.base_share, 1.0),
            bank_shares=self._placed(mixture.shares, 0.0),
            bank_outcomes=self._placed(self.found.outcomes, 0),
            bank_ids=self._placed(self.found.ids, -1),
        )

    def targets(self) -> Tensor:
        """The most probable label of each, (...) int64; in regression 0."""
        return self.logits().argmax(-1)

    def explained(self, targets: Tensor, positions: Sequence[int]) -> Explained:
        """The n predictions of the targets (n,) int64, to explain; see `explain_outcomes`. On the CPU."""
        base = Features.of(self._chosen(self.base), self.kind).base
        base = nn.functional.pad(base, (0, len(self.space.names) - base.shape[-1]))
        history, votes, mixed = HistoryOutput(base_share=torch.ones(len(targets))), None, base
        if self.found is not None:
            mixed = self._mixed[0].labels
            history, votes = self._shares_of(targets), self.space.votes[self.found.outcomes.cpu()]
            votes = votes.gather(-1, targets.cpu()[:, None, None].expand(-1, votes.shape[1], 1))[..., 0]
        before, after = (values.gather(-1, targets[:, None])[:, 0].float().cpu() for values in (base, mixed))
        return Explained(positions, targets.cpu(), before, after, history, self.space.names, votes)

    def _shares_of(self, targets: Tensor) -> HistoryOutput:
        """The shares in the predictions of the targets (n,), on the CPU.

        They are those of the mixture; but where a text may have several labels, one that only the bank knows is
        recalled alone.
        """
        assert self.found is not None
        share, base_share = self._mixed[0].shares, self._mixed[0].base_share
        if self.kind == MULTI:
            recalled = RecalledLabels.of(
                self.found, self.space, self.kind, self.bank.sharpness, self.classifier.background
            )
            alone = (targets >= self.space.trained) & (recalled.mass > -torch.inf)
            share = torch.where(alone[:, None], recalled.weights, share)
            base_share = base_share.masked_fill(alone, 0.0)
        return HistoryOutput(
            base_share=base_share.cpu(),
            bank_shares=share.cpu(),
            bank_outcomes=self.found.outcomes.cpu(),
            bank_ids=self.found.ids.cpu(),
        )
