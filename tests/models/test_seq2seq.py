"""Translators: step by step and at once, padding, beams, the memory and its exact shares, the Trainer, saving."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModel,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from modeling_lle import HistoryBank, LLEForCausalLM, LLEForSeq2SeqLM
from modeling_lle.bank.files import BankError
from modeling_lle.models.seq2seq import LLESeq2SeqModel, longest_target
from tests.factories.language_models import make_language_model
from tests.factories.pairs import SUBWORD_PAIRS, SUBWORD_PAIRS_TOKENIZER, encode_pairs, pair_rows
from tests.factories.texts import make_word_tokenizer
from tests.factories.translators import SUBWORD_MEMORY, attach_pairs, make_subword_translator, trust_memory

KINDS = [("qrnn", "residual"), ("qrnn", "plain"), ("lstm", "residual"), ("gru", "plain")]
close = torch.testing.assert_close


def texts(ids: torch.Tensor) -> list[str]:
    return SUBWORD_PAIRS_TOKENIZER.batch_decode(ids, skip_special_tokens=True)


def sources(model: LLEForSeq2SeqLM) -> dict[str, torch.Tensor]:
    return {name: value for name, value in encode_pairs().items() if name != "labels"}


@pytest.mark.parametrize("with_memory", [False, True])
@pytest.mark.parametrize(("recurrence", "stack"), KINDS)
@torch.no_grad()
def test_step_by_step_gives_what_teacher_forcing_gives(recurrence: str, stack: str, with_memory: bool) -> None:
    model = make_subword_translator(recurrence, stack)
    if with_memory:
        attach_pairs(model)
    given = encode_pairs()
    at_once = model(**given).logits
    inputs = model.prepare_decoder_input_ids_from_labels(given["labels"])
    source = model.read_source(given["input_ids"], given["attention_mask"])
    cache, steps = None, []
    for step in range(inputs.shape[1]):
        output = model(encoder_outputs=source, decoder_input_ids=inputs[:, step : step + 1], past_key_values=cache)
        cache = output.past_key_values
        steps.append(output.logits)
    real = given["labels"] != -100
    close(torch.cat(steps, dim=1)[real], at_once[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("recurrence", "stack"), KINDS)
@torch.no_grad()
def test_a_padded_batch_gives_what_its_sentences_give_alone(recurrence: str, stack: str, side: str) -> None:
    model = attach_pairs(make_subword_translator(recurrence, stack))
    given = encode_pairs()
    if side == "left":
        for name, value in given.items():
            order = given["attention_mask"] if name != "labels" else (given["labels"] != -100).long()
            given[name] = value.gather(1, order.argsort(dim=1, stable=True)) if name != "attention_mask" else value
        given["attention_mask"] = given["attention_mask"].flip(1)
    together = model(**given)
    for row, pair in enumerate(SUBWORD_PAIRS):
        alone = model(**encode_pairs([pair]))
        real = given["labels"][row] != -100
        close(together.logits[row][real], alone.logits[0], rtol=1e-4, atol=1e-5)
    sums = [model(**encode_pairs([pair]), num_items_in_batch=1).loss for pair in SUBWORD_PAIRS]
    close(model(**given, num_items_in_batch=1).loss, torch.stack(sums).sum(), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_prediction_does_not_see_what_it_predicts() -> None:
    model = attach_pairs(make_subword_translator())
    given = encode_pairs([SUBWORD_PAIRS[0]])
    logits = model(**given).logits
    changed = {**given, "labels": given["labels"].clone()}
    changed["labels"][0, 4] = (changed["labels"][0, 4] + 1) % model.config.vocab_size
    other = model(**changed).logits
    close(other[:, :5], logits[:, :5])
    assert not torch.allclose(other[:, 5:], logits[:, 5:])


@torch.no_grad()
def test_the_encoder_reads_in_both_directions() -> None:
    model, given = make_subword_translator(), encode_pairs([SUBWORD_PAIRS[0]])
    states = model.read_source(given["input_ids"]).last_hidden_state
    given["input_ids"][0, -2] = 5
    assert not torch.allclose(model.read_source(given["input_ids"]).last_hidden_state[:, 0], states[:, 0])


def test_labels_become_the_input_wherever_their_padding_lies() -> None:
    model = make_subword_translator()
    start, pad = SUBWORD_PAIRS_TOKENIZER.bos_token_id, SUBWORD_PAIRS_TOKENIZER.pad_token_id
    labels = torch.tensor([[5, 6, 7, -100], [-100, 5, 6, 7]])
    expected = [[start, 5, 6, pad], [pad, start, 5, 6]]
    assert model.prepare_decoder_input_ids_from_labels(labels).tolist() == expected


@torch.no_grad()
def test_attention_looks_at_real_tokens_only() -> None:
    model, given = make_subword_translator(), encode_pairs()
    weights = model(**given, output_attentions=True).cross_attentions
    assert len(weights) == model.config.num_hidden_layers
    for layer in weights:
        assert layer.shape == (4, 2, given["labels"].shape[1], given["input_ids"].shape[1])
        close(layer.sum(-1), torch.ones_like(layer[..., 0]))
        assert float(layer.masked_select(given["attention_mask"][:, None, None] == 0).abs().max()) == 0
    assert model(**given).cross_attentions is None


@torch.no_grad()
def test_the_mixture_sums_to_one_and_the_shares_are_exact() -> None:
    model, given = attach_pairs(make_subword_translator()), encode_pairs()
    output = model(**given, output_history=True)
    close(output.logits.exp().sum(-1), torch.ones(given["labels"].shape))
    base = model(**given, use_history=False).logits.softmax(-1)
    history = output.history
    assert bool((history.bank_shares > 0).any())
    close(history.base_share + history.bank_shares.sum(-1), torch.ones(given["labels"].shape))
    mixed = history.base_share[..., None] * base
    mixed.scatter_add_(-1, history.bank_outcomes, history.bank_shares)
    close(mixed, output.logits.exp(), rtol=1e-4, atol=1e-6)
    entries = model.history_bank.describe(history.bank_ids[0, 0, :3].tolist())
    assert {entry.columns["text"] for entry in entries} <= {source for source, _ in SUBWORD_PAIRS}
    assert [entry.outcome for entry in entries] == history.bank_outcomes[0, 0, :3].tolist()
    real = given["labels"] != -100
    nats = -output.logits.gather(-1, given["labels"].clamp(min=0)[..., None])[..., 0][real]
    close(output.loss, nats.mean())


@torch.no_grad()
def test_the_memory_changes_the_next_sentence_at_once_and_forgetting_restores_it() -> None:
    model = make_subword_translator()
    before = model(**encode_pairs()).logits
    bank = HistoryBank.build(model, SUBWORD_PAIRS_TOKENIZER, pair_rows(SUBWORD_PAIRS[:2]))
    model.attach_history(bank, tokenizer=SUBWORD_PAIRS_TOKENIZER)
    with_two = model(**encode_pairs()).logits
    trust_memory(model)
    translated = texts(model.generate(**sources(model), max_new_tokens=30))
    assert translated[:2] == [target for _, target in SUBWORD_PAIRS[:2]]
    bank.add(pair_rows(SUBWORD_PAIRS[2:]), source="later")
    assert texts(model.generate(**sources(model), max_new_tokens=30)) == [target for _, target in SUBWORD_PAIRS]
    assert texts(model.generate(**sources(model), max_new_tokens=30, num_beams=3)) == [
        target for _, target in SUBWORD_PAIRS
    ]
    bank.forget(source="later")
    for name, value in SUBWORD_MEMORY.items():
        setattr(model.config.bank, name, value)
    assert torch.equal(model(**encode_pairs()).logits, with_two)
    bank.forget(where={"text": SUBWORD_PAIRS[0][0]})
    bank.forget(where={"text": SUBWORD_PAIRS[1][0]})
    close(model(**encode_pairs()).logits, before.log_softmax(-1), rtol=1e-4, atol=1e-5)
    model.detach_history()
    assert torch.equal(model(**encode_pairs()).logits, before)


def test_namespaces_keep_clients_apart() -> None:
    model = trust_memory(make_subword_translator())
    bank = HistoryBank.build(model, SUBWORD_PAIRS_TOKENIZER, pair_rows(SUBWORD_PAIRS[:1]), namespace="one")
    bank.add([{"source": SUBWORD_PAIRS[0][0], "target": SUBWORD_PAIRS[2][1]}], namespace="two")
    for namespace, target in (("one", SUBWORD_PAIRS[0][1]), ("two", SUBWORD_PAIRS[2][1])):
        model.attach_history(bank, namespace, SUBWORD_PAIRS_TOKENIZER)
        given = {name: value[:1] for name, value in sources(model).items()}
        assert texts(model.generate(**given, max_new_tokens=30)) == [target]
    with pytest.raises(BankError, match="no namespace 'three'; it has: one, two"):
        model.attach_history(bank, "three", SUBWORD_PAIRS_TOKENIZER)


@pytest.mark.parametrize("beams", [1, 3])
@torch.no_grad()
def test_generate_gives_each_sentence_what_it_gets_alone(beams: int) -> None:
    model = attach_pairs(make_subword_translator(stack="plain"))
    options: dict[str, Any] = {"max_new_tokens": 12, "num_beams": beams, "do_sample": False}
    together = texts(model.generate(**sources(model), **options))
    for row, pair in enumerate(SUBWORD_PAIRS):
        alone = {name: value for name, value in encode_pairs([pair]).items() if name != "labels"}
        assert texts(model.generate(**alone, **options)) == [together[row]]
    assert together != texts(model.generate(**sources(model), **options, use_history=False))


@torch.no_grad()
def test_a_memory_without_a_pair_changes_nothing() -> None:
    model = make_subword_translator()
    plain = model(**encode_pairs())
    generated = model.generate(**sources(model), num_beams=2, max_new_tokens=8)
    attach_pairs(model).history_bank.forget(where=lambda columns: True)
    empty = model(**encode_pairs(), output_history=True)
    close(empty.loss, plain.loss)
    close(empty.logits.exp(), plain.logits.softmax(-1))
    assert empty.history.bank_shares.shape[-1] == 0
    assert torch.equal(model.generate(**sources(model), num_beams=2, max_new_tokens=8), generated)


@torch.no_grad()
def test_targets_that_share_a_source_get_what_they_get_alone() -> None:
    model = attach_pairs(make_subword_translator())
    given = encode_pairs()
    source = model.read_source(given["input_ids"], given["attention_mask"])
    inputs = model.prepare_decoder_input_ids_from_labels(given["labels"])
    beams = torch.stack([inputs, inputs.roll(1, 0), inputs.flip(0)], dim=1)  # (E, R, T)
    options: dict[str, Any] = {"output_history": True, "output_attentions": True}
    shared = model(encoder_outputs=source, decoder_input_ids=beams.flatten(0, 1), **options)
    for beam in range(beams.shape[1]):
        alone = model(encoder_outputs=source, decoder_input_ids=beams[:, beam], **options)
        own = slice(beam, None, beams.shape[1])
        close(shared.logits[own], alone.logits)
        close(shared.history.bank_shares[own], alone.history.bank_shares)
        assert torch.equal(shared.history.bank_ids[own], alone.history.bank_ids)
        assert torch.equal(shared.history.bank_outcomes[own], alone.history.bank_outcomes)
        for layer, expected in zip(shared.cross_attentions, alone.cross_attentions, strict=True):
            close(layer[own], expected)


@torch.no_grad()
def test_the_beams_of_a_search_share_their_source(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_subword_translator()
    seen = []
    decode = LLESeq2SeqModel.decode

    def spy(self: Any, source: Any, inputs: torch.Tensor, *args: Any) -> Any:
        seen.append((len(source.last_hidden_state), len(inputs)))
        return decode(self, source, inputs, *args)

    monkeypatch.setattr(LLESeq2SeqModel, "decode", spy)
    model.generate(**sources(model), num_beams=3, max_new_tokens=3)
    assert set(seen) == {(len(SUBWORD_PAIRS), 3 * len(SUBWORD_PAIRS))}


@torch.no_grad()
def test_generate_follows_the_most_probable_tokens() -> None:
    model = make_subword_translator()
    given = {name: value for name, value in encode_pairs([SUBWORD_PAIRS[1]]).items() if name != "labels"}
    generated = model.generate(**given, max_new_tokens=6, min_new_tokens=6)[0, 1:]
    inputs = torch.tensor([[model.start_token_id, *generated[:-1].tolist()]])
    logits = model(**given, decoder_input_ids=inputs).logits[0]
    logits[:-1, SUBWORD_PAIRS_TOKENIZER.eos_token_id] = -torch.inf  # what min_new_tokens forbids
    assert logits[:-1].argmax(-1).tolist() == generated[:-1].tolist()


def test_a_long_source_and_a_sentence_without_a_common_word_work() -> None:
    model = attach_pairs(make_subword_translator())
    long = SUBWORD_PAIRS_TOKENIZER("the cat " * 700, return_tensors="pt")
    assert model.generate(**long, max_new_tokens=3).shape[1] <= 4
    strange = SUBWORD_PAIRS_TOKENIZER("zzz 123", return_tensors="pt")
    labels = torch.tensor([[5, 6]])
    with_memory, without = model(**strange, labels=labels), model(**strange, labels=labels, use_history=False)
    close(with_memory.logits, without.logits.log_softmax(-1))


def test_a_target_may_be_longer_than_its_source_but_not_endless() -> None:
    model = make_subword_translator()
    model.lm_head.bias.data[SUBWORD_PAIRS_TOKENIZER.eos_token_id] = -1000.0
    given = SUBWORD_PAIRS_TOKENIZER("a cat", return_tensors="pt")
    size = given["input_ids"].shape[1]
    assert model.generate(**given).shape[1] == 1 + longest_target(size)
    assert model.generate(**given, max_new_tokens=5).shape[1] == 6
    model.generation_config.max_new_tokens = 3
    assert model.generate(**given).shape[1] == 4


def test_label_smoothing_is_that_of_the_trainer() -> None:
    from transformers.trainer_pt_utils import LabelSmoother

    model = make_subword_translator(output_dropout=0.0).train()
    given = encode_pairs()
    output = model(**given, return_logits=True)
    expected = LabelSmoother(0.1)({"logits": output.logits}, given["labels"])
    model.label_smoothing = 0.1
    close(model(**given).loss, expected)
    close(model.eval()(**given).loss, output.loss)


def test_every_weight_learns() -> None:
    model = make_subword_translator().train()
    model(**encode_pairs()).loss.backward()
    idle = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert idle == []


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_are_shared_or_not(tied: bool, tmp_path: Path) -> None:
    model = make_subword_translator(tie_word_embeddings=tied, translator={"share_embeddings": tied})
    model.save_pretrained(tmp_path)
    for found in (model, AutoModelForSeq2SeqLM.from_pretrained(tmp_path)):
        encoder, decoder = (part.embed_tokens.weight for part in (found.model.encoder, found.model.decoder))
        assert (encoder is decoder) == tied
        assert (found.lm_head.weight is decoder) == tied
        close(found(**encode_pairs()).logits, model(**encode_pairs()).logits)


def test_saving_and_loading_with_the_memory(tmp_path: Path) -> None:
    model = attach_pairs(make_subword_translator())
    model.save_pretrained(tmp_path, save_history=True)
    SUBWORD_PAIRS_TOKENIZER.save_pretrained(tmp_path)
    loaded: Any = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("a cat")["input_ids"][-1] == tokenizer.eos_token_id
    assert tokenizer.padding_side == "right"
    loaded.attach_history(HistoryBank.from_pretrained(tmp_path), tokenizer=tokenizer)
    assert torch.equal(loaded(**encode_pairs()).logits, model(**encode_pairs()).logits)
    assert loaded.config.auto_map["AutoModelForSeq2SeqLM"] == "modeling_lle.LLEForSeq2SeqLM"
    backbone = AutoModel.from_pretrained(tmp_path)
    assert type(backbone) is LLESeq2SeqModel
    assert torch.equal(backbone.encoder.embed_tokens.weight, model.lm_head.weight)


def test_the_memory_adds_no_weights() -> None:
    model = make_subword_translator()
    before = model.num_parameters()
    assert attach_pairs(model).num_parameters() == before


def test_calibration_lowers_the_perplexity_and_only_changes_the_numbers_of_the_bank() -> None:
    model = attach_pairs(make_subword_translator(), SUBWORD_PAIRS[:3])
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    found = model.calibrate([encode_pairs(SUBWORD_PAIRS[:3])], steps=20)
    assert found["predictions"] == float((encode_pairs(SUBWORD_PAIRS[:3])["labels"] != -100).sum())
    assert found["after_nats"] < found["before_nats"]
    nats = []
    for place in range(3):  # each pair is predicted from the others
        others = attach_pairs(
            make_subword_translator(), [pair for pair in SUBWORD_PAIRS[:3] if pair != SUBWORD_PAIRS[place]]
        )
        others.config.history = model.config.history
        with torch.no_grad():
            nats.append(others(**encode_pairs([SUBWORD_PAIRS[place]]), num_items_in_batch=1).loss)
    close(torch.stack(nats).sum() / found["predictions"], torch.tensor(found["after_nats"]), rtol=1e-3, atol=1e-3)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    by_batches = model.config.to_dict()["history"]["bank"]
    again = attach_pairs(make_subword_translator(), SUBWORD_PAIRS[:3])
    again.calibrate(steps=20)  # the pairs of the memory itself
    assert all(again.config.to_dict()["history"]["bank"][name] != 0 for name in ("match", "continuation", "length"))
    assert again.config.bank.continuation == pytest.approx(by_batches["continuation"], rel=0.05)
    sharpness = again.config.bank.sharpness
    again.calibrate(steps=5, fixed=["sharpness"])
    assert again.config.bank.sharpness == sharpness
    with pytest.raises(ValueError, match="sharpnes"):
        again.calibrate(fixed=["sharpnes"])
    model.detach_history()
    with pytest.raises(ValueError, match="no memory is attached"):
        model.calibrate([encode_pairs()])


def test_the_seq2seq_trainer_learns(tmp_path: Path) -> None:
    model = make_subword_translator(hidden_size=32, initializer_range=0.1).train()
    data = Dataset.from_list(
        [
            {
                "input_ids": SUBWORD_PAIRS_TOKENIZER(source)["input_ids"],
                "labels": SUBWORD_PAIRS_TOKENIZER(target)["input_ids"],
            }
            for source, target in SUBWORD_PAIRS
        ]
    )
    arguments = Seq2SeqTrainingArguments(
        str(tmp_path), max_steps=60, learning_rate=0.02, use_cpu=True, disable_tqdm=True, report_to=[],
        predict_with_generate=True, generation_max_length=30, save_strategy="no",
    )  # fmt: skip
    trainer = Seq2SeqTrainer(
        model,
        arguments,
        data_collator=DataCollatorForSeq2Seq(SUBWORD_PAIRS_TOKENIZER, model),
        train_dataset=data,
        eval_dataset=data,
    )
    trainer.train()
    predicted = trainer.predict(data).predictions
    predicted[predicted == -100] = SUBWORD_PAIRS_TOKENIZER.pad_token_id
    assert texts(torch.from_numpy(predicted)) == [target for _, target in SUBWORD_PAIRS]


def test_gradient_checkpointing_changes_nothing() -> None:
    model = make_subword_translator().train()
    model(**encode_pairs()).loss.backward()
    plain = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    model.activation_checkpointing_enable()
    model(**encode_pairs()).loss.backward()
    for name, weight in model.named_parameters():
        close(weight.grad, plain[name])


def test_what_is_wrong_is_named() -> None:
    model = make_subword_translator()
    with pytest.raises(ValueError, match="give the source as exactly one of input_ids"):
        model(labels=encode_pairs()["labels"])
    with pytest.raises(ValueError, match="give decoder_input_ids, or labels"):
        model(input_ids=encode_pairs()["input_ids"])
    with pytest.raises(ValueError, match="row 1 of the batch holds only padding"):
        model(
            **{
                **encode_pairs(),
                "attention_mask": torch.tensor([[1], [0], [1], [1]]).expand_as(encode_pairs()["input_ids"]),
            }
        )
    with pytest.raises(ValueError, match="3 heads, a width of 8"):
        make_subword_translator(translator={"num_attention_heads": 3})
    with pytest.raises(ValueError, match="needs tie_word_embeddings=True"):
        make_subword_translator(tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"LLEForSeq2SeqLM does not read classifier\.members=2"):
        make_subword_translator(classifier={"members": 2})
    with pytest.raises(ValueError, match="bos_token_id is not set"):
        make_subword_translator(bos_token_id=None)(**encode_pairs())
    bank = HistoryBank.build(model, SUBWORD_PAIRS_TOKENIZER, pair_rows())
    bank.encoder = None
    with pytest.raises(ValueError, match="attach it with tokenizer=tokenizer"):
        model.attach_history(bank)
    assert model.history is None
    of_texts: LLEForCausalLM = make_language_model()
    with pytest.raises(BankError, match="another backbone"):
        model.attach_history(
            HistoryBank.build(of_texts, make_word_tokenizer(), ["a b c"]), tokenizer=SUBWORD_PAIRS_TOKENIZER
        )
    with pytest.raises(ValueError, match="this is the configuration of a translator"):
        LLEForCausalLM(model.config)
