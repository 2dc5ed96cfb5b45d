"""transformers' own Trainer with the language model: what it reads from the signature, and what it gets back."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DataCollatorForLanguageModeling, DataCollatorWithFlattening, Trainer, TrainingArguments

from modeling_lle import LLEForCausalLM
from tests.factories.language_models import make_language_model
from tests.factories.texts import WORD_TOKENIZER, make_ids, make_word_tokenizer

LENGTHS = (9, 4, 7, 3, 8, 6, 2, 9)
# Without the first ids, one of which is that of padding, which the collator takes out of the labels.
TEXTS = [{"input_ids": (make_ids(1, n, seed, 8)[0] + 3).tolist()} for seed, n in enumerate(LENGTHS)]


def trainer(path: Path, model: LLEForCausalLM, collator: Any = None, **options: Any) -> Trainer:
    metrics = options.pop("compute_metrics", None)
    values = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "max_steps": 4, "use_cpu": True}
    values |= {"learning_rate": 0.05, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    return Trainer(
        model,
        TrainingArguments(str(path), **{**values, **options}),
        data_collator=collator or DataCollatorForLanguageModeling(WORD_TOKENIZER, mlm=False),
        train_dataset=TEXTS,  # type: ignore[arg-type]
        eval_dataset=TEXTS,  # type: ignore[arg-type]
        compute_metrics=metrics,
    )


@torch.no_grad()
def mean_loss(model: LLEForCausalLM, texts: list[dict[str, list[int]]] = TEXTS) -> float:
    """Nats a target of the texts, one by one."""
    each = [torch.tensor([text["input_ids"]]) for text in texts]
    nats = sum(float(model.eval()(ids, labels=ids, num_items_in_batch=1).loss) for ids in each)
    return nats / sum(ids.shape[1] - 1 for ids in each)


@pytest.mark.parametrize("side", ["left", "right"])
def test_evaluation_has_a_loss_and_calls_the_metrics(tmp_path: Path, side: str) -> None:
    model, seen = make_language_model(), []

    def metrics(prediction: Any) -> dict[str, float]:
        seen.append((prediction.predictions.shape, prediction.label_ids.shape))
        return {"places": float((prediction.label_ids != -100).sum())}

    tokenizer = make_word_tokenizer()
    tokenizer.padding_side = side
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    run = trainer(tmp_path, model, collator, per_device_eval_batch_size=8, compute_metrics=metrics)
    found = run.evaluate()
    assert seen == [((8, 9, model.config.vocab_size), (8, 9))]
    assert found["eval_places"] == sum(LENGTHS)
    assert found["eval_loss"] == pytest.approx(mean_loss(model), abs=1e-5)
    batch = collator(TEXTS)
    for only_loss in (True, False):
        loss, logits, labels = run.prediction_step(model, dict(batch), only_loss)
        assert float(loss) == pytest.approx(found["eval_loss"], abs=1e-5)
        assert (logits is None) == (labels is None) == only_loss


def test_the_best_model_is_loaded_at_the_end(tmp_path: Path) -> None:
    options = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1, "max_steps": 2}
    run = trainer(tmp_path, make_language_model(), load_best_model_at_end=True, save_only_model=True, **options)
    run.train()
    losses = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    assert run.state.best_metric == min(losses)
    assert run.evaluate()["eval_loss"] == pytest.approx(min(losses), abs=1e-5)


def weights_after(path: Path, batch: int, parts: int, **options: Any) -> torch.Tensor:
    """The weights after two steps on the same texts, of which each is accumulated in parts."""
    model = make_language_model(0, activation_penalty=1.0, smoothness_penalty=2.0).double()
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": parts}
    run = trainer(path, model, optim="sgd", max_grad_norm=0.0, max_steps=2, **sizes, **options)
    run.train_dataset = [{"input_ids": (make_ids(1, 6, seed, 8)[0] + 3).tolist()} for seed in range(8)]  # type: ignore[assignment]
    run.train()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    whole, parts = weights_after(tmp_path, 4, 1), weights_after(tmp_path, 2, 2)
    torch.testing.assert_close(parts, whole, atol=1e-9, rtol=1e-7)


def test_packed_texts_train_as_padded_ones(tmp_path: Path) -> None:
    losses = []
    for collator in (None, DataCollatorWithFlattening(return_seq_idx=True, return_flash_attn_kwargs=True)):
        run = trainer(
            tmp_path, make_language_model(0), collator, optim="sgd", max_grad_norm=0.0, logging_steps=1, max_steps=2
        )
        run.train()
        losses.append([entry["loss"] for entry in run.state.log_history if "loss" in entry])
        assert run.evaluate()["eval_loss"] == pytest.approx(mean_loss(run.model), abs=0.2)  # type: ignore[arg-type]
    assert len(losses[0]) == 2
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-3)


def test_labels_are_smoothed(tmp_path: Path) -> None:
    model = make_language_model(0)
    run = trainer(tmp_path, model, label_smoothing_factor=0.1)
    ids = make_ids(2, 6)
    loss = run.compute_loss(model, {"input_ids": ids, "labels": ids})
    logits = model(ids).logits[:, :-1].flatten(0, 1)
    want = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), label_smoothing=0.1)
    torch.testing.assert_close(loss, want)
