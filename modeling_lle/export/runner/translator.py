"""Runs an exported LLE translator, with its translation memory if it was exported with one.

It needs no torch: `pip install onnxruntime numpy tokenizers`. The sentence pairs lie in the folder `bank`.

    python run.py translate "A man sleeps." --beams 5
    python run.py matches "A man sleeps."
    python run.py check

    >>> import run
    >>> model = run.load()  # the folder of run.py; int8=True takes the smaller graphs, if they were exported
    >>> model.translate("A man sleeps.", beams=5)

Of the memory, the pairs with the most similar sources are chosen first, by BM25; each position recalls the entries of
their targets, and those of all pairs that are nearest to it. Shapes: B beams, S tokens of the source, T of the target,
V vocabulary, K candidates, P pairs, n nearest entries.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ...data.placeholders import differences, most_faithful
from .core import HERE, TINY, Bank, Model, from_bfloat16, log_softmax, mixed, np, recall, run_command

CANDIDATE_PAIRS = 16  # pairs whose fuzzy match score is computed
LEAST_BEAMS = 4  # of a search for a translation with all placeholders
LONGEST = 6  # tokens of a context that are counted, as in training
NEVER = -1e9  # score of what cannot be chosen
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_MATCHED = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")


class Memory:
    """The sentence pairs of a bank, found by their words.

    Attributes:
        pairs: P lists of source, target and where they come from; of equal sources the last one is the newest.
        keys: (N, D), the entries of the targets, one pair after another; pair p has those of `first[p]` on.
    """

    def __init__(self, bank: Bank) -> None:
        self.bank, arrays = bank, bank.arrays
        self.pairs, self.first = arrays["pairs"], arrays["first"]
        self.keys, self.outcomes = arrays["keys"], arrays["outcomes"]
        self._words = {word: place for place, word in enumerate(arrays["words"])}
        self._starts, self._sentences, self._scores = arrays["starts"], arrays["sentences"], arrays["scores"]

    @cached_property
    def exact(self) -> dict[str, int]:
        """The newest pair with each source."""
        return {source: place for place, (source, _, _) in enumerate(self.pairs)}

    def similar(self, text: str, number: int) -> list[int]:
        """At most `number` pairs that share a word with a text, the most similar by BM25 first."""
        scores = np.zeros(len(self.pairs), np.float32)
        for word in _MATCHED.findall(text.lower()):
            if (place := self._words.get(word)) is not None:
                own = slice(self._starts[place], self._starts[place + 1])
                scores[self._sentences[own]] += self._scores[own]
        found = np.flatnonzero(scores > 0)
        return found[np.argsort(-scores[found], kind="stable")][:number].tolist()

    def candidates(self, text: str, number: int) -> "Candidates":
        """The entries of the `number` most similar pairs."""
        pairs = self.similar(text, number)
        ranges = [np.arange(self.first[pair], self.first[pair + 1]) for pair in pairs]
        places = np.concatenate([np.zeros(0, np.int64), *ranges])
        sizes = np.array([len(own) for own in ranges], np.int64)
        before = np.arange(-1, len(places) - 1)
        before[(np.cumsum(sizes) - sizes)[sizes > 0]] = -1
        match = np.repeat([fuzzy_match(text, self.pairs[pair][0]) for pair in pairs], sizes).astype(np.float32)
        return Candidates(self, places, before, match)

    def nearest(self, keys: np.ndarray, number: int, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and outcomes (B, n) of the entries nearest to states (B, D); -inf at the places `known`."""
        cosines, places = self.bank.search(keys, number)
        return np.where(np.isin(places, known), -np.inf, cosines), self.outcomes[places].astype(np.int64)

    def matches(self, text: str, number: int = 1) -> list[dict[str, Any]]:
        """The pairs with the highest fuzzy match score of their source, at most `number`; ties by BM25."""
        chosen = self.similar(text, max(number, CANDIDATE_PAIRS))
        if text in self.exact:
            chosen = [self.exact[text], *(pair for pair in chosen if pair != self.exact[text])]
        scored = sorted(((fuzzy_match(text, self.pairs[pair][0]), pair) for pair in chosen), key=lambda item: -item[0])
        names = ("text", "translation", "where")
        return [{"score": score, **dict(zip(names, self.pairs[pair], strict=True))} for score, pair in scored[:number]]


