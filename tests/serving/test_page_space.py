"""examples/space serves a page as it is, offline, with a tiny model or with those that it trains."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

pytest.importorskip("gradio")

from modeling_lle.serving.page_demo import questions
from tests.factories.classifiers import make_classifier
from tests.factories.texts import WORD_TOKENIZER

SPACE = Path(__file__).resolve().parents[2] / "examples" / "space"


@pytest.fixture(scope="module")
def app() -> Any:
    """The module app.py."""
    spec = importlib.util.spec_from_file_location("space_app", SPACE / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_space_serves_the_models_that_are_named_to_those_with_a_key(app: Any, tmp_path: Path) -> None:
    make_classifier().save_pretrained(tmp_path / "tiny")
    WORD_TOKENIZER.save_pretrained(tmp_path / "tiny")
    built = app.build(f"intents={tmp_path / 'tiny'}", keys="a-key-of-ann-0123456789: ann\n", folder=tmp_path / "data")
    client = TestClient(built)
    assert client.get("/").url.path == "/page/"
    assert client.post("/predict", json={"inputs": "a b"}).status_code == 401
    client.headers["Authorization"] = "Bearer a-key-of-ann-0123456789"
    lesson = {"examples": [{"text": "a b", "label": "new"}], "new_labels": True}
    assert client.post("/v1/history/intents", json=lesson).json()["entries"] == 1
    assert client.post("/predict", json={"inputs": "a b"}).json()[0]["label"] == "new"
    assert (tmp_path / "data" / "histories" / "intents" / "ann").is_dir()
    assert built.state.serving.models.close(20)


def test_places_are_named_or_called_like_their_last_part(app: Any) -> None:
    assert app.named("me/intents de=me/en-de") == {"intents": "me/intents", "de": "me/en-de"}
    assert app.named(" ") == {}
    assert app.read_keys("") is None


def test_the_readme_has_the_header_of_a_space_and_requires_what_it_needs() -> None:
    header = re.match(r"---\n(.*?)\n---\n", (SPACE / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert header is not None
    values = yaml.safe_load(header[1])
    assert (values["sdk"], values["app_file"]) == ("gradio", "app.py")
    pinned = (SPACE.parents[1] / "constraints.txt").read_text(encoding="utf-8")
    assert f"gradio=={values['sdk_version']}\n" in pinned
    assert len(values["short_description"]) <= 60  # as the Hub demands
    assert "serve" in (SPACE / "requirements.txt").read_text(encoding="utf-8")


def test_the_questions_of_the_demo_are_different_and_have_five_labels() -> None:
    rows = questions()
    assert len({row["text"] for row in rows}) == len(rows)
    assert len({row["label"] for row in rows}) == 5


@pytest.mark.slow
def test_without_models_the_space_trains_two_that_learn(app: Any, tmp_path: Path) -> None:
    built = app.build(folder=tmp_path)
    client = TestClient(built)
    text = {"q": "the dog barks in the garden", "source": "en", "target": "de"}
    before = client.post("/translate", json=text).json()["translatedText"]
    pair = {"source": text["q"], "target": "der Hund bellt im Garten"}
    assert client.post("/v1/history/en-de", json={"pairs": [pair]}).status_code == 200
    after = client.post("/translate", json=text).json()["translatedText"]
    assert before != after == pair["target"]
    best = client.post("/predict", json={"inputs": "somebody has stolen my card"}).json()[0]
    assert best["label"] == "lost_card"
    assert built.state.serving.models.close(20)
