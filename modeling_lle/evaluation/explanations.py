"""Explanations for the terminal, and as a page that needs nothing but a browser."""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..explanation_lle import Cause, Explanation

PAGE = Path(__file__).with_name("explanation.html")
WIDTH = 60  # characters of the text around an entry in the terminal
GREEN, RED, DIM, BOLD, END = "\033[32m", "\033[31m", "\033[2m", "\033[1m", "\033[0m"


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Text of token ids; a token that was forgotten is shown as a box."""
    parts: list[str] = []
    known: list[int] = []
    for token in [*ids, -1]:
        if token >= 0:
            known.append(token)
        else:
            parts.append(tokenizer.decode(known))
            known = []
    return "▯".join(parts)


def format_explanations(
    explanations: Sequence[Explanation], tokenizer: PreTrainedTokenizerBase, colour: bool = True
) -> str:
    """The explanations as lines for the terminal: each token with its probabilities, and below it its causes."""
    green, red, dim, bold, end = (GREEN, RED, DIM, BOLD, END) if colour else ("",) * 5
    lines = []
    for item in explanations:
        change = item.prob - item.base_prob
        tint = green if change >= 0 else red
        token = repr(decode(tokenizer, [item.target]))
        lines.append(
            f"{bold}{token:20}{end} {item.base_prob:7.4f} -> {tint}{item.prob:7.4f}{end}  "
            f"{dim}({tint}{change:+.4f}{end}{dim}, the base has {item.base_share:.0%} of the say){end}"
        )
        for cause in item.causes:
            tint = green if cause.effect >= 0 else red
            before, outcome, after = _texts(cause, tokenizer)
            around = f"{before[-WIDTH:]}{bold}{outcome}{end}{dim}{after[: WIDTH // 3]}".replace("\n", "⏎")
            lines.append(f"    {tint}{cause.effect:+.4f}{end} {dim}{_where(cause):24} {around}{end}")
        if item.causes:
            lines.append(f"    {dim}{item.rest:+.4f} all other entries{end}")
    return "\n".join(lines)


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


def as_values(explanations: Sequence[Explanation], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """The explanations as plain values, with texts in place of token ids."""
    return [
        {
            "text": decode(tokenizer, [item.target]),
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
        for item in explanations
    ]


def write_page(
    path: str | Path, explanations: Sequence[Explanation], tokenizer: PreTrainedTokenizerBase, title: str
) -> Path:
    """Writes the explanations as one HTML file, which needs no other files and no network: click a token."""
    data = json.dumps(as_values(explanations, tokenizer), ensure_ascii=False)
    data = data.replace("<", "\\u003c")  # text may hold a closing script tag
    page = PAGE.read_text(encoding="utf-8").replace("{{title}}", html.escape(title)).replace("{{tokens}}", data)
    Path(path).write_text(page, encoding="utf-8")
    return Path(path)
