"""Draws the pictures of the page in docs/serving.md: docs/pictures/page.png and page-narrow.png.

python -m scripts.page    half a minute, and another one for models that runs/ lacks; needs playwright and Chromium
"""

import contextlib
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from playwright.sync_api import Page, sync_playwright

from modeling_lle.serving.app import create_app
from modeling_lle.serving.limits import Limits
from modeling_lle.serving.page_demo import make_demo_models
from modeling_lle.serving.served import Models

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@contextlib.contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """The address of an application that is served meanwhile."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join(20)


def teach_label(page: Page, path: Path) -> None:
    """Teaches a label by one example, and keeps what is seen then."""
    page.locator("#text-classification-text textarea").fill("can i have a virtual card?")
    page.locator("#text-classification-right input").fill("virtual_card")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Teach this label").click()
    page.get_by_text("Taught.").wait_for()
    page.mouse.move(0, 0)
    page.wait_for_timeout(1000)
    page.screenshot(path=path, full_page=True)
    page.get_by_role("button", name="Undo the last lesson").click()
    page.get_by_text("Taken back").wait_for()


def main() -> None:
    """Draws both."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        models = Models.load(make_demo_models(ROOT / "runs", Path(folder)), Limits())
        with running(create_app(models, page=True)) as address:
            executable = next(filter(None, map(shutil.which, BROWSERS)), None)
            browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
            for name, width in (("page", 1000), ("page-narrow", 390)):
                page = browser.new_page(viewport={"width": width, "height": 700})
                page.goto(address)
                teach_label(page, PICTURES / f"{name}.png")
            browser.close()
        models.close(20)


if __name__ == "__main__":
    main()
