"""Nothing of a tenant reaches another: each answer is that of a server that the tenant has alone."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from modeling_lle import HistoryBank
from tests.factories.language_models import make_language_model
from tests.factories.served import ANN, BOB, KEYS, bearer
from tests.factories.texts import WORD_TOKENIZER, make_texts

Make = Callable[..., TestClient]
TENANTS = {f"key-of-tenant-{number}-0123456789": f"tenant-{number}" for number in range(4)}
SECRET = "h h g g h"


def rounded(value: Any) -> Any:
    """The values of an answer without what is new each time, and without rounding errors."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, list):
        return [rounded(own) for own in value]
    if isinstance(value, dict):
        return {name: rounded(own) for name, own in value.items() if name not in ("id", "created")}
    return value


def operation(generator: random.Random) -> tuple[str, str, Any]:
    """A random request of a tenant."""
    text = make_texts(1, 6, generator.randrange(10_000))[0]
    seed = generator.randrange(100)
    return generator.choice(
        [
            ("POST", "/v1/history/text", {"texts": [text], "source": f"source-{seed}"}),
            (
                "POST",
                "/v1/completions",
                {"model": "text", "prompt": text, "max_tokens": 4, "seed": seed, "logprobs": 2},
            ),
            (
                "POST",
                "/v1/completions",
                {"model": "text", "prompt": text, "max_tokens": 3, "seed": seed, "session": "s"},
            ),
            (
                "POST",
                "/v1/history/label",
                {"examples": [{"text": text, "label": f"label-{seed % 3}"}], "relabel": True},
            ),
            ("POST", "/predict", {"inputs": [text, "a b c"]}),
            ("POST", "/v1/explain/label", {"input": text}),
            ("DELETE", "/v1/history/text", {"source": f"source-{seed}"}),
            ("GET", "/v1/history/text", None),
            ("GET", "/v1/history/label", None),
            ("GET", "/info", None),
            ("GET", "/v1/sessions/text", None),
        ]
    )


def ask(client: TestClient, key: str, seed: int, count: int) -> list[Any]:
    """The answers to random operations of a tenant, one after another."""
    generator, found = random.Random(seed), []
    for _ in range(count):
        method, path, body = operation(generator)
        answer = client.request(method, path, json=body, headers=bearer(key))
        assert answer.status_code < 500, answer.text
        found.append((answer.status_code, rounded(answer.json())))
    return found


def test_tenants_in_parallel_get_the_answers_that_each_gets_alone(make: Make, tmp_path: Path) -> None:
    client = make("text", "label", keys=TENANTS, folder=tmp_path / "all")
    with ThreadPoolExecutor(len(TENANTS)) as pool:
        runs = [pool.submit(ask, client, key, seed, 20) for seed, key in enumerate(TENANTS)]
        together = [run.result() for run in runs]
    for seed, key in enumerate(TENANTS):
        alone = ask(make("text", "label", keys=TENANTS, folder=tmp_path / str(seed)), key, seed, 20)
        assert together[seed] == alone


def test_what_one_teaches_no_other_can_recall_list_explain_or_count(make: Make) -> None:
    client = make("text", "label", "pair", keys=KEYS)
    questions: list[tuple[str, str, Any]] = [
        (
            "POST",
            "/v1/completions",
            {"model": "text", "prompt": "h h", "seed": 1, "logprobs": 5, "return_history": True},
        ),
        ("GET", "/v1/history/text", None),
        ("GET", "/v1/history/text?search=h", None),
        ("POST", "/v1/explain/text", {"input": SECRET}),
        ("GET", "/v1/history/label", None),
        ("GET", "/info", None),
        ("POST", "/predict", {"inputs": SECRET, "return_history": True}),
        ("POST", "/translate", {"q": "a cat", "source": "en", "target": "de", "return_history": True}),
        ("GET", "/en/de/unit/a cat", None),
        ("GET", "/v1/sessions/text", None),
        ("GET", "/v1/sessions/text/mine", None),
        ("DELETE", "/v1/history/text", {"ids": [0]}),
        ("DELETE", "/v1/history/text", {"source": "secret"}),
        ("DELETE", "/v1/history/label", {"label": "secret"}),
    ]

    def answers() -> list[Any]:
        asked = [client.request(method, path, json=body, headers=bearer(BOB)) for method, path, body in questions]
        return [(answer.status_code, rounded(answer.json())) for answer in asked]

    before = answers()
    lessons: list[tuple[str, Any]] = [
        ("/v1/history/text", {"texts": [SECRET], "source": "secret"}),
        ("/v1/history/label", {"examples": [{"text": SECRET, "label": "secret"}], "new_labels": True}),
        ("/v1/history/pair", {"pairs": [{"source": "a cat", "target": "ein Geheimnis"}]}),
        ("/v1/completions", {"model": "text", "prompt": SECRET, "session": "mine"}),
    ]
    for path, body in lessons:
        assert client.post(path, json=body, headers=bearer(ANN)).status_code == 200
    assert answers() == before
    assert "secret" in client.get("/v1/history/label", headers=bearer(ANN)).text


