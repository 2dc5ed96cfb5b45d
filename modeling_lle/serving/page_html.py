"""What the page shows, as HTML and SVG: bars, entries, texts side by side, a list, a curve.

Notable: every text is escaped; no script, no font and no picture comes from elsewhere. Colours and sizes are those of
page.css.
"""

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .page_actions import LESSON, Bar, Curve, Held, Moved, Predicted, replaced_by

_LESSON_TIME = re.compile(re.escape(LESSON) + r"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d)\.\d+\+*(?: \{.*?\}\}?)?")
_ENTRY = re.compile(r"(:\d+)? \(entry \d+\)")
SHOWN = 8  # rows of bars
POINTS = 240
LEAST = 0.0005  # effect or share of an entry that is told


def escaped(text: Any) -> str:
    """A text for HTML."""
    return html.escape(str(text))


def token_name(token: str) -> str:
    """A token so that it can be seen: spaces and line breaks alone by a sign."""
    if token.strip():
        return escaped(token.strip())
    signs = "".join("↵" if sign == "\n" else "⇥" if sign == "\t" else "␣" for sign in token)
    return f'<span class="lle-sign" title="white space">{signs or "(end of the text)"}</span>'


def percent(value: float | None, least: float = 0.0) -> str:
    """A probability in percent; None: it does not reach `least`."""
    if value is None:
        return f"under {percent(max(least, 0.001))}"
    shown = 100 * value
    return f"{shown:.0f}&#8239;%" if shown >= 9.95 else f"{shown:.1f}&#8239;%" if shown >= 0.05 else "0&#8239;%"


def note(text: str, kind: str = "done") -> str:
    """A line that says what was done, or what went wrong; screen readers say it."""
    role = "alert" if kind == "error" else "status"
    return f'<p class="lle-note lle-{kind}" role="{role}">{escaped(text[:1].upper() + text[1:])}</p>' if text else ""


def where(text: str) -> str:
    """Where an entry comes from, with the lessons of the page in words."""
    shown = _ENTRY.sub(r"\1", text)
    found = _LESSON_TIME.match(shown)
    if found is None:
        return escaped(shown)
    return f"taught on this page, {escaped(found[1])} {escaped(found[2])}"


def prediction(found: Predicted, before: Predicted | None = None) -> str:
    """A prediction, with what it was before a lesson."""
    parts = []
    if found.text is not None:
        parts.append(_texts(found, before))
    if found.bars:
        parts.append(_bars(found, before))
    parts.append(_shares(found))
    parts.append(_moved(found))
    return f'<div class="lle-result">{"".join(parts)}</div>'


def _texts(found: Predicted, before: Predicted | None) -> str:
    """What is written with history, by the base alone, and before a lesson."""
    assert found.text is not None
    assert found.base_text is not None
    cards = [("With history", found.text, "mixed"), ("Base model alone", found.base_text, "base")]
    if before is not None and before.text is not None and before.text != found.text:
        cards.insert(0, ("Before", before.text, "was"))
    shown = "".join(
        f'<figure class="lle-card lle-{kind}"><figcaption>{name}</figcaption>'
        f"<blockquote>{escaped(text.strip()) or '<i>nothing</i>'}</blockquote></figure>"
        for name, text, kind in cards
    )
    return f'<div class="lle-cards">{shown}</div>'


def _bars(found: Predicted, before: Predicted | None) -> str:
    """Outcomes with two bars each."""
    is_token = found.text is not None
    rows = "".join(_row(bar, found, before) for bar in _chosen(found.bars))
    title = "The next word or part of one" if is_token else "Labels"
    keys = '<span class="lle-key lle-mixed">with history</span><span class="lle-key lle-base">base model alone</span>'
    keys += '<span class="lle-key lle-was">before</span>' if before is not None else ""
    return (
        f'<section><h3>{title}</h3><p class="lle-keys">{keys}</p><ul class="lle-bars" aria-label="{title}">{rows}</ul>'
        "</section>"
    )


def _chosen(bars: Sequence[Bar]) -> list[Bar]:
    """The most probable outcomes, and the first one of the base if it is not among them."""
    shown, best = list(bars[:SHOWN]), max(bars, key=lambda bar: bar.base or 0.0)
    return shown if best in shown else [*shown[:-1], best]


