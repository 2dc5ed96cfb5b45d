"""Runs an exported LLE language model: it goes on with texts, and scores them.

It needs no torch: `pip install onnxruntime numpy tokenizers`. The folder `bank` has what is recalled, if anything.

    python run.py generate "Once upon a time" --max-new-tokens 50 --sample --seed 1
    python run.py score "A text of which each token is scored"
    python run.py check

    >>> import run
    >>> model = run.load()  # the folder of run.py; int8=True takes the smaller graphs, if they were exported
    >>> model.generate("Once upon a time", max_new_tokens=50)

Shapes: T tokens, V vocabulary, D width of keys, N entries, n queries, K neighbours, S sources (stream,
matches and bank).
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .core import HERE, TINY, Model, RunError, log_softmax, mixed, np, recall, run_command

BLOCK = 256  # positions that are predicted together
BEFORE, KEPT = 0.2, 0.9  # of the success of matches, as in training: at the beginning, and at each position


class Stream:
    """The newest entries of a text: a ring of keys, each with the token that came after it.

    The ring has `BLOCK` places more than the window, so that the entries of a block may be added before it is
    predicted: each position sees those that are 1 to `window` entries old.
    """

    def __init__(self, width: int, numbers: dict[str, Any]) -> None:
        self.window, self.sharpness = numbers["window"], numbers["sharpness"]
        size = self.window + BLOCK
        self.keys, self.outcomes = np.zeros((size, width), np.float32), np.zeros(size, np.int64)
        self.count, self.pending = 0, np.zeros((0, width), np.float32)
        ages = np.arange(1, self.window + 1)
        self.cost = np.concatenate([[np.inf], numbers["recency"] * np.log(ages), [np.inf]]).astype(np.float32)

    def read(self, keys: np.ndarray, tokens: np.ndarray, own: bool = False) -> np.ndarray:
        """Takes in at most `BLOCK` tokens (T,) with their keys (T, D); `own` ones, which were generated, as no entry.

        Returns:
            How many entries there were after each token, (T,).
        """
        before = np.concatenate([self.pending, keys[:-1]])
        self.pending = keys[-1:].copy()
        if own:
            return np.full(len(keys), self.count)
        slots = (self.count + np.arange(len(before))) % len(self.keys)
        self.keys[slots], self.outcomes[slots] = before, tokens[len(tokens) - len(before) :]
        self.count += len(before)
        return self.count - np.arange(len(keys))[::-1]

    def recall(self, queries: np.ndarray, made: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights (n, N), outcomes (N,) and masses (n,) for queries (n, D), after `made` (n,) entries."""
        size = min(self.count, len(self.keys))
        serial = self.count - 1 - (self.count - 1 - np.arange(size)) % len(self.keys)
        ages = np.clip(made[:, None] - serial, 0, self.window + 1)
        scores = (queries @ self.keys[:size].T - 1) * np.float32(self.sharpness) - self.cost[ages]
        weights, mass = recall(scores)
        return weights, self.outcomes[:size], mass


