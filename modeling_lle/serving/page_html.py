"""What the page shows, as HTML and SVG: bars, entries, texts side by side, a list, a curve.

Notable: every text is escaped; no script, no font and no picture comes from elsewhere. Colours and sizes are those of
page_style.py.
"""

import html
import math
import re
from collections.abc import Sequence
from typing import Any

from .page_actions import LESSON, Bar, Curve, Held, Moved, Predicted, replaced_by

_LESSON_TIME = re.compile(re.escape(LESSON) + r"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d)\.\d+\+*(?: \{.*?\}\}?)?")
_ENTRY = re.compile(r"(:\d+)? \(entry \d+\)")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 260, 48, 104, 14, 30
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


def percent(value: float | None) -> str:
    """A probability in percent."""
    if value is None:
        return "-"
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
    was = {} if before is None else {bar.name: bar for bar in before.bars}
    is_token = found.text is not None
    rows = "".join(_row(bar, was.get(bar.name), before is not None, is_token) for bar in found.bars)
    title = "The next word or part of one" if is_token else "Labels"
    keys = '<span class="lle-key lle-mixed">with history</span><span class="lle-key lle-base">base model alone</span>'
    keys += '<span class="lle-key lle-was">before</span>' if before is not None else ""
    return (
        f'<section><h3>{title}</h3><p class="lle-keys">{keys}</p><ul class="lle-bars" aria-label="{title}">{rows}</ul>'
        "</section>"
    )


def _row(bar: Bar, was: Bar | None, has_before: bool, is_token: bool) -> str:
    name = token_name(bar.name) if is_token else escaped(bar.name)
    earlier = was.mixed if was is not None else None
    mark, change = "", ""
    if has_before and earlier is None and not is_token:
        earlier = 0.0
    if has_before and earlier is not None:
        mark = f'<i class="lle-mark" style="left:{_width(earlier)}%"></i>'
        if abs((bar.mixed or 0.0) - earlier) >= 0.0005:
            change = f' <small>was {percent(earlier)}</small>'
    return (
        f'<li><span class="lle-name">{name}</span><span class="lle-tracks" aria-hidden="true">'
        f'<span class="lle-track"><b class="lle-mixed" style="width:{_width(bar.mixed)}%"></b>{mark}</span>'
        f'<span class="lle-track lle-thin"><b class="lle-base" style="width:{_width(bar.base)}%"></b></span></span>'
        f'<span class="lle-value">{percent(bar.mixed)}{change}<em>base {percent(bar.base)}</em></span></li>'
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
            text = f"<p>{escaped(own.before)}<mark>{escaped(own.outcome) or '⏎'}</mark>{escaped(own.after)}</p>"
        else:
            text = f"<p>{escaped(own.before)}</p><p><mark>{escaped(own.outcome)}</mark></p>"
        effect = 100 * (own.effect or 0.0)
        sign = "+" if effect >= 0 else "−"
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
        empty = f"Nothing that was taught contains “{escaped(search)}”." if search.strip() else "Nothing was taught yet."
        return f'<p class="lle-empty">{empty}</p>'
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


def curve(found: Curve) -> str:
    """The running perplexity of a document, with history and by the base alone."""
    mixed, base = found.mixed, found.base
    skip = min(len(mixed) // 20, 20)  # the first tokens say little, and would set the scale
    values = [*mixed[skip:], *base[skip:]]
    low, high = math.log10(max(min(values), 1e-9)) - 0.03, math.log10(max(values)) + 0.03
    low, high = (low, high) if high - low > 0.15 else (low - 0.1, high + 0.1)

    def across(place: float) -> float:
        return LEFT + place / max(len(mixed) - 1, 1) * (WIDTH - LEFT - RIGHT)

    def down(value: float) -> float:
        return TOP + (high - math.log10(max(value, 1e-9))) / (high - low) * (HEIGHT - TOP - BOTTOM)

    lines = "".join(_line(own, skip, across, down, kind) for own, kind in ((base, "base"), (mixed, "mixed")))
    ends = [down(mixed[-1]), down(base[-1])]
    if abs(ends[0] - ends[1]) < 34:
        middle, sign = sum(ends) / 2, 1 if mixed[-1] <= base[-1] else -1
        ends = [middle + 17 * sign, middle - 17 * sign]
    names = "".join(
        f'<text class="lle-end lle-{kind}" x="{WIDTH - RIGHT + 8}" y="{end:.1f}">{own[-1]:,.1f}'
        f'<tspan x="{WIDTH - RIGHT + 8}" dy="1.15em">{name}</tspan></text>'
        for own, end, kind, name in ((mixed, ends[0], "mixed", "with history"), (base, ends[1], "base", "base alone"))
    )
    less = 100 * (1 - mixed[-1] / base[-1])
    said = f"{abs(less):.0f} % {'lower' if less >= 0 else 'higher'} with history, over {len(mixed):,} tokens"
    return (
        f'<figure class="lle-curve"><figcaption><h3>Perplexity as the document is read</h3><p>Lower is better: {said}.'
        f'</p></figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Running perplexity: {said}">'
        f"{_axes(low, high, down)}{lines}{names}"
        f'<text class="lle-tick" x="{LEFT}" y="{HEIGHT - 8}">first token</text><text class="lle-tick lle-right" '
        f'x="{WIDTH - RIGHT}" y="{HEIGHT - 8}">token {len(mixed):,}</text></svg></figure>'
    )


def _line(values: Sequence[float], skip: int, across: Any, down: Any, kind: str) -> str:
    step = max(1, len(values) // POINTS)
    places = [*range(skip, len(values) - 1, step), len(values) - 1]
    points = " ".join(f"{across(place):.1f},{down(values[place]):.1f}" for place in places)
    return f'<polyline class="lle-{kind}" points="{points}"/>'


def _axes(low: float, high: float, down: Any) -> str:
    """Lines at a few round values of a logarithmic axis."""
    every = [factor * 10.0**power for power in range(-1, 9) for factor in (1, 1.5, 2, 3, 5, 7)]
    shown = [value for value in every if low <= math.log10(value) <= high]
    kept = shown[:: max(1, math.ceil(len(shown) / 5))]
    return "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(value):.1f}" y2="{down(value):.1f}"/>'
        f'<text class="lle-tick lle-right" x="{LEFT - 8}" y="{down(value) + 4:.1f}">{value:,g}</text>'
        for value in kept
    )
