"""Terms of a glossary in a translation: preferred while it is generated, and put in where they are missing.

Notable: while a translation is generated, the terms that it lacks are entries that recall by the rule of LLE
(history/rule.py): their outcomes are the tokens that begin or continue a term. With p the prediction so far, and s the
strength of an entry,

    kernel     l_i = log p(y_i) + log(exp(s_i) - 1)
    gate       share of the terms = m / (1 + m), with m = sum_i exp(l_i)

so that a term gets its share where the model has such a word in mind, and one that was begun is stronger. The result
is a distribution. A term that is still missing takes the place of the word that looked at its source.
Shapes: B texts, R translations of each, T tokens of a translation, N tokens of a source, V vocabulary, K entries.
"""

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from ..data.glossary import Occurrence, Term, check_terms
from ..data.placeholders import placeholders
from ..history.rule import Recall, gate, mixed_distribution

BEGIN, CONTINUE = 3.0, 6.0  # strengths in nats, of a term that is not begun and of one that is
LEAST_ATTENTION = 0.25  # of a word to a term of the source whose place it gives way to
NEIGHBOUR = 0.7  # of that attention: a word beside it that is replaced with it
_STOPS = ",.;:!?)]}"  # a space follows


@dataclass(frozen=True)
class Spelling:
    """The tokens of a term.

    Attributes:
        ids: The tokens.
        steps: For each of them the tokens that may stand there: itself, and those that begin with what is left of the
            term, as tokens of its inflected forms do.
        within, first: Whether it stands after a space, and where none is before it, as at the beginning of a text.
    """

    ids: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...]
    within: bool
    first: bool


