"""Translators, as clients of LibreTranslate and of tmserver read them."""

from collections.abc import Callable

from fastapi.testclient import TestClient

from tests.factories.pairs import WORD_PAIRS

Make = Callable[..., TestClient]
TEXTS = [pair["source"] for pair in WORD_PAIRS]
BODY = {"source": "en", "target": "de"}


def test_languages_are_listed_for_both_kinds_of_clients(client: TestClient) -> None:
    assert client.get("/languages").json() == [{"code": "en", "name": "en", "targets": ["de"]}]
    assert client.get("/languages/").json() == {"sourceLanguages": ["en"], "targetLanguages": ["de"]}


def test_a_list_gives_what_each_text_gives_alone(make: Make) -> None:
    client = make("pair")
    client.post("/v1/history/pair", json={"pairs": [dict(pair) for pair in WORD_PAIRS]})
    together = client.post("/translate", json={"q": TEXTS, **BODY}).json()["translatedText"]
    alone = [client.post("/translate", json={"q": text, **BODY}).json()["translatedText"] for text in TEXTS]
    assert together == alone
    assert together == [pair["target"] for pair in WORD_PAIRS]  # the memory outweighs the base


def test_json_and_forms_say_the_same(client: TestClient) -> None:
    found = [
        client.post("/translate", json={"q": TEXTS[0], **BODY}),
        client.post("/translate", data={"q": TEXTS[0], **BODY}),
    ]
    assert found[0].json() == found[1].json()
    assert client.post("/translate", data={"q": TEXTS[:2], **BODY}).json()["translatedText"]


def test_auto_and_alternatives(client: TestClient) -> None:
    body = {"q": [TEXTS[0], ""], "source": "auto", "target": "de", "alternatives": 2}
    found = client.post("/translate", json=body).json()
    assert found["detectedLanguage"] == [{"confidence": 100.0, "language": "en"}] * 2
    assert len(found["alternatives"][0]) == 2
    assert found["translatedText"][1] == ""


def test_a_suggestion_is_recalled_shown_and_taken_back(make: Make) -> None:
    client, pair = make("pair"), WORD_PAIRS[0]
    text = pair["source"]
    before = client.post("/translate", json={"q": text, **BODY}).json()
    assert client.post("/suggest", data={"q": text, "s": pair["target"], **BODY}).json() == {"success": True}
    found = client.post("/translate", json={"q": text, "return_history": True, **BODY}).json()
    assert found["translatedText"] == pair["target"]
    assert found["history"]["history"][0]["text"] == text
    (unit,) = client.get(f"/en/de/unit/{text}").json()
    assert unit == {"source": text, "target": pair["target"], "quality": 100.0}
    assert client.post("/v1/explain/pair", json={"input": text}).json()["history"][0]["causes"]
    assert client.request("DELETE", "/v1/history/pair", json={"texts": [text]}).status_code == 200
    assert client.post("/translate", json={"q": text, **BODY}).json() == before
    assert client.get(f"/en/de/unit/{text}").json() == []
