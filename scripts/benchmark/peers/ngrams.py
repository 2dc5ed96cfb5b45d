"""Counts of n-grams as a user would take them instead of a history: a cache of the text read, and a model of a corpus.

    cache          p_k(w) = (max(c_k(w) - d, 0) + d t_k p_{k-1}(w)) / n_k,   p_0(w) = c_0(w) / n_0
    Kneser-Ney     p_k(w) = (c_k(w) - D(c_k(w))) / n_k + gamma_k p_{k-1}(w),   p_{-1} uniform

where k tokens of context were followed n_k times by something, c_k(w) times by w, and by t_k different tokens. The
cache is interpolated with an absolute discount (Ney, Essen and Kneser 1994). The corpus model is the modified one of
Chen and Goodman 1998 (section 3): its lower orders count different tokens before an n-gram, and discounts D of 1, 2
and 3 or more follow from counts of counts. A context that never occurred has the probability of the next shorter one.

Notable: an n-gram is known by one number, that of its first n - 1 tokens and its last one, so that a corpus is counted
by sorting. Shapes: Q positions of a text, each with a token to be predicted, V vocabulary, O orders.
"""

from collections import defaultdict
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

ORDER = 5  # tokens of context of the cache
LENGTH = 5  # of the n-grams of the corpus
DISCOUNTED = 3  # counts that have a discount of their own; the last one is for all that are larger
USUAL = np.array([0.0, 0.5, 1.0, 1.5])  # discounts where a corpus is too small to tell them


class Counted(NamedTuple):
    """What counts give to the tokens that came next, and how much they rest on.

    Attributes:
        probability: (Q,) float32, of the token.
        order: (Q,) int64, tokens of the longest context that occurred; -1 where nothing was counted.
        log_total: (Q,) float32, logarithm of how often it occurred.
    """

    probability: Tensor
    order: Tensor
    log_total: Tensor


class Counts(NamedTuple):
    """Counts of a cache before each token of a text, by the length of the context, 0 to O - 1.

    Attributes:
        hits: (Q, O) float32, how often the token followed.
        totals: (Q, O) float32, how often anything did.
        types: (Q, O) float32, how many different tokens did.
    """

    hits: Tensor
    totals: Tensor
    types: Tensor

    def smoothed(self, order: int, discount: float) -> Counted:
        """Probabilities by contexts of at most `order` tokens."""
        probability = self.hits[:, 0] / self.totals[:, 0].clamp(min=1)
        for k in range(1, order + 1):
            total = self.totals[:, k]
            own = (self.hits[:, k] - discount).clamp(min=0) + discount * self.types[:, k] * probability
            probability = torch.where(total > 0, own / total.clamp(min=1), probability)
        longest = (self.totals[:, : order + 1] > 0).sum(1) - 1
        total = self.totals.gather(1, longest.clamp(min=0)[:, None])[:, 0]
        return Counted(probability, longest, total.clamp(min=1).log())


def read_cache(ids: np.ndarray, order: int = ORDER, window: int | None = None) -> Counts:
    """Counts of the text read so far before each token of it but the first.

    Args:
        ids: (Q + 1,) integers.
        order: Tokens of the longest context.
        window: Tokens that are counted, the last ones; None: all.
    """
    text: list[int] = ids.tolist()
    followed: dict[tuple[int, ...], dict[int, int]] = defaultdict(dict)
    occurred: dict[tuple[int, ...], int] = defaultdict(int)
    found = np.zeros((3, len(text) - 1, order + 1), dtype=np.float32)

    def count(place: int, step: int) -> None:
        token = text[place]
        for k in range(min(order, place) + 1):
            context = tuple(text[place - k : place])
            own = followed[context]
            occurred[context] += step
            own[token] = own.get(token, 0) + step
            if not own[token]:
                del own[token]

    for place in range(1, len(text)):
        if window is not None and place - window > 1:
            count(place - window - 1, -1)
        for k in range(min(order, place) + 1):
            context = tuple(text[place - k : place])
            total = occurred.get(context, 0)
            if not total:
                break  # nor did a longer one
            own = followed[context]
            found[:, place - 1, k] = own.get(text[place], 0), total, len(own)
        count(place, 1)
    return Counts(*map(torch.from_numpy, found))


