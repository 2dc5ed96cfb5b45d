import math
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from modeling_lle import LLECache, LLEForCausalLM
from modeling_lle.data import StreamDataset, StreamIterableDataset
from modeling_lle.training import LLETrainer, arguments
from tests.training import distributed_worker
from tests.training.distributed_worker import SEGMENT, make_arguments, make_model, make_tokens, make_trainer, train


@pytest.fixture(autouse=True)
def bfloat16_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on hardware that is slow at it."""
    dtypes = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    monkeypatch.setattr(arguments, "resolve_precision", lambda wanted, device: dtypes[wanted])


def batches(stream: StreamDataset) -> list[dict[str, torch.Tensor]]:
    """All segments of `stream`, a batch of its rows each."""
    items = [stream[index] for index in range(len(stream))]
    parts = [items[begin : begin + stream.rows] for begin in range(0, len(items), stream.rows)]
    return [{key: torch.stack([item[key] for item in part]) for key in part[0]} for part in parts]


def mean_nats(model: LLEForCausalLM, tokens: Any, segment_length: int = 7) -> float:
    """Nats per target of the plain output layer over one row, by `score`."""
    cache, nats = LLECache(), 0.0
    for batch in batches(StreamDataset(tokens, 1, segment_length, evaluation=True)):
        scores = model.eval().score(**batch, past_key_values=cache)
        nats -= float(scores.base_log_probs.sum())
    return nats / (len(tokens) - 1)


def assert_same_weights(left: LLEForCausalLM, right: LLEForCausalLM) -> None:
    right_weights = right.state_dict()
    for name, weight in left.state_dict().items():
        assert torch.equal(weight, right_weights[name]), name


@pytest.mark.parametrize("recurrence", ["lstm", "gru", "qrnn"])
def test_the_state_is_carried_and_an_epoch_starts_afresh(tmp_path: Path, recurrence: str) -> None:
    """With weights that stand still, the losses of the steps are those of the epoch's text read in one piece."""
    model = make_model(recurrence=recurrence)
    trainer = make_trainer(tmp_path, model, learning_rate=0.0, num_train_epochs=2)
    trainer.train()
    stream = trainer.train_dataset
    expected = []
    for epoch in range(2):
        stream.set_epoch(epoch)
        whole = {key: torch.cat([batch[key] for batch in batches(stream)], dim=1) for key in stream[0]}
        log_probs = model.eval().score(**whole, use_history=False).base_log_probs
        expected += (-log_probs.unflatten(1, (-1, SEGMENT)).mean(dim=(0, 2))).tolist()
    assert len(trainer.losses) == 12
    assert trainer.losses == pytest.approx(expected, abs=2e-6)


def test_gradient_accumulation_equals_a_plain_loop(tmp_path: Path) -> None:
    options = {"gradient_accumulation_steps": 4, "num_train_epochs": 2, "max_grad_norm": 0.0, "optim": "sgd"}
    trainer = make_trainer(tmp_path, lr_scheduler_type="constant", **options)
    trainer.train()
    model, stream, losses = make_model(), trainer.train_dataset, []
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=trainer.args.learning_rate)
    for epoch in range(2):
        stream.set_epoch(epoch)
        cache, segments = LLECache(), batches(stream)
        for group in (segments[:4], segments[4:]):
            optimizer.zero_grad()
            total = 0.0
            for batch in group:
                loss = model(**batch, past_key_values=cache.detach(), use_cache=True).loss / len(group)
                loss.backward()
                total += loss.item()
            optimizer.step()
            losses.append(total)
    assert trainer.losses == pytest.approx(losses, abs=1e-6)
    for left, right in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-6)


def test_bf16_trains_on_a_cpu(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, make_model(dropout=0.1), precision="bfloat16", num_train_epochs=1)
    before = trainer.model.lm_head.weight.detach().clone()
    trainer.train()
    assert all(math.isfinite(loss) for loss in trainer.losses)
    assert trainer.model.lm_head.weight.dtype == torch.float32
    assert not torch.equal(trainer.model.lm_head.weight, before)
    assert math.isfinite(trainer.evaluate()["eval_loss"])


@pytest.mark.parametrize(("rows", "segment_length"), [(1, 5), (1, 7), (1, 100)])
def test_evaluation_equals_score(tmp_path: Path, rows: int, segment_length: int) -> None:
    tokens = make_tokens(95)
    trainer = make_trainer(tmp_path, make_model(dropout=0.3), per_device_eval_batch_size=rows)
    trainer.model.train()
    metrics = trainer.evaluate(StreamDataset(tokens, rows, segment_length, evaluation=True))
    assert trainer.model.training
    assert metrics["eval_loss"] == pytest.approx(mean_nats(trainer.model, tokens), abs=1e-6)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(metrics["eval_loss"]))