def _row(bar: Bar, found: Predicted, before: Predicted | None) -> str:
    is_token = found.text is not None
    name, mark, change = token_name(bar.name) if is_token else escaped(bar.name), "", ""
    if before is not None:
        same = next((own for own in before.bars if own.name == bar.name), None)
        was = (None if is_token else 0.0) if same is None else same.mixed
        mark = f'<i class="lle-mark" style="left:{_width(was)}%"></i>'
        if abs((bar.mixed or 0.0) - (was or 0.0)) >= LEAST:
            change = f" <small>was {percent(was, before.least[0])}</small>"
    return (
        f'<li><span class="lle-name">{name}</span><span class="lle-tracks" aria-hidden="true">'
        f'<span class="lle-track"><b class="lle-mixed" style="width:{_width(bar.mixed)}%"></b>{mark}</span>'
        f'<span class="lle-track lle-thin"><b class="lle-base" style="width:{_width(bar.base)}%"></b></span></span>'
        f'<span class="lle-value">{percent(bar.mixed, found.least[0])}{change}'
        f"<em>base {percent(bar.base, found.least[1])}</em></span></li>"
    )


def _width(value: float | None) -> str:
    return f"{100 * min(max(value or 0.0, 0.0), 1.0):.2f}"


def _shares(found: Predicted) -> str:
    """The shares of base and history in a prediction."""
    base = min(max(found.base_share, 0.0), 1.0)
    said = f"{percent(base)} from the base model, {percent(1 - base)} from the history"
    return (
        f'<section class="lle-shares"><h3>Where this comes from</h3><div class="lle-split" aria-hidden="true">'
        f'<b class="lle-mixed" style="width:{_width(1 - base)}%"></b>'
        f'<b class="lle-base" style="width:{_width(base)}%"></b></div><p>{said}</p></section>'
    )


def _moved(found: Predicted) -> str:
    """The entries that moved a prediction."""
    moved = [own for own in found.moved if abs(own.share if own.effect is None else own.effect) >= LEAST]
    if not moved:
        return '<p class="lle-empty">No entry of the history has moved this prediction.</p>'
    items = "".join(_entry(own, found) for own in moved)
    named = token_name(found.outcome) if found.bars and found.text is not None else escaped(found.outcome)
    title = f"What moved <q>{named}</q>" if found.bars else "Sentence pairs that moved the translation"
    return f'<section><h3>{title}</h3><ol class="lle-moved">{items}</ol></section>'


def _entry(own: Moved, found: Predicted) -> str:
    if own.match is not None:
        text = f"<p>{escaped(own.before)}</p><p><mark>{escaped(own.outcome)}</mark></p>"
        amount, about = percent(own.share), f"share; {percent(own.match)} alike"
    else:
        is_token = found.text is not None
        if is_token:
            token = escaped(own.outcome) if own.outcome.strip() else token_name(own.outcome)
            text = f'<p>{escaped(own.before.lstrip())}<mark class="lle-token">{token}</mark>{escaped(own.after)}</p>'
        else:
            text = f"<p>{escaped(own.before)}</p><p><mark>{escaped(own.outcome)}</mark></p>"
        effect = 100 * (own.effect or 0.0)
        sign = "+" if effect >= 0 else "\u2212"
        amount, about = f"{sign}{abs(effect):.1f}", "points"
    kind = "lle-less" if own.effect is not None and own.effect < 0 else "lle-more"
    return (
        f'<li><span class="lle-amount {kind}">{amount}<small>{about}</small></span>'
        f'<div class="lle-entry">{text}<cite>{where(own.where)}</cite></div></li>'
    )


def held(found: Held, search: str = "") -> str:
    """A list of what was taught."""
    count = f"{found.entries:,} {'entry' if found.entries == 1 else 'entries'}"
    if not found.rows:
        said = (
            f"Nothing that was taught contains “{escaped(search)}”." if search.strip() else "Nothing was taught yet."
        )
        return f'<p class="lle-empty">{said}</p>'
    items = "".join(
        f"<li><p>{escaped(_short(row['text']))}</p>{_right(row)}<cite>{where(row['source'])}</cite></li>"
        for row in found.rows
    )
    more = '<p class="lle-empty">There is more: search for it.</p>' if found.more else ""
    return f'<p class="lle-count">{count} in the history</p><ul class="lle-held">{items}</ul>{more}'


def _right(row: dict[str, Any]) -> str:
    right = row.get("label") or row.get("translation")
    return "" if right is None else f"<p><mark>{escaped(_short(right))}</mark></p>"


def _short(text: str, most: int = 400) -> str:
    return text if len(text) <= most else text[:most].rstrip() + " …"


def source_name(source: str) -> str:
    """A source in words, for a list to choose from."""
    was = replaced_by(source)
    shown = html.unescape(where(source))
    return shown if was is None else f"{shown}, instead of {was['was']}"


