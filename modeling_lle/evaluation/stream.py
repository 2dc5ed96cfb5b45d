"""Measurements of one streaming pass over a text: metrics, breakdown by frequency and repetition, running perplexity.

Shapes: Q predicted tokens, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .metrics import LanguageModelMetric

FREQUENCIES = ("0", "1-9", "10-99", "100-999", "1,000-9,999", "10,000+")
_FREQUENCY_EDGES = (1, 10, 100, 1000, 10000)
SEEN = ("in the window", "before the window", "new")
ALL = "all"
# Without the update: base, each source alone, both; with it: the updated base, and everything.
SIDES = ("base", "stream", "matches", "bank", "bank_matches", "both", "update", "history")


@dataclass
class StreamEvaluation:
    """Measurements of one pass, per target in the order of the text.

    Attributes:
        targets: (Q,) int64, predicted tokens.
        position: (Q,) int64, index of the target in its row, from 0.
        nats: For each of the `SIDES` (Q,) float32, negative log probability: "base", the plain output layer, and
            "history", everything; with a bank or exact matches also "stream", "matches", "bank" and
            "bank_matches", that source alone; with the test-time update also "update" alone, "stream" without it, and
            of several sources "both" without.
        shares: For each source (Q,) float32, its share in the mixture.
        counts: (V,) int64, frequency of each type in the training set or, if unknown, in this text.
        counted: Origin of `counts`, "training set" or "evaluated text".
        window: Entries of the stream.
        words, bytes: Size of the text.
        seconds: Duration of the pass; with the update, of the second one.
    """

    targets: np.ndarray
    position: np.ndarray
    nats: dict[str, np.ndarray]
    shares: dict[str, np.ndarray]
    counts: np.ndarray
    counted: Literal["training set", "evaluated text"]
    window: int
    words: int
    bytes: int
    seconds: float

    @property
    def gain(self) -> np.ndarray:
        """(Q,) float32, nats saved by history; negative where it hurts."""
        return self.nats["base"] - self.nats["history"]

    def metrics(self) -> dict[str, float]:
        """Flat metrics: `ppl`, `word_ppl` and `bits_per_byte` of each side; wins and losses; shares; speed.

        `wins` and `losses` are the shares of tokens with a higher or lower probability than the base; with a bank,
        `stream_wins` and so on are those of a single source.
        """
        values: dict[str, float] = {}
        for side, nats in self.nats.items():
            metric = LanguageModelMetric(keep_in_memory=True)
            measured = metric.compute(nats=nats, words=self.words, bytes=self.bytes)
            values |= {f"{side}_{name}": value for name, value in measured.items()}
            if side != "base":
                values |= _wins_and_losses(self.nats["base"] - nats, "" if side == "history" else f"{side}_")
        return values | {
            **{f"mean_{source}_share": float(share.mean()) for source, share in self.shares.items()},
            "tokens": len(self.targets),
            "words": self.words,
            "bytes": self.bytes,
            "seconds": self.seconds,
            "tokens_per_second": len(self.targets) / self.seconds,
        }

    def breakdown(self) -> list[dict[str, Any]]:
        """Tokens grouped by frequency of their type, and by their last occurrence.

        Returns:
            A row for each non-empty group, where "all" joins groups: `frequency` (occurrences in `counted`), `seen`
            (last occurrence in the window, before it, or none), `tokens`, and the means of each side's nats
            (`base_nats`, ...) and of `gain` (nats saved by history).
        """
        frequency = np.digitize(self.counts[self.targets], _FREQUENCY_EDGES)
        age = ages(self.targets, self.position)
        seen = np.where(age == 0, 2, np.where(age <= self.window, 0, 1))
        every = np.full(len(age), True)
        rows = []
        for frequency_name, of_frequency in [(ALL, every), *_groups(frequency, FREQUENCIES)]:
            for seen_name, of_seen in [(ALL, every), *_groups(seen, SEEN)]:
                group = of_frequency & of_seen
                if group.any():
                    rows.append(
                        {
                            "frequency": frequency_name,
                            "seen": seen_name,
                            "tokens": int(group.sum()),
                            **{f"{side}_nats": float(nats[group].mean()) for side, nats in self.nats.items()},
                            "gain": float(self.gain[group].mean()),
                        }
                    )
        return rows

    def running(self, blocks: int = 200) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Perplexity of the text read so far, at the ends of blocks of equal length.

        Args:
            blocks: Maximum number of blocks.

        Returns:
            Tokens read per row at the end of each block, int64, and the perplexity of each side up to there.
        """
        length = int(self.position.max()) + 1
        size = -(-length // blocks)
        block = self.position // size
        tokens = np.bincount(block).cumsum()
        ends = np.minimum((np.arange(len(tokens)) + 1) * size, length)
        return ends, {side: np.exp(np.bincount(block, weights=n).cumsum() / tokens) for side, n in self.nats.items()}


def _wins_and_losses(gain: np.ndarray, prefix: str) -> dict[str, float]:
    wins, losses = gain[gain > 0], -gain[gain < 0]
    return {
        f"{prefix}wins": len(wins) / len(gain),
        f"{prefix}losses": len(losses) / len(gain),
        f"{prefix}mean_win_nats": float(wins.mean()) if len(wins) else 0.0,
        f"{prefix}mean_loss_nats": float(losses.mean()) if len(losses) else 0.0,
    }


def _groups(index: np.ndarray, names: tuple[str, ...]) -> list[tuple[str, np.ndarray]]:
    return [(name, index == i) for i, name in enumerate(names)]


def ages(targets: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Distance of each target to its last occurrence in its row, 0 without one; all (Q,) int64.

    Equals the age of the stream's entry with this outcome.
    """
    row = (position == 0).cumsum()
    order = np.lexsort((position, targets, row))
    same = (np.diff(targets[order]) == 0) & (np.diff(row[order]) == 0)
    result = np.zeros_like(position)
    result[order[1:]] = np.where(same, np.diff(position[order]), 0)
    return result
