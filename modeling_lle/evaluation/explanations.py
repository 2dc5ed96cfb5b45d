"""Explanations for the terminal, and as a self-contained HTML page."""

import html
import json
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..common.temporary import replacing
from ..common.terminal import printable
from ..history.explanation import Explanation, as_values

PAGE = Path(__file__).with_name("explanation.html")
WIDTH = 60  # characters of the text around an entry in the terminal
GREEN, RED, DIM, BOLD, END = "\033[32m", "\033[31m", "\033[2m", "\033[1m", "\033[0m"


def format_explanations(
    explanations: Sequence[Explanation], tokenizer: PreTrainedTokenizerBase, colour: bool = True
) -> str:
    """Lines for the terminal: each token with its probabilities, its causes below."""
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


def write_page(
    path: str | Path, explanations: Sequence[Explanation], tokenizer: PreTrainedTokenizerBase, title: str
) -> Path:
    """Writes a self-contained HTML page; clicking a token shows its causes."""
    data = json.dumps(as_values(explanations, tokenizer), ensure_ascii=False)
    data = data.replace("<", "\\u003c")  # text may contain a closing script tag
    page = PAGE.read_text(encoding="utf-8").replace("{{title}}", html.escape(title)).replace("{{tokens}}", data)
    with replacing(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return Path(path)
