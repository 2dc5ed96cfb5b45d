"""`/predict` and `/info`, as clients of Text Embeddings Inference read them."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.factories.classifiers import make_classifier
from tests.factories.texts import WORD_TOKENIZER, make_texts

Make = Callable[..., TestClient]


def scores(predictions: list[dict[str, Any]]) -> dict[str, float]:
    return {item["label"]: item["score"] for item in predictions}


def test_a_list_gives_what_each_text_gives_alone(make: Make) -> None:
    client, texts = make("label"), make_texts(40, 9, seed=1)
    client.post("/v1/history/label", json={"examples": [{"text": "a b", "label": "label-1"}]})
    together = client.post("/predict", json={"inputs": texts}).json()
    for text, own in zip(texts, together, strict=True):
        alone = client.post("/predict", json={"inputs": text}).json()
        assert scores(own) == pytest.approx(scores(alone), abs=1e-5)
        assert [item["score"] for item in alone] == sorted((item["score"] for item in alone), reverse=True)
    assert client.post("/predict", json={"inputs": [[text] for text in texts]}).json() == together
    assert client.post("/predict", json={"inputs": []}).json() == []


def test_scores_are_those_of_the_model(client: TestClient) -> None:
    found = scores(client.post("/predict", json={"inputs": "a b c"}).json())
    probabilities = make_classifier()(**WORD_TOKENIZER("a b c", return_tensors="pt")).logits[0].softmax(-1)
    assert found == pytest.approx({f"label-{number}": value for number, value in enumerate(probabilities.tolist())})
    raw = scores(client.post("/predict", json={"inputs": "a b c", "raw_scores": True}).json())
    logits = make_classifier()(**WORD_TOKENIZER("a b c", return_tensors="pt")).logits[0].tolist()
    assert list(raw.values()) == pytest.approx(sorted(logits, reverse=True), abs=1e-5)


def test_what_is_taught_moves_the_prediction_and_what_is_forgotten_does_not(make: Make) -> None:
    client = make("label")
    before = client.post("/predict", json={"inputs": "a b"}).json()
    lesson = {"examples": [{"text": "a b", "label": "unheard"}], "new_labels": True, "source": "lesson"}
    assert client.post("/v1/history/label", json=lesson).json()["added"] == 1
    taught = client.post("/predict", json={"inputs": "a b", "return_history": True}).json()
    assert "unheard" in scores(taught["labels"])
    assert taught["history"][0]["causes"][0]["columns"] == {"text": "a b", "label": "unheard"}
    assert "unheard" in client.get("/info").json()["model_type"]["classifier"]["label2id"]
    assert client.request("DELETE", "/v1/history/label", json={"label": "unheard"}).json()["forgotten"] == 1
    assert client.post("/predict", json={"inputs": "a b"}).json() == before
    assert "unheard" not in client.get("/info").text


def test_examples_are_forgotten_by_source_text_id_and_namespace(make: Make) -> None:
    client = make("label")
    for number, place in enumerate(({"source": "s"}, {"namespace": "n"}, {}, {})):
        example = {"text": f"a b {'c ' * number}".strip(), "label": "label-1"}
        assert client.post("/v1/history/label", json={"examples": [example], **place}).status_code == 200
    rows = client.get("/v1/history/label").json()["data"]
    ids = next(row["ids"] for row in rows if row["text"] == "a b c c c")
    for body in ({"source": "s"}, {"namespace": "n"}, {"texts": ["a b c c"]}, {"ids": ids}):
        assert client.request("DELETE", "/v1/history/label", json=body).json()["forgotten"] == 1
        assert client.request("DELETE", "/v1/history/label", json=body).status_code == 404
    assert client.get("/v1/history/label").json() == {"entries": 0, "sources": [], "data": [], "next": None}


def test_the_explanation_names_the_examples(make: Make) -> None:
    client = make("label")
    client.post("/v1/history/label", json={"examples": [{"text": "a b", "label": "label-1"}], "source": "mine"})
    (item,) = client.post("/v1/explain/label", json={"input": "a b"}).json()["history"]
    assert item["causes"][0]["where"].startswith("mine:0")
