"""Explanations: which entries moved a prediction, and by exactly how much.

With g_0 the base's share and s_i the share of entry i, P(y) - p(y) = sum_i s_i ([y_i = y] - p(y)), since the shares of
base and entries add up to 1. Each term is the exact effect of one entry on the probability of y.
Shapes: T time, N entries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..bank.protocol import Snapshot
from .prediction import HistoryOutput, Prediction

CONTEXT = 16  # tokens shown before an entry's outcome
SEGMENT = 256


@dataclass(frozen=True)
class Cause:
    """An entry that moved a prediction.

    Attributes:
        source: "stream" or "bank".
        share: Its share of the mixture.
        effect: What it added to the probability of the target; negative if its outcome is another token.
        outcome: The token id that followed it.
        before, after: Token ids around the outcome, the oldest first.
        age: For the stream, how many tokens ago it was made.
        id: For the bank, its id.
        place: For the bank, its source and row, "source:row".
    """

    source: str
    share: float
    effect: float
    outcome: int
    before: Sequence[int]
    after: Sequence[int]
    age: int | None = None
    id: int | None = None
    place: str | None = None


@dataclass(frozen=True)
class Explanation:
    """Why a token got its probability.

    Attributes:
        position: Place of the token in the text.
        target: Its id.
        base_prob, prob: Its probability by the base alone, and with history.
        base_share: The base's share of the mixture.
        causes: The entries of the largest effects.
        rest: The sum of the effects of all other entries: prob - base_prob = sum of all effects.
    """

    position: int
    target: int
    base_prob: float
    prob: float
    base_share: float
    causes: list[Cause]
    rest: float


@torch.no_grad()
def explain(model: Any, input_ids: Tensor, top: int = 5) -> list[Explanation]:
    """Explains every token of a text but the first; what `LLEForCausalLM.explain` does.

    Args:
        model: An `LLEForCausalLM`; its state and stream begin anew.
        input_ids: (T,) int64.
        top: Causes to name for each token.
    """
    if input_ids.dim() != 1 or len(input_ids) < 2:
        raise ValueError(f"explain takes one text of two tokens at least, (T,), got {tuple(input_ids.shape)}")
    ids = input_ids.to(model.device)
    cache, _ = model.cache_for(None, True, True, 1)
    state = None if model.history_bank is None else model.history_bank.snapshot()
    explanations: list[Explanation] = []
    for start in range(0, len(ids) - 1, SEGMENT):
        stop = min(start + SEGMENT, len(ids) - 1)
        read, targets = ids[None, start:stop], ids[None, start + 1 : stop + 1]
        for prediction in model.read(read, None, cache, state):
            first = start + prediction.positions.start + 1
            explanations += _explain_block(state, ids, first, prediction, targets[:, prediction.positions], top)
    return explanations


def _explain_block(
    state: Snapshot | None, ids: Tensor, first: int, prediction: Prediction, targets: Tensor, top: int
) -> list[Explanation]:
    """Explains the tokens `targets` (1, T) of one block, the first of which stands at `first` in the text."""
    base, mixed = prediction.base_log_probs(targets)[0].exp(), prediction.log_probs(targets)[0].exp()
    history = prediction.history()
    share, outcome, identity = _side_by_side(history, len(base))
    effect = share * ((outcome == targets[0][:, None]).float() - base[:, None])
    best = effect.abs().topk(min(top, effect.shape[1]), dim=1).indices
    streamed = 0 if history.shares is None else history.shares.shape[-1]
    explanations = []
    for t, chosen in enumerate(best.tolist()):
        chosen = [i for i in chosen if float(share[t, i]) > 0]
        values = [(i < streamed, float(share[t, i]), float(effect[t, i]), int(identity[t, i])) for i in chosen]
        causes = [_cause(state, ids, first + t, *value) for value in values]
        change = float(mixed[t] - base[t])
        base_share = 1.0 if history.base_share is None else float(history.base_share[0, t])
        rest = change - sum(cause.effect for cause in causes)
        target = int(targets[0, t])
        explanations.append(Explanation(first + t, target, float(base[t]), float(mixed[t]), base_share, causes, rest))
    return explanations


def _side_by_side(history: HistoryOutput, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Share, outcome, and age or id of the entries of both sources, (T, N) each."""
    columns: list[list[Tensor]] = [[], [], []]
    for names in (("shares", "outcomes", "ages"), ("bank_shares", "bank_outcomes", "bank_ids")):
        if history.get(names[0]) is not None:
            for column, name in zip(columns, names, strict=True):
                column.append(history[name][0])
    blank = torch.zeros(length, 0)
    share, outcome, identity = (torch.cat(column, dim=1) if column else blank for column in columns)
    return share, outcome, identity


