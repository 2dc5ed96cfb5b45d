"""Explanations: which entries moved a prediction, and by exactly how much; one record for every head.

With g_0 the base's share and s_i the share of entry i, P(y) - p(y) = sum_i s_i (v_i(y) - p(y)), since the shares of
base and entries add up to 1; v_i(y) is what entry i says of y: 1 if its outcome is y and 0 otherwise, the vote of an
example that may have several labels, or its value in regression. Each term is the exact effect of one entry.
Shapes: B batch, T time, N entries, n predictions.
"""

import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..bank.places import LINE, LineBreaks, line_of, place_of
from .attachment import Attachment
from .loss import IGNORED
from .prediction import HistoryOutput, Prediction
from .source import BANK, BANK_MATCHES, MATCHES, STREAM

CONTEXT = 16  # tokens shown on each side of an entry's outcome
SEGMENT = 256


@dataclass(frozen=True)
class Cause:
    """An entry that moved a prediction.

    Attributes:
        source: "stream", "matches", "bank" or "bank_matches".
        share: Its share of the mixture.
        effect: Its effect on the probability of the outcome that is explained; negative if it says something else.
        outcome: Its outcome: a token id, or the number of a label.
        name: Name of the outcome, if it is a label.
        before, after: Token ids around the outcome, the oldest first; those of the example before it, for labels.
        age: In the stream, how many tokens ago it was made; of an exact match, how many tokens ago it ended.
        length: Of an exact match, how many tokens before it are alike.
        count: Of an exact match in the bank, how often it has this outcome after that many tokens alike; the entry is
            the newest of these.
        id: In the bank, its id.
        place: In the bank, the place of its document: "file:line" or, if it is unknown, "source:row".
        columns: In the bank, the columns of its document.
        since: In a bank of texts, the tokens of its document before it, by which its own line is counted.
    """

    source: str
    share: float
    effect: float
    outcome: int
    before: Sequence[int]
    after: Sequence[int]
    name: str | None = None
    age: int | None = None
    length: int | None = None
    count: int | None = None
    id: int | None = None
    place: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    since: Tensor | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Explanation:
    """Why an outcome got its probability: a token of a text, a label, or a token of a translation.

    Attributes:
        position: Place of the token in the text; number of the text, for its label.
        target: The outcome: its token id, or the number of the label.
        name: Name of the label; None for a token.
        base_prob, prob: Its probability by the base alone, and with history; in regression the value.
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
    name: str | None = None


@dataclass(frozen=True)
class Explained:
    """n predictions to explain.

    Attributes:
        positions: Where each belongs, see `Explanation`.
        targets: (n,) int64, the outcomes.
        base, mixed: (n,) float32, their probabilities by the base and with history.
        history: Shares and entries, (n,) or (n, N) each.
        names: Names of the outcomes, if they are labels.
        votes: What the entries of the bank say of the targets, (n, K) float32; None: whether it is their outcome.
    """

    positions: Sequence[int]
    targets: Tensor
    base: Tensor
    mixed: Tensor
    history: HistoryOutput
    names: Sequence[str] | None = None
    votes: Tensor | None = None


MakeCause = Callable[[int, str, float, float, int], Cause]  # position, source, share, effect, and age or id


def explain_outcomes(explained: Explained, cause: MakeCause, top: int) -> list[Explanation]:
    """Explains n predictions, naming the `top` entries of the largest effects on each."""
    history = explained.history
    sources, share, says, identity = _side_by_side(explained)
    effect = share * (says - explained.base[:, None])
    best = effect.abs().topk(min(top, effect.shape[1]), dim=1).indices.tolist()
    found = []
    for n, position in enumerate(explained.positions):
        chosen = [(sources[i], i) for i in best[n] if float(share[n, i]) > 0]
        causes = [
            cause(position, source, float(share[n, i]), float(effect[n, i]), int(identity[n, i]))
            for source, i in chosen
        ]
        causes = [
            _with_match(own, history, n, i - len(sources)) if own.source == BANK_MATCHES else own
            for own, (_, i) in zip(causes, chosen, strict=True)
        ]
        target, base, mixed = int(explained.targets[n]), float(explained.base[n]), float(explained.mixed[n])
        found.append(
            Explanation(
                position=position,
                target=target,
                base_prob=base,
                prob=mixed,
                base_share=1.0 if history.base_share is None else float(history.base_share[n]),
                causes=causes,
                rest=float(explained.mixed[n] - explained.base[n]) - sum(own.effect for own in causes),
                name=None if explained.names is None else explained.names[target],
            )
        )
    return found


def _side_by_side(explained: Explained) -> tuple[list[str], Tensor, Tensor, Tensor]:
    """Source (N), share, what it says of the target, and age or id, (n, N) each, of the entries of all sources."""
    history, target = explained.history, explained.targets[:, None]
    shares: list[Tensor] = [torch.zeros(len(target), 0, device=target.device)]
    says, identities, sources = list(shares), list(shares), []
    for source, own, outcomes, identity in (
        (STREAM, history.shares, history.outcomes, history.ages),
        (MATCHES, history.matches_shares, history.matches_outcomes, history.matches_ages),
        (BANK, history.bank_shares, history.bank_outcomes, history.bank_ids),
        (BANK_MATCHES, history.bank_matches_shares, history.bank_matches_outcomes, history.bank_matches_ids),
    ):
        if own is None or outcomes is None or identity is None:
            continue
        votes = explained.votes if source == BANK else None
        shares.append(own)
        says.append((outcomes == target).float() if votes is None else votes)
        identities.append(identity)
        sources += [source] * own.shape[-1]
    return sources, torch.cat(shares, dim=1), torch.cat(says, dim=1), torch.cat(identities, dim=1)


def _with_match(cause: Cause, history: HistoryOutput, n: int, place: int) -> Cause:
    """An exact match in the bank with its length and count; `place` is counted from the end of the entries."""
    lengths, counts = history.bank_matches_lengths, history.bank_matches_counts
    assert lengths is not None
    assert counts is not None
    return replace(cause, length=int(lengths[n, place]), count=int(counts[n, place]))


def explain_tokens(
    text: Tensor,
    made: Tensor,
    read: Callable[[slice], Iterable[Prediction]],
    attachment: Attachment | None,
    top: int,
) -> list[Explanation]:
    """Explains every token of a text but the first.

    Args:
        text: (T,) int64.
        made: (T,) bool, whether a token made an entry of the stream when it was read; the first one never does.
        read: Predictions for the next segment of the text, whose positions it is given.
        attachment: The bank that they recall from, pinned, or None.
        top: Entries to name for each token.
    """

    def cause(position: int, source: str, share: float, effect: float, identity: int) -> Cause:
        if source in (BANK, BANK_MATCHES):
            return replace(bank_cause(attachment, share, effect, identity), source=source)
        # The newest entry of the stream before the position has the age 1; a match is followed by its outcome.
        of_stream = source == STREAM
        at = places[bisect.bisect_left(places, position) - identity] if of_stream else position - identity
        before, after = text[max(0, at - CONTEXT) : at], text[at + 1 : min(position, at + 1 + CONTEXT)]
        length = None if of_stream else _alike(text, at, position)
        told = int(text[at]), before.tolist(), after.tolist()
        return Cause(source, share, effect, *told, age=position - at, length=length)

    places = (made[1:].nonzero()[:, 0] + 1).tolist()
    found: list[Explanation] = []
    for start in range(0, len(text) - 1, SEGMENT):
        stop = min(start + SEGMENT, len(text) - 1)
        targets = text[None, start + 1 : stop + 1]
        for prediction in read(slice(start, stop)):
            own, first = targets[:, prediction.positions], start + prediction.positions.start + 1
            explained = Explained(
                positions=range(first, first + own.shape[1]),
                targets=own[0],
                base=prediction.base_log_probs(own)[0].exp(),
                mixed=prediction.log_probs(own)[0].exp(),
                history=prediction.history().row(0),
            )
            found += explain_outcomes(explained, cause, top)
    return found


def _alike(text: Tensor, one: int, other: int) -> int:
    """How many tokens before two places of a text (T,), the first one the earlier, are the same."""
    different = (text[:one] != text[other - one : other]).nonzero()
    return one - 1 - int(different[-1]) if len(different) else one


def explain_labels(explained: Explained, attachment: Attachment | None, top: int, of_words: bool) -> list[Explanation]:
    """Explains n labels, of texts or of words; the outcomes of the causes are called as the bank calls them.

    Args:
        explained: The predictions.
        attachment: The bank that they recall from, pinned; None: no bank.
        top: Examples to name for each label.
        of_words: Whether an example is a word with its label; then the tokens of its text are left out.
    """
    names = () if attachment is None else attachment.snapshot().labels or ()

    def cause(position: int, source: str, share: float, effect: float, identity: int) -> Cause:
        own = bank_cause(attachment, share, effect, identity, names)
        return replace(own, before=(), after=()) if of_words else own  # they are followed by the numbers of labels

    return explain_outcomes(explained, cause, top)


def bank_cause(
    attachment: Attachment | None, share: float, effect: float, identity: int, names: Sequence[str] | None = None
) -> Cause:
    """The cause that an entry of a bank is; `names` are those of its outcomes, if they are labels."""
    assert attachment is not None
    (entry,) = attachment.snapshot().describe([identity], before=CONTEXT, after=CONTEXT)
    return Cause(
        BANK,
        share,
        effect,
        entry.outcome,
        entry.before,
        entry.after,
        name=None if names is None else names[entry.outcome],
        id=identity,
        place=place_of(entry.source, entry.row, entry.columns),
        columns=entry.columns,
        since=entry.since if names is None else None,
    )


def explained_targets(predictions: Iterable[Prediction], targets: Tensor) -> list[Explained]:
    """The tokens of translations with all that moved them, on the CPU, an item for each translation.

    Args:
        predictions: Consecutive blocks of predictions.
        targets: (B, T) int64, the translations, -100 at padding.
    """
    columns, parts = [], []
    for prediction in predictions:
        own = targets[:, prediction.positions]
        columns.append(torch.stack([prediction.base_log_probs(own), prediction.log_probs(own)]).exp())
        parts.append(prediction.history())
    base, mixed = torch.cat(columns, dim=-1).cpu()
    history = {name: tensor.cpu() for name, tensor in HistoryOutput.join(parts).items()}
    found = []
    for row, own in enumerate(targets.cpu()):
        real = own != IGNORED
        found.append(
            Explained(
                positions=real.nonzero()[:, 0].tolist(),
                targets=own[real],
                base=base[row, real],
                mixed=mixed[row, real],
                history=HistoryOutput(**{name: tensor[row, real] for name, tensor in history.items()}),
            )
        )
    return found


def explain_targets(explained: Explained, attachment: Attachment | None, top: int) -> list[Explanation]:
    """Explains the tokens of a translation by entries of the memory that it recalls from, pinned, or None."""

    def cause(position: int, source: str, share: float, effect: float, identity: int) -> Cause:
        return replace(bank_cause(attachment, share, effect, identity), since=None)  # a pair is in one place

    return explain_outcomes(explained, cause, top)


def as_values(explanations: Sequence[Explanation], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """The explanations as plain values, with texts in place of token ids: what pipelines and commands give.

    Returns:
        For each outcome its `text` (of a token, or the name of a label), `base_prob`, `prob`, `base_share`, `rest` and
        `causes`; a cause has its `source`, `where` it is, its `effect` and `share`, the texts `before`, `outcome` and
        `after`, and the `columns` of its document if it has any.
    """
    before = [None, *explanations][: len(explanations)]
    breaks = LineBreaks(tokenizer)
    return [
        {
            "text": _text(item, previous, tokenizer) if item.name is None else item.name,
            "base_prob": item.base_prob,
            "prob": item.prob,
            "base_share": item.base_share,
            "causes": [_cause_values(cause, tokenizer, breaks) for cause in item.causes],
            "rest": item.rest,
        }
        for previous, item in zip(before, explanations, strict=True)
    ]


def _cause_values(cause: Cause, tokenizer: PreTrainedTokenizerBase, breaks: LineBreaks) -> dict[str, Any]:
    texts = dict(zip(("before", "outcome", "after"), _texts(cause, tokenizer), strict=True))
    columns = {"columns": dict(cause.columns)} if cause.columns else {}
    where = {"source": cause.source, "where": _where(cause, breaks), "effect": cause.effect, "share": cause.share}
    return {**where, **texts, **columns}


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
    if cause.name is not None:
        return before, cause.name, decode(tokenizer, cause.after)
    with_outcome = decode(tokenizer, [*cause.before, cause.outcome])
    whole = decode(tokenizer, [*cause.before, cause.outcome, *cause.after])
    if with_outcome.startswith(before) and whole.startswith(with_outcome):
        return before, with_outcome[len(before) :], whole[len(with_outcome) :]
    return before, decode(tokenizer, [cause.outcome]), decode(tokenizer, cause.after)


def _where(cause: Cause, breaks: LineBreaks) -> str:
    if cause.source in (STREAM, MATCHES):
        ago = f"{cause.age:,} token{'' if cause.age == 1 else 's'} ago"
        return ago if cause.length is None else f"{ago}, {_alike_before(cause.length)}"
    further = 0 if cause.since is None or LINE not in cause.columns else breaks.count(cause.since)
    place = f"{line_of(cause.columns, further) or cause.place} (entry {cause.id})"
    if cause.length is None:
        return place
    times = "" if cause.count in (None, 1) else f", {cause.count:,} times"
    return f"{place}, {_alike_before(cause.length)}{times}"


def _alike_before(length: int) -> str:
    return f"after {length:,} token{'' if length == 1 else 's'} alike"