class Matches:
    """The tokens of a text; a match is an earlier place where the last tokens are those of now."""

    def __init__(self, numbers: dict[str, Any]) -> None:
        self.numbers = numbers
        self.tokens, self.usable = np.zeros(0, np.int64), np.zeros(0, bool)  # usable: may be recalled
        self.named, self.success = np.zeros(0, np.int64), BEFORE  # by the last matches; how often they were right

    def read(self, tokens: np.ndarray, own: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Takes in tokens (T,); `own` ones, which were generated, are context, but are not recalled.

        Returns:
            Weights and outcomes (T, K) and masses (T,) of the longest matches, the newest of them.
        """
        numbers, size = self.numbers, self.numbers["neighbours"]
        self.tokens = np.concatenate([self.tokens, tokens])
        self.usable = np.concatenate([self.usable, np.full(len(tokens), not own)])
        scores, outcomes = np.full((len(tokens), size), -np.inf, np.float32), np.zeros((len(tokens), size), np.int64)
        for row, last in enumerate(range(len(self.tokens) - len(tokens), len(self.tokens))):
            if len(self.named) and not own:
                right = (self.named == self.tokens[last]).mean()
                self.success = KEPT * self.success + (1 - KEPT) * right
            first = max(0, last - numbers["window"])
            same = (self.tokens[first:last] == self.tokens[last]) & self.usable[first + 1 : last + 1]
            ends = first + np.flatnonzero(same)
            lengths, alike = np.ones(len(ends), np.int64), np.arange(len(ends))
            for back in range(1, min(numbers["longest"], last + 1)):
                alike = alike[ends[alike] >= back]
                alike = alike[self.tokens[ends[alike] - back] == self.tokens[last - back]]
                lengths[alike] += 1
                if not len(alike):
                    break
            best = np.flatnonzero(lengths == lengths.max(initial=0))[::-1][:size]
            ages = np.log(last - ends[best])
            shares = lengths[best] / numbers["longest"]
            self.named = found = self.tokens[ends[best] + 1]
            agreement = (found[:, None] == found).mean(1) if len(best) else 0.0
            scores[row, : len(best)] = (
                (shares - 1) * numbers["sharpness"]
                + (agreement - 1) * numbers["agreement"]
                + (self.success - 1) * numbers["success"]
                - numbers["recency"] * ages
            )
            outcomes[row, : len(best)] = found
        kept = numbers["window"] + numbers["longest"]
        self.tokens, self.usable = self.tokens[-kept:], self.usable[-kept:]
        weights, mass = recall(scores)
        return weights, outcomes, mass


class Text:
    """A text that is being read: the `state` of the network, and its `stream` and `matches`, or None."""

    def __init__(self, state: list[np.ndarray], stream: Stream | None, matches: Matches | None = None) -> None:
        self.state, self.stream, self.matches = state, stream, matches


class LanguageModel(Model):
    """Goes on with texts, and scores them."""

    tasks = ("text-generation",)

    def begin(self, use_history: bool = True) -> Text:
        """A new text."""
        inputs = {given.name: given.shape for given in self.graphs["model"].get_inputs()}
        state = [np.zeros((1, shape[-1]), np.float32) for name, shape in inputs.items() if name.startswith("state.")]
        numbers = self.export["history"] if use_history else {}
        stream, matches = (numbers.get(name, {}) for name in ("stream", "matches"))
        return Text(
            state,
            Stream(self.export["width"], stream) if stream.get("window") else None,
            Matches(matches) if matches.get("window") else None,
        )

    def predict(
        self, text: Text, ids: Sequence[int], keep: int, own: bool = False, use_history: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reads at most `BLOCK` tokens; the log probabilities after the last `keep` of them, and those of the base.

        Args:
            text: The text so far.
            ids: The next tokens, (T,).
            keep: Positions to predict after; 0: all.
            own: Whether the model generated these tokens.
            use_history: Whether stream and bank take part.

        Returns:
            (n, V) each. Without history both are the logits.
        """
        given = np.array([ids], np.int64)
        feeds = {f"state.{place}": part for place, part in enumerate(text.state)}
        feeds |= {"input_ids": given, "num_logits_to_keep": np.array(keep, np.int64)}
        logits, keys, *text.state = self.graphs["model"].run(None, feeds)
        logits, keys = logits[0], keys[0]
        sources, gates, numbers = [], [], self.export["history"]
        if text.stream is not None:
            made = text.stream.read(keys, given[0], own and not numbers["stream"]["generated"])
            sources.append(text.stream.recall(keys[-keep:], made[-keep:]))
            gates.append(numbers["stream"]["gate"])
        if text.matches is not None:
            found = text.matches.read(given[0], own and not numbers["stream"]["generated"])
            weights, outcomes, mass = (part[-keep:] for part in found)
            sources.append((weights, outcomes, mass))
            gates.append(numbers["matches"]["gate"])
        if not use_history or not (sources or self.bank):
            return logits, logits
        base = log_softmax(logits)
        if self.bank:
            sources.append(self._recalled(keys[-keep:], base, numbers["bank"]))
            gates.append(numbers["bank"]["gate"])
        return np.log(np.maximum(mixed(base, sources, gates), TINY)), base

    def _recalled(
        self, queries: np.ndarray, base: np.ndarray, numbers: dict[str, Any]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the bank recalls; nothing where the base is certain (`skip_above`)."""
        assert self.bank is not None
        size = len(base), min(numbers["neighbours"], len(self.bank))
        scores, outcomes = np.full(size, -np.inf, np.float32), np.zeros(size, np.int64)
        asked = (np.exp(base.max(-1)) < numbers["skip_above"]) | (numbers["skip_above"] >= 1)
        if asked.any():
            cosines, index = self.bank.search(queries[asked], size[1])
            counts = self.bank.arrays["counts"][index]
            scores[asked] = numbers["sharpness"] * (cosines - 1) + np.log(counts)
            outcomes[asked] = self.bank.arrays["outcomes"][index]
        weights, mass = recall(scores)
        return weights, outcomes, mass

    def stream(
        self,
        ids: Sequence[int],
        max_new_tokens: int | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        use_history: bool = True,
        text: Text | None = None,
    ) -> Iterator[int]:
        """Yields the tokens after those of a text; options that are None are as export.json says, else 100 tokens."""
        text, ids = self.begin(use_history) if text is None else text, self.checked(ids)
        own = self.export["generation"]
        given = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        options: dict[str, Any] = {name: own.get(name) if value is None else value for name, value in given.items()}
        sample = own.get("do_sample", False) if do_sample is None else do_sample
        most = self.most_new_tokens(max_new_tokens, 100)
        random = np.random.default_rng(seed)
        for start in range(0, len(ids), BLOCK):
            scores, _ = self.predict(text, ids[start : start + BLOCK], 1, use_history=use_history)
        for place in range(most):
            token = _drawn(scores[-1], random, **options) if sample else int(scores[-1].argmax())
            yield token
            if token in self.tokens["eos"] or place + 1 == most:
                return
            scores, _ = self.predict(text, [token], 1, own=True, use_history=use_history)

    def generate(self, text: str, **options: Any) -> str:
        """What comes after a text; `options` are those of `stream`."""
        return str(self.tokenizer.decode(list(self.stream(self.encode(text), **options)), skip_special_tokens=True))

    def score(self, text: str | Sequence[int], use_history: bool = True) -> dict[str, Any]:
        """Log probabilities, in nats, of each token of a text, or of ids, but the first; and the perplexity."""
        ids = self.encode(text) if isinstance(text, str) else self.checked(text)
        if len(ids) < 2:
            raise RunError("a text of one token has nothing to score: give a longer one")
        state, parts = self.begin(use_history), []
        for start in range(0, len(ids) - 1, BLOCK):
            block = ids[start : start + BLOCK + 1]
            log_p, base = self.predict(state, block[:-1], 0, use_history=use_history)
            rows = np.arange(len(block) - 1), np.array(block[1:])
            log_p, base = (log_p, base) if log_p is not base else [log_softmax(base)] * 2
            parts.append(np.stack([log_p[rows], base[rows]]))
        (own, base), names = np.concatenate(parts, 1), ("log_probs", "base_log_probs")
        perplexities = {"perplexity": float(np.exp(-own.mean())), "base_perplexity": float(np.exp(-base.mean()))}
        return {"tokens": len(own), **perplexities, **dict(zip(names, (own.tolist(), base.tolist()), strict=True))}


def _drawn(
    scores: np.ndarray, random: np.random.Generator, temperature: float | None, top_k: int | None, top_p: float | None
) -> int:
    """A token drawn by its score (V,), in nats, among those that `top_k` and `top_p` leave."""
    scores = scores.astype(np.float64) / (temperature or 1.0)
    if top_k and top_k < len(scores):
        scores = np.where(scores < np.partition(scores, -top_k)[-top_k], -np.inf, scores)
    probabilities = np.exp(log_softmax(scores))
    if top_p is not None and top_p < 1:
        order = np.argsort(probabilities, kind="stable")
        cut = np.cumsum(probabilities[order]) <= 1 - top_p
        cut[-1] = False
        probabilities[order[cut]] = 0
    return int(random.choice(len(scores), p=probabilities / probabilities.sum()))


def load(folder: str | Path = HERE, int8: bool = False, threads: int = 1) -> LanguageModel:
    """The language model in a folder; arguments as for `Model`. Raises a RunError if it cannot be run."""
    return LanguageModel(folder, int8, threads)


def _add_commands(add: Callable[[str, str], argparse.ArgumentParser]) -> None:
    generate = add("generate", "go on with a text")
    generate.add_argument("text")
    generate.add_argument("--max-new-tokens", type=int)
    generate.add_argument("--sample", action="store_true", default=None, dest="do_sample", help="draw each token")
    generate.add_argument("--temperature", type=float)
    generate.add_argument("--top-k", type=int)
    generate.add_argument("--top-p", type=float)
    generate.add_argument("--seed", type=int)
    add("score", "score each token of a text").add_argument("text")


def _answer(model: LanguageModel, given: argparse.Namespace) -> Any:
    if given.command == "score":
        return model.score(given.text, not given.no_history)
    names = ("max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "seed")
    options = {name: getattr(given, name) for name in names}
    return given.text + model.generate(given.text, **options, use_history=not given.no_history)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(LanguageModel, _add_commands, _answer, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
