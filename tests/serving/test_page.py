"""The page teaches, shows the change, takes it back and searches, by the API and for one tenant only."""

import asyncio
import html
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

pytest.importorskip("gradio")

from modeling_lle.serving import page_html
from modeling_lle.serving.app import create_app
from modeling_lle.serving.keys import Keys
from modeling_lle.serving.limits import Limits
from modeling_lle.serving.page import MISSING, OFF
from modeling_lle.serving.page_actions import Actions, Curve, replaced_by
from modeling_lle.serving.page_client import PageClient, PageError
from modeling_lle.serving.page_layout import Steps
from modeling_lle.serving.served import Models
from tests.factories.served import ANN, BOB, KEYS, READER, bearer, make_served

Make = Callable[..., TestClient]
TEXT = "a b c d"


def run(step: Any) -> Any:
    """What a step of the page gives."""
    return asyncio.run(step)


def actions_of(client: TestClient) -> Actions:
    """The page's actions on the server of a client."""
    app: Any = client.app
    return Actions(PageClient(app), app.state.serving.models)


def plain(shown: str) -> str:
    """The text of some HTML."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", shown)).split())


def probability(found: Any, name: str) -> float:
    return next((bar.mixed for bar in found.bars if bar.name == name), 0.0)


def test_a_label_is_taught_seen_and_undone(make: Make) -> None:
    actions = actions_of(make("label"))
    before = run(actions.predict("label", "", TEXT))
    assert before.moved == []
    assert all(bar.mixed == pytest.approx(bar.base) for bar in before.bars)
    assert run(actions.teach("label", "", TEXT, "new")).startswith("Taught.")
    after = run(actions.predict("label", "", TEXT))
    assert (after.outcome, after.moved[0].before, after.moved[0].outcome) == ("new", TEXT, "new")
    assert probability(after, "new") > 0.5
    assert "new" in run(actions.labels("label", ""))
    shown = plain(page_html.prediction(after, before))
    assert "What moved “new”" in shown.replace('"', "") or "What moved new" in shown
    assert "taught on this page, 20" in shown
    assert "was 0" in shown
    assert "exactly" in run(actions.undo("label", ""))
    assert run(actions.predict("label", "", TEXT)) == before
    with pytest.raises(PageError, match="nothing to undo"):
        run(actions.undo("label", ""))


def test_undo_brings_back_the_labels_that_lessons_have_replaced_one_after_another(make: Make) -> None:
    actions = actions_of(make("label"))
    states = []
    for label in ("one", "two", "three"):
        run(actions.teach("label", "", TEXT, label))
        states.append(run(actions.predict("label", "", TEXT)))
    assert [state.outcome for state in states] == ["one", "two", "three"]
    for state in states[1::-1]:
        assert "earlier label" in run(actions.undo("label", ""))
        found = run(actions.predict("label", "", TEXT))
        assert found.bars == state.bars
        assert [own.before for own in found.moved] == [own.before for own in state.moved]
    run(actions.undo("label", ""))
    assert run(actions.history("label", "")).entries == 0


def test_a_pair_is_taught_seen_and_undone(make: Make) -> None:
    actions = actions_of(make("pair"))
    before = run(actions.predict("pair", "", "a b c"))
    run(actions.teach("pair", "", "a b c", "z z z"))
    after = run(actions.predict("pair", "", "a b c"))
    assert after.text != before.text
    assert (after.base_text, before.text) == (before.text, before.base_text)
    (pair,) = after.moved
    assert (pair.before, pair.outcome, pair.match) == ("a b c", "z z z", 1.0)
    assert after.base_share + pair.share == pytest.approx(1, abs=1e-4)
    assert "Before" in page_html.prediction(after, before)
    run(actions.undo("pair", ""))
    assert run(actions.predict("pair", "", "a b c")) == before


def test_a_document_is_taught_seen_and_undone(make: Make) -> None:
    actions = actions_of(make("text"))
    before = run(actions.predict("text", "", "h g"))
    curve = run(actions.perplexity("text", "", "a b c d e f g h"))
    run(actions.teach("text", "", "a b c d e f g h " * 4))
    after, taught = (
        run(actions.predict("text", "", "h g")),
        run(actions.perplexity("text", "", "a b c d e f g h")),
    )
    assert after.base_text == before.base_text
    base = {bar.name: bar.base for bar in before.bars}
    assert all(bar.base == base.get(bar.name, bar.base) for bar in after.bars)
    assert any("page" in own.where for own in after.moved)
    assert taught.base == pytest.approx(curve.base)
    assert taught.mixed != pytest.approx(curve.mixed)
    run(actions.undo("text", ""))
    assert run(actions.predict("text", "", "h g")) == before


def test_the_shares_and_effects_are_those_of_the_api(make: Make) -> None:
    client = make("label")
    actions = actions_of(client)
    run(actions.teach("label", "", TEXT, "new"))
    found = run(actions.predict("label", "", TEXT))
    told = client.post("/predict", json={"inputs": TEXT, "return_history": True}).json()
    assert {bar.name: bar.mixed for bar in found.bars} == {item["label"]: item["score"] for item in told["labels"]}
    (why,) = told["history"]
    assert found.base_share == why["base_share"]
    assert [own.effect for own in found.moved] == [cause["effect"] for cause in why["causes"]]


def test_the_history_is_searched_listed_and_forgotten_by_source(make: Make) -> None:
    actions = actions_of(make("label"))
    for number in range(3):
        run(actions.teach("label", "", f"a b {'cde'[number]}", f"label-{number}"))
    everything = run(actions.history("label", ""))
    assert [row["text"] for row in everything.rows] == ["a b e", "a b d", "a b c"]
    found = run(actions.history("label", "", "label-1"))
    assert [row["text"] for row in found.rows] == ["a b d"]
    assert "a b d" in plain(page_html.held(found))
    assert "Nothing that was taught contains" in page_html.held(run(actions.history("label", "", "<b>")), "<b>")
    run(actions.forget("label", "", found.rows[0]["source"]))
    assert [row["text"] for row in run(actions.history("label", "")).rows] == ["a b e", "a b c"]


def test_what_is_wrong_is_said_in_a_note_and_nothing_is_taught(make: Make) -> None:
    client = make("label", limits=Limits(prompt_tokens=8))
    steps = Steps(actions_of(client))
    for text, right, said in (
        ("", "x", "Write a text first"),
        (TEXT, "", "Say which label is right"),
        ("a " * 9, "x", "are allowed: shorten it"),
    ):
        note, _ = run(steps.teach("label", "", text, right))
        assert said in plain(note)
        assert 'role="alert"' in note
    assert client.get("/v1/history/label").json()["entries"] == 0


def test_teaching_tells_before_and_after_and_refreshes_the_labels(make: Make) -> None:
    steps = Steps(actions_of(make("label")))
    note, shown = run(steps.teach("label", "", TEXT, "new"))
    assert "Taught" in note
    assert "was 0" in plain(shown)
    assert "new" in run(steps.labels("label", ""))["choices"]
    note, shown = run(steps.undo("label", "", TEXT))
    assert "Taken back" in note
    assert "new" not in plain(shown)


def test_a_key_shows_its_tenant_only(make: Make) -> None:
    client = make("label", keys=KEYS)
    actions, steps = actions_of(client), Steps(actions_of(client))
    run(actions.teach("label", ANN, TEXT, "of ann"))
    assert run(actions.history("label", ANN)).entries == 1
    assert run(actions.history("label", BOB)).entries == 0
    assert "of ann" not in run(actions.labels("label", BOB))
    assert run(actions.predict("label", BOB, TEXT)).moved == []
    for key, said in (
        ("", "needs a key"),
        ("wrong\nkey", "not known"),
        (READER, "metrics only"),
        ("ключ", "not known"),
    ):
        assert said in plain(run(steps.predict("label", key, TEXT))[0])
        assert said in plain(run(steps.history("label", key, ""))[0])
        assert run(steps.labels("label", key))["choices"] == []


def test_texts_are_escaped_and_lessons_are_told_in_words() -> None:
    source = 'page 2026-11-29 12:40:11.123456 {"was": "a {b}", "in": "page 2026-11-29 12:40:10.000001"}'
    assert replaced_by(source) == {"was": "a {b}", "in": "page 2026-11-29 12:40:10.000001"}
    assert replaced_by("mine {x}") is None
    assert page_html.where(source + ":0 (entry 145)") == "taught on this page, 2026-11-29 12:40:11"
    assert page_html.source_name(source) == "taught on this page, 2026-11-29 12:40:11, instead of a {b}"
    assert page_html.where("<i>.txt:3 (entry 1)") == "&lt;i&gt;.txt:3"
    assert "<script" not in page_html.note("<script>", "error")
    assert page_html.percent(0.12345) == "12&#8239;%"


CURVES = [([10.0, 9.0], [10.0, 9.0]), ([1e30, 2.0, 3.0], [5.0, 4.0, 1e30]), ([1.0] * 900, [1.0] * 900)]


@pytest.mark.parametrize("values", CURVES)
def test_curves_stay_inside_of_their_frames(values: tuple[list[float], list[float]]) -> None:
    shown = page_html.curve(Curve(*values))
    for frame, svg in zip(page_html.FRAMES, shown.split("<svg")[1:], strict=True):
        for points in re.findall(r'points="([^"]*)"', svg):
            for point in points.split():
                x, y = map(float, point.split(","))
                assert frame.left <= x <= frame.width - frame.right
                assert frame.top - 1 <= y <= frame.height - frame.bottom + 1


@pytest.fixture(scope="module")
def paged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client of a server with its page; making one takes a second."""
    models = Models({"label": make_served(tmp_path_factory.mktemp("histories"), "label")})
    app = create_app(models, Keys(KEYS), page=True)
    yield TestClient(app, raise_server_exceptions=False)
    assert models.close(20)