@dataclass(frozen=True)
class Frame:
    """The sizes of a plot: its own, and those of its margins."""

    kind: str
    width: int
    height: int
    left: int = 48
    right: int = 104
    top: int = 14
    bottom: int = 30


FRAMES = Frame("wide", 800, 290), Frame("narrow", 360, 220, 44, 84)  # for wide and for narrow screens


def curve(found: Curve) -> str:
    """The running perplexity of a document, with history and by the base alone."""
    less = 100 * (1 - found.mixed[-1] / found.base[-1])
    change = f"{abs(less):.0f} % {'lower' if less >= 0 else 'higher'}"
    said = f"{change} with history than by the base model alone, over {len(found.mixed):,} tokens"
    plots = "".join(_Plot(found, frame).svg(said) for frame in FRAMES)
    return (
        '<figure class="lle-curve"><figcaption><h3>Perplexity as the document is read</h3>'
        f"<p>Lower is better: {said}.</p></figcaption>{plots}</figure>"
    )


class _Plot:
    """Two lines on a logarithmic scale.

    Args:
        found: The values of the lines.
        frame: The sizes.
    """

    def __init__(self, found: Curve, frame: Frame) -> None:
        self.found, self.frame = found, frame
        self.skip = min(len(found.mixed) // 20, 20)  # the first tokens say little, and would set the scale
        values = [math.log10(max(value, 1e-9)) for own in (found.mixed, found.base) for value in own[self.skip :]]
        low, high = min(values) - 0.03, max(values) + 0.03
        self.low, self.high = (low, high) if high - low > 0.15 else (low - 0.1, high + 0.1)

    def svg(self, said: str) -> str:
        """The plot; `said` tells what it shows."""
        frame, found = self.frame, self.found
        end = frame.width - frame.right
        lines = "".join(self._line(own, kind) for own, kind in ((found.base, "base"), (found.mixed, "mixed")))
        low = frame.height - 8
        return (
            f'<svg class="lle-{frame.kind}" viewBox="0 0 {frame.width} {frame.height}" role="img" '
            f'aria-label="Running perplexity: {said}">{self._axes()}{lines}{self._names()}'
            f'<text class="lle-tick" x="{frame.left}" y="{low}">first token</text>'
            f'<text class="lle-tick lle-right" x="{end}" y="{low}">token {len(found.mixed):,}</text></svg>'
        )

    def _down(self, value: float) -> float:
        inside = self.frame.height - self.frame.top - self.frame.bottom
        return self.frame.top + (self.high - math.log10(max(value, 1e-9))) / (self.high - self.low) * inside

    def _across(self, place: int) -> float:
        inside = self.frame.width - self.frame.left - self.frame.right
        return self.frame.left + place / max(len(self.found.mixed) - 1, 1) * inside

    def _line(self, values: Sequence[float], kind: str) -> str:
        step = max(1, len(values) // POINTS)
        places = [*range(self.skip, len(values) - 1, step), len(values) - 1]
        points = " ".join(f"{self._across(place):.1f},{self._down(values[place]):.1f}" for place in places)
        return f'<polyline class="lle-{kind}" points="{points}"/>'

    def _names(self) -> str:
        """The last values of the lines, apart from each other."""
        mixed, base, x = self.found.mixed[-1], self.found.base[-1], self.frame.width - self.frame.right + 8
        ends = [self._down(mixed), self._down(base)]
        if abs(ends[0] - ends[1]) < 36:
            middle, sign = sum(ends) / 2, 1 if mixed <= base else -1
            ends = [middle + 18 * sign, middle - 18 * sign]
        return "".join(
            f'<text class="lle-end lle-{kind}" x="{x}" y="{end:.1f}">{value:,.1f}'
            f'<tspan x="{x}" dy="1.15em">{name}</tspan></text>'
            for value, end, kind, name in ((mixed, ends[0], "mixed", "with history"), (base, ends[1], "base", "base"))
        )

    def _axes(self) -> str:
        """Lines at a few round values."""
        every = [factor * 10.0**power for power in range(-1, 9) for factor in (1, 1.5, 2, 3, 5, 7)]
        shown = [value for value in every if self.low <= math.log10(value) <= self.high]
        left, end = self.frame.left, self.frame.width - self.frame.right
        return "".join(
            f'<line x1="{left}" x2="{end}" y1="{self._down(value):.1f}" y2="{self._down(value):.1f}"/>'
            f'<text class="lle-tick lle-right" x="{left - 8}" y="{self._down(value) + 4:.1f}">{value:,g}</text>'
            for value in shown[:: max(1, math.ceil(len(shown) / 5))]
        )
