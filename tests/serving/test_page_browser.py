"""The page in headless Chromium: teach, see the change, undo, see it undone, by mouse and keyboard, wide and narrow.

LLE_SCREENSHOTS=FOLDER keeps the screenshots there.
"""

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright")

import uvicorn
from playwright.sync_api import Page, expect, sync_playwright

from modeling_lle.serving.app import create_app
from modeling_lle.serving.keys import Keys
from modeling_lle.serving.limits import Limits
from modeling_lle.serving.served import Models
from tests.factories.served import ANN, BOB, KEYS, make_served

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="apt-get install chromium")]
SIZES = {"wide": (1280, 900), "narrow": (390, 844)}
SECONDS = 30_000  # in milliseconds, until something must have happened


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with three tiny models and two keys."""
    folder, limits = tmp_path_factory.mktemp("histories"), Limits()
    models = Models({name: make_served(folder, name, limits) for name in ("label", "pair", "text")})
    app = create_app(models, Keys(KEYS), limits, page=True)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    own = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None, lifespan="off"))
    thread = threading.Thread(target=own.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not own.started and time.monotonic() < until:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/"
    own.should_exit = True
    thread.join(20)
    assert models.close(20)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=SIZES)
def page(request: pytest.FixtureRequest, browser: Any, server: str) -> Iterator[Page]:
    """The page of ann; fails if the console has shown an error, or anything was asked of another server."""
    width, height = SIZES[request.param]
    page: Page = browser.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(SECONDS)
    expect.set_options(timeout=SECONDS)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(f"{error}\n{error.stack}"))
    page.on("request", lambda own: None if own.url.startswith((server, "data:")) else problems.append(own.url))
    page.goto(server)
    page.get_by_label("Your key").fill(ANN)
    page.keyboard.press("Enter")
    yield page
    overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    page.close()
    assert problems == []
    assert overflow <= 0, "the page is wider than the screen"


def keep(page: Page, name: str) -> None:
    """A screenshot, if they are wanted."""
    folder = os.environ.get("LLE_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(700)
        size = page.viewport_size or {}
        page.screenshot(path=Path(folder) / f"{name}-{size.get('width')}.png", full_page=True)


def choose(page: Page, name: str) -> None:
    page.get_by_role("radio", name=f"{name}, ").check()


def write_label(page: Page, label: str) -> None:
    """Writes a label that the list does not have, once the list is there."""
    page.locator("#text-classification-right input").click()
    expect(page.get_by_role("option").first).to_be_visible()
    page.locator("#text-classification-right input").fill(label)
    page.keyboard.press("Enter")


def test_a_label_is_taught_changes_the_prediction_and_is_undone(page: Page) -> None:
    choose(page, "label")
    page.locator("#text-classification-text textarea").fill("a b c d")
    page.get_by_role("button", name="Classify").click()
    result = page.locator("#text-classification-result")
    expect(result).to_contain_text("100 % from the base model")
    before = result.inner_text()
    keep(page, "label-before")
    write_label(page, "of ann")
    page.get_by_role("button", name="Teach this label").click()
    expect(page.locator("#text-classification-note")).to_contain_text("Taught.")
    expect(result.locator(".lle-bars li").first).to_contain_text("of ann")
    expect(result).to_contain_text("What moved of ann")
    expect(result).to_contain_text("taught on this page")
    keep(page, "label-taught")
    page.get_by_role("button", name="Undo the last lesson").click()
    expect(page.locator("#text-classification-note")).to_contain_text("Taken back, exactly")
    expect(result).not_to_contain_text("of ann")
    page.get_by_role("button", name="Classify").click()
    expect(result).to_have_text(before, use_inner_text=True)
    keep(page, "label-undone")


def test_a_pair_is_taught_changes_the_translation_and_is_undone(page: Page) -> None:
    choose(page, "pair")
    page.locator("#translation-text textarea").fill("a b c")
    page.get_by_role("button", name="Translate").click()
    result = page.locator("#translation-result")
    expect(result).to_contain_text("100 % from the base model")
    page.locator("#translation-right textarea").fill("z z z")
    page.get_by_role("button", name="Teach this pair").click()
    expect(result).to_contain_text("Sentence pairs that moved the translation")
    expect(result).to_contain_text("Before")
    keep(page, "pair-taught")
    page.get_by_role("button", name="Undo the last lesson").click()
    expect(page.locator("#translation-note")).to_contain_text("Taken back, exactly")
    expect(result).to_contain_text("100 % from the base model")


def test_a_document_is_plotted_taught_searched_and_forgotten(page: Page) -> None:
    choose(page, "text")
    page.locator("#text-generation-text textarea").fill("h g")
    page.locator("#text-generation-right textarea").fill("a b c d e f g h " * 12)
    page.get_by_role("button", name="Plot its perplexity").click()
    expect(page.locator("#text-generation-curve svg:visible")).to_have_count(1)
    page.get_by_role("button", name="Teach this document").click()
    expect(page.locator("#text-generation-note")).to_contain_text("Taught.")
    keep(page, "document-taught")
    page.get_by_role("tab", name="History").click()
    held = page.locator("#history-list li")
    expect(held).to_have_count(1)
    page.get_by_label("Search").fill("nothing like it")
    expect(page.locator("#history-list")).to_contain_text("Nothing that was taught contains")
    page.get_by_label("Search").fill("f g h")
    expect(held).to_have_count(1)
    keep(page, "history")
    page.locator("#source input").click()
    page.get_by_role("option").first.click()
    page.get_by_role("button", name="Forget it").click()
    expect(page.locator("#history-done")).to_contain_text("Forgotten, exactly")
    expect(held).to_have_count(0)


def test_the_keyboard_alone_does_it(page: Page) -> None:
    choose(page, "label")
    page.locator("#text-classification-text textarea").focus()
    page.keyboard.type("d d e")
    page.keyboard.press("Shift+Enter")
    expect(page.locator("#text-classification-result .lle-bars")).to_be_visible()
    for _ in range(2):
        page.keyboard.press("Tab")
    expect(page.get_by_role("option").first).to_be_visible()
    page.keyboard.type("by keyboard")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#text-classification-note")).to_contain_text("Taught.")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(page.locator("#text-classification-note")).to_contain_text("Taken back, exactly")


def test_another_key_shows_nothing_of_it_and_a_wrong_one_says_so(page: Page) -> None:
    choose(page, "label")
    page.locator("#text-classification-text textarea").fill("e e e")
    write_label(page, "secret of ann")
    page.get_by_role("button", name="Teach this label").click()
    expect(page.locator("#text-classification-note")).to_contain_text("Taught.")
    page.get_by_label("Your key").fill(BOB)
    page.keyboard.press("Enter")
    expect(page.locator("body")).not_to_contain_text("secret of ann")
    page.get_by_role("button", name="Classify").click()
    expect(page.locator("#text-classification-result")).to_contain_text("100 % from the base model")
    page.get_by_label("Your key").fill("a key that nobody has")
    page.get_by_role("button", name="Classify").click()
    expect(page.get_by_role("alert")).to_contain_text("This key is not known here")
    keep(page, "wrong-key")
    page.get_by_label("Your key").fill(ANN)
    page.get_by_role("button", name="Undo the last lesson").click()
    expect(page.locator("#text-classification-note")).to_contain_text("Taken back, exactly")