def test_the_page_lies_at_the_root_and_asks_for_a_key(paged: TestClient) -> None:
    answer = paged.get("/")
    assert answer.status_code == 200
    assert answer.url.path == "/page/"
    parts = {part["props"].get("elem_id"): part["props"] for part in paged.get("/page/config").json()["components"]}
    assert parts["key"]["visible"]
    assert parts["key"]["type"] == "password"
    assert ANN not in json.dumps(parts)
    assert "page" not in paged.get("/openapi.json").json()["paths"]
    assert paged.get("/favicon.ico").headers["content-type"].startswith("image/svg")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/upload"),
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/file=/etc/passwd"),
        ("GET", "/gradio_api/proxy=http://localhost/"),
        ("GET", "/gradio_api/info"),
        ("POST", "/gradio_api/run/predict"),
        ("POST", "/gradio_api/call/predict"),
        ("POST", "/gradio_api"),
        ("GET", "/monitoring"),
        ("GET", "/gradio_api/queue/../upload"),
    ],
)
def test_nothing_of_gradio_answers_that_the_page_does_not_need(paged: TestClient, method: str, path: str) -> None:
    assert paged.request(method, f"/page{path}").status_code == 404


def test_the_limits_of_the_server_hold_for_the_page(paged: TestClient) -> None:
    body = b" " * (Limits().body_bytes + 1)
    assert paged.post("/page/gradio_api/queue/join", content=body).status_code == 413


def test_steps_of_the_page_are_counted_as_requests_of_the_api_and_its_files_are_not(make: Make) -> None:
    client = make("label", keys=KEYS)
    run(actions_of(client).predict("label", ANN, TEXT))
    told = client.get("/metrics", headers=bearer(READER)).text
    assert 'lle_requests_total{route="/predict",status="200"} 2.0' in told
    assert "/page" not in told


def test_without_a_page_the_root_says_so_in_one_line(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make("label").get("/").text == OFF
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    models = Models({"label": make_served(tmp_path / "other", "label")})
    client = TestClient(create_app(models, page=True))
    assert client.get("/").text == MISSING
    assert MISSING.count("\n") == 1
    assert models.close(20)