@pytest.mark.parametrize(("rows", "segment_length"), [(3, 4), (7, 50), (13, 5)])
def test_evaluation_of_several_rows_counts_every_target_once(tmp_path: Path, rows: int, segment_length: int) -> None:
    """Rows of different lengths too: each row starts afresh, so its own text gives its nats."""
    tokens = make_tokens(95)
    stream = StreamDataset(tokens, rows, segment_length, evaluation=True)
    trainer = make_trainer(tmp_path, per_device_eval_batch_size=rows)
    pieces = [tokens[begin : end + 1] for begin, end in zip(stream.borders, stream.borders[1:], strict=False)]
    expected = sum(mean_nats(trainer.model, piece) * (len(piece) - 1) for piece in pieces) / 94
    assert trainer.evaluate(stream)["eval_loss"] == pytest.approx(expected, abs=1e-6)


def test_evaluation_while_training_leaves_the_training_alone(tmp_path: Path) -> None:
    plain = make_trainer(tmp_path, num_train_epochs=1)
    plain.train()
    watched = make_trainer(tmp_path, num_train_epochs=1, eval_strategy="steps", eval_steps=2)
    watched.train()
    assert sum("eval_loss" in entry for entry in watched.state.log_history) == 3
    assert_same_weights(plain.model, watched.model)


