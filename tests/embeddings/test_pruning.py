"""Smaller vocabularies: the same pieces of the texts that they were made for, and a spelling of every other text."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from modeling_lle.embeddings.pruning import prune
from tests.factories.embeddings import TEXTS, make_bpe, make_wordpiece


def make_unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=40, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


def make_suffixed() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=60, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


@pytest.mark.parametrize("make", [make_bpe, make_wordpiece, make_unigram, make_suffixed])
def test_the_texts_are_tokenised_as_before_by_fewer_types(make: type) -> None:
    whole = make()
    small, ids = prune(whole, TEXTS[:2])
    assert len(ids) == small.get_vocab_size() < whole.get_vocab_size()
    for text in TEXTS[:2]:
        before, after = (own.encode(text, add_special_tokens=False) for own in (whole, small))
        assert before.tokens == after.tokens
        assert before.ids == [ids[number] for number in after.ids]
    assert [whole.id_to_token(old) for old in ids] == [small.id_to_token(new) for new in range(len(ids))]


def test_what_does_not_occur_is_spelt() -> None:
    small, _ = prune(make_bpe(), TEXTS[:1])
    encoded = small.encode("zoë dogs", add_special_tokens=False)
    assert "<unk>" not in encoded.tokens
    assert bytes.fromhex("".join(token[3:5] for token in encoded.tokens if token.startswith("<0x"))).decode()
    small, _ = prune(make_wordpiece(), TEXTS[:1])
    assert "[UNK]" not in small.encode("dogs", add_special_tokens=False).tokens


def test_a_tokenizer_that_cannot_be_pruned_is_told() -> None:
    prefixed = Tokenizer(models.BPE(continuing_subword_prefix="##"))
    with pytest.raises(ValueError, match=r"of the kind BPE cannot be pruned here: leave prune out"):
        prune(prefixed, ["a"])
