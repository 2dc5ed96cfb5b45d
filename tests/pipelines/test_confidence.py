"""The confidence in translations: its features, its fit, and what it says of others."""

import pytest
import torch

pytest.importorskip("bm25s")
from modeling_lle import HistoryBank
from modeling_lle.data.text import encode_sentences
from modeling_lle.entries.pairs import padded
from modeling_lle.pipelines.confidence import confidence, features, fit_confidence
from tests.factories.pairs import make_capitals_pairs
from tests.factories.translators import make_trained_translator


def rows(number: int, seed: int) -> tuple[list[str], list[str]]:
    pairs = make_capitals_pairs(number, seed)
    return pairs["source"][:], pairs["target"][:]


def test_features_are_of_the_translation_alone_whatever_its_batch() -> None:
    model, tokenizer = make_trained_translator()
    sources, targets = rows(4, 1)
    model.attach_history(HistoryBank.build(model, tokenizer, make_capitals_pairs(20, 5)), tokenizer=tokenizer)
    ids = [encode_sentences(side, tokenizer) for side in (sources, targets)]
    batch = padded(*ids, tokenizer.pad_token_id)
    with torch.no_grad():
        together = features(model, model.read_source(batch["input_ids"], batch["attention_mask"]), batch["labels"])
        for place in range(4):
            alone = padded([ids[0][place]], [ids[1][place]], tokenizer.pad_token_id)
            source = model.read_source(alone["input_ids"])
            torch.testing.assert_close(
                features(model, source, alone["labels"])[0], together[place], rtol=1e-4, atol=1e-5
            )
            output = model(encoder_outputs=source, labels=alone["labels"], use_history=True, output_history=True)
            mean, least, share, match = together[place].tolist()
            assert mean == pytest.approx(-float(output.loss), abs=1e-4)
            assert least <= mean <= 0
            assert share == pytest.approx(1 - float(output.history.base_share.mean()), abs=1e-4)
            assert match == pytest.approx(model.history and float(source.candidates.match.max()))


def test_it_is_fitted_without_the_pairs_themselves_and_tells_good_translations_from_bad_ones() -> None:
    model, tokenizer = make_trained_translator()
    sources, targets = rows(120, 2)
    wrong = [target if place % 3 else f"{target} {target}" for place, target in enumerate(targets)]
    pairs = [{"source": source, "target": target} for source, target in zip(sources, wrong, strict=True)]
    model.attach_history(HistoryBank.build(model, tokenizer, pairs), tokenizer=tokenizer)
    found = fit_confidence(model, tokenizer, sources, targets)
    assert found["translations"] == 120
    assert 0 < found["unedited"] < 1
    assert found["after_nats"] < found["before_nats"]
    assert len(model.config.translator.confidence) == 5
    ids = [encode_sentences(side, tokenizer) for side in rows(8, 3)]
    batch = padded(*ids, tokenizer.pad_token_id)
    with torch.no_grad():
        source = model.read_source(batch["input_ids"], batch["attention_mask"], use_history=False)
        good = confidence(model, features(model, source, batch["labels"]))
        bad = confidence(model, features(model, source, batch["labels"].roll(1, 0)))
    assert bool(((good >= 0) & (good <= 1)).all())
    assert float(good.mean()) > float(bad.mean())


def test_what_it_cannot_be_fitted_on_and_what_it_needs() -> None:
    model, tokenizer = make_trained_translator()
    with pytest.raises(ValueError, match="none of the 3 translations are as they should be"):
        fit_confidence(model, tokenizer, rows(3, 4)[0], ["nothing of this"] * 3)
    with pytest.raises(ValueError, match="has not been fitted"):
        confidence(model, torch.zeros(1, 4))