class _Order(NamedTuple):
    """n-grams of one length, in the order of their keys.

    Attributes:
        keys: (n-grams,) int64 sorted, number of the first n - 1 tokens times V plus the last token.
        counts: (n-grams,) int64.
        totals: (contexts,) float64, sum of the counts after each context.
        left: (contexts,) float64, share that is left to the next shorter context.
        discounts: (4,) float64, by the count, at most 3.
    """

    keys: np.ndarray
    counts: np.ndarray
    totals: np.ndarray
    left: np.ndarray
    discounts: np.ndarray


class KneserNey:
    """A modified Kneser-Ney model of a corpus.

    Args:
        ids: (N,) integers, the corpus as one text.
        vocabulary: V.
        length: Of the longest n-grams.
    """

    def __init__(self, ids: np.ndarray, vocabulary: int, length: int = LENGTH) -> None:
        self.vocabulary = vocabulary
        tokens = ids.astype(np.int64)
        keys: list[np.ndarray] = []
        grams = [np.zeros(len(tokens) + 1, dtype=np.int64)]  # number of the n-gram that begins at each place
        firsts: list[np.ndarray] = []
        for n in range(1, min(length, len(tokens)) + 1):
            own = grams[-1][: len(tokens) - n + 1] * vocabulary + tokens[n - 1 :]
            unique, first, inverse = np.unique(own, return_index=True, return_inverse=True)
            keys.append(unique)
            firsts.append(first)
            grams.append(inverse.reshape(-1))
        self.orders: list[_Order] = []
        for n, unique in enumerate(keys, start=1):
            if n < len(keys):  # different tokens before each; the text's first n-gram may have none
                counts = np.bincount(grams[n][firsts[n] + 1], minlength=len(unique)).clip(min=1)
            else:
                counts = np.bincount(grams[n], minlength=len(unique))
            self.orders.append(_order(unique, counts, 1 if n == 1 else len(keys[n - 2]), vocabulary))

    def read(self, ids: np.ndarray) -> Counted:
        """Probabilities of each token of a text (Q + 1,) but the first; the text is not counted."""
        tokens = ids.astype(np.int64)
        targets = tokens[1:]
        probability = np.full(len(targets), 1 / self.vocabulary)
        longest, occurred = np.full(len(targets), -1), np.ones(len(targets))
        for k, order in enumerate(self.orders):
            context = self._contexts(tokens, k)
            total = np.where(context >= 0, order.totals[context], 0.0)
            known = total > 0
            place = _find(order.keys, np.where(known, context * self.vocabulary + targets, -1))
            count = np.where(place >= 0, order.counts[place], 0)
            own = (count - order.discounts[count.clip(max=DISCOUNTED)]) / np.where(known, total, 1.0)
            probability = np.where(known, own + order.left[context] * probability, probability)
            longest, occurred = np.where(known, k, longest), np.where(known, total, occurred)
        parts = probability.astype(np.float32), longest, np.log(occurred).astype(np.float32)
        return Counted(*map(torch.from_numpy, parts))

    def _contexts(self, tokens: np.ndarray, k: int) -> np.ndarray:
        """Numbers (Q,) of the k tokens before each token but the first; -1 where they never occurred."""
        number = np.zeros(len(tokens) - 1, dtype=np.int64)
        for back, order in zip(range(k, 0, -1), self.orders, strict=False):
            token = np.full(len(number), -1)
            token[back - 1 :] = tokens[: max(0, len(tokens) - back)]
            wanted = np.where((number >= 0) & (token >= 0), number * self.vocabulary + token, -1)
            number = _find(order.keys, wanted)
        return number


def _order(keys: np.ndarray, counts: np.ndarray, contexts: int, vocabulary: int) -> _Order:
    before = keys // vocabulary
    totals = np.bincount(before, weights=counts, minlength=contexts)
    discounts = _discounts(counts)
    left = np.bincount(before, weights=discounts[counts.clip(max=DISCOUNTED)], minlength=contexts)
    return _Order(keys, counts, totals, left / np.where(totals > 0, totals, 1.0), discounts)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Discounts of the counts 0 to 3 (Chen and Goodman 1998, equation 26), or usual ones if there is too little."""
    of = np.bincount(counts.clip(max=DISCOUNTED + 2), minlength=DISCOUNTED + 2).astype(np.float64)
    if not of[1 : DISCOUNTED + 2].all():
        return USUAL
    y = of[1] / (of[1] + 2 * of[2])
    found = [count - (count + 1) * y * of[count + 1] / of[count] for count in range(1, DISCOUNTED + 1)]
    return np.array([0.0, *found]) if min(found) > 0 else USUAL


def _find(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Places of wanted keys in sorted ones, -1 where they are not."""
    place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)
