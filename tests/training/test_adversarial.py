from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from modeling_lle.training.adversarial import AdversarialTrainer, perturbation


class Bag(nn.Module):
    """The mean embedding of a text, classified."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)

    def loss(self, embedded: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        mean = (embedded * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return nn.functional.cross_entropy(self.head(mean), labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": self.loss(self.embed(input_ids), attention_mask, labels)}


def batch() -> dict[str, Tensor]:
    ids, mask = torch.arange(8).view(2, 4), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 2])}


def test_it_is_as_long_as_asked_and_points_uphill() -> None:
    model, inputs = Bag(), batch()
    mask, labels = inputs["attention_mask"], inputs["labels"]
    embedded = model.embed(inputs["input_ids"])
    loss = model.loss(embedded, mask, labels)
    moved = perturbation(loss, embedded, mask, 0.1)
    real = embedded.detach() * mask[..., None]
    torch.testing.assert_close(moved.flatten(1).norm(dim=1), 0.1 * real.flatten(1).norm(dim=1))
    assert not moved[1, :2].any()
    for other in (-moved, torch.randn(2, 4, 4).mul(mask[..., None])):
        other = other * (moved.flatten(1).norm(dim=1) / other.flatten(1).norm(dim=1))[:, None, None]
        assert model.loss(embedded + moved, mask, labels) > model.loss(embedded + other, mask, labels)


def test_members_are_moved_equally_far() -> None:
    embedded, mask = torch.randn(2, 4, 6, requires_grad=True), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    slope = torch.randn(2, 4, 6) * torch.tensor([1.0, 1.0, 1.0, 9.0, 9.0, 9.0])
    moved = perturbation((slope * embedded).sum(), embedded, mask, 0.1, members=2)
    for own in (slice(3), slice(3, 6)):
        alone = embedded[..., own].detach().requires_grad_()
        due = perturbation((slope[..., own] * alone).sum(), alone, mask, 0.1)
        torch.testing.assert_close(moved[..., own], due)


def test_the_loss_is_the_sum_of_both() -> None:
    model, inputs = Bag(), batch()
    arguments: Any = TrainingArguments(output_dir="unused", report_to="none", use_cpu=True)
    trainer = AdversarialTrainer(model.embed, 0.1, model=model, args=arguments)
    mask, labels = inputs["attention_mask"], inputs["labels"]
    embedded = model.embed(inputs["input_ids"])
    plain = model.loss(embedded, mask, labels)
    moved = perturbation(plain, embedded, mask, 0.1)
    model.train()
    loss, outputs = trainer.compute_loss(model, inputs, return_outputs=True)
    torch.testing.assert_close(loss, plain + model.loss(embedded + moved, mask, labels))
    torch.testing.assert_close(outputs["loss"], plain)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    due = torch.autograd.grad(plain + model.loss(embedded + moved, mask, labels), list(model.parameters()))
    for gradient, expected in zip(gradients, due, strict=True):
        torch.testing.assert_close(gradient, expected)
    model.eval()
    torch.testing.assert_close(trainer.compute_loss(model, inputs), plain)
    assert not model.embed._forward_hooks
