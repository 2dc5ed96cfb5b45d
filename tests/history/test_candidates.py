"""Candidates of a translator: how far a translation follows a pair, and what that counts for in the rule."""

import pytest
import torch

pytest.importorskip("bm25s")
from modeling_lle import LLEForSeq2SeqLM
from modeling_lle.history.cache import LLECache
from modeling_lle.history.candidates import LONGEST, Candidates, follow
from tests.factories.pairs import SUBWORD_PAIRS, encode_pairs
from tests.factories.translators import attach_pairs, make_subword_translator

close = torch.testing.assert_close
START = 9


def candidates(pairs: list[list[int]]) -> Candidates:
    """The targets of pairs, as the candidates of a single sentence."""
    places = [place for own in pairs for place in range(len(own))]
    before = torch.tensor([number - 1 if place else -1 for number, place in enumerate(places)])
    outcomes = torch.tensor([token for own in pairs for token in own])
    count = len(outcomes)
    return Candidates(
        torch.zeros(1, 2, count), outcomes[None], torch.arange(count)[None], before[None], torch.ones(1, count)
    )


def following() -> LLEForSeq2SeqLM:
    """A translator with a memory that counts what a translation follows."""
    model = attach_pairs(make_subword_translator())
    model.config.bank.match, model.config.bank.continuation, model.config.bank.length = 1.5, 3.0, 2.0
    model.config.bank.gate = [1.0, 0.2, 0.1, 0.1]
    return model.eval()


def test_lengths_are_the_tokens_in_common_before_an_entry() -> None:
    pairs, target = [[5, 6, 5, 6, 7], [6, 5], [5]], [5, 6, 5, 6]
    found = follow(candidates(pairs), torch.tensor([[START, *target]]))
    assert found is not None
    for step, lengths in enumerate(found[0].tolist()):
        read = [START, *target[:step]]
        expected = []
        for own in pairs:
            for place in range(len(own)):
                before = [START, *own[:place]]
                expected.append(
                    next(n for n in range(len(before) + 1) if before[-n - 1 :] != read[-n - 1 :] or n == len(before))
                )
        assert lengths == expected


def test_lengths_go_on_in_the_cache_and_move_with_its_rows() -> None:
    own, tokens = candidates([[5, 6, 7], [6, 6]]), torch.tensor([[START, 5, 6], [START, 6, 6]])
    whole, cache = follow(own, tokens), LLECache()
    assert whole is not None
    follow(own, tokens[:, :2], cache=cache)
    cache.seen_tokens = 2
    cache.reorder_cache(torch.tensor([1, 0]))
    last = follow(own, tokens[:, 2:].flip(0), cache=cache)
    assert last is not None
    assert torch.equal(last[:, 0], whole[:, 2].flip(0))
    again = LLECache()
    again.restore(cache.export())
    assert again.followed is not None
    assert torch.equal(again.followed, last[:, 0])
    again.reset()
    assert again.followed is None


def test_unknown_tokens_other_candidates_and_padding_are_not_followed() -> None:
    own, cache = candidates([[5, 6, 7]]), LLECache()
    follow(own, torch.tensor([[START, 5]]), cache=cache)
    cache.seen_tokens = 2
    assert cache.followed is not None
    assert not own.lengths(torch.tensor([[-1]]), None, cache.followed).any()
    after = follow(candidates([[5, 6], [7, 6]]), torch.tensor([[5]]), cache=cache)
    assert after is not None
    assert after[0, 0].tolist() == [0, 1, 0, 0]  # those of other candidates are forgotten
    padded, mask = torch.tensor([[3, START, 5]]), torch.tensor([[0, 1, 1]])
    alone, found = follow(own, padded[:, 1:]), follow(own, padded, mask)
    assert alone is not None
    assert found is not None
    assert torch.equal(found[:, 1:], alone)
    assert follow(None, padded) is None


def test_the_prediction_is_the_rule_and_sums_to_one() -> None:
    model, batch = following(), encode_pairs(SUBWORD_PAIRS[:2])
    with torch.no_grad():
        source = model.read_source(batch["input_ids"], batch["attention_mask"], leave_out=True)
        output = model(**batch, encoder_outputs=source, output_history=True)
        base = model(**batch, use_history=False).logits.log_softmax(-1)
        keys = model.encode(**batch)
    close(output.logits.logsumexp(-1), torch.zeros(output.logits.shape[:2]), atol=1e-5, rtol=0)
    own, numbers = source.candidates, model.config.bank
    inputs = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    lengths = follow(own, inputs).clamp(max=LONGEST)
    scores = numbers.sharpness * (keys @ own.keys - 1) + numbers.match * (own.match[:, None] - 1)
    scores = scores + numbers.continuation * ((lengths > 0).float() - 1) + numbers.length * (lengths / LONGEST - 1)
    scores = scores.masked_fill(own.ids[:, None] < 0, -torch.inf)
    mass = scores.logsumexp(-1)
    bias, of_mass, of_entropy, of_most = numbers.gate
    logit = bias + of_mass * mass - of_entropy * (base.exp() * base).sum(-1) + of_most * base.amax(-1)
    share = logit.sigmoid()
    recalled = torch.zeros_like(base).scatter_add(
        -1, own.outcomes[:, None].expand(scores.shape), (scores - mass[..., None]).exp()
    )
    real = batch["labels"] != -100
    expected = (1 - share)[..., None] * base.exp() + share[..., None] * recalled
    close(output.logits.exp()[real], expected[real], atol=1e-5, rtol=1e-4)
    close(output.history.base_share[real], (1 - share)[real], atol=1e-5, rtol=1e-4)


def test_no_token_sees_itself_or_those_after_it() -> None:
    model, batch = following(), encode_pairs(SUBWORD_PAIRS[:1])
    changed = {**batch, "labels": batch["labels"].clone()}
    changed["labels"][0, 2] = (changed["labels"][0, 2] + 1) % 200 + 20
    with torch.no_grad():
        close(model(**batch).logits[:, :3], model(**changed).logits[:, :3])
        assert not torch.allclose(model(**batch).logits[:, 3:], model(**changed).logits[:, 3:])


@pytest.mark.parametrize("beams", [1, 3])
def test_a_search_goes_by_the_probabilities_of_the_whole_target(beams: int) -> None:
    model, batch = following(), encode_pairs(SUBWORD_PAIRS)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    options = {"num_beams": beams, "do_sample": False, "max_new_tokens": 6, "length_penalty": 0.0}
    found = model.generate(**inputs, **options, return_dict_in_generate=True, output_scores=True)
    targets = found.sequences[:, 1:]
    labels = targets.masked_fill(targets == model.config.pad_token_id, -100)
    with torch.no_grad():
        log_p = model(**inputs, labels=labels).logits
    own = log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0].masked_fill(labels < 0, 0).sum(-1)
    if beams == 1:
        steps = torch.stack(found.scores, 1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        close(own, steps.masked_fill(labels < 0, 0).sum(-1), atol=1e-4, rtol=1e-4)
    else:
        close(own, found.sequences_scores, atol=1e-4, rtol=1e-4)
