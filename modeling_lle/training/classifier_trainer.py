"""The Trainer of classifiers: adversarial training, a teacher, and embeddings that learn slowly or not at all."""

from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .adversarial import AdversarialTrainer
from .distillation import distance

SLOW: Final = 0.1  # learning rate of slowly trained embeddings, as a share of that of the other weights


class Lessons(NamedTuple):
    """What a teacher says of the training texts.

    Attributes:
        embeddings: (n, W) float32, by the column `rows` of the texts.
        weight: Factor of the `distance` beside the loss of the labels.
    """

    embeddings: Tensor
    weight: float


class ClassifierTrainer(AdversarialTrainer):
    """`AdversarialTrainer` with a teacher, and a say on how embeddings are trained.

    Args:
        embeddings_training: As in `ClassificationArguments`.
        embeddings: The embeddings.
        lessons: What a teacher says of the training texts, if they are to stay near to it.
        more, arguments: As for `AdversarialTrainer`.
    """

    def __init__(
        self,
        embeddings_training: Literal["trained", "slow", "frozen"],
        embeddings: nn.Module,
        lessons: Lessons | None,
        *more: Any,
        **arguments: Any,
    ) -> None:
        self.lessons = lessons
        self.is_slow = embeddings_training == "slow"
        if embeddings_training == "frozen":
            embeddings.requires_grad_(False)
        super().__init__(embeddings, *more, **arguments)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """In training, the loss of the labels and the weighted distance to the teacher."""
        rows = inputs.pop("rows", None)
        if self.lessons is None or rows is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        said: list[Tensor] = []
        pooling = self.accelerator.unwrap_model(model).pooling
        handle = pooling.register_forward_hook(lambda _, __, output: said.append(output))
        try:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        finally:
            handle.remove()
        due = self.lessons.embeddings[rows.cpu()].to(said[0].device)
        loss = loss + self.lessons.weight * distance(said[0], due)
        return (loss, outputs) if return_outputs else loss

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
