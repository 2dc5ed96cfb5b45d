"""Attribution: the shares of the pairs in a translation are those of the model's own mixture."""

import pytest
import torch

from modeling_lle.data.text import encode_sentences
from modeling_lle.entries.attribution import Attribution, attribute
from modeling_lle.entries.pairs import padded
from tests.factories.pairs import WORD_PAIRS, WORD_PAIRS_TOKENIZER
from tests.factories.translators import make_taught_word_translator

SOURCES = [pair["source"] for pair in WORD_PAIRS]
TARGETS = [pair["target"] for pair in WORD_PAIRS]


@torch.no_grad()
def test_shares_are_those_of_the_model() -> None:
    model = make_taught_word_translator(history={})
    sources, targets = (encode_sentences(texts, WORD_PAIRS_TOKENIZER) for texts in (SOURCES[::-1], TARGETS))
    batch = padded(sources, targets, WORD_PAIRS_TOKENIZER.pad_token_id)
    output = model(**batch, output_history=True)
    probs = output.logits.exp().gather(-1, batch["labels"].clamp(min=0)[..., None])[..., 0]
    plain = model(**batch, use_history=False).logits.softmax(-1).gather(-1, batch["labels"].clamp(min=0)[..., None])
    for row, found in enumerate(attribute(model, sources, targets, WORD_PAIRS_TOKENIZER.pad_token_id)):
        number = len(targets[row])
        assert found.base_share == pytest.approx(float(output.history.base_share[row, :number].mean()))
        assert [token.prob for token in found.tokens] == pytest.approx(probs[row, :number].tolist(), rel=1e-4)
        assert [token.base_prob for token in found.tokens] == pytest.approx(plain[row, :number, 0].tolist(), rel=1e-4)
        by_pair = dict.fromkeys(found.shares, 0.0)
        shares, ids = output.history.bank_shares[row, :number].mean(0), output.history.bank_ids[row, 0]
        for share, entry in zip(shares.tolist(), ids.tolist(), strict=True):
            if entry >= 0:
                text = model.history_bank.describe([entry])[0].columns["text"]
                by_pair[[pair["text"] for pair in model.memory.pairs].index(text)] += share
        assert found.shares == pytest.approx(by_pair)


def test_a_translation_without_a_token_is_of_the_base_alone() -> None:
    model = make_taught_word_translator()
    nothing = Attribution(1.0, {}, [])
    pad = WORD_PAIRS_TOKENIZER.pad_token_id
    assert attribute(model, [[3], [4]], [[], []], pad) == [nothing, nothing]
    sources, targets = (encode_sentences(texts[:1], WORD_PAIRS_TOKENIZER) for texts in (SOURCES, TARGETS))
    found = attribute(model, [sources[0], sources[0]], [[], targets[0]], pad)
    assert found[0] == nothing
    assert found[1].base_share + sum(found[1].shares.values()) == pytest.approx(1)
    assert list(found[1].shares.values()) == sorted(found[1].shares.values(), reverse=True)
