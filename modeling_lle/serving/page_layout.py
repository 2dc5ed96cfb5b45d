"""The page in gradio: its parts, and what happens when they are used.

Notable: nothing of a tenant is kept here. The key goes with every step, to the API and nowhere else.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr
from fastapi import FastAPI

from ..tasks import CLASSIFICATION, LANGUAGE, TRANSLATION, Task
from . import page_html
from .errors import ServingError
from .page_actions import Actions, Predicted
from .page_client import PageClient, PageError
from .state import Serving

INTRODUCTION = (
    "<div class='lle-head'><h1>Models that learn from what they read</h1><p>Try a model, teach it in a second, see "
    "what changed and why, and take it back.</p></div>"
)
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
_HUE = gr.themes.Color("#f1f7f7", "#e0eeee", "#c3dede", "#9cc8ca", "#6aa9ad", "#3d8990", "#1f6f78", *("#185a62",) * 4)
_PROMPTS = {
    CLASSIFICATION.name: ("Text", "A text to classify", "Classify"),
    TRANSLATION.name: ("Text", "A text to translate", "Translate"),
    LANGUAGE.name: ("Text", "The beginning of a text, which the model goes on with", "Continue"),
}


def make_theme() -> gr.themes.Base:
    """Plain, with the fonts of the system."""
    theme = gr.themes.Base(
        primary_hue=_HUE,
        neutral_hue="stone",
        font=_FONTS,
        font_mono=("ui-monospace", "monospace"),
        radius_size="sm",
    )
    return theme.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_text_color="white",
        button_primary_background_fill_dark="*primary_700",
        block_shadow="none",
    )


@dataclass
class Steps:
    """What happens on the page, with errors in words.

    Attributes:
        actions: What is done.
    """

    actions: Actions

    async def predict(self, model: str, key: str, text: str) -> tuple[str, str]:
        """A note, and a prediction."""
        return await _told(self._predicted(model, key, text))

    async def _predicted(self, model: str, key: str, text: str) -> tuple[str, str]:
        return "", page_html.prediction(await self.actions.predict(model, key, text))

    async def teach(self, model: str, key: str, text: str, right: str | None) -> tuple[str, str]:
        """Teaches the right label or translation of a text, or a document; the prediction before and after."""
        is_language = self.actions.models.get(model).task == LANGUAGE
        lesson = (right or "", "") if is_language else (text, right or "")
        return await self._changed(model, key, text, lambda: self.actions.teach(model, key, *lesson))

    async def undo(self, model: str, key: str, text: str) -> tuple[str, str]:
        """Takes back the last lesson; the prediction before and after."""
        return await self._changed(model, key, text, lambda: self.actions.undo(model, key))

    async def _changed(self, model: str, key: str, text: str, change: Callable[[], Awaitable[str]]) -> tuple[str, Any]:
        async def run() -> tuple[str, Any]:
            before = await self._prediction(model, key, text)
            said = await change()
            after = await self._prediction(model, key, text)
            shown = gr.skip() if after is None else page_html.prediction(after, before)
            return page_html.note(said), shown

        return await _told(run())

    async def _prediction(self, model: str, key: str, text: str) -> Predicted | None:
        return await self.actions.predict(model, key, text) if text.strip() else None

    async def plot(self, model: str, key: str, document: str) -> tuple[str, str]:
        """A note, and the running perplexity of a document."""

        async def run() -> tuple[str, str]:
            return "", page_html.curve(await self.actions.perplexity(model, key, document))

        return await _told(run())

    async def plot_again(self, model: str, key: str, document: str, shown: str | None) -> Any:
        """The plot after a lesson, if there was one before."""
        return (await self.plot(model, key, document))[1] if shown and document.strip() else gr.skip()

    async def labels(self, model: str, key: str) -> Any:
        """The labels to choose from; none for other models, and without a valid key."""
        return gr.update(choices=await self._labels(model, key))

    async def still_known(self, model: str, key: str, chosen: str | None) -> Any:
        """Leaves a label chosen if it is still known: gradio's list would look for its place."""
        return gr.skip() if not chosen or chosen in await self._labels(model, key) else gr.update(value=None)

    async def _labels(self, model: str, key: str) -> list[str]:
        if self.actions.models.get(model).task != CLASSIFICATION:
            return []
        try:
            return await self.actions.labels(model, key)
        except (PageError, ServingError):
            return []

    async def history(self, model: str, key: str, search: str) -> tuple[str, str, Any]:
        """A note, what was taught, and the sources of it to choose from."""

        async def run() -> tuple[str, str, Any]:
            found = await self.actions.history(model, key, search)
            choices = [(page_html.source_name(source), source) for source in found.sources]
            return "", page_html.held(found, search), gr.update(choices=choices, value=None)

        return await _told(run(), "", gr.update(choices=[], value=None))

    async def forget(self, model: str, key: str, source: str | None) -> str:
        """Takes back a source."""

        async def run() -> tuple[str]:
            return (page_html.note(await self.actions.forget(model, key, source or "")),)

        return str((await _told(run()))[0])


