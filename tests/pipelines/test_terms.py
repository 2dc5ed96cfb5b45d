"""Terms in generation: a distribution, the tokens of terms that are missing, and their place in a translation."""

from typing import Any

import pytest
import torch

from modeling_lle import LLETokenizer
from modeling_lle.data import Glossary, Term
from modeling_lle.pipelines.terms import BEGIN, CONTINUE, Speller, TermPreference, put_terms

TEXTS = ["die Dateien und eine Datei im Ordner", "Datum, Ordner und Ordnung"]
TOKENIZER = LLETokenizer.train(TEXTS * 3, 290, ends_texts=True)
FILE, FOLDER = Term("file", ("Datei", "File")), Term("folder", ("Ordner",))
VOCABULARY = len(TOKENIZER)


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def gains(term_lists: list[list[Term]], targets: list[str]) -> torch.Tensor:
    """How much the log odds of each token (B, V) rise, after targets of one length."""
    scores = torch.randn(len(targets), VOCABULARY, generator=torch.Generator().manual_seed(0)) * 3
    rows = [ids(target) for target in targets]
    preference = TermPreference(term_lists, Speller(TOKENIZER))
    found = preference(torch.tensor([[0, *row] for row in rows]), scores.clone())
    each = len(targets) // len(term_lists)
    assert all(torch.equal(found[row], scores[row]) for row in range(len(targets)) if not term_lists[row // each])
    changed = [not torch.equal(own, before) for own, before in zip(found, scores, strict=True)]
    torch.testing.assert_close(found[changed].exp().sum(-1), torch.ones(sum(changed)))  # distributions
    new, old = found.log_softmax(-1), scores.log_softmax(-1)
    return (new - new[:, :1]) - (old - old[:, :1])  # against the end token, which no term prefers


def preferred(gain: torch.Tensor) -> dict[str, float]:
    return {
        TOKENIZER.convert_ids_to_tokens(id): round(float(gain[id]), 3)
        for id in (gain > 0.01).nonzero().flatten().tolist()
    }


def test_terms_that_are_missing_are_preferred_and_the_result_is_a_distribution() -> None:
    first, other, beam = gains([[FILE, FOLDER], [], [FILE]], ["die", "die", "die"])
    begins = {TOKENIZER.convert_ids_to_tokens(ids(word)[0]) for word in (" Datei", " Ordner")}
    assert set(preferred(first)) >= begins
    assert set(preferred(first).values()) == {BEGIN}
    assert preferred(other) == {}
    assert set(preferred(beam)) < set(preferred(first))


def test_a_term_that_was_begun_goes_on_with_any_ending() -> None:
    speller = Speller(TOKENIZER)
    spelling = next(own for own in speller.spellings("Ordnungen") if own.within)
    assert TOKENIZER.decode(spelling.ids) == " Ordnungen"
    for place in range(1, len(spelling.ids)):
        begun = TOKENIZER.decode(spelling.ids[:place])
        (gain,) = gains([[Term("orders", ("Ordnungen",))]], [f"die{begun}"])
        assert float(gain[spelling.ids[place]]) == pytest.approx(CONTINUE, abs=1e-3)
    whole = next(own for own in speller.spellings("Date") if own.within)
    endings = {TOKENIZER.convert_ids_to_tokens(id) for id in whole.steps[0]}
    assert endings >= {piece for piece in TOKENIZER.get_vocab() if piece.startswith("ĠDate")}


def test_a_term_is_preferred_once_for_each_occurrence() -> None:
    for terms, text, more in (
        ([FILE], "die Dateien", False),
        ([FILE, FILE], "die Dateien", True),
        ([FILE], "ein File im", False),
        ([FILE, FILE], "File, Dateien", False),
    ):
        assert bool(preferred(gains([terms], [text])[0])) == more


def test_a_term_with_unknown_tokens_is_left_alone() -> None:
    words = LLETokenizer.train(["a b c"], kind="word", ends_texts=True)
    speller = Speller(words)
    assert speller.spellings("unknown") == []
    assert [own.ids for own in speller.spellings("b c")] == [
        tuple(words("b c", add_special_tokens=False)["input_ids"])
    ]
    scores = torch.zeros(1, len(words))
    for target in ([], words("a", add_special_tokens=False)["input_ids"]):  # a word is spelled alike everywhere
        found = TermPreference([[Term("x", ("b",))]], speller)(torch.tensor([[0, *target]]), scores)
        assert int(found.argmax()) == words.convert_tokens_to_ids("b")
    assert TermPreference([[Term("x", ("unknown",))]], speller)(torch.tensor([[0]]), scores) is scores


def test_a_missing_term_takes_the_place_of_what_looked_at_its_source() -> None:
    text, glossary = "a file in file folders", Glossary([FILE, FOLDER])
    found, speller, target = glossary.find(text), Speller(TOKENIZER), ids("die Akte im Datum, und")
    ranges = speller.word_ranges(target)
    assert [speller.text(target[slice(*own)]).strip() for own in ranges] == ["die", "Akte", "im", "Datum", ",", "und"]

    def look(own: list[int]) -> torch.Tensor:
        attention = torch.full((len(own), 5), 0.1)
        for word, place, weight in ((1, 1, 0.6), (2, 3, 0.2), (3, 4, 0.6)):
            start, stop = speller.word_ranges(own)[word]
            attention[start:stop, place] = weight
        return attention

    def put(places: Any) -> str:
        return speller.text(put_terms(target, found, places, speller, look))

    assert put([[1], [3], [4]]) == "die Datei im Ordner, und"  # nothing looks at the second file
    assert put([[], [3], []]) == "die Akte im Datum, und"
    first, named = ids("Akte und"), [[0]]
    look_first = lambda own: torch.tensor([[1.0]] * (len(own) - 2) + [[0.0]] * 2)  # noqa: E731
    lower = Glossary([Term("order", ("ordnung",))]).find("order")
    assert speller.text(put_terms(first, lower, named, speller, look_first)) == "Ordnung und"
    kept = ids("{x} und")
    assert put_terms(kept, lower, named, speller, look_first) == kept  # a placeholder is no place for a term