class Candidates:
    """The entries that a sentence may recall, and how far its translations follow each of them.

    Attributes:
        places: (K,) int64, the entries in the memory.
        keys, outcomes: (K, D) float32 and (K,) int64.
        before: (K,) int64, the place of the entry before each one in its pair, -1 for the first of a pair.
        match: (K,) float32, fuzzy match scores of the pairs.
        lengths: (B, K) int64, how many tokens a translation and the pair of each entry have in common before it.
    """

    def __init__(self, memory: Memory, places: np.ndarray, before: np.ndarray, match: np.ndarray) -> None:
        self.memory, self.places, self.before, self.match = memory, places, before, match
        self.keys, self.outcomes = from_bfloat16(memory.keys[places]), memory.outcomes[places].astype(np.int64)
        self.lengths = np.zeros((0, len(places)), np.int64)

    def follow(self, last: np.ndarray, rows: np.ndarray) -> None:
        """Takes in the tokens `last` (B,) of translations that go on with those of the `rows` (B,) of before."""
        first = self.before < 0
        if not len(self.lengths):
            self.lengths = np.repeat(first[None].astype(np.int64), len(last), 0)
            return
        said = np.where(first, -1, self.outcomes[self.before])
        self.lengths = (self.lengths[rows][:, self.before] + 1) * (said == last[:, None])

    def recalled(self, keys: np.ndarray, numbers: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the states (B, D) of translations recall: weights (B, N), outcomes (B, N) and mass (B,)."""
        sharpness = np.float32(numbers["sharpness"])
        length = np.minimum(self.lengths, LONGEST) / LONGEST - 1
        more = numbers["continuation"] * ((self.lengths > 0) - 1.0) + numbers["length"] * length
        scores = (keys @ self.keys.T - 1) * sharpness + (more + numbers["match"] * (self.match - 1)).astype(np.float32)
        outcomes = np.broadcast_to(self.outcomes, scores.shape)
        if numbers["neighbours"]:
            cosines, others = self.memory.nearest(keys, numbers["neighbours"], self.places)
            least = numbers["match"] + numbers["continuation"] + numbers["length"]
            scores = np.concatenate([scores, ((cosines - 1) * sharpness - least).astype(np.float32)], 1)
            outcomes = np.concatenate([outcomes, others], 1)
        weights, mass = recall(scores)
        return weights, outcomes, mass


def fuzzy_match(a: str, b: str) -> float:
    """1 - d/n, d the edit distance in words and n the words of the longer text; at most 0.99 unless they are equal."""
    if a == b:
        return 1.0
    first, second = _MATCHED.findall(a), _MATCHED.findall(b)
    row = list(range(len(second) + 1))
    for i, word in enumerate(first, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(second, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return min(0.99, 1 - row[-1] / max(1, len(first), len(second)))


class Translator(Model):
    """Translates sentences."""

    tasks = ("translation",)

    @cached_property
    def memory(self) -> Memory | None:
        """The translation memory, if there is one."""
        return Memory(self.bank) if self.bank else None

    def translate(
        self,
        text: str,
        beams: int | None = None,
        max_new_tokens: int | None = None,
        exact_matches: bool = False,
        use_history: bool = True,
    ) -> str:
        """The translation of a text, "" of a blank one.

        Args:
            text: The text.
            beams: Beam size; None: as export.json says, usually 1, the fastest.
            max_new_tokens: Most tokens of the translation; None: 16 more than twice those of the source.
            exact_matches: Whether the translation of a source that the memory has is taken as it is.
            use_history: Whether the memory takes part.
        """
        if not text.strip():
            return ""
        memory = self.memory if use_history else None
        if exact_matches and memory is not None and text in memory.exact:
            return str(memory.pairs[memory.exact[text]][1])
        ids, own = self.encode(text), self.export["generation"]
        most = self.most_new_tokens(max_new_tokens, 2 * len(ids) + 16)
        beams = beams or own.get("num_beams") or 1
        found = self._texts(self._search(ids, beams, most, memory))
        best = found[most_faithful(text, found)]
        if differences(text, best) == ([], []) or not self.tokens["eos"]:
            return best
        found = [best, *self._texts(self._search(ids, max(beams, LEAST_BEAMS), most, memory, text))]
        return found[most_faithful(text, found)]

    def _texts(self, hypotheses: list[list[int]]) -> list[str]:
        return [str(self.tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in hypotheses]

    def matches(self, text: str, number: int = 1) -> list[dict[str, Any]]:
        """The sentence pairs of the memory that are most similar to a text, with their fuzzy match scores."""
        return [] if self.memory is None else self.memory.matches(text, number)

    def _search(
        self, ids: list[int], beams: int, most: int, memory: Memory | None, source: str | None = None
    ) -> list[list[int]]:
        """The tokens of up to `beams` translations of a source, the best first, by beam search as in transformers.

        With the text of the source, none ends without the placeholders of it, or goes on with another one.
        """
        step, end = _Decoder(self, ids, beams, memory), self.tokens["eos"]
        own = self.export["generation"]
        penalty, repeated = own.get("length_penalty", 1.0), own.get("no_repeat_ngram_size") or 0
        keep = max(2, 1 + len(end)) * beams
        running: list[tuple[float, list[int]]] = [(0.0, []), *[(NEVER, [])] * (beams - 1)]
        finished: list[tuple[float, list[int]]] = []
        rows, last = np.zeros(beams, np.int64), np.full(beams, self.tokens["bos"])
        for length in range(1, most + 1):
            scores = step(last, rows) + np.array([[score] for score, _ in running])
            for row, (_, tokens) in enumerate(running):
                scores[row, _ends_of_ngrams(tokens, repeated)] = -np.inf
                if source is not None:
                    lost, added = differences(source, self._texts([tokens])[0])
                    if added:
                        scores[row] += NEVER
                    elif lost:
                        scores[row, end] = NEVER
            flat = scores.ravel()
            order = np.argsort(-flat, kind="stable")[:keep] if keep >= len(flat) else _best(flat, keep)
            options = [(float(flat[place]), place // scores.shape[1], int(place % scores.shape[1])) for place in order]
            ends = [token in end or length == most for _, _, token in options]
            for (score, row, token), ended in list(zip(options, ends, strict=True))[:beams]:
                if ended:
                    finished.append((score / length**penalty, [*running[row][1], token]))
            finished = sorted(finished, key=lambda item: -item[0])[:beams]
            going = [option for option, ended in zip(options, ends, strict=True) if not ended][:beams]
            if not going or (len(finished) == beams and not self._may_improve(going[0][0], finished, length, most)):
                break
            rows, last = np.array([row for _, row, _ in going]), np.array([token for _, _, token in going])
            running = [(score, [*running[row][1], token]) for score, row, token in going]
        return [tokens for _, tokens in finished or running[:1]]

    def _may_improve(self, best: float, finished: list[tuple[float, list[int]]], length: int, most: int) -> bool:
        """Whether a beam that goes on may still be better than the worst finished one."""
        own = self.export["generation"]
        early, penalty = own.get("early_stopping", False), own.get("length_penalty", 1.0)
        hoped = most if early == "never" and penalty > 0 else length
        return early is not True and best / hoped**penalty > finished[-1][0]


def _ends_of_ngrams(tokens: list[int], size: int) -> list[int]:
    """Tokens with which the last `size` tokens would be what stands in the text already."""
    if size <= 0:
        return []
    begun = tokens[len(tokens) - size + 1 :]
    places = range(len(tokens) - size + 1)
    return [tokens[place + size - 1] for place in places if tokens[place : place + size - 1] == begun]


def _best(values: np.ndarray, number: int) -> np.ndarray:
    """Indices of the largest values, descending."""
    found = np.argpartition(values, -number)[-number:]
    return found[np.argsort(-values[found], kind="stable")]


class _Decoder:
    """Log probabilities (B, V) of the next token of B translations of one source."""

    def __init__(self, model: Translator, ids: list[int], beams: int, memory: Memory | None) -> None:
        self._graph, numbers = model.graphs["decoder"], model.export["history"]
        given = np.array([ids], np.int64)
        encoder = model.graphs["encoder"]
        names = [output.name for output in encoder.get_outputs()]
        mask = np.ones_like(given)
        found = dict(zip(names, encoder.run(None, {"input_ids": given, "attention_mask": mask}), strict=True))
        self._source = {
            name: np.repeat(value, beams, 0) for name, value in found.items() if name.startswith("attention")
        }
        self._source["encoder_attention_mask"] = np.repeat(mask, beams, 0)
        self._state = {
            own.name: np.zeros((beams, own.shape[-1]), np.float32)
            for own in self._graph.get_inputs()
            if own.name.startswith("state.")
        }
        self._numbers: dict[str, Any] = {"match": 0.0, "continuation": 0.0, "length": 0.0, **numbers["bank"]}
        self._entries: Candidates | None = None
        if memory is not None:
            text = model.tokenizer.decode(ids, skip_special_tokens=True)
            entries = memory.candidates(text, self._numbers["sentences"])
            self._entries = entries if len(entries.places) or self._numbers["neighbours"] else None

    def __call__(self, last: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """After the tokens `last` (B,) of beams that go on with those of the `rows` (B,) of before."""
        state = {name: value[rows] for name, value in self._state.items()}
        feeds = {"input_ids": last[:, None], "num_logits_to_keep": np.array(1), **self._source, **state}
        logits, keys, *new = self._graph.run(None, feeds)
        self._state = dict(zip(self._state, new, strict=True))
        log_p = log_softmax(logits[:, -1])
        if self._entries is None:
            return log_p
        self._entries.follow(last, rows)
        own = self._entries.recalled(keys[:, -1], self._numbers)
        return np.log(np.maximum(mixed(log_p, [own], [self._numbers["gate"]]), TINY))


def load(folder: str | Path = HERE, int8: bool = False, threads: int = 1) -> Translator:
    """The translator in a folder; arguments as for `Model`. Raises a RunError if it cannot be run."""
    return Translator(folder, int8, threads)


def _add_commands(add: Callable[[str, str], argparse.ArgumentParser]) -> None:
    translate = add("translate", "translate a text")
    translate.add_argument("text")
    translate.add_argument("--beams", type=int, help="beam size; 1 is fastest")
    translate.add_argument("--max-new-tokens", type=int)
    translate.add_argument("--exact-matches", action="store_true", help="take translations that the memory has")
    matches = add("matches", "show the most similar sentence pairs of the memory")
    matches.add_argument("text")
    matches.add_argument("--number", type=int, default=3)


def _answer(model: Translator, given: argparse.Namespace) -> Any:
    if given.command == "matches":
        return model.matches(given.text, given.number)
    options = given.beams, given.max_new_tokens, given.exact_matches, not given.no_history
    return model.translate(given.text, *options)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(Translator, _add_commands, _answer, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