def test_the_shared_namespace_is_of_all_and_nobody_can_take_it_back(make: Make, tmp_path: Path) -> None:
    bank = HistoryBank.build(make_language_model(), WORD_TOKENIZER, ["a b c d"], tmp_path / "bank", namespace="common")
    bank.add(["g g g g"], namespace="hidden")
    client = make(keys=KEYS, shared=bank, namespaces=("common",), folder=tmp_path / "histories")
    ask = {
        "model": "text",
        "prompt": "a b",
        "max_tokens": 1,
        "temperature": 0,
        "return_history": True,
        "history_top": 50,
    }

    def sources(key: str) -> set[str]:
        answer = client.post("/v1/completions", json=ask, headers=bearer(key)).json()
        causes = answer["choices"][0]["history"][0]["causes"]
        return {cause["where"].partition(":")[0] for cause in causes if cause["source"] == "bank"}

    assert sources(ANN) == sources(BOB) == {"added-1"}
    assert client.post("/v1/history/text", json={"texts": ["a b e"], "source": "own"}, headers=bearer(ANN)).json() == {
        **{"added": 4, "entries": 9, "source": "own", "namespace": "default"},
    }
    assert sources(ANN) == {"added-1", "own"}
    assert sources(BOB) == {"added-1"}
    listed = client.get("/v1/history/text", headers=bearer(ANN)).json()
    assert [row["source"] for row in listed["data"]] == ["own"]
    for body in ({"source": "added-1"}, {"ids": [0]}, {"namespace": "common"}, {"texts": ["a b c d"]}):
        assert client.request("DELETE", "/v1/history/text", json=body, headers=bearer(ANN)).status_code == 404
    assert client.request("DELETE", "/v1/history/text", json={"source": "own"}, headers=bearer(ANN)).status_code == 200
    assert sources(ANN) == {"added-1"}
    assert bank.namespaces == ["common", "hidden"]


def test_a_key_is_needed_and_names_its_tenant_only(make: Make) -> None:
    client = make("text", "pair", keys=KEYS)
    for headers in ({}, bearer("wrong-key-0123456789"), {"Authorization": "Basic YTpi"}, {"Authorization": "Bearer"}):
        answer = client.get("/v1/models", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert client.get("/languages/", headers=headers).json()["error"]
    assert client.get("/languages").status_code == 200  # LibreTranslate's clients send no key there
    body = {"q": "a cat", "source": "en", "target": "de"}
    assert client.post("/translate", json=body).status_code == 401
    assert client.post("/translate", json={**body, "api_key": ANN}).status_code == 200
    assert client.get("/health").status_code == 200


def test_metrics_tell_of_no_tenant_and_need_their_own_key(make: Make) -> None:
    client = make(keys=KEYS)
    reader = next(key for key, tenant in KEYS.items() if tenant == "metrics")
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", headers=bearer(ANN)).status_code == 403
    assert client.get("/v1/models", headers=bearer(reader)).status_code == 403
    text = client.get("/metrics", headers=bearer(reader)).text
    assert "lle_request_seconds_bucket" in text
    assert "ann" not in text


@pytest.mark.slow
def test_many_operations_of_eight_tenants(make: Make, tmp_path: Path) -> None:
    tenants = {f"key-of-tenant-{number}-0123456789": f"tenant-{number}" for number in range(8)}
    client = make("text", "label", keys=tenants, folder=tmp_path / "all")
    with ThreadPoolExecutor(len(tenants)) as pool:
        runs = [pool.submit(ask, client, key, seed, 1250) for seed, key in enumerate(tenants)]
        together = [run.result() for run in runs]
    for seed, key in enumerate(tenants):
        alone = ask(make("text", "label", keys=tenants, folder=tmp_path / str(seed)), key, seed, 1250)
        assert together[seed] == alone
