"""The Trainer of classifiers: adversarial training, and embeddings that learn slowly or not at all."""

from typing import Any, Final, Literal

import torch
from torch import nn

from .adversarial import AdversarialTrainer

SLOW: Final = 0.1  # learning rate of slowly trained embeddings, as a share of that of the other weights


class ClassifierTrainer(AdversarialTrainer):
    """`AdversarialTrainer` with a say on how embeddings are trained.

    Args:
        embeddings_training: As in `ClassificationArguments`.
        embeddings: The embeddings.
        more, arguments: As for `AdversarialTrainer`.
    """

    def __init__(
        self,
        embeddings_training: Literal["trained", "slow", "frozen"],
        embeddings: nn.Module,
        *more: Any,
        **arguments: Any,
    ) -> None:
        self.is_slow = embeddings_training == "slow"
        if embeddings_training == "frozen":
            embeddings.requires_grad_(False)
        super().__init__(embeddings, *more, **arguments)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As in transformers, with a separate group for embeddings that learn slowly."""
        given = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if self.is_slow and not given:
            own = list(self.embeddings.parameters())
            apart = {id(parameter) for parameter in own}
            for group in optimizer.param_groups:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in apart]
            rate = SLOW * self.args.learning_rate
            optimizer.add_param_group({"params": own, "weight_decay": 0.0, "lr": rate})
        return optimizer
