"""The output layer of a classifier, fitted by logistic regression at the end of training, and its temperature.

Notable: an optimizer that takes a few hundred noisy steps does not find the best output layer for a few examples, and
the regression, which is convex, does (as in SetFit, Tunstall et al. 2022, arXiv:2209.11055). Shapes: n texts, P width
of what is classified, C labels.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ..common.modes import evaluating
from ..models.classification import LLEForSequenceClassification

STEPS = 100  # of the quasi-Newton descent
MOST = (-3.0, 3.0)  # bounds of the logarithm of a scale, which is without a bound where all held-out texts are right


class FitOutputLayer(TrainerCallback):
    """Fits the output layer at the end of training.

    Args:
        model: The classifier.
        batches: Makes batches of the training texts, with `labels` (B,) int64.
        penalty: As in `fit_output_layer`.
    """

    def __init__(
        self,
        model: LLEForSequenceClassification,
        batches: Callable[[], Iterable[dict[str, Tensor]]],
        penalty: float,
    ) -> None:
        self.model, self.batches, self.penalty = model, batches, penalty

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Fits it."""
        fit_output_layer(self.model, self.batches(), self.penalty)


def fit_output_layer(
    model: LLEForSequenceClassification, batches: Iterable[dict[str, Tensor]], penalty: float
) -> None:
    """Sets the output layer to the minimum of the summed cross entropy and of a penalty on its matrix.

    Args:
        model: The classifier, of one label a text.
        batches: Texts as forward takes them, with `labels` (B,) int64.
        penalty: Factor of half the sum of squares of the matrix (C, P), for states of the root mean square norm 1.
    """
    items, labels = [], []
    with torch.no_grad(), evaluating(model):
        for batch in batches:
            items.append(model.pooled(batch["input_ids"], batch.get("attention_mask")).float())
            labels.append(batch["labels"].to(model.device))
    x, y = torch.cat(items) / model.config.classifier.members, torch.cat(labels)
    norm = x.norm(dim=1).square().mean().sqrt().clamp(min=torch.finfo(x.dtype).tiny)
    x = x / norm
    weight = x.new_zeros(model.classifier.out_features, x.shape[1]).requires_grad_()
    bias = x.new_zeros(len(weight)).requires_grad_()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses = nn.functional.cross_entropy(x @ weight.T + bias, y, reduction="sum")
        loss = (losses + penalty / 2 * weight.square().sum()) / len(y)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    with torch.no_grad():
        model.classifier.weight.copy_(weight / norm)
        model.classifier.bias.copy_(bias)


@torch.no_grad()
def fit_scale(model: LLEForSequenceClassification, batches: Iterable[dict[str, Tensor]]) -> float:
    """Factor of the output layer that is best on held-out texts: the inverse temperature.

    A regression with a penalty says too little of what it is sure of, and one of a few examples is surer of those than
    of others (Guo et al. 2017, arXiv:1706.04599, section 4.2).

    Args:
        model: The classifier, of one label a text.
        batches: Held-out texts as forward takes them, with `labels` (B,) int64.
    """
    said, labels = [], []
    with evaluating(model):
        for batch in batches:
            given = (batch["input_ids"], batch.get("attention_mask"))
            said.append(model(*given, use_history=False).logits.float())
            labels.append(batch["labels"].to(model.device))
    logits, y = torch.cat(said), torch.cat(labels)
    exponent = logits.new_zeros(()).requires_grad_()
    optimizer = torch.optim.LBFGS([exponent], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(logits * exponent.exp(), y)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return float(exponent.detach().clamp(*MOST).exp())


@torch.no_grad()
def scale_output_layer(model: LLEForSequenceClassification, scale: float) -> None:
    """Multiplies the output layer of a classifier, so that its logits are `scale` times what they were."""
    for parameter in model.classifier.parameters():
        parameter.mul_(scale)
