"""Explanations for the terminal, and as a self-contained HTML page."""

import html
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from ..common.temporary import replacing
from ..common.terminal import printable
from ..history.explanation import Explanation, as_values

PAGE = Path(__file__).with_name("explanation.html")
WIDTH = 60  # characters of the text around an entry in the terminal
LEAST = 1e-38  # of a probability whose logarithm is taken
GREEN, RED, DIM, BOLD, END = "\033[32m", "\033[31m", "\033[2m", "\033[1m", "\033[0m"

Unit = Literal["token", "label", "value"]


@dataclass(frozen=True)
class Passage:
    """Explanations that belong together: of the tokens of a text or translation, or of the labels of a text.

    Attributes:
        explanations: In the order in which they are shown.
        given: The text that was classified or translated; None: the explained tokens are the text.
    """

    explanations: Sequence[Explanation]
    given: str | None = None


def format_explanations(
    explanations: Sequence[Explanation], tokenizer: PreTrainedTokenizerBase, colour: bool = True
) -> str:
    """Lines for the terminal: each token or label with its probabilities, its causes below."""
    green, red, dim, bold, end = (GREEN, RED, DIM, BOLD, END) if colour else ("",) * 5
    lines = []
    for item in as_values(explanations, tokenizer):
        change = item["prob"] - item["base_prob"]
        tint = green if change >= 0 else red
        lines.append(
            f"{bold}{item['text']!r:20}{end} {item['base_prob']:7.4f} -> {tint}{item['prob']:7.4f}{end}  "
            f"{dim}({tint}{change:+.4f}{end}{dim}, share of the base {item['base_share']:.0%}){end}"
        )
        for cause in item["causes"]:
            tint = green if cause["effect"] >= 0 else red
            parts = cause["before"][-WIDTH:], cause["outcome"], cause["after"][: WIDTH // 3]
            before, outcome, after = (printable(part.replace("\n", "⏎")) for part in parts)
            around = f"{before}{bold}{outcome}{end}{dim}{after}"
            lines.append(f"    {tint}{cause['effect']:+.4f}{end} {dim}{printable(cause['where']):24} {around}{end}")
        if item["causes"]:
            lines.append(f"    {dim}{item['rest']:+.4f} all other entries{end}")
    return "\n".join(lines)


def totals(explanations: Sequence[Explanation]) -> dict[str, float]:
    """Sums up the explanations of the tokens of a text.

    Returns:
        `base_perplexity` without and `perplexity` with history, and the shares of tokens that history made `more` and
        `less` probable; empty without tokens.
    """
    if not explanations:
        return {}
    sides = {"base_perplexity": "base_prob", "perplexity": "prob"}
    values = {
        name: math.exp(-sum(math.log(max(getattr(item, side), LEAST)) for item in explanations) / len(explanations))
        for name, side in sides.items()
    }
    more, less = (sum(sign * (item.prob - item.base_prob) > 0 for item in explanations) for sign in (1, -1))
    return {**values, "more": more / len(explanations), "less": less / len(explanations)}


def format_totals(explanations: Sequence[Explanation]) -> str:
    """A line for the terminal of what `totals` returns."""
    values, count = totals(explanations), len(explanations)
    if not values:
        return "No tokens."
    return (
        f"{count:,} token{'s' * (count != 1)}: perplexity {values['base_perplexity']:.4g} without history, "
        f"{values['perplexity']:.4g} with it; {values['more']:.0%} of the tokens became more probable, "
        f"{values['less']:.0%} less."
    )


def write_page(
    path: str | Path,
    explanations: Sequence[Explanation] | Sequence[Passage],
    tokenizer: PreTrainedTokenizerBase,
    title: str,
    unit: Unit = "token",
) -> Path:
    """Writes a self-contained HTML page that shows for each token or label what moved it.

    Args:
        path: The file.
        explanations: Of the tokens of a text, or passages.
        tokenizer: Tokenizer of the model.
        title: Heading, plain text.
        unit: What is explained: tokens, labels, or values of a regression, which are no probabilities.

    Returns:
        The file.
    """
    passages = [item for item in explanations if isinstance(item, Passage)]
    of_a_text = [item for item in explanations if isinstance(item, Explanation)]
    passages = passages or [Passage(of_a_text)]
    explained = {
        "unit": unit,
        "totals": totals(of_a_text),
        "passages": [{"given": item.given, "tokens": _tokens(item.explanations, tokenizer)} for item in passages],
    }
    data = json.dumps(explained, ensure_ascii=False).replace("<", "\\u003c")  # a text may hold a closing script tag
    parts = {"title": html.escape(title), "explained": data}
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], PAGE.read_text(encoding="utf-8"))
    with replacing(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return Path(path)


def _tokens(explanations: Sequence[Explanation], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Plain values of explanations; a cause in the stream has its `age`, by which the page finds it in the text."""
    values = as_values(explanations, tokenizer)
    for item, value in zip(explanations, values, strict=True):
        for cause, shown in zip(item.causes, value["causes"], strict=True):
            if cause.age is not None:
                shown["age"] = cause.age
    return values
