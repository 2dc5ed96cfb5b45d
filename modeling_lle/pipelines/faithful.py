"""Translations that keep placeholders and markup: chosen among hypotheses, and searched for again where all lost some.

Notable: the second search may end a translation only when it has all placeholders of its source, and leaves what has
another one (lexical constraints as those of Hokamp and Liu 2017, arXiv:1704.07138, in any order). Few texts need it.
Shapes: B texts, R beams of each, T tokens of a translation, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from transformers import LogitsProcessor, PreTrainedTokenizerBase

from ..data.placeholders import differences, most_faithful

LEAST_BEAMS = 4  # of the second search
NEVER = -1e9  # added to the log probability of what must not follow; finite, so that a search always has a best beam
Hypothesis = TypeVar("Hypothesis")
# Gives the hypotheses, the best first, of some of the texts (by index), for a beam size and perhaps a processor.
Search = Callable[[list[int], int, LogitsProcessor | None], list[list[Hypothesis]]]


class KeepPlaceholders(LogitsProcessor):
    """Lets no translation end without the placeholders of its source, or go on with one that the source has not.

    Args:
        sources: The source of each text.
        tokenizer: The tokenizer.
        ends: Ids of the end tokens.
    """

    def __init__(self, sources: Sequence[str], tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> None:
        self.sources, self.tokenizer, self.ends = sources, tokenizer, list(ends)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """The scores (B * R, V) after targets (B * R, 1 + T)."""
        each = len(input_ids) // len(self.sources)
        scores = scores.clone()
        targets = self.tokenizer.batch_decode(input_ids[:, 1:], skip_special_tokens=True)
        for row, target in enumerate(targets):
            lost, added = differences(self.sources[row // each], target)
            if added:
                scores[row] += NEVER
            elif lost:
                scores[row, self.ends] = NEVER
        return scores


def search_faithfully(
    sources: Sequence[str],
    search: Search[Hypothesis],
    beams: int,
    text_of: Callable[[Hypothesis], str],
    tokenizer: PreTrainedTokenizerBase,
    ends: int | Sequence[int] | None,
) -> list[Hypothesis]:
    """The best translation of each text of those with the fewest faults, after a second search where all have some.

    Args:
        sources: The texts.
        search: Searches for the translations of some of them.
        beams: Beam size; the second search has `LEAST_BEAMS` or more.
        text_of: The text of a hypothesis.
        tokenizer: The tokenizer.
        ends: Ids of the end tokens; without any, nothing is searched again.
    """
    found = search(list(range(len(sources))), beams, None)
    ids = [ends] if isinstance(ends, int) else list(ends or ())
    best = [own[most_faithful(source, list(map(text_of, own)))] for source, own in zip(sources, found, strict=True)]
    faulty = [row for row, own in enumerate(best) if differences(sources[row], text_of(own)) != ([], [])]
    if faulty and ids:
        keep = KeepPlaceholders([sources[row] for row in faulty], tokenizer, ids)
        for row, own in zip(faulty, search(faulty, max(beams, LEAST_BEAMS), keep), strict=True):
            choice = [best[row], *own]
            best[row] = choice[most_faithful(sources[row], list(map(text_of, choice)))]
    return best
