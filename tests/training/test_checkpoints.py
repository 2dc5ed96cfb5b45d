"""A training that was killed goes on from its newest whole checkpoint, and ends as one that nobody has disturbed."""

import functools
import random
import shutil
import time
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file

from modeling_lle import HistoryBank
from modeling_lle.common.temporary import ALIVE
from modeling_lle.training import LLETrainer, LLETrainingArguments, run
from modeling_lle.training.checkpoints import find_checkpoint
from scripts.benchmark.kills import kill
from tests.factories.language_models import make_language_model
from tests.factories.recipes import RECIPES, make_classifier_recipe, make_language_recipe

# In the order in which they are written.
FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "stream_state_0.safetensors"]
FILES += ["trainer_state.json"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read from the Hub or from caches of earlier runs."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training has left, with the checkpoints 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    recipe, rows = make_language_recipe(folder)
    run(recipe, rows)
    return folder


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


def trainer(folder: Path) -> LLETrainer:
    """One that has not begun."""
    return LLETrainer(make_language_model(), LLETrainingArguments(output_dir=str(folder), report_to=[]))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same(given: dict[str, torch.Tensor], due: dict[str, torch.Tensor]) -> None:
    assert given.keys() == due.keys()
    assert not [name for name, weight in due.items() if not torch.equal(given[name], weight)]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_that_is_not_whole_is_passed_over(out: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    newest, waiting = out / "checkpoint-6", trainer(out)
    assert find_checkpoint(waiting, resume=True) == str(newest)
    assert not caplog.messages
    cut(newest / name)
    assert find_checkpoint(waiting, resume=True) == str(out / "checkpoint-4")
    (newest / name).unlink()
    assert find_checkpoint(waiting, resume=True) == str(out / "checkpoint-4")
    faults = [f"{name} cannot be read", f"{name} is missing"]
    assert all(f"checkpoint-6 is skipped: {fault}" in caplog.text for fault in faults)


def test_a_changed_byte_is_found(out: Path) -> None:
    path = out / "checkpoint-6" / "optimizer.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert find_checkpoint(trainer(out), resume=True) == str(out / "checkpoint-4")


def test_where_no_checkpoint_is_whole_the_training_begins_anew(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    for path in out.glob("checkpoint-*"):
        cut(path / "trainer_state.json")
    assert find_checkpoint(trainer(out), resume=True) is None
    assert caplog.messages[-1] == f"no complete checkpoint in {out}: training starts from scratch"


def test_it_ends_with_the_same_weights(out: Path) -> None:
    due = weights(out)
    cut(out / "checkpoint-6" / "optimizer.pt")
    for name in ("model.safetensors", "metrics.json"):
        (out / name).unlink()
    recipe, rows = make_language_recipe(out)
    assert run(recipe, rows, resume=True)["train_steps"] == 6
    assert_same(weights(out), due)


def test_what_is_not_finished_is_not_begun_anew(out: Path) -> None:
    """A forgotten --resume costs nothing, and no training goes on from what another one has left."""
    (out / "metrics.json").rename(out / "away")
    with pytest.raises(
        FileExistsError, match=r"of an unfinished run, the newest checkpoint-6: resume it with --resume"
    ):
        find_checkpoint(trainer(out), resume=False)
    (out / "away").rename(out / "metrics.json")
    assert find_checkpoint(trainer(out), resume=False) is None
    assert find_checkpoint(trainer(out), resume=True) is None
    assert weights(out / "checkpoint-6")
    assert not (out / "metrics.json").exists()


def test_a_classifier_whose_bank_was_made_is_finished(tmp_path: Path) -> None:
    out = tmp_path / "out"
    recipe, rows = make_classifier_recipe(out, pretraining_epochs=0.0, max_steps=2)
    recipe.model["history"] = {"bank": {"sharpness": 5.0, "gate": [0.0, 0.0, 0.0, 0.0]}}  # not to be fitted
    recipe.model["classifier"] = {"background": 0.5}
    metrics = run(recipe, rows)
    with pytest.raises(FileExistsError, match="a bank exists at"):
        run(recipe, rows, resume=True)
    due, entries = weights(out), len(HistoryBank.open(out / "history"))
    (out / "metrics.json").unlink()  # killed before it was written
    assert run(recipe, rows, resume=True)["calibration"] == metrics["calibration"]
    assert_same(weights(out), due)
    assert len(HistoryBank.open(out / "history")) == entries


KILLS = 8


@pytest.mark.slow
@pytest.mark.parametrize("task", RECIPES)
def test_killed_at_random_it_ends_with_the_same_weights(tmp_path: Path, task: str) -> None:
    recipe, rows = RECIPES[task](tmp_path / "due", save_steps=1)
    run(recipe, rows)  # compiles kernels
    begin = time.perf_counter()
    recipe, rows = RECIPES[task](tmp_path / "whole", save_steps=1)
    run(recipe, rows)
    longest, choose = time.perf_counter() - begin, random.Random(0)
    due = weights(tmp_path / "whole")
    for number in range(KILLS):
        out = tmp_path / str(number)
        recipe, rows = RECIPES[task](out, save_steps=1, save_total_limit=choose.choice([1, 2, None]))
        for _ in range(3):
            kill(functools.partial(run, recipe, rows, resume=True), choose.uniform(0, longest))
            if (out / "metrics.json").exists():
                break
        else:
            run(recipe, rows, resume=True)
        assert_same(weights(out), due)
        assert all(path.name == ALIVE for path in out.glob(".*/*"))  # nothing half written is left
        if task == "classification":
            assert not HistoryBank.open(out / "history").verify()
        shutil.rmtree(out)
