"""What the benchmark `memory` measures drafts with: the split, the copies of the best match, bands and scores.

Notable: the band of a sentence is by one score for every method, the best fuzzy match over all pairs of the memory,
not only over those that BM25 finds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from rapidfuzz import fuzz, process
from rapidfuzz.distance import Levenshtein

from modeling_lle.bank.lexical import fuzzy_match
from modeling_lle.common.words import words
from modeling_lle.data.placeholders import differences
from modeling_lle.evaluation import TranslationMetric

from .timing import Row

ALL = "all"
BANDS = {"85-100 %": 0.85, "70-85 %": 0.7, "50-70 %": 0.5, "below 50 %": 0.0}  # up to the previous one
COPY, COPY_CHARACTERS = "copy", "copy_characters"
COPIES = (COPY, COPY_CHARACTERS)


def split_pairs(pairs: Dataset, test_share: float, seed: int, most: int | None = None) -> tuple[Dataset, Dataset]:
    """Splits pairs with distinct sources into memory and test set, by seed.

    Args:
        pairs: Columns `source` and `target`; of equal sources the first counts.
        test_share: Share of the test set.
        seed: Of the draw.
        most: Largest number of test pairs; the others are in neither part, so that the memory stays the same.

    Raises:
        ValueError: One part would be empty.
    """
    first: dict[str, int] = {}
    for row, text in enumerate(pairs["source"][:]):
        first.setdefault(text.strip(), row)
    rows = np.random.default_rng(seed).permutation(list(first.values()))
    tests = round(test_share * len(rows))
    if not 0 < tests < len(rows):
        raise ValueError(f"{len(rows)} distinct sources cannot be split: give more pairs, or another --test-share")
    return pairs.select(np.sort(rows[tests:])), pairs.select(np.sort(rows[:tests][:most]))


def best_by_words(texts: Sequence[str], sources: Sequence[str]) -> list[int]:
    """Index of the source that has the highest fuzzy match score with each text, the first of equal ones."""
    known = [words(source) for source in sources]
    found = [process.extractOne(words(text), known, scorer=Levenshtein.normalized_similarity) for text in texts]
    return [place for _, _, place in found]


def best_by_characters(texts: Sequence[str], sources: Sequence[str]) -> list[int]:
    """Index of the source that has the highest ratio of rapidfuzz with each text, the first of equal ones."""
    return [process.extractOne(text, sources, scorer=fuzz.ratio)[2] for text in texts]


@dataclass(frozen=True)
class Tested:
    """The test pairs.

    Attributes:
        sources, references: The sides.
        scores: Best fuzzy match of each source in the memory.
        language: Language of the references.
    """

    sources: list[str]
    references: list[str]
    scores: list[float]
    language: str | None = None

    @classmethod
    def of(cls, test: Dataset, memory: Dataset, language: str | None = None) -> "Tested":
        """The pairs of a test set, beside those of a memory."""
        texts, known = test["source"][:], memory["source"][:]
        nearest = best_by_words(texts, known)
        scores = [fuzzy_match(text, known[place]) for text, place in zip(texts, nearest, strict=True)]
        return cls(texts, test["target"][:], scores, language)

    def rows(self, drafts: Sequence[str]) -> list[Row]:
        """Scores of drafts: a row for all sentences, and one for each band that is not empty."""
        rows = [{"band": ALL, **self._measure(drafts, range(len(drafts)))}]
        above = np.inf
        for band, least in BANDS.items():
            own = [place for place, score in enumerate(self.scores) if least <= score < above]
            above = least
            if own:
                rows.append({"band": band, **self._measure(drafts, own)})
        return rows

    def right(self, drafts: Sequence[str]) -> np.ndarray:
        """Which drafts are as their references, but for white space around them."""
        return np.array([draft.strip() == own.strip() for draft, own in zip(drafts, self.references, strict=True)])

    def _measure(self, drafts: Sequence[str], places: Sequence[int]) -> Row:
        sources, found, references = (
            [side[place] for place in places] for side in (self.sources, drafts, self.references)
        )
        metric = TranslationMetric(keep_in_memory=True)
        values = metric.compute(predictions=found, references=references, language=self.language)
        right = [differences(source, draft) == ([], []) for source, draft in zip(sources, found, strict=True)]
        return {
            "sentences": len(references),
            "bleu": values["bleu"],
            "chrf": values["chrf"],
            "placeholders_right": sum(right) / len(right),
            "edits": edits(found, references),
            "signature": metric.signatures["bleu"],
        }


def edits(drafts: Sequence[str], references: Sequence[str]) -> float:
    """Words to insert, delete or replace in drafts, for each word of the references.

    >>> edits(["Where is my card?", ""], ["Where is my new card?", "No."])
    0.375
    """
    pairs = [(words(draft), words(reference)) for draft, reference in zip(drafts, references, strict=True)]
    distance = sum(Levenshtein.distance(draft, reference) for draft, reference in pairs)
    return distance / max(1, sum(len(reference) for _, reference in pairs))


def calibration_error(probability: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 5), in bins of equal width.

    >>> calibration_error(np.array([0.05, 0.95, 0.95, 0.95, 0.95]), np.array([False, True, True, True, False]))
    0.17
    """
    places = np.minimum((probability * bins).astype(int), bins - 1)
    errors = [abs((probability - right)[places == place].sum()) for place in range(bins)]
    return float(round(sum(errors) / len(right), 12))


def add_saved(rows: Sequence[Row]) -> None:
    """Adds to each row the share of the edits of the better copy in its band that it saves; None if that has none."""
    for row in rows:
        copies = [copy["edits"] for copy in rows if copy["method"] in COPIES and copy["band"] == row["band"]]
        row["edits_saved"] = 1 - row["edits"] / min(copies) if min(copies) else None
