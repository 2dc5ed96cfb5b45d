"""A translator's memory: pairs as entries, retrieval in two stages, matches, namespaces, forgetting, bad input."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("bm25s")
pytest.importorskip("rapidfuzz")
from modeling_lle import Attachment, HistoryBank, LLEForSeq2SeqLM
from modeling_lle.bank.lexical import fuzzy_match
from modeling_lle.entries import pairs as pairs_module
from modeling_lle.entries.pairs import Memory, padded
from tests.factories.pairs import SUBWORD_PAIRS, SUBWORD_PAIRS_TOKENIZER, encode_pairs, pair_rows
from tests.factories.translators import attach_pairs, make_subword_translator

close = torch.testing.assert_close


def decoded(ids: Any) -> str:
    return SUBWORD_PAIRS_TOKENIZER.decode(ids, skip_special_tokens=True)


def memory_of(model: LLEForSeq2SeqLM) -> Memory:
    """The memory that is attached, as it is now."""
    assert model.history is not None
    return Memory.of(model.history)


def test_an_entry_is_a_target_token_with_the_state_before_it() -> None:
    model = make_subword_translator()
    bank = HistoryBank.build(model, SUBWORD_PAIRS_TOKENIZER, pair_rows(), source="file")
    lengths = [len(SUBWORD_PAIRS_TOKENIZER(target)["input_ids"]) for _, target in SUBWORD_PAIRS]
    assert len(bank) == sum(lengths)
    for row, (source, target) in enumerate(SUBWORD_PAIRS):
        ids = range(sum(lengths[:row]), sum(lengths[: row + 1]))
        entries = bank.describe(ids)
        assert [entry.outcome for entry in entries] == SUBWORD_PAIRS_TOKENIZER(target)["input_ids"]
        assert {(entry.source, entry.row) for entry in entries} == {("file", row)}
        assert entries[0].columns == {"text": source, "translation": target}
        assert entries[0].before == [model.start_token_id]
        ((_, segment),) = bank.segments()
        with torch.no_grad():
            keys = model.encode(**encode_pairs([(source, target)]))[0]
        close(segment.keys[ids.start : ids.stop].float(), keys, rtol=0, atol=2**-8)
        close(keys.norm(dim=-1), torch.ones(len(ids)))


def test_a_pair_is_added_once_to_a_namespace() -> None:
    bank = HistoryBank.build(make_subword_translator(), SUBWORD_PAIRS_TOKENIZER, pair_rows(SUBWORD_PAIRS[:2] * 2))
    assert bank.add(pair_rows(SUBWORD_PAIRS[:2])) == 0
    assert bank.add(pair_rows(SUBWORD_PAIRS[:2]), namespace="other") == len(bank) // 2
    other = {"source": SUBWORD_PAIRS[0][0], "target": "eine andere Katze"}
    assert bank.add([other, other]) == len(SUBWORD_PAIRS_TOKENIZER(other["target"])["input_ids"])
    assert [(item.namespace, item.rows) for item in bank.manifest.added] == [
        ("default", 2),
        ("other", 2),
        ("default", 1),
    ]


def test_a_source_that_is_added_to_goes_on_counting_rows() -> None:
    bank = HistoryBank.build(
        make_subword_translator(), SUBWORD_PAIRS_TOKENIZER, pair_rows(SUBWORD_PAIRS[:2]), source="file"
    )
    bank.add(pair_rows(SUBWORD_PAIRS[2:]), source="file")
    documents = [document for _, segment in bank.segments() for document in segment.documents]
    assert [document["row"] for document in documents] == [0, 1, 2, 3]


def test_many_pairs_are_written_in_several_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs_module, "WRITTEN", 2)
    model = make_subword_translator()
    apart = HistoryBank.build(model, SUBWORD_PAIRS_TOKENIZER, pair_rows())
    assert len(apart.manifest.segments) == 2
    monkeypatch.undo()
    together = HistoryBank.build(model, SUBWORD_PAIRS_TOKENIZER, pair_rows())
    given = encode_pairs()
    found = []
    for bank in (apart, together):
        model.attach_history(bank, tokenizer=SUBWORD_PAIRS_TOKENIZER)
        found.append(model(**given).logits)
    close(found[0], found[1], rtol=1e-2, atol=1e-2)
    assert apart.manifest.added[0].rows == together.manifest.added[0].rows == 4


def test_candidates_are_the_entries_of_the_pairs_with_the_most_similar_source() -> None:
    model = attach_pairs(make_subword_translator())
    given = encode_pairs([("a cat sat on a mat", "egal"), ("zzz", "egal")])
    found = memory_of(model).candidates(given["input_ids"], given["attention_mask"], 1)
    keys, outcomes, ids = found.keys, found.outcomes, found.ids
    target = SUBWORD_PAIRS_TOKENIZER(SUBWORD_PAIRS[0][1])["input_ids"]
    assert outcomes[0].tolist() == target
    assert ids[0].tolist() == list(range(len(target)))
    assert ids[1].tolist() == [-1] * len(target)
    assert keys.shape == (2, 8, len(target))
    assert keys.dtype == torch.float32
    both = memory_of(model).candidates(given["input_ids"], given["attention_mask"], 2)
    other = SUBWORD_PAIRS_TOKENIZER(SUBWORD_PAIRS[3][1])["input_ids"]
    assert both.outcomes[0].tolist() == target + other
    assert both.before[0].tolist() == [*range(-1, len(target) - 1), -1, *range(len(target), len(both.ids[0]) - 1)]
    of_first, of_second = both.match[0][: len(target)].unique(), both.match[0][len(target) :].unique()
    assert of_first.tolist() == [pytest.approx(fuzzy_match("a cat sat on a mat", SUBWORD_PAIRS[0][0]))]
    assert of_second.tolist() == [pytest.approx(fuzzy_match("a cat sat on a mat", SUBWORD_PAIRS[3][0]))]


def test_pairs_of_the_same_source_are_left_out_where_it_is_asked_for() -> None:
    model = attach_pairs(make_subword_translator())
    model.history_bank.add([{"source": SUBWORD_PAIRS[0][0].upper(), "target": "NEIN"}])
    given = encode_pairs([SUBWORD_PAIRS[0]])
    outcomes = memory_of(model).candidates(given["input_ids"], None, 1, leave_out=True).outcomes
    assert outcomes[0].tolist() in [SUBWORD_PAIRS_TOKENIZER(target)["input_ids"] for _, target in SUBWORD_PAIRS[1:]]


def test_a_memory_is_indexed_once_for_each_state_tokenizer_and_choice_of_namespaces() -> None:
    bank = HistoryBank.build(make_subword_translator(), SUBWORD_PAIRS_TOKENIZER, pair_rows(), namespace="one")
    bank.add(pair_rows(SUBWORD_PAIRS[:2]), namespace="two")
    every = Attachment(bank, tokenizer=SUBWORD_PAIRS_TOKENIZER)
    two = Attachment(bank, ("two",), SUBWORD_PAIRS_TOKENIZER)
    assert Memory.of(every) is Memory.of(Attachment(bank, tokenizer=SUBWORD_PAIRS_TOKENIZER)) is not Memory.of(two)
    assert Memory.of(two) is Memory.of(two.pinned())
    assert Memory.of(Attachment(bank, tokenizer=copy.deepcopy(SUBWORD_PAIRS_TOKENIZER))) is not Memory.of(every)
    assert [len(Memory.of(own).pairs) for own in (every, two)] == [6, 2]
    pinned, before = two.pinned(), Memory.of(two)
    bank.forget(namespace="two")
    assert (Memory.of(two).pairs, Memory.of(pinned)) == ([], before)
    with pytest.raises(ValueError, match=r"give history=Attachment\(bank, tokenizer=tokenizer\)"):
        Memory.of(Attachment(bank))


def test_padding_is_no_part_of_a_sentence() -> None:
    model = attach_pairs(make_subword_translator())
    for_all = memory_of(model).candidates(*(encode_pairs()[name] for name in ("input_ids", "attention_mask")), 2)
    for row, pair in enumerate(SUBWORD_PAIRS):
        alone = memory_of(model).candidates(encode_pairs([pair])["input_ids"], None, 2)
        size = alone.ids.shape[1]
        for name in ("outcomes", "ids", "before", "match"):
            assert torch.equal(getattr(for_all, name)[row, :size], getattr(alone, name)[0])
        assert bool((for_all.ids[row, size:] == -1).all())


def test_matches_name_the_pair_and_how_like_it_is() -> None:
    memory = memory_of(attach_pairs(make_subword_translator()))
    best, second = memory.matches("the cat sat on a mat", 2)
    assert (best.text, best.translation) == SUBWORD_PAIRS[0]
    assert best.score == pytest.approx(5 / 6)
    assert (best.source, best.row) == ("added-1", 0)
    assert second.score < best.score
    assert memory.matches(SUBWORD_PAIRS[3][0])[0].score == 1.0
    assert memory.matches("zzz") == []


def test_of_equal_sources_the_newest_is_the_exact_match() -> None:
    model = attach_pairs(make_subword_translator())
    model.history_bank.add([{"source": SUBWORD_PAIRS[1][0], "target": "neu"}])
    assert memory_of(model).matches(SUBWORD_PAIRS[1][0])[0].translation == "neu"
    assert decoded(SUBWORD_PAIRS_TOKENIZER(SUBWORD_PAIRS[1][0])["input_ids"]) == SUBWORD_PAIRS[1][0]


def test_of_contradicting_translations_those_of_the_first_namespace_come_first_then_the_newest() -> None:
    model = attach_pairs(make_subword_translator())
    source, target = SUBWORD_PAIRS[1]
    model.history_bank.add([{"source": source, "target": "Kunde"}], namespace="client")
    model.history_bank.add([{"source": source, "target": "neu"}])
    model.history_bank.add(
        [{"source": source, "target": "Kunde neu"}, {"source": source, "target": "neu"}], namespace="client"
    )
    for namespaces, order in (
        (None, ["neu", "Kunde neu", "Kunde", target]),
        (("client", "default"), ["neu", "Kunde neu", "Kunde", target]),
        (("default", "client"), ["neu", target, "Kunde neu", "Kunde"]),
        (("gone", "default"), ["neu", target]),
        ((), []),
    ):
        memory = Memory.of(Attachment(model.history_bank, namespaces, SUBWORD_PAIRS_TOKENIZER))
        found = [match.translation for match in memory.matches(source) + memory.matches(f"{source}s")]
        assert found == order[:1] * 2
        assert [pair["translation"] for pair in memory.alternatives(source)] == order[1:]
        assert memory.alternatives("zzz") == []


def test_what_is_forgotten_is_no_candidate() -> None:
    model = attach_pairs(make_subword_translator())
    model.history_bank.forget(where={"text": SUBWORD_PAIRS[0][0]})
    assert len(memory_of(model).pairs) == 3
    assert all(match.text != SUBWORD_PAIRS[0][0] for match in memory_of(model).matches(SUBWORD_PAIRS[0][0], 4))
    one_token = model.history_bank.describe([len(SUBWORD_PAIRS_TOKENIZER(SUBWORD_PAIRS[0][1])["input_ids"])])[0]
    model.history_bank.forget([one_token.id])
    given = encode_pairs([SUBWORD_PAIRS[1]])
    found = memory_of(model).candidates(given["input_ids"], None, 1)
    assert found.outcomes[0].tolist() == SUBWORD_PAIRS_TOKENIZER(SUBWORD_PAIRS[1][1])["input_ids"][1:]
    assert one_token.id not in found.ids[0].tolist()


def test_an_empty_memory_changes_nothing() -> None:
    model = make_subword_translator()
    bank = HistoryBank.build(model, SUBWORD_PAIRS_TOKENIZER, pair_rows(SUBWORD_PAIRS[:1]))
    bank.forget(namespace="default")
    bank.compact()
    model.attach_history(bank, tokenizer=SUBWORD_PAIRS_TOKENIZER)
    with torch.no_grad():
        close(model(**encode_pairs()).logits, model(**encode_pairs(), use_history=False).logits.log_softmax(-1))
    assert memory_of(model).matches("the cat") == []
    assert isinstance(memory_of(model), Memory)


def test_names_of_special_tokens_are_text() -> None:
    model = attach_pairs(make_subword_translator(), [("an <eos> here", "ein <eos> hier")])
    assert len(model.history_bank) == len(
        SUBWORD_PAIRS_TOKENIZER("ein <eos> hier", split_special_tokens=True)["input_ids"]
    )
    (entry,) = model.history_bank.describe([1])
    assert entry.outcome != SUBWORD_PAIRS_TOKENIZER.eos_token_id


def test_padded_is_what_the_collator_of_transformers_makes() -> None:
    from transformers import DataCollatorForSeq2Seq

    sides = [[SUBWORD_PAIRS_TOKENIZER(pair[side])["input_ids"] for pair in SUBWORD_PAIRS] for side in (0, 1)]
    features = [{"input_ids": source, "labels": target} for source, target in zip(*sides, strict=True)]
    expected = DataCollatorForSeq2Seq(SUBWORD_PAIRS_TOKENIZER)(features)
    for name, value in padded(*sides, SUBWORD_PAIRS_TOKENIZER.pad_token_id).items():
        assert torch.equal(value, expected[name])


def endless() -> Iterator[dict[str, str]]:
    yield from pair_rows()


def test_bad_pairs_are_named_and_nothing_is_added() -> None:
    model = make_subword_translator()
    bank = HistoryBank.build(model, SUBWORD_PAIRS_TOKENIZER, endless())
    before = bank.manifest
    wrong: list[tuple[Any, str]] = [
        ([], "there is no sentence pair"),
        (["a text"], "row 0 is str"),
        ([*pair_rows(), {"source": "a"}], "row 4 has no column 'target'"),
        ([{"source": "a", "target": " "}], "'target' of row 0 is ' '"),
        ([{"source": None, "target": "b"}], "'source' of row 0 is None"),
        ([{"source": "a", "target": "\ud800"}], "the column 'target' of row 0 holds"),
    ]
    for pairs, message in wrong:
        with pytest.raises(ValueError, match=message):
            bank.add(pairs)
    with pytest.raises(ValueError, match="a namespace needs a name"):
        bank.add(pair_rows(), namespace="")
    with pytest.raises(ValueError, match="the name of the source holds"):
        bank.add(pair_rows(), source="\ud800")
    assert bank.manifest == before
