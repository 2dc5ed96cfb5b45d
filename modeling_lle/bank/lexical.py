"""Search for sentences that share words, and how nearly two sentences are the same: no neural network is involved.

Notable: words are runs of letters and digits in any script; each other sign that is no space is a word of its own, and
so is each Chinese character and each kana, since nothing stands between words there.
Shapes: N sentences, Q queries, K neighbours.
"""

import logging
import re
from collections.abc import Sequence

import numpy as np

try:
    import bm25s
    from rapidfuzz.distance import Levenshtein
except ImportError as error:
    raise ImportError(
        'the search by words needs bm25s and rapidfuzz: pip install "modeling_lle[translation]"'
    ) from error

_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")
_NEARLY = 0.99  # the best that texts can get which are not equal

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets DEBUG itself, and tells of every index


class SentenceIndex:
    """Finds the sentences that share the most telling words with a query, by BM25; case makes no difference.

    Args:
        sentences: The N sentences. A blank one is never found.
    """

    def __init__(self, sentences: Sequence[str]) -> None:
        self._vocabulary: dict[str, int] = {}
        ids = [
            [self._vocabulary.setdefault(word, len(self._vocabulary)) for word in _words(sentence.lower())]
            for sentence in sentences
        ]
        self._scorer = bm25s.BM25()
        if self._vocabulary:
            self._scorer.index((ids, self._vocabulary), create_empty_token=False, show_progress=False)

    def search(self, queries: Sequence[str], number: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest sentences of each query.

        Args:
            queries: The Q queries.
            number: K, how many sentences to find for each.

        Returns:
            The places of the sentences (Q, K) int64, the nearest first and the earlier one first where two are equally
            near, -1 where fewer share a word with the query; and their scores (Q, K) float32: higher is nearer, 0
            where there is none.
        """
        if number < 1:
            raise ValueError(f"cannot find {number} sentences: ask for at least one")
        places = np.full((len(queries), number), -1, dtype=np.int64)
        scores = np.zeros((len(queries), number), dtype=np.float32)
        for row, query in enumerate(queries):
            ids = [self._vocabulary[word] for word in _words(query.lower()) if word in self._vocabulary]
            if ids:
                all_scores = self._scorer.get_scores_from_ids(ids)
                best = _largest(all_scores, number)
                places[row, : len(best)] = best
                scores[row, : len(best)] = all_scores[best]
        return places, scores


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


def _largest(scores: np.ndarray, number: int) -> np.ndarray:
    """The places of the largest scores (N,) above 0, at most `number`; of equal ones the first comes first."""
    least = np.partition(scores, -number)[-number] if number < len(scores) else 0
    found = np.flatnonzero((scores >= least) & (scores > 0))
    return found[np.argsort(-scores[found], kind="stable")][:number]


def fuzzy_match(a: str, b: str) -> float:
    """The fuzzy match score of translators: how much of a text need not be changed to make another.

    It is 1 - d/n with d the fewest words that have to be put in, taken out or replaced, and n the number of words in
    the longer text; signs of punctuation are words as well, and case makes a difference. Texts that are not equal get
    at most 0.99, those among them that differ in spaces alone.

    >>> fuzzy_match("Where is my card?", "Where is my new card?")
    0.8333333333333334
    """
    return 1.0 if a == b else min(_NEARLY, Levenshtein.normalized_similarity(_words(a), _words(b)))