async def _told(step: Awaitable[Any], *otherwise: Any) -> Any:
    """What a step gives; if it fails, a note that says so, and what is shown beside it."""
    try:
        return await step
    except (PageError, ServingError) as error:
        return page_html.note(str(error), "error"), *(otherwise or (gr.skip(),))


def make_page(app: FastAPI, serving: Serving) -> gr.Blocks:
    """The page of a server.

    Args:
        app: The application, which the page asks.
        serving: What its routes share.
    """
    steps = Steps(Actions(PageClient(app), serving.models))
    served = list(serving.models.of.values())
    tasks = list({own.task.name: own.task for own in served}.values())
    with gr.Blocks(title="modeling_lle", analytics_enabled=False) as page:
        gr.HTML(INTRODUCTION)
        needs_key = serving.keys.required
        about: dict[str, Any] = {"info": "Press Enter after it.", "visible": needs_key, "elem_id": "key"}
        key = gr.Textbox("", label="Your key", type="password", max_lines=1, **about)
        choices = [(f"{own.name}, {own.task.noun}", own.name) for own in served]
        model = gr.Radio(choices, value=served[0].name, label="Model", visible=len(served) > 1, elem_id="model")
        with gr.Tabs():
            with gr.Tab("Predict and teach"):
                panels = [_Panel(task, steps, model, key, task == tasks[0]) for task in tasks]
            with gr.Tab("History") as tab:
                history = _History(steps, model, key)
        for panel in panels:
            model.change(panel.shown(serving.models.get), model, [panel.group, *panel.cleared], **_QUIET)
            empty = ["" for _ in panel.cleared]
            key.change(None, None, panel.cleared, js=f"() => {empty}", **_QUIET)  # what one tenant sees goes with it
            panel.refresh(model.change, key.submit, page.load)
        history.refresh(model.change, tab.select, key.submit)
    page.queue(max_size=serving.limits.queue, default_concurrency_limit=serving.limits.batch, api_open=False)
    return page


_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
_SHOWN: dict[str, Any] = {"show_progress": "minimal", "api_visibility": "private"}