# An epoch has 6 segments. After how many steps to stop: inside the first epoch, at its end, inside the second one.
@pytest.mark.parametrize(
    ("options", "stop"),
    [
        ({}, 4),
        ({}, 6),
        ({}, 8),
        ({"gradient_accumulation_steps": 4}, 1),
        ({"gradient_accumulation_steps": 4}, 2),
        ({"precision": "bfloat16"}, 4),
        ({"streamed": True}, 2),
        ({"window": 12}, 4),
        ({"window": 12, "warm_up": 0.5}, 6),
        ({"window": 12, "precision": "bfloat16", "optim": "sgd", "gradient_accumulation_steps": 2}, 5),
    ],
)
def test_resuming_is_exact(tmp_path: Path, options: dict[str, Any], stop: int) -> None:
    options = {**options, "save_strategy": "steps", "save_steps": stop}
    options |= {"max_steps": 5} if "streamed" in options else {"num_train_epochs": 2}
    training = {name: options.pop(name) for name in ("window", "warm_up") if name in options}
    whole = make_trainer(tmp_path, make_model(dropout=0.3, **training), **options)
    whole.train()
    torch.manual_seed(99)
    resumed = make_trainer(tmp_path / "again", make_model(dropout=0.3, **training), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    assert resumed.losses == whole.losses
    assert len(resumed.seen) < len(whole.seen)
    assert_same_weights(whole.model, resumed.model)


def fork(folder: Path) -> None:
    """Runs the worker in two copies of this process, which need not import anything again."""
    context = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [context.Process(target=distributed_worker.join_group, args=(folder, rank, port)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]


def torchrun(folder: Path) -> None:
    """Runs the worker as a user would start it."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command = [*launch, distributed_worker.__file__, str(folder)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()


@pytest.mark.parametrize("start", [fork, pytest.param(torchrun, marks=pytest.mark.slow)])
def test_two_processes_train_as_one_with_twice_the_rows(tmp_path: Path, start: Callable[[Path], None]) -> None:
    """The same losses, weights and learned numbers, and every process keeps its rows."""
    start(tmp_path)
    train(tmp_path, rows=4)
    for name in ("whole", "streamed", "history"):
        alone = torch.load(tmp_path / f"{name}_1_0.pt")
        for index in range(2):
            one = torch.load(tmp_path / f"{name}_2_{index}.pt")
            assert torch.equal(one["seen"], alone["seen"][:, 2 * index : 2 * index + 2])
            assert one["eval_loss"] == pytest.approx(alone["eval_loss"], abs=1e-5)
            for key, weight in one["weights"].items():
                torch.testing.assert_close(weight, alone["weights"][key], rtol=0, atol=1e-4)
        assert torch.load(tmp_path / f"{name}_2_0.pt")["losses"] == pytest.approx(alone["losses"], abs=1e-5)


def numbers(model: LLEForCausalLM) -> list[float]:
    """The learned numbers of the stream, as they are in the configuration."""
    stream = model.eval().config.stream
    return [stream.sharpness, stream.recency, *stream.gate]


def test_history_is_carried_from_step_to_step_and_the_warm_up_has_none(tmp_path: Path) -> None:
    """With weights and numbers that stand still, the losses are those of the epoch's segments, one after the other."""
    rates = {"learning_rate": 0.0, "history_learning_rate": 0.0}
    model = make_model(window=12, warm_up=0.5)
    trainer = make_trainer(tmp_path, model, num_train_epochs=1, **rates)
    trainer.train()
    cache, expected = LLECache(12), []
    for step, batch in enumerate(batches(trainer.train_dataset)):
        with torch.no_grad():
            output = model(**batch, past_key_values=cache, use_cache=True, use_history=step >= 3)
        expected.append(output.loss.item())
    assert cache.stream.count.tolist() == [29] * 4
    assert trainer.losses == pytest.approx(expected, abs=2e-6)
    plain = make_trainer(tmp_path, make_model(), num_train_epochs=1, **rates)
    plain.train()
    assert trainer.losses[:3] == plain.losses[:3]
    assert all(abs(one - two) > 1e-3 for one, two in zip(trainer.losses[3:], plain.losses[3:], strict=True))


@pytest.mark.parametrize("optimizer", ["adamw_torch", "sgd"])
def test_the_numbers_are_learned_at_their_own_rate_without_decay(tmp_path: Path, optimizer: str) -> None:
    options = {"optim": optimizer, "weight_decay": 0.1, "num_train_epochs": 1, "learning_rate": 20.0}
    trainer = make_trainer(tmp_path, make_model(window=12, warm_up=1), max_grad_norm=1e-9, **options)
    trainer.train()
    values = trainer.model.history_loss.values
    group = trainer.optimizer.param_groups[-1]
    assert group["params"] == [values]
    assert (group["weight_decay"], group["initial_lr"]) == (0.0, 0.03)
    assert all(parameter is not values for rest in trainer.optimizer.param_groups[:-1] for parameter in rest["params"])
    fresh = make_model(window=12)
    assert torch.equal(values, fresh.history_loss.values)  # a warm-up to the end has learned nothing
    trainer = make_trainer(tmp_path, fresh, num_train_epochs=3, optim=optimizer, learning_rate=1e-3)
    before = numbers(make_model())
    trainer.train()
    after = numbers(trainer.model)
    assert all(one != two for one, two in zip(before, after, strict=True))
    assert after == pytest.approx(before, rel=0.5, abs=0.5)


def test_the_best_model_has_its_own_numbers(tmp_path: Path) -> None:
    """The first one is best if a higher loss is better."""
    options = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    options |= {"metric_for_best_model": "eval_loss", "greater_is_better": True}
    trainer = make_trainer(tmp_path, make_model(window=12), num_train_epochs=3, **options)
    trainer.train()
    saved = [LLEForCausalLM.from_pretrained(tmp_path / f"checkpoint-{step}") for step in (6, 18)]
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-6")
    assert torch.equal(trainer.model.lm_head.weight, saved[0].lm_head.weight)
    assert numbers(trainer.model) == numbers(saved[0]) != numbers(saved[1])


@pytest.mark.parametrize("cause", ["learning_rate", "weights"])
def test_a_loss_that_is_not_finite_is_an_error(tmp_path: Path, cause: str) -> None:
    model = make_model()
    if cause == "weights":
        model.lm_head.bias.data[0] = float("nan")
    rate = math.inf if cause == "learning_rate" else 0.01
    trainer = make_trainer(tmp_path, model, learning_rate=rate, lr_scheduler_type="constant")
    with pytest.raises(FloatingPointError, match=r"the loss of step \d is nan: lower learning_rate"):
        trainer.train()


@pytest.mark.parametrize("kind", [StreamDataset, StreamIterableDataset])
def test_a_wrong_number_of_rows_is_an_error(tmp_path: Path, kind: type) -> None:
    text = make_tokens(200)
    stream = kind(text if kind is StreamDataset else [text], 3, SEGMENT)
    trainer = LLETrainer(model=make_model(), args=make_arguments(tmp_path, max_steps=1), train_dataset=stream)
    with pytest.raises(ValueError, match=r"has 3 rows, but 1 processes read 4 each: make it with rows=4"):
        trainer.train()
    with pytest.raises(ValueError, match="rows=4"):
        trainer.evaluate(StreamDataset(text, 3, SEGMENT, evaluation=True))


def test_several_gpus_in_one_process_are_an_error(tmp_path: Path) -> None:
    arguments = make_arguments(tmp_path)
    arguments._n_gpu = 2
    with pytest.raises(ValueError, match="accelerate launch --num_processes 2"):
        LLETrainer(model=make_model(), args=arguments)


@pytest.mark.parametrize("option", ["compute_metrics", "label_smoothing_factor"])
def test_what_needs_logits_is_refused(tmp_path: Path, option: str) -> None:
    arguments: dict[str, Any] = {"label_smoothing_factor": 0.1} if option != "compute_metrics" else {}
    given: dict[str, Any] = {"compute_metrics": len} if option == "compute_metrics" else {}
    with pytest.raises(ValueError, match=f"{option} would have no effect"):
        LLETrainer(model=make_model(), args=make_arguments(tmp_path, **arguments), **given)


def test_a_stream_is_not_predicted_token_by_token(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    with pytest.raises(ValueError, match=r"use evaluate.*score"):
        trainer.predict(trainer.eval_dataset)
