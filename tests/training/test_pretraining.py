from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from modeling_lle import LLEConfig, LLEModel, LLETokenizer
from modeling_lle.history.loss import IGNORED
from modeling_lle.training import run
from modeling_lle.training.classification import encode
from modeling_lle.training.pretraining import TwoWayLanguageModel, pretrain

from .test_classification import recipe, rows


def make(bidirectional: bool, members: int = 1) -> TwoWayLanguageModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "pad_token_id": 1}
    config = LLEConfig(bidirectional=bidirectional, classifier={"members": members}, **sizes)
    return TwoWayLanguageModel(LLEModel(config)).eval()


def direction(model: TwoWayLanguageModel, states: Tensor, targets: Tensor) -> Tensor:
    """The summed nats of one direction, written plainly."""
    logits = states @ model.model.embed_tokens.weight.T + model.bias
    return nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="sum")


@pytest.mark.parametrize("bidirectional", [False, True])
@torch.no_grad()
def test_the_loss_is_that_of_both_directions(bidirectional: bool) -> None:
    model = make(bidirectional)
    ids = torch.tensor([[4, 5, 6, 7], [1, 1, 8, 9]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    states = model.model(ids, mask, use_cache=False).last_hidden_state
    predicted = torch.tensor([[5, 6, 7], [IGNORED, IGNORED, 9]])
    due = direction(model, states[:, :-1, :8], predicted)
    if bidirectional:
        before = torch.tensor([[4, 5, 6], [IGNORED, IGNORED, 8]])
        due = (due + direction(model, states[:, 1:, 8:], before)) / 2
    torch.testing.assert_close(model(ids, mask)["loss"], due / 4)


def test_each_member_learns_on_its_own() -> None:
    model = make(True, members=2)
    ids = torch.tensor([[4, 5, 6, 7], [1, 1, 8, 9]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    losses = []
    for number in range(2):
        alone = make(True)
        alone.model.embed_tokens.weight.data = model.model.embed_tokens.weight[:, 8 * number : 8 * number + 8].detach()
        alone.model.stack.load_state_dict(model.model.stack.members[number].state_dict())
        alone.model.backward_stack.load_state_dict(model.model.backward_stack.members[number].state_dict())
        losses.append(alone(ids, mask)["loss"])
    torch.testing.assert_close(model(ids, mask)["loss"], torch.stack(losses).mean())


@torch.no_grad()
def test_no_direction_sees_what_it_predicts() -> None:
    model = make(True)
    ids = torch.tensor([[4, 5, 6, 7, 8]])
    other = ids.clone()
    other[0, 2] = 20
    one, two = (model.model(given, torch.ones_like(ids), use_cache=False).last_hidden_state for given in (ids, other))
    assert torch.equal(one[0, :2, :8], two[0, :2, :8])  # they predict the tokens up to the one that is changed
    assert torch.equal(one[0, 3:, 8:], two[0, 3:, 8:])


def test_it_learns_to_predict(tmp_path: Path) -> None:
    texts = rows()
    tokenizer = LLETokenizer.train(texts["text"], 300, lowercase=True)
    config = LLEConfig(vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, bidirectional=True)
    model = TwoWayLanguageModel(LLEModel(config))
    encoded = encode(texts, tokenizer)
    batch = tokenizer.pad(encoded[:], return_tensors="pt")
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    first = float(model.eval()(**batch)["loss"].detach())
    arguments = recipe(tmp_path, training={"label_smoothing_factor": 0.1}).training
    minutes = pretrain(model.model, encoded, tokenizer, arguments, 4)
    assert minutes > 0
    assert float(model.eval()(**batch)["loss"].detach()) < first - 0.5
    assert all((value != before[name]).any() for name, value in model.model.state_dict().items())


def test_it_is_part_of_the_training(tmp_path: Path) -> None:
    metrics = run(recipe(tmp_path, training={"pretraining_epochs": 1.0}), {"train": rows()})
    assert metrics["train_steps"] == 30
    assert metrics["eval_accuracy"] > 0.6
    assert "pretraining_epochs: 1.0" in (tmp_path / "out" / "recipe.yaml").read_text()