class Speller:
    """Spells terms by a tokenizer.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer: Any = tokenizer
        special = set(tokenizer.all_special_ids)
        self._pieces = sorted((piece, id) for piece, id in tokenizer.get_vocab().items() if id not in special)
        self._before = self._encode("a")
        self._known: dict[str, list[Spelling]] = {}

    def spellings(self, term: str) -> list[Spelling]:
        """The spellings of a term, the one with a capital last; none if a token is unknown."""
        if term not in self._known:
            within = self._encode(f"a {term}")[len(self._before) :]
            first = [self._encode(own) for own in ((term, term.capitalize()) if term.islower() else (term,))]
            self._known[term] = [
                Spelling(ids, tuple(self._outcomes(ids[at:]) for at in range(len(ids))), ids == within, ids in first)
                for ids in dict.fromkeys((within, *first))
                if ids and self.tokenizer.unk_token_id not in ids
            ]
        return self._known[term]

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def word_ranges(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """The first token of each word, perhaps a space, and the one after its last."""
        texts = [self.text(ids[:place]) for place in range(len(ids) + 1)]
        starts = [0]
        for place in range(1, len(ids)):
            before, after = texts[place][-1:], texts[place + 1][len(texts[place]) :][:1]
            if not (before.isspace() or (_is_of_word(before) and _is_of_word(after))):
                starts.append(place)
        return list(zip(starts, [*starts[1:], len(ids)], strict=True))

    def _encode(self, text: str) -> tuple[int, ...]:
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return tuple(encoded["input_ids"])

    def _outcomes(self, left: tuple[int, ...]) -> tuple[int, ...]:
        """The next token of what is left of a term, and all that begin with it."""
        rest = "".join(self.tokenizer.convert_ids_to_tokens(list(left)))
        place, longer = bisect.bisect_left(self._pieces, (rest,)), []
        while place < len(self._pieces) and self._pieces[place][0].startswith(rest):
            longer.append(self._pieces[place][1])
            place += 1
        return (left[0], *(id for id in longer if id != left[0]))


def _is_of_word(character: str) -> bool:
    return character.isalnum() or character == "\ufffd"  # of which a byte is still to come


class TermPreference(LogitsProcessor):
    """Recalls the tokens of the terms that a translation has not used so far; see the module.

    Args:
        terms: For each text the terms that stand in it, each as often as it does.
        speller: Spells them.
    """

    def __init__(self, terms: Sequence[Sequence[Term]], speller: Speller) -> None:
        self.terms, self.speller = terms, speller

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """The log probabilities (B * R, V) after targets (B * R, 1 + T), from those of the model or its logits."""
        each = len(input_ids) // len(self.terms)
        entries = {}
        for row in range(len(input_ids)):
            if own := self.terms[row // each]:
                entries[row] = self._entries(input_ids[row, 1:].tolist(), own)
        rows = [row for row, own in entries.items() if own]
        if not rows:
            return scores
        pad = torch.nn.utils.rnn.pad_sequence
        outcomes = pad([torch.tensor(list(entries[row])) for row in rows], True, -1).to(scores.device)
        strengths = pad([torch.tensor(list(entries[row].values())) for row in rows], True).to(scores.device)
        base = scores[rows].float().log_softmax(-1)
        valid, outcomes = outcomes >= 0, outcomes.clamp(min=0)
        kernel = base.gather(-1, outcomes) + strengths.expm1().log()
        recall = Recall.from_scores(kernel[:, None], valid[:, None], outcomes[:, None])
        shares = gate([recall.mass], base.new_zeros(len(rows), 1, 2), [[0.0, 1.0, 0.0, 0.0]])
        mixed = mixed_distribution(base[:, None].contiguous(), [recall], shares)
        scores = scores.clone()
        scores[rows] = mixed[:, 0].to(scores.dtype)
        return scores

    def _entries(self, target: list[int], terms: Sequence[Term]) -> dict[int, float]:
        """Tokens after a target that begin or continue one of the terms, with their strengths."""
        text = self.speller.text(target)
        after_space = bool(text) and (_is_of_word(text[-1]) or text[-1] in _STOPS)  # where the next word is
        entries: dict[int, float] = {}
        for name in dict.fromkeys(use.target for use in check_terms(text, terms) if not use.found):
            for spelling in self.speller.spellings(name):
                for place, outcomes in enumerate(spelling.steps):
                    if place == 0:
                        goes_on, strength = spelling.within if after_space else spelling.first, BEGIN
                    else:
                        goes_on, strength = tuple(target[-place:]) == spelling.ids[:place], CONTINUE
                    if goes_on:
                        entries |= {id: max(strength, entries.get(id, 0.0)) for id in outcomes}
        return entries


def put_terms(
    target: list[int],
    occurrences: Sequence[Occurrence],
    source_places: Sequence[Sequence[int]],
    speller: Speller,
    look: Callable[[list[int]], Tensor],
) -> list[int]:
    """Puts terms that a translation lacks where it looked at their source, if there is such a place.

    Args:
        target: Its tokens, perhaps with an end token.
        occurrences: The terms in the source.
        source_places: For each of them its tokens in the source.
        speller: Spells them.
        look: Gives the attention (T, N) of each token of a target to the source.

    Returns:
        The tokens with more of the terms, or as they were.
    """
    terms, attention = [own.term for own in occurrences], None
    for occurrence, places in zip(occurrences, source_places, strict=True):
        uses = check_terms(speller.text(target), terms)
        missing = [
            use.target for own, use in zip(terms, uses, strict=True) if own is occurrence.term and not use.found
        ]
        if not missing or not places:
            continue
        attention = look(target) if attention is None else attention
        changed = _put(target, missing[0], speller, attention[:, list(places)].sum(-1))
        text, before = speller.text(changed), speller.text(target)
        found = [sum(use.found for use in own) for own in (check_terms(text, terms), uses)]
        if found[0] > found[1] and placeholders(text) == placeholders(before):
            target, attention = changed, None
    return target


def _put(target: list[int], name: str, speller: Speller, attention: Tensor) -> list[int]:
    """A target in which a term replaces the words with most of the attention (T,) to its source."""
    ranges = [
        own for own in speller.word_ranges(target) if any(map(str.isalnum, speller.text(target[own[0] : own[1]])))
    ]
    weights = [float(attention[start:stop].mean()) for start, stop in ranges]
    if not weights or max(weights) < LEAST_ATTENTION:
        return target
    first = last = weights.index(max(weights))
    while last + 1 < len(ranges) and weights[last + 1] >= NEIGHBOUR * weights[first]:
        last += 1
    start, stop = ranges[first][0], ranges[last][1]
    replaced = speller.text(target[:stop])[len(speller.text(target[:start])) :]
    within = replaced[:1].isspace() or (start > 0 and speller.text(target[:start])[-1:].isalnum())
    fitting = [own for own in speller.spellings(name) if (own.within if within else own.first)]
    if not fitting:
        return target
    chosen = fitting[-1 if replaced[:1].isupper() else 0]
    return [*target[:start], *chosen.ids, *target[stop:]]