def _cause(
    state: Snapshot | None, ids: Tensor, position: int, streamed: bool, share: float, effect: float, number: int
) -> Cause:
    if streamed:  # the entry of age a has as its outcome the token that stood a places before the target
        at = position - number
        before, after = ids[max(0, at - CONTEXT) : at].tolist(), ids[at + 1 : min(position, at + 1 + CONTEXT)].tolist()
        return Cause("stream", share, effect, int(ids[at]), before, after, age=number)
    assert state is not None
    entry = state.describe([number], before=CONTEXT, after=CONTEXT)[0]
    place = f"{entry.source}:{entry.row}"
    return Cause("bank", share, effect, entry.outcome, entry.before, entry.after, id=number, place=place)


def as_values(explanations: Sequence[Explanation], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """The explanations as plain values, with texts in place of token ids.

    Returns:
        For each token its `text`, `base_prob`, `prob`, `base_share`, `rest` and `causes`; a cause has its `source`,
        `where` it is, its `effect` and `share`, and the texts `before`, `outcome` and `after`.
    """
    before = [None, *explanations][: len(explanations)]
    return [
        {
            "text": _text(item, previous, tokenizer),
            "base_prob": item.base_prob,
            "prob": item.prob,
            "base_share": item.base_share,
            "causes": [
                {
                    "source": cause.source,
                    "where": _where(cause),
                    "effect": cause.effect,
                    "share": cause.share,
                    **dict(zip(("before", "outcome", "after"), _texts(cause, tokenizer), strict=True)),
                }
                for cause in item.causes
            ],
            "rest": item.rest,
        }
        for previous, item in zip(before, explanations, strict=True)
    ]


def _text(item: Explanation, previous: Explanation | None, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a token, with the space that stands before it in the text."""
    alone = decode(tokenizer, [item.target])
    if previous is None or previous.position + 1 != item.position:
        return alone
    first, both = decode(tokenizer, [previous.target]), decode(tokenizer, [previous.target, item.target])
    return both[len(first) :] if both.startswith(first) else alone


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Text of token ids; a token that was forgotten is shown as a box."""
    parts: list[str] = []
    known: list[int] = []
    for token in [*ids, -1]:
        if token >= 0:
            known.append(token)
        else:
            parts.append(str(tokenizer.decode(known)))
            known = []
    return "▯".join(parts)


def _texts(cause: Cause, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str, str]:
    """The text before the outcome, the outcome, and the text after it, cut so that they join as they were."""
    before = decode(tokenizer, cause.before)
    with_outcome = decode(tokenizer, [*cause.before, cause.outcome])
    whole = decode(tokenizer, [*cause.before, cause.outcome, *cause.after])
    if with_outcome.startswith(before) and whole.startswith(with_outcome):
        return before, with_outcome[len(before) :], whole[len(with_outcome) :]
    return before, decode(tokenizer, [cause.outcome]), decode(tokenizer, cause.after)


def _where(cause: Cause) -> str:
    if cause.source == "stream":
        return f"{cause.age:,} token{'' if cause.age == 1 else 's'} ago"
    return f"{cause.place} (entry {cause.id})"
