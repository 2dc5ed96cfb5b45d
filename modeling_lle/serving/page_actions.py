"""What the page does with a model: predict, teach, undo, search, and read a document; all through the API.

Notable: nothing is remembered between two steps. A lesson of the page has its time as its source, so the newest of
these is what "undo" takes back, after a reload or a restart too. Where a lesson has replaced a label, its source says
which one and where that came from, so that undo brings it back.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote

from ..history.label_rule import MULTI, REGRESSION
from ..tasks import CLASSIFICATION, LANGUAGE
from .history_routes import PAGE as MOST_LISTED
from .page_client import PageClient, PageError
from .served import Models, Served

LESSON = "page "  # begins the sources of what is taught here
LONGEST_SOURCE = 256
CAUSES = 6
NEW_TOKENS = 32
LISTED = 50


@dataclass(frozen=True)
class Bar:
    """An outcome and its probability, with history and by the base alone; None: too small to be told."""

    name: str
    mixed: float | None
    base: float | None


@dataclass(frozen=True)
class Moved:
    """An entry that moved a prediction.

    Attributes:
        before, outcome, after: Its text around its outcome; of an example its text and label, of a pair both sides.
        share: Its share of the prediction.
        effect: By how much it moved the outcome; None: only the share is known.
        where: Where it comes from.
        match: Of a pair, how like the text its source is; None: it is no pair.
    """

    before: str
    outcome: str
    after: str
    share: float
    effect: float | None
    where: str
    match: float | None = None


@dataclass(frozen=True)
class Predicted:
    """A prediction, and why it is what it is.

    Attributes:
        outcome: The label, next token or translation.
        bars: Outcomes, the most probable ones with history first; none of a translation.
        moved: Entries that moved it.
        base_share: The share of the base in it.
        text, base_text: What a language model or translator writes, and what its base writes alone.
        least: What the probabilities that are None do not reach, with history and by the base.
    """

    outcome: str
    bars: list[Bar]
    moved: list[Moved]
    base_share: float
    text: str | None = None
    base_text: str | None = None
    least: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Curve:
    """Perplexity of a document after each token, with history and by the base alone."""

    mixed: list[float]
    base: list[float]


@dataclass(frozen=True)
class Held:
    """What a tenant has taught a model, as far as it was searched for."""

    entries: int
    sources: list[str]
    rows: list[dict[str, Any]]
    more: bool


@dataclass
class Actions:
    """The steps of the page.

    Attributes:
        client: Asks the server.
        models: The models, which are only looked up.
    """

    client: PageClient
    models: Models
    _last: str = field(default="", repr=False)

    async def predict(self, name: str, key: str, text: str) -> Predicted:
        """Predicts from a text, by the task of the model; raises a PageError."""
        if not text.strip():
            raise PageError("write a text first")
        served = self.models.get(name)
        if served.task == LANGUAGE:
            return await self._completed(served, key, text)
        if served.task == CLASSIFICATION:
            return await self._classified(served, key, text)
        return await self._translated(served, key, text)

    async def _classified(self, served: Served, key: str, text: str) -> Predicted:
        body = {"model": served.name, "inputs": text}
        told = await self.client.ask(
            "POST", "/predict", key, json={**body, "return_history": True, "history_top": CAUSES}
        )
        alone = await self.client.ask("POST", "/predict", key, json={**body, "use_history": False})
        mixed = {item["label"]: item["score"] for item in told["labels"]}
        base = {item["label"]: item["score"] for item in alone}
        first = told["labels"][0]["label"]
        bars = [Bar(label, score, base.get(label, 0.0)) for label, score in mixed.items()]
        why = told["history"][0]
        return Predicted(first, bars, [_example(cause) for cause in why["causes"]], why["base_share"])

    async def _completed(self, served: Served, key: str, text: str) -> Predicted:
        body = {"model": served.name, "prompt": text, "temperature": 0, "max_tokens": NEW_TOKENS, "logprobs": 20}
        ask = {**body, "return_history": True, "history_top": CAUSES}
        told = (await self.client.ask("POST", "/v1/completions", key, json=ask))["choices"][0]
        alone = await self.client.ask("POST", "/v1/completions", key, json={**body, "use_history": False})
        mixed, base = (_first_place(choice) for choice in (told, alone["choices"][0]))
        bars = [Bar(token, mixed.get(token), base.get(token)) for token in {**mixed, **base}]
        bars.sort(key=lambda bar: -(bar.mixed or 0.0))
        why: dict[str, Any] = told["history"][0] if told["history"] else {"causes": [], "base_share": 1.0}
        first = bars[0].name if bars else ""
        moved = [_token(cause) for cause in why["causes"]]
        least = min(mixed.values(), default=0.0), min(base.values(), default=0.0)
        texts = told["text"], alone["choices"][0]["text"]
        return Predicted(first, bars, moved, why["base_share"], *texts, least)

    async def _translated(self, served: Served, key: str, text: str) -> Predicted:
        assert served.languages is not None
        body = {"q": text, "source": served.languages[0], "target": served.languages[1]}
        ask = {**body, "return_history": True, "history_top": CAUSES}
        told = await self.client.ask("POST", "/translate", key, json=ask)
        alone = await self.client.ask("POST", "/translate", key, json={**body, "use_history": False})
        moved = [
            Moved(own["text"], own["translation"], "", own["share"], None, _place(own), own["match"])
            for own in told["history"]["history"]
        ]
        text = told["translatedText"]
        return Predicted(text, [], moved, told["history"]["base_share"], text, alone["translatedText"])

    async def labels(self, name: str, key: str) -> list[str]:
        """The labels that a classifier knows for a tenant."""
        found = await self.client.ask("GET", "/info", key, params={"model": name})
        return list(found["model_type"]["classifier"]["id2label"].values())

    async def teach(self, name: str, key: str, text: str, right: str = "") -> str:
        """Teaches a text, with its right label or translation; returns what was done, in words."""
        served = self.models.get(name)
        if not text.strip():
            raise PageError("write a text first")
        if served.task != LANGUAGE and not right.strip():
            noun = "label" if served.task == CLASSIFICATION else "translation"
            raise PageError(f"say which {noun} is right")
        lesson: dict[str, Any] = {"source": self._source()}
        if served.task == LANGUAGE:
            lesson["texts"] = [text]
        elif served.task == CLASSIFICATION:
            label = _label(served, right)
            lesson |= {"examples": [{"text": text, "label": label}], "new_labels": True, "relabel": True}
            lesson["source"] += await self._replaced(name, key, text)
            if served.model.kind == REGRESSION:
                del lesson["new_labels"]
        else:
            lesson["pairs"] = [{"source": text, "target": right}]
        done = await self.client.ask("POST", f"/v1/history/{quote(name)}", key, json=lesson)
        if not done["added"]:
            return "This is known already: nothing was added."
        return f"Taught. The history has {_entries(done['entries'])} now."

    def _source(self) -> str:
        """The source of a lesson, later than all others of this server."""
        now = LESSON + datetime.now().isoformat(" ", "microseconds")
        self._last = now if now > self._last else self._last + "+"
        return self._last

    async def _replaced(self, name: str, key: str, text: str) -> str:
        """What the source of a lesson says of the label that it replaces; "" if there is none."""
        for row in await self._rows(name, key, text[:1000]):
            if row["text"] == text and row["namespace"] == "default":
                said = json.dumps({"was": row["label"], "in": row["source"]})
                if len(LESSON) + 30 + len(said) > LONGEST_SOURCE:
                    raise PageError("this text has been relabelled many times: undo, or forget it first")
                return " " + said
        return ""

    async def _rows(self, name: str, key: str, search: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        offset: int | None = 0
        while offset is not None:
            params = {"search": search, "limit": MOST_LISTED, "offset": offset}
            page = await self.client.ask("GET", f"/v1/history/{quote(name)}", key, params=params)
            found += page["data"]
            offset = page["next"]
        return found

    async def undo(self, name: str, key: str) -> str:
        """Takes back the last lesson of the page; returns what was done, in words."""
        path = f"/v1/history/{quote(name)}"
        held = await self.client.ask("GET", path, key, params={"limit": 0})
        lessons = [item["source"] for item in held["sources"] if item["source"].startswith(LESSON)]
        if not lessons:
            raise PageError("there is nothing to undo: this page has taught nothing, or all of it was taken back")
        last = max(lessons)
        found = await self.client.ask("GET", path, key, params={"source": last, "limit": MOST_LISTED})
        done = await self.client.ask("DELETE", path, key, json={"source": last})
        was = replaced_by(last)
        if was and found["data"]:
            await self._restore(name, key, found["data"][0]["text"], was)
            return f"Taken back: the text has its earlier label {was['was']} again."
        return f"Taken back, exactly. The history has {_entries(done['entries'])} now."

    async def _restore(self, name: str, key: str, text: str, was: dict[str, str]) -> None:
        """Teaches the label that a lesson had replaced, as it was taught before."""
        served = self.models.get(name)
        label = json.loads(was["was"]) if served.model.kind == MULTI else _label(served, was["was"])
        lesson: dict[str, Any] = {"examples": [{"text": text, "label": label}], "source": was["in"]}
        lesson |= {} if served.model.kind == REGRESSION else {"new_labels": True}
        await self.client.ask("POST", f"/v1/history/{quote(name)}", key, json=lesson)

    async def history(self, name: str, key: str, search: str = "") -> Held:
        """What was taught, the newest first where all of it is listed."""
        params: dict[str, Any] = {"limit": MOST_LISTED} | ({"search": search.strip()[:1000]} if search.strip() else {})
        found = await self.client.ask("GET", f"/v1/history/{quote(name)}", key, params=params)
        rows = list(reversed(found["data"]))
        more = found["next"] is not None or len(rows) > LISTED
        return Held(found["entries"], [item["source"] for item in found["sources"]], rows[:LISTED], more)

    async def forget(self, name: str, key: str, source: str) -> str:
        """Takes back a source; returns what was done, in words."""
        if not source:
            raise PageError("choose what to forget")
        done = await self.client.ask("DELETE", f"/v1/history/{quote(name)}", key, json={"source": source})
        return f"Forgotten, exactly. The history has {_entries(done['entries'])} now."

    async def perplexity(self, name: str, key: str, text: str) -> Curve:
        """Reads a document as a stream, with history and by the base alone."""
        if not text.strip():
            raise PageError("paste a document first")
        body = {"model": name, "prompt": text, "max_tokens": 0, "echo": True, "logprobs": 0}
        found = []
        for use in (None, False):
            answer = await self.client.ask("POST", "/v1/completions", key, json={**body, "use_history": use})
            found.append(_running(answer["choices"][0]["logprobs"]["token_logprobs"]))
        if len(found[0]) < 2:
            raise PageError("the document is too short: paste some sentences")
        return Curve(*found)


def replaced_by(source: str) -> dict[str, str] | None:
    """The label that a lesson has replaced, and the source of that; None if there was none."""
    _, brace, rest = source.partition(" {")
    return dict(json.loads(brace[1:] + rest)) if source.startswith(LESSON) and brace else None


def _running(logprobs: Sequence[float | None]) -> list[float]:
    """The perplexity of a text after each of its tokens but the first."""
    total, found = 0.0, []
    for number, value in enumerate((value for value in logprobs if value is not None), start=1):
        total -= value
        found.append(math.exp(min(total / number, 100.0)))
    return found


def _first_place(choice: dict[str, Any]) -> dict[str, float]:
    """The most probable tokens at the first place of a completion, with their probabilities."""
    places = choice["logprobs"]["top_logprobs"]
    return {token: math.exp(value) for token, value in places[0].items()} if places else {}


def _example(cause: dict[str, Any]) -> Moved:
    text = str(cause.get("columns", {}).get("text", cause["before"]))
    return Moved(text, cause["outcome"], "", cause["share"], cause["effect"], cause["where"])


def _token(cause: dict[str, Any]) -> Moved:
    source = {"stream": "this text, ", "matches": "this text, "}.get(cause["source"], "")
    texts = cause["before"], cause["outcome"], cause["after"]
    return Moved(*texts, cause["share"], cause["effect"], source + cause["where"])


def _place(pair: dict[str, Any]) -> str:
    return str(pair.get("where") or f"{pair['source']}:{pair['row']}")


def _label(served: Served, text: str) -> Any:
    """A label as the API takes it; raises a PageError if it is none."""
    kind = served.model.kind
    if kind == MULTI:
        return [part.strip() for part in text.split(",") if part.strip()]
    if kind != REGRESSION:
        return text.strip()
    try:
        return float(text)
    except ValueError:
        raise PageError("the value must be a number") from None


def _entries(count: int) -> str:
    return f"{count:,} {'entry' if count == 1 else 'entries'}"