class _Panel:
    """Where models of a task predict and are taught.

    Args:
        task: The task.
        steps: What happens.
        model, key: The chosen model and the key.
        visible: Whether it is shown at first.
    """

    def __init__(self, task: Task, steps: Steps, model: gr.Radio, key: gr.Textbox, visible: bool) -> None:
        self.task, self.steps, self.model, self.key = task, steps, model, key
        label, placeholder, verb = _PROMPTS[task.name]
        ids = task.name
        self.curve: gr.HTML | None = None
        with gr.Column(visible=visible) as self.group:
            self.text = gr.Textbox(
                "",
                label=label,
                placeholder=placeholder,
                lines=3,
                max_lines=12,
                elem_id=f"{ids}-text",
                info="Shift and Enter does what the button does.",
            )
            with gr.Row(elem_classes="lle-buttons"):
                predict = gr.Button(verb, variant="primary", elem_id=f"{ids}-predict")
            self._add_lesson(ids)
            with gr.Row(elem_classes="lle-buttons"):
                plot = gr.Button("Plot its perplexity", elem_id=f"{ids}-plot", visible=task == LANGUAGE)
                teach = gr.Button(self._teach, elem_id=f"{ids}-teach")
                undo = gr.Button("Undo the last lesson", elem_id=f"{ids}-undo")
            self.note = gr.HTML(elem_id=f"{ids}-note", padding=False)
            if task == LANGUAGE:
                self.curve = gr.HTML(elem_id=f"{ids}-curve", padding=False)
            self.result = gr.HTML(elem_id=f"{ids}-result", padding=False)
        asked, told = [model, key, self.text], [self.note, self.result]
        gr.on([predict.click, self.text.submit], steps.predict, asked, told, **_SHOWN)
        done = [
            teach.click(steps.teach, [*asked, self.right], told, **_SHOWN),
            undo.click(steps.undo, asked, told, **_SHOWN),
        ]
        if self.curve is not None:
            read = [model, key, self.right]
            plot.click(steps.plot, read, [self.note, self.curve], **_SHOWN)
            for event in done:
                event.then(steps.plot_again, [*read, self.curve], self.curve, **_SHOWN)
        if task == CLASSIFICATION:
            teaching, undoing = done
            teaching.then(steps.labels, [model, key], self.right, **_QUIET)
            known = undoing.then(steps.still_known, [model, key, self.right], self.right, **_QUIET)
            known.then(steps.labels, [model, key], self.right, **_QUIET)

    def _add_lesson(self, ids: str) -> None:
        """Adds what is taught."""
        self.right: Any
        if self.task == CLASSIFICATION:
            self._teach = "Teach this label"
            options: dict[str, Any] = {"allow_custom_value": True, "value": None, "elem_id": f"{ids}-right"}
            self.right = gr.Dropdown([], label="The right label", info="Choose one, or write a new one.", **options)
        elif self.task == TRANSLATION:
            self._teach = "Teach this pair"
            self.right = gr.Textbox("", label="The right translation", lines=2, max_lines=12, elem_id=f"{ids}-right")
        else:
            self._teach = "Teach this document"
            self.right = gr.Textbox("", label="A document", lines=5, max_lines=14, elem_id=f"{ids}-right")

    @property
    def cleared(self) -> list[Any]:
        """What belongs to one model only."""
        return [self.note, self.result, *([] if self.curve is None else [self.curve])]

    def shown(self, get: Callable[[str], Any]) -> Callable[[str], list[Any]]:
        """Makes what shows or hides the panel, and clears it."""

        def show(name: str) -> list[Any]:
            return [gr.update(visible=get(name).task == self.task), *("" for _ in self.cleared)]

        return show

    def refresh(self, *events: Any) -> None:
        """Reads the labels of a classifier again after some events."""
        if self.task == CLASSIFICATION:
            for event in events:
                cleared = event(None, None, self.right, js="() => null", **_QUIET)
                cleared.then(self.steps.labels, [self.model, self.key], self.right, **_QUIET)


class _History:
    """Where what was taught is listed, searched and forgotten.

    Args:
        steps: What happens.
        model, key: The chosen model and the key.
    """

    def __init__(self, steps: Steps, model: gr.Radio, key: gr.Textbox) -> None:
        self.search = gr.Textbox(
            "",
            label="Search",
            placeholder="A part of a text, label or translation",
            max_lines=1,
            elem_id="search",
        )
        self.source = gr.Dropdown([], label="Forget all that was taught as", elem_id="source")
        with gr.Row(elem_classes="lle-buttons"):
            forget = gr.Button("Forget it", elem_id="forget")
        self.done = gr.HTML(elem_id="history-done", padding=False)
        self.note = gr.HTML(elem_id="history-note", padding=False)
        self.list = gr.HTML(elem_id="history-list", padding=False)
        self._read: tuple[Any, ...] = (
            steps.history,
            [model, key, self.search],
            [self.note, self.list, self.source],
        )
        self.search.submit(*self._read, **_QUIET)
        self.search.change(*self._read, trigger_mode="always_last", **_QUIET)
        forget.click(steps.forget, [model, key, self.source], self.done, **_SHOWN).then(*self._read, **_QUIET)

    def refresh(self, *events: Any) -> None:
        """Reads the history again after some events."""
        for event in events:
            event(*self._read, **_QUIET)
            event(lambda: "", None, self.done, **_QUIET)
