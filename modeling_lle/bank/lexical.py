"""Lexical search for similar sentences (BM25), and the fuzzy match score of two sentences; no neural network.

Notable: words are runs of letters and digits in any script. Every other character except white space is a word of its
own, and so is each Chinese character and each kana, since these scripts do not separate words.
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
_NEARLY = 0.99  # largest score of texts that are not equal

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets DEBUG itself, and logs every index


class SentenceIndex:
    """Ranks sentences by BM25, ignoring case.

    Args:
        sentences: The N sentences. A blank one is never found.
    """

    def __init__(self, sentences: Sequence[str]) -> None:
        self._vocabulary: dict[str, int] = {}
        ids = [
            [self._vocabulary.setdefault(word, len(self._vocabulary)) for word in words(sentence.lower())]
            for sentence in sentences
        ]
        self._scorer = bm25s.BM25()
        if self._vocabulary:
            self._scorer.index((ids, self._vocabulary), create_empty_token=False, show_progress=False)

    def postings(self) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
        """The words, and what each of them gives to the sentences that have it, to search without this class.

        Returns:
            The W words; `starts` (W + 1,) int64, and from `starts[w]` to `starts[w + 1]` the `sentences` int32 with
            word w, and its `scores` float32 in them.
        """
        if not self._vocabulary:
            return [], np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32)
        own = self._scorer.scores
        starts, sentences = own["indptr"].astype(np.int64), own["indices"].astype(np.int32)
        return list(self._vocabulary), starts, sentences, own["data"].astype(np.float32)

    def search(self, queries: Sequence[str], number: int) -> tuple[np.ndarray, np.ndarray]:
        """The nearest sentences of each query.

        Args:
            queries: The Q queries.
            number: Number of sentences to find for each, K.

        Returns:
            Indices of the sentences (Q, K) int64, the nearest first, of equally near ones the earlier first, -1 where
            fewer share a word with the query; and their scores (Q, K) float32, 0 where there is none.
        """
        if number < 1:
            raise ValueError(f"cannot find {number} sentences: ask for at least one")
        places = np.full((len(queries), number), -1, dtype=np.int64)
        scores = np.zeros((len(queries), number), dtype=np.float32)
        for row, query in enumerate(queries):
            ids = [self._vocabulary[word] for word in words(query.lower()) if word in self._vocabulary]
            if ids:
                all_scores = self._scorer.get_scores_from_ids(ids)
                best = _largest(all_scores, number)
                places[row, : len(best)] = best
                scores[row, : len(best)] = all_scores[best]
        return places, scores


def words(text: str) -> list[str]:
    """The words of a text, in which its edit distance to others is counted.

    >>> words("Where's my card? 100%")
    ['Where', "'", 's', 'my', 'card', '?', '100', '%']
    """
    return _WORD.findall(text)


def _largest(scores: np.ndarray, number: int) -> np.ndarray:
    """Indices of the largest scores (N,) above 0, at most `number`, in descending order; ties by index."""
    least = np.partition(scores, -number)[-number] if number < len(scores) else 0
    found = np.flatnonzero((scores >= least) & (scores > 0))
    return found[np.argsort(-scores[found], kind="stable")][:number]


def fuzzy_match(a: str, b: str) -> float:
    """Fuzzy match score of translators: the share of a text that can be kept to turn it into another one.

    It is 1 - d/n with d the edit distance in words, and n the number of words in the longer text. Punctuation marks
    are words, and case counts. Texts that are not equal score at most 0.99, also if they differ in spaces alone.

    >>> fuzzy_match("Where is my card?", "Where is my new card?")
    0.8333333333333334
    """
    return 1.0 if a == b else min(_NEARLY, Levenshtein.normalized_similarity(words(a), words(b)))
