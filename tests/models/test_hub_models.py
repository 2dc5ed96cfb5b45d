"""A model around one of transformers does all that a language model of LLE does."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import Trainer, TrainingArguments

from modeling_lle import Attachment, HistoryBank, LLECache, LLEForCausalLM
from modeling_lle.bank.manifest import BankError
from modeling_lle.history import overlay
from tests.factories.hub_models import make_wrapped_model
from tests.factories.texts import VOCAB, make_ids, make_repetitive_segments, make_texts, make_word_tokenizer

IDS = make_ids(2, 9).clamp(min=2)  # without the padding that `generate` would look for
TEXTS = make_texts(12, 9)
KINDS = pytest.mark.parametrize("kind", ["mamba2", "mamba", "bamba"])
OPTIONS = {"max_new_tokens": 5, "eos_token_id": -1, "pad_token_id": 1}


def close(got: Tensor, want: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)


def make_bank(model: LLEForCausalLM, texts: list[str] = TEXTS) -> HistoryBank:
    return HistoryBank.build(model, make_word_tokenizer(), texts)


@torch.no_grad()
def logits_of(model: LLEForCausalLM, ids: Tensor = IDS, **options: Any) -> Tensor:
    return model(ids, **options).logits


@KINDS
def test_the_mixture_sums_to_one_and_is_the_same_in_pieces_and_padded(kind: str) -> None:
    model = make_wrapped_model(kind)
    model.attach_history(make_bank(model))
    want, cache = logits_of(model), LLECache(7)
    close(want.exp().sum(-1), torch.ones(2, 9))
    parts = [logits_of(model, part, past_key_values=cache) for part in IDS.split([4, 1, 4], dim=1)]
    close(torch.cat(parts, dim=1), want)
    padded = torch.cat([torch.ones(2, 3, dtype=torch.long), IDS], dim=1)
    mask = torch.cat([torch.zeros(2, 3), torch.ones(2, 9)], dim=1).long()
    close(logits_of(model, padded, attention_mask=mask)[:, 3:], want)
    assert not torch.allclose(want, logits_of(model, use_history=False).log_softmax(-1), atol=0.01)


@KINDS
def test_nothing_sees_its_target(kind: str) -> None:
    model = make_wrapped_model(kind)
    changed = IDS.clone()
    changed[:, 6:] = (IDS[:, 6:] + 1) % VOCAB
    close(logits_of(model, changed)[:, :6], logits_of(model)[:, :6])


@KINDS
def test_generation_with_history_greedy_sampled_and_by_beams(kind: str) -> None:
    model = make_wrapped_model(kind)
    model.attach_history(make_bank(model))
    text = IDS[:1]
    for _ in range(5):
        text = torch.cat([text, logits_of(model, text, generated=text.shape[1] - 9)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(model.generate(IDS[:1], do_sample=False, **OPTIONS), text)
    assert list(model.stream(IDS[0], do_sample=False, **OPTIONS)) == text[0, 9:].tolist()
    torch.manual_seed(3)
    drawn = model.generate(IDS[:1], do_sample=True, **OPTIONS)
    assert list(model.stream(IDS[0], do_sample=True, seed=3, **OPTIONS)) == drawn[0, 9:].tolist()
    mask = torch.ones_like(IDS)
    mask[1, :3] = 0
    both = model.generate(IDS, attention_mask=mask, do_sample=False, num_beams=3, **OPTIONS)
    alone = [model.generate(ids, do_sample=False, num_beams=3, **OPTIONS) for ids in (IDS[:1], IDS[1:, 3:])]
    assert both[:, 9:].tolist() == [alone[0][0, 9:].tolist(), alone[1][0, 6:].tolist()]


@KINDS
def test_a_conversation_goes_on_with_its_cache(kind: str) -> None:
    model = make_wrapped_model(kind)
    first = model.generate(IDS, do_sample=False, return_dict_in_generate=True, **OPTIONS)
    longer = torch.cat([first.sequences, make_ids(2, 3, seed=4).clamp(min=2)], dim=1)
    options = {**OPTIONS, "attention_mask": torch.ones_like(longer), "do_sample": False}
    again = model.generate(longer, past_key_values=first.past_key_values, **options)
    own = torch.zeros_like(longer, dtype=torch.bool)
    own[:, 9:14] = True
    assert torch.equal(again, model.generate(longer, generated=own, **options))


def test_a_bank_belongs_to_the_backbone_and_two_attachments_stay_apart() -> None:
    model = make_wrapped_model()
    banks = [make_bank(model, texts) for texts in (TEXTS[:6], TEXTS[6:])]
    apart = [logits_of(model, history=Attachment(bank)) for bank in banks]
    assert not torch.allclose(*apart, atol=0.01)
    for bank, want in zip(banks, apart, strict=True):
        assert torch.equal(logits_of(model, history=Attachment(bank)), want)
    with pytest.raises(BankError):
        make_wrapped_model("bamba").attach_history(banks[0])
    with torch.no_grad():
        model.model.backbone.layers[0].mixer.A_log.add_(1.0)
    with pytest.raises(BankError):
        model.attach_history(banks[0])


def test_long_texts_of_a_bank_have_the_keys_that_reading_them_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    from modeling_lle.entries import texts as entries

    monkeypatch.setattr(entries, "MAX_STEPS", 4)
    for kind in ("mamba2", "mamba", "bamba"):
        model, tokenizer = make_wrapped_model(kind), make_word_tokenizer()
        texts = ["a b c d e f g h a", "b c", "d e f g h"]
        bank = HistoryBank.build(model, tokenizer, texts)
        rows = [torch.tensor([[tokenizer.eos_token_id, *tokenizer(text).input_ids]]) for text in texts]
        with torch.no_grad():
            states = [model.model(row).last_hidden_state[0] for row in rows]
        queries = torch.nn.functional.normalize(torch.cat([own[:-1] for own in states]), dim=-1)
        assert bank.search(queries, 1).similarity.min() > 0.997  # of bfloat16 keys


def test_scores_explanations_and_calibration() -> None:
    model = make_wrapped_model(window=30)
    model.attach_history(make_bank(model))
    scores = model.score(IDS, IDS.roll(-1, 1))
    want = logits_of(model).log_softmax(-1).gather(-1, IDS.roll(-1, 1)[..., None])[..., 0]
    close(scores.log_probs, want)
    explained = model.explain(IDS[:1])
    assert len(explained) == 8
    metrics = model.calibrate(make_repetitive_segments(segments=3, length=12), steps=10)
    assert metrics["after_nats"] <= metrics["before_nats"]


def test_the_update_changes_the_output_layer_and_refuses_all_weights(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_wrapped_model()
    before = logits_of(model)
    model.config.history.update = {"scope": "head", "rate": 0.05, "every": 3}
    segments = [{name: part[:1] for name, part in batch.items()} for batch in make_repetitive_segments(3)]
    model.collect_update_statistics(segments)
    monkeypatch.setattr(overlay, "LARGE_CHANGES", 100)
    with caplog.at_level(logging.WARNING, "modeling_lle"):
        after = logits_of(model)
    assert "changes of the test-time update take" in caplog.text
    close(after[:, :3], before[:, :3])
    assert not torch.allclose(after, before, atol=1e-3)
    model.config.history.update.scope = "all"
    with pytest.raises(ValueError, match=r"a backbone of the type 'mamba2'.*set the scope 'head'"):
        logits_of(model)


@pytest.mark.parametrize("kind", ["mamba2", "xlstm"])
@pytest.mark.parametrize("window", [0, 8], ids=["history off", "history in the loss"])
def test_the_stock_trainer_fine_tunes_with_padding_on_the_right(tmp_path: Path, kind: str, window: int) -> None:
    model = make_wrapped_model(kind, history={"training": {"window": window}})
    rows = [{"input_ids": ids.tolist(), "attention_mask": [1] * 6 + [0] * 2} for ids in make_ids(8, 8)]
    rows = [{**row, "labels": [*row["input_ids"][:6], -100, -100]} for row in rows]
    before = float(model(**{name: torch.tensor([row[name] for row in rows]) for name in rows[0]}).loss)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=4, learning_rate=1e-2, per_device_train_batch_size=8, save_strategy="no",
        activation_checkpointing=kind == "mamba2", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=Dataset.from_list(rows)).train()
    model.eval()
    after = float(model(**{name: torch.tensor([row[name] for row in rows]) for name in rows[0]}).loss)
    assert after < before - 0.05


def test_gradients_flow_through_a_carried_state_to_the_weights() -> None:
    model = make_wrapped_model().train()
    cache = LLECache()
    for part in IDS.split([5, 4], dim=1):
        model(part, labels=part, past_key_values=cache, use_cache=True).loss.backward(retain_graph=True)
    assert model.model.backbone.layers[0].mixer.A_log.grad.abs().sum() > 0


def test_lora_of_peft_trains_beside_the_history() -> None:
    peft = pytest.importorskip("peft")
    model = make_wrapped_model()
    bank, plain = make_bank(model), logits_of(model)
    tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules=["in_proj"], r=2, task_type="CAUSAL_LM"))
    optimizer = torch.optim.SGD([own for own in tuned.parameters() if own.requires_grad], lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        tuned(input_ids=IDS, labels=IDS, use_history=False, use_cache=False).loss.backward()
        optimizer.step()
    tuned.eval()
    assert not torch.allclose(logits_of(tuned), plain, atol=1e-3)
    assert tuned.generate(input_ids=IDS, do_sample=False, **OPTIONS).shape == (2, 14)
    merged = tuned.merge_and_unload()
    assert type(merged) is LLEForCausalLM
    with pytest.raises(BankError):
        merged.attach_history(bank)
    with torch.no_grad():
        merged.attach_history(make_bank(merged))
