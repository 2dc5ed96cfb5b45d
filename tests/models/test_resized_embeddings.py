"""`resize_token_embeddings` of every model: it works on, is saved, and keeps what it said of the old tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from tests.factories.classifiers import make_classifier
from tests.factories.language_models import make_language_model
from tests.factories.pairs import SUBWORD_PAIRS_TOKENIZER, encode_pairs
from tests.factories.texts import VOCAB, make_ids
from tests.factories.translators import attach_pairs, make_subword_translator

close = torch.testing.assert_close


@pytest.mark.parametrize("grows", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_a_translator(tied: bool, grows: bool, tmp_path: Path) -> None:
    old = len(SUBWORD_PAIRS_TOKENIZER) + 2
    model = make_subword_translator(tie_word_embeddings=tied, translator={"share_embeddings": tied}, vocab_size=old)
    model.lm_head.bias.uniform_()
    given, new = encode_pairs(), old + 5 if grows else old - 1
    before = model(**given).logits
    bias = model.lm_head.bias.clone()
    found = model.resize_token_embeddings(new)
    assert found is model.get_input_embeddings()
    parts = model.config, model.model.encoder.config, model.model.decoder.config
    assert [part.vocab_size for part in parts] == [new] * 3
    encoder, decoder = (part.embed_tokens for part in (model.model.encoder, model.model.decoder))
    assert (encoder.num_embeddings, decoder.num_embeddings, model.lm_head.out_features) == (new, new, new)
    assert (encoder.weight is decoder.weight) == (model.lm_head.weight is decoder.weight) == tied
    assert torch.equal(model.lm_head.bias[: min(old, new)], bias[:new])
    after = model(**given).logits
    assert after.shape[-1] == new
    close(after[..., : min(old, new)], before[..., :new])
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(**given).logits, after)
    if grows:
        changed = given["input_ids"].index_fill(1, torch.tensor([0]), new - 1)
        assert bool(model(**{**given, "input_ids": changed}).logits.isfinite().all())
        model.generate(changed, max_new_tokens=2)


def test_its_sizes_may_be_rounded_up() -> None:
    model = make_subword_translator()
    old = model.config.vocab_size
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    model.resize_token_embeddings(pad_to_multiple_of=64)
    assert model.config.vocab_size == model.model.encoder.config.vocab_size == -(-old // 64) * 64
    assert model.lm_head.bias.shape == (model.config.vocab_size,)


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_a_language_model(tied: bool, tmp_path: Path) -> None:
    model = make_language_model(tie_word_embeddings=tied)
    model.lm_head.bias.uniform_()
    model.update_statistics = {"residual": torch.ones(VOCAB)}
    ids = make_ids(2, 6)
    before = model(ids, use_history=False).logits
    model.resize_token_embeddings(VOCAB + 3)
    assert model.update_statistics is None  # they are those of the old output layer
    close(model(ids, use_history=False).logits[..., :VOCAB], before)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    newest = torch.full_like(ids, VOCAB + 2)
    assert torch.equal(loaded(newest).logits, model(newest).logits)


@pytest.mark.parametrize(("of_tokens", "members"), [(False, 1), (False, 2), (True, 2)])
@torch.no_grad()
def test_a_classifier(of_tokens: bool, members: int, tmp_path: Path) -> None:
    model = make_classifier(of_tokens=of_tokens, classifier={"members": members})
    ids = make_ids(2, 5)
    before = model(ids).logits
    model.resize_token_embeddings(VOCAB + 3)
    close(model(ids).logits, before)
    model.save_pretrained(tmp_path)
    newest = torch.full_like(ids, VOCAB + 2)
    assert torch.equal(type(model).from_pretrained(tmp_path)(newest).logits, model(newest).logits)


def test_an_attached_bank_is_detached_first_and_refuses_the_new_model() -> None:
    model: Any = attach_pairs(make_subword_translator())
    bank, size = model.history_bank, model.config.vocab_size
    model.resize_token_embeddings(size)  # as scripts do that add no token
    with pytest.raises(ValueError, match=r"call detach_history\(\) before resize_token_embeddings"):
        model.resize_token_embeddings(size + 1)
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size == size
    model.detach_history()
    model.resize_token_embeddings(size + 1)
    with pytest.raises(ValueError, match="another backbone"):
        model.attach_history(bank, tokenizer=SUBWORD_PAIRS_TOKENIZER)
