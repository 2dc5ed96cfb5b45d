"""Adversarial training of classifiers: embedded texts are perturbed in the direction of the steepest loss.

Shapes: B batch, T time, M members, D width of a member.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer


class AdversarialTrainer(Trainer):
    """transformers' Trainer with an additional loss: that of the batch under the worst small perturbation of its
    embeddings, to first order (Miyato et al. 2017, arXiv:1605.07725, equations 2 and 3).

    Args:
        embeddings: Layer whose output is perturbed.
        strength: Norm of the perturbation of a text, relative to the norm of its embeddings.
        members: M; each perturbs its own slice of the embeddings.
        arguments: As for the Trainer.
    """

    def __init__(self, embeddings: nn.Module, strength: float, members: int = 1, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.embeddings, self.strength, self.members = embeddings, strength, members

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Sum of both losses in training, else the plain loss."""
        if not model.training or not self.strength:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        embedded: list[Tensor] = []

        def note(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            output = output if output.requires_grad else output.requires_grad_()  # of frozen embeddings
            embedded.append(output)
            return output

        handle = self.embeddings.register_forward_hook(note)
        try:
            plain, outputs = super().compute_loss(model, dict(inputs), True, num_items_in_batch)
        finally:
            handle.remove()
        moved = perturbation(plain, embedded[0], inputs["attention_mask"], self.strength, self.members)
        handle = self.embeddings.register_forward_hook(lambda _, __, output: output + moved)
        try:
            adversarial: Any = super().compute_loss(model, dict(inputs), False, num_items_in_batch)
        finally:
            handle.remove()
        loss = plain + adversarial
        return (loss, outputs) if return_outputs else loss


def perturbation(loss: Tensor, embedded: Tensor, mask: Tensor, strength: float, members: int = 1) -> Tensor:
    """Perturbation of embedded texts along the gradient of the loss, (B, T, M D) floating, 0 at padding.

    Args:
        loss: Scalar.
        embedded: (B, T, M D) floating, input of the loss.
        mask: (B, T) of 0 and 1, 0 at padding.
        strength, members: As in the trainer.
    """
    (slope,) = torch.autograd.grad(loss, embedded, retain_graph=True)
    slope, length = (
        (part.detach() * mask[..., None]).unflatten(-1, (members, -1)).transpose(1, 2) for part in (slope, embedded)
    )  # (B, M, T, D)
    norms = slope.flatten(2).norm(dim=2).clamp(min=torch.finfo(slope.dtype).tiny)
    moved = slope * (strength * length.flatten(2).norm(dim=2) / norms)[..., None, None]
    return moved.transpose(1, 2).flatten(2)
