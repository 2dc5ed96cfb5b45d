"""A translator fine-tuned on sentence pairs for some minutes, tuned by pairs that are held out from them.

A tenth of the pairs is held out. The learning rate is climbed to in steps of sqrt(10): trainings of `TRIAL` minutes,
or fewer if that is all the time, until both neighbours of the best rate do worse. With that rate all the time is used.
Of all that was trained, the weights are kept that get most of the held-out tokens right, be it those of the base.

Notable: the rate follows the clock, as for the Transformer. The search and the looks at the held-out pairs are no time
of training, which favours this peer. Tokens that are right are counted, and not the
loss, which a translator that is too sure of itself has. Shapes: B batch, T time.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from modeling_lle import LLEForSeq2SeqLM
from modeling_lle.common.batches import batches
from modeling_lle.common.modes import evaluating
from modeling_lle.common.precision import in_precision
from modeling_lle.data.text import encode_sentences
from modeling_lle.entries.pairs import padded
from modeling_lle.history.loss import IGNORED
from modeling_lle.training.held_out import hold_out_pairs

from .transformer_translator import rate_by_share

HELD_OUT = 0.1  # share of the pairs
BATCH = 32  # pairs of a step
TRIAL = 2.0  # minutes
START = -6  # of the climb, exponent of sqrt(10): 1e-3
LOOKS = 6  # at the held-out pairs in a training
LOOKED_AT = 256  # of these pairs
PATIENCE = 3  # looks without an improvement after which a training ends
NOISE = 0.4  # of lengths, so that pairs of similar length share a batch, but not the same ones in each epoch
SMOOTHING = 0.1  # of labels, as in the recipes
Batch = dict[str, Tensor]  # input_ids, attention_mask and labels
Load = Callable[[], tuple[LLEForSeq2SeqLM, PreTrainedTokenizerBase]]


@dataclasses.dataclass(frozen=True)
class Training:
    """A training, and the best of its weights.

    Attributes:
        weights: State of the model.
        right: Share of the held-out tokens that it predicts right after those before them.
        rate: Peak of the learning rate.
        steps, seconds: Number of updates, and time for them, up to these weights.
        spent: Seconds of training until it ended.
    """

    weights: dict[str, Tensor] = dataclasses.field(repr=False)
    right: float
    rate: float
    steps: int
    seconds: float
    spent: float


@dataclasses.dataclass(frozen=True)
class FineTuned:
    """A fine-tuned translator, in evaluation mode.

    Attributes:
        model: The translator.
        best: Its training.
        held_out: The pairs that it was not trained on.
        rates: The learning rates tried, and the share of right held-out tokens of each.
        search_seconds: Time of training for those that were not kept.
    """

    model: LLEForSeq2SeqLM
    best: Training
    held_out: Dataset
    rates: dict[float, float]
    search_seconds: float


def fine_tune(load: Load, pairs: Dataset, minutes: float, seed: int = 0) -> FineTuned:
    """Fine-tunes a translator, for as long as `minutes`, with the learning rate that suits its pairs.

    Args:
        load: Loads the translator and its tokenizer.
        pairs: Columns `source` and `target`.
        minutes: Longest time of training.
        seed: Of the held-out pairs, the order of the others, and dropout.
    """
    trained, held_out = hold_out_pairs(pairs, (HELD_OUT,), seed)
    model, tokenizer = load()
    data = _Data(trained, held_out, tokenizer, seed)
    trials: dict[int, Training] = {}

    def trial(exponent: int) -> float:
        trials[exponent] = _train(load()[0], data, min(minutes, TRIAL), 10 ** (exponent / 2))
        return trials[exponent].right

    best = trials[climb(trial, START)]
    runs = list(trials.values())
    if minutes > TRIAL:
        runs.append(_train(load()[0], data, minutes, best.rate))
        best = max(best, runs[-1], key=lambda run: run.right)
    model.load_state_dict(best.weights)
    rates = {run.rate: run.right for run in sorted(trials.values(), key=lambda run: run.rate)}
    return FineTuned(model.eval(), best, held_out, rates, sum(run.spent for run in runs if run is not best))


def climb(score: Callable[[int], float], start: int) -> int:
    """The integer from which neither neighbour has a larger score, climbing from `start`; each is asked once."""
    known = functools.cache(score)
    best = start
    while (better := max((best, best - 1, best + 1), key=known)) != best:
        best = better
    return best


class _Data:
    """Encoded pairs.

    Args:
        trained, held_out: The pairs.
        tokenizer: Tokenizer of the translator.
        seed: Of the order.
    """

    def __init__(self, trained: Dataset, held_out: Dataset, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        self.pad_token_id = tokenizer.pad_token_id
        self.seed = seed
        self._pairs = self._encode(trained, tokenizer)
        pairs = self._encode(held_out.select(range(0, len(held_out), -(-len(held_out) // LOOKED_AT))), tokenizer)
        self.held_out = [self._batch(pairs, rows) for rows in batches([max(map(len, pair)) for pair in pairs])]

    @staticmethod
    def _encode(pairs: Dataset, tokenizer: PreTrainedTokenizerBase) -> list[tuple[list[int], list[int]]]:
        sides = [encode_sentences(pairs[side][:], tokenizer) for side in ("source", "target")]
        return list(zip(*sides, strict=True))

    def _batch(self, pairs: Sequence[tuple[list[int], list[int]]], rows: Sequence[int]) -> Batch:
        return padded([pairs[row][0] for row in rows], [pairs[row][1] for row in rows], self.pad_token_id)

    def batches(self) -> Iterator[Batch]:
        """Batches of pairs to train on, in an order by seed, epoch after epoch without end."""
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            noise = 1 + NOISE * torch.rand(len(self._pairs), generator=generator)
            lengths = (noise * torch.tensor([max(map(len, pair)) for pair in self._pairs])).ceil().int().tolist()
            parts = list(batches(lengths, BATCH))
            for place in torch.randperm(len(parts), generator=generator).tolist():
                yield self._batch(self._pairs, parts[place])


def _train(model: LLEForSeq2SeqLM, data: _Data, minutes: float, rate: float) -> Training:
    """Trains a model until the time is over, or it gets worse."""
    torch.manual_seed(data.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    model.label_smoothing = SMOOTHING
    best = Training(_copied(model), share_right(model, data.held_out), rate, 0, 0.0, 0.0)
    steps, spent, worse, looks = 0, 0.0, 0, 1
    for batch in data.batches():
        begin = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_by_share(spent / (60 * minutes))
        _step(model, optimizer, batch)
        spent += time.perf_counter() - begin
        steps += 1
        if spent < looks / LOOKS * 60 * minutes:
            continue
        looks += 1
        right = share_right(model, data.held_out)
        worse = worse + 1 if right <= best.right else 0
        if not worse:
            best = Training(_copied(model), right, rate, steps, spent, 0.0)
        if worse == PATIENCE or spent >= 60 * minutes:
            break
    return dataclasses.replace(best, spent=spent)


def _step(model: LLEForSeq2SeqLM, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """An update of the weights."""
    model.train()
    with in_precision(model, "auto"):
        loss = model(**batch).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def _copied(model: LLEForSeq2SeqLM) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@torch.no_grad()
def share_right(model: Any, held_out: Sequence[Batch]) -> float:
    """Share of the target tokens (B, T) that a model gives the largest probability, after the right ones before."""
    right = total = 0
    with evaluating(model), in_precision(model, "auto"):
        for batch in held_out:
            found = model(**batch, use_history=False).logits.argmax(-1)
            right += int((found == batch["labels"]).sum())
            total += int((batch["labels"] != IGNORED).sum())
    return right / total
