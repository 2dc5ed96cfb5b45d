"""Candidates of a translator: how far a translation follows a pair, and what that counts for in the rule."""

import pytest
import torch

pytest.importorskip("bm25s")
from modeling_lle import LLEForSeq2SeqLM
from modeling_lle.entries.pairs import Memory
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


def following(neighbours: int = 0) -> LLEForSeq2SeqLM:
    """A translator with a memory that counts what a translation follows."""
    model = attach_pairs(make_subword_translator(translator={"neighbours": neighbours}))
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


@pytest.mark.parametrize("leave_out", [False, True])
def test_with_neighbours_the_prediction_is_the_rule_over_candidates_and_the_nearest_entries(leave_out: bool) -> None:
    model, batch = following(neighbours=9), encode_pairs(SUBWORD_PAIRS[:3])
    history, numbers = model.history, model.config.bank
    assert history is not None
    memory = Memory.of(history)
    with torch.no_grad():
        source = model.read_source(batch["input_ids"], batch["attention_mask"], leave_out=leave_out)
        output = model(**batch, encoder_outputs=source, output_history=True)
        base = model(**batch, use_history=False).logits.log_softmax(-1)
        keys = model.encode(**batch)
    close(output.logits.logsumexp(-1), torch.zeros(output.logits.shape[:2]), atol=1e-5, rtol=0)
    inputs = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    lengths, match = follow(source.candidates, inputs).clamp(max=LONGEST) / LONGEST, source.candidates.match - 1
    entries, places = memory.keys.float(), {entry: place for place, entry in enumerate(memory.ids.tolist())}
    owners, added = memory.owners(memory.ids), 0
    shares = {name: output.history[name] for name in ("bank_ids", "bank_shares")}
    for row, column in (batch["labels"] != -100).nonzero().tolist():
        scores = numbers.sharpness * (entries @ keys[row, column] - 1)
        ids, own = source.candidates.ids[row], {}
        for place, entry in enumerate(ids[ids >= 0].tolist()):
            length = lengths[row, column, place]
            followed = numbers.continuation * (float(length > 0) - 1) + numbers.length * (length - 1)
            own[entry] = numbers.match * match[row, place] + followed
        for place in scores.argsort(descending=True)[:9].tolist():
            entry = int(memory.ids[place])
            if entry not in own and not (leave_out and int(owners[place]) == row):
                own[entry] = torch.tensor(-numbers.match - numbers.continuation - numbers.length)
        where = torch.tensor([places[entry] for entry in own])
        recalled = scores[where] + torch.stack(list(own.values()))
        p = base[row, column].exp()
        features = torch.stack([recalled.logsumexp(0), -(p * p.log()).sum(), p.log().max()])
        share = (numbers.gate[0] + features @ torch.tensor(numbers.gate[1:])).sigmoid()
        due = ((1 - share) * p).index_add(0, memory.outcomes[where], share * recalled.softmax(0))
        close(output.logits[row, column].exp(), due, atol=1e-5, rtol=1e-4)
        shown = dict(zip(*(shares[name][row, column].tolist() for name in shares), strict=True))
        close(torch.tensor([shown[entry] for entry in own]), share * recalled.softmax(0), atol=1e-5, rtol=1e-4)
        assert set(shown) - {-1} == set(own)
        added += len(own) - int((ids >= 0).sum())
    assert added


def test_without_a_similar_pair_the_nearest_entries_are_recalled_and_forgotten_ones_are_not() -> None:
    model, batch = following(neighbours=64), encode_pairs([("⌘ ⌘", SUBWORD_PAIRS[0][1])])
    assert model.history is not None
    with torch.no_grad():
        before = model(**batch, output_history=True)
        base = model(**batch, use_history=False).logits.log_softmax(-1)
    assert not follow(model.read_source(batch["input_ids"]).candidates, batch["labels"]).numel()
    assert not torch.allclose(before.logits, base, atol=1e-3)
    ids = before.history.bank_ids
    gone = int(ids[0, 0, before.history.bank_shares[0, 0].argmax()])
    model.history.bank.forget([gone])
    with torch.no_grad():
        assert gone not in model(**batch, output_history=True).history.bank_ids
    model.history.bank.forget(namespace="default")
    with torch.no_grad():
        close(model(**batch).logits.log_softmax(-1), base)


def test_calibration_fits_the_neighbours_too() -> None:
    found = {}
    for neighbours in (0, 20):
        model = following(neighbours)
        found[neighbours] = model.calibrate([encode_pairs(SUBWORD_PAIRS)], steps=5)
        with torch.no_grad():
            batch = encode_pairs(SUBWORD_PAIRS)
            source = model.read_source(batch["input_ids"], batch["attention_mask"], leave_out=True)
            loss = model(**batch, encoder_outputs=source).loss.item()
        assert loss == pytest.approx(found[neighbours]["after_nats"], rel=1e-3)
    assert found[0]["before_nats"] != found[20]["before_nats"]


@pytest.mark.parametrize("neighbours", [0, 9])
def test_no_token_sees_itself_or_those_after_it(neighbours: int) -> None:
    model, batch = following(neighbours), encode_pairs(SUBWORD_PAIRS[:1])
    changed = {**batch, "labels": batch["labels"].clone()}
    changed["labels"][0, 2] = (changed["labels"][0, 2] + 1) % 200 + 20
    with torch.no_grad():
        close(model(**batch).logits[:, :3], model(**changed).logits[:, :3])
        assert not torch.allclose(model(**batch).logits[:, 3:], model(**changed).logits[:, 3:])


@pytest.mark.parametrize(("beams", "neighbours"), [(1, 0), (3, 0), (1, 9), (3, 9)])
def test_a_search_goes_by_the_probabilities_of_the_whole_target(beams: int, neighbours: int) -> None:
    model, batch = following(neighbours), encode_pairs(SUBWORD_PAIRS)
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
