"""`lle explain` for every head, in the terminal and on the page; the page itself without and with a browser."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from modeling_lle import HistoryBank
from modeling_lle.cli import main as cli
from modeling_lle.evaluation.explanations import PAGE, write_page
from modeling_lle.history.explanation import Cause, Explanation
from tests.factories.classifiers import make_classifier
from tests.factories.language_models import make_language_model
from tests.factories.pairs import make_capitals_tokenizer
from tests.factories.texts import WORD_TOKENIZER
from tests.factories.translators import make_translator


def classifier() -> tuple[Any, Any]:
    model = make_classifier()
    model.learn(["a b", "c d"], ["one", "two"], WORD_TOKENIZER, new_labels=True)
    return model, WORD_TOKENIZER


def translator() -> tuple[Any, Any]:
    tokenizer = make_capitals_tokenizer()
    model = make_translator(tokenizer)
    pairs = [{"source": "ab", "target": "AB"}, {"source": "cd", "target": "CD"}]
    model.attach_history(HistoryBank.build(model, tokenizer, pairs), tokenizer=tokenizer)
    return model, tokenizer


def language_model() -> tuple[Any, Any]:
    return make_language_model(), WORD_TOKENIZER


def explained(page: Path) -> dict[str, Any]:
    found = re.search(r'id="explained">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return json.loads(found.group(1))


@pytest.mark.parametrize(
    ("make", "text", "unit", "count"),
    [(language_model, "a b a b", "token", 4), (classifier, "a b", "label", 3), (translator, "ab\ncd", "token", None)],
)
def test_every_head_is_explained(
    make: Callable[[], tuple[Any, Any]], text: str, unit: str, count: int | None, tmp_path: Path
) -> None:
    model, tokenizer = make()
    model.save_pretrained(tmp_path / "model", save_history=model.history_bank is not None)
    tokenizer.save_pretrained(tmp_path / "model")
    arguments = ["explain", str(tmp_path / "model"), text, "--output", str(tmp_path / "page.html")]
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    held = explained(tmp_path / "page.html")
    assert held["unit"] == unit
    assert bool(held["totals"]) == ("perplexity" in result.output) == (make is language_model)
    assert [passage["given"] for passage in held["passages"]] == (
        [None] if make is language_model else text.splitlines()
    )
    assert all(passage["tokens"] for passage in held["passages"])
    assert count is None or len(held["passages"][0]["tokens"]) == count
    if make is classifier:
        assert {cause["outcome"] for cause in held["passages"][0]["tokens"][0]["causes"]} <= {"one", "two"}


def make_page(path: Path, tokens: int = 300) -> Path:
    """A page of predictions, each recalled from ten tokens before and from a bank whose text holds markup."""
    ids = WORD_TOKENIZER("a b c d", add_special_tokens=False)["input_ids"]
    found = [
        Explanation(
            position=at,
            target=ids[at % 4],
            base_prob=0.1,
            prob=0.1 + 0.8 * (at % 7) / 7,
            base_share=0.5,
            causes=[
                Cause("stream", 0.2, 0.1, ids[at % 4], ids[:2], ids[2:], age=10),
                Cause("bank", 0.1, -0.01, ids[0], ids, [], id=3, place="<img src=x onerror=alert(1)>:1"),
            ],
            rest=0.01,
        )
        for at in range(tokens)
    ]
    return write_page(path, found, WORD_TOKENIZER, "<script>{{explained}}")


def test_the_page_has_what_keyboards_and_screen_readers_need() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for part in ('role="listbox"', '"option"', "aria-selected", 'role="status"', "prefers-color-scheme: dark"):
        assert part in page
    for key in ("ArrowRight", "ArrowUp", "Home", "End", "Enter", "Escape", '"n"', '"p"'):
        assert key in page
    assert "position: sticky" in page
    assert "innerHTML" not in page
    assert "default-src 'none'" in page


def test_a_title_fills_no_other_place(tmp_path: Path) -> None:
    text = make_page(tmp_path / "page.html", 2).read_text(encoding="utf-8")
    assert "<title>&lt;script&gt;{{explained}}</title>" in text
    assert "<img" not in text


@pytest.mark.browser
def test_a_browser_moves_by_keys_and_keeps_one_tab_stop(tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium")
    page = make_page(tmp_path / "page.html", 20_000)
    steps = """<script>
      const event = key => new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true });
      const press = (key, on) => on.dispatchEvent(event(key));
      const chosen = () => document.querySelector('[aria-selected="true"]').index, said = [];
      press("Home", text); said.push(chosen());
      press("ArrowRight", text); press("ArrowRight", text); said.push(chosen());
      press("ArrowDown", text); said.push(chosen() > 2);
      press("ArrowUp", text); said.push(chosen());
      press("n", document); said.push(chosen() > 2);
      press("End", text); said.push(chosen());
      said.push(document.querySelectorAll('.token[tabindex]').length, document.querySelectorAll("img").length);
      said.push(document.querySelectorAll(".recalled").length, document.activeElement.index);
      press("Enter", text); said.push(document.activeElement.id);
      press("Escape", document); said.push(document.activeElement.index);
      document.title = JSON.stringify(said);
    </script></body>"""
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", steps), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()]
    dumped = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    title = re.search(r"<title>(.*?)</title>", dumped)
    assert title is not None
    assert json.loads(title.group(1)) == [0, 2, True, 2, True, 19999, 1, 0, 1, 19999, "detail", 19999]


def test_an_empty_text_is_said_to_be_empty(tmp_path: Path) -> None:
    model, tokenizer = classifier()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    result = CliRunner().invoke(cli.app, ["explain", str(tmp_path), " "])
    assert "the text is empty" in str(result.exception)
