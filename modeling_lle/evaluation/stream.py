"""Measurements of one streaming pass over a text: metrics, breakdown by frequency and repetition, running perplexity.

Shapes: N predicted tokens, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .metrics import LanguageModelMetric

FREQUENCIES = ("0", "1-9", "10-99", "100-999", "1,000-9,999", "10,000+")
_FREQUENCY_EDGES = (1, 10, 100, 1000, 10000)
SEEN = ("in the window", "before the window", "new")
ALL = "all"
# Without the update: the base, each source alone, both together; with it: the base that it changes, and all together.
SIDES = ("base", "stream", "bank", "both", "update", "history")


@dataclass
class StreamEvaluation:
    """What one pass measured: arrays with an item for each target, in the order of the text.

    Attributes:
        targets: (N,) int64, the tokens that were predicted.
        position: (N,) int64, how many targets the token's row had before it: 0 where a row begins.
        nats: For each of the `SIDES` (N,) float32, minus the log probability: "base", the plain output layer, and
            "history", with all that there is; with a bank also "stream" and "bank", with that source alone; with the
            test-time update also "update" alone, "stream" without it, and with a bank "both" without it.
        shares: For each source (N,) float32, its share in the mixture.
        counts: (V,) int64, how often each type occurs in the training set, or in this text if that is not known.
        counted: "training set" or "evaluated text", where `counts` come from.
        window: Entries that the stream keeps.
        words, bytes: Size of the text.
        seconds: Duration of the pass; with the update, of the one with it.
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
        """(N,) float32, the nats that the history saved; negative where it cost some."""
        return self.nats["base"] - self.nats["history"]

    def metrics(self) -> dict[str, float]:
        """Flat metrics: the sides times `ppl`, `word_ppl` and `bits_per_byte`; wins and losses; shares; speed.

        `wins` and `losses` are the shares of tokens to which the history gives more, or less, than the base; with a
        bank, `stream_wins` and so on are those of one source alone.
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
        """Tokens by the frequency of their type, and by whether they repeat an earlier one.

        Returns:
            A row for each group that has tokens, "all" standing for every value: `frequency` (occurrences in
            `counted`), `seen` (its last occurrence is still in the window, lies before it, or it is new), `tokens`,
            and the means of each side's nats (`base_nats`, ...) and of `gain` (nats that the history saved).
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
        """The perplexity of what has been read so far, at the ends of equally long blocks of the stream.

        Args:
            blocks: At most so many blocks.

        Returns:
            Tokens that each row has read, (n,) int64, and the perplexities (n,) of each side up to there.
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
    """How many tokens ago each target occurred in its row last, 0 where it had not; (N,) int64 as both arguments.

    It is the age that the entry with this outcome has in the stream.
    """
    row = (position == 0).cumsum()
    order = np.lexsort((position, targets, row))
    same = (np.diff(targets[order]) == 0) & (np.diff(row[order]) == 0)
    result = np.zeros_like(position)
    result[order[1:]] = np.where(same, np.diff(position[order]), 0)
    return result
