"""Bad input gets the error of the API that the client speaks, and the server goes on."""

import asyncio
import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from modeling_lle.serving.limits import Limits
from modeling_lle.serving.worker import call
from tests.factories.served import ANN, BOB, KEYS, bearer, close

Make = Callable[..., TestClient]


@pytest.fixture(autouse=True)
def goes_on(client: TestClient) -> Any:
    yield
    assert client.post("/v1/completions", json={"model": "text", "prompt": "a"}).status_code == 200


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"model": "none", "prompt": "a"}, "model_not_found"),
        ({"model": "label", "prompt": "a"}, "wrong_task"),
        ({"model": "text", "prompt": "a", "temprature": 1}, "unknown_field"),
        ({"model": "text", "prompt": "a", "max_tokens": -1}, "invalid_request"),
        ({"model": "text", "prompt": "a", "max_tokens": 10**9}, "invalid_request"),
        ({"model": "text", "prompt": "a", "temperature": -1}, "invalid_request"),
        ({"model": "text", "prompt": "a", "top_p": 0}, "invalid_request"),
        ({"model": "text", "prompt": "a", "n": 10_000}, "invalid_request"),
        ({"model": "text", "prompt": "a", "seed": 2**70}, "invalid_request"),
        ({"model": "text", "prompt": "a", "logprobs": 1000}, "invalid_request"),
        ({"model": "text", "prompt": "a", "best_of": 4}, "invalid_request"),
        ({"model": "text", "prompt": "a", "suffix": "b"}, "invalid_request"),
        ({"model": "text", "prompt": "a", "frequency_penalty": 1}, "invalid_request"),
        ({"model": "text", "prompt": [[10_000]]}, "invalid_request"),
        ({"model": "text", "prompt": [[-1]]}, "invalid_request"),
        ({"model": "text", "prompt": []}, "invalid_request"),
        ({"model": "text", "prompt": ["a", 3]}, "invalid_request"),
        ({"model": "text", "prompt": {"a": 1}}, "invalid_request"),
        ({"model": "text", "prompt": "a", "session": "../up"}, "invalid_session"),
        ({"model": "text", "prompt": ["a", "b"], "session": "s"}, "invalid_request"),
        ({"model": "text", "prompt": "a", "stop": ["x" * 1000]}, "invalid_request"),
        ({"prompt": "a"}, "invalid_request"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_completions_say_what_is_wrong(client: TestClient, body: dict[str, Any], code: str, stream: bool) -> None:
    answer = client.post("/v1/completions", json={**body, "stream": stream})
    assert answer.status_code in (400, 404), answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert error["code"] == code
    assert error["message"]


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[1]", '{"model": "text", "temperature": NaN}', '{"model": "text", "top_p": Infinity}']
)
def test_what_is_no_json_or_no_number_is_refused(client: TestClient, text: str) -> None:
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/history/text"):
        answer = client.post(path, content=text, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("data", [b"\xff\xfe{", b'{"model": "text", "prompt": "\\ud800"}', b"[" * 100_000])
def test_broken_bytes_are_refused(client: TestClient, data: bytes) -> None:
    for path in ("/v1/completions", "/v1/history/text", "/translate", "/predict"):
        answer = client.post(path, content=data, headers={"Content-Type": "application/json"})
        assert 400 <= answer.status_code < 500, answer.text


def test_tei_and_libretranslate_have_their_own_errors(client: TestClient) -> None:
    answer = client.post("/predict", json={"input": "a"})
    assert (answer.status_code, set(answer.json())) == (422, {"error", "error_type"})
    assert answer.json()["error_type"] == "Validation"
    assert client.post("/predict", json={"inputs": " "}).json()["error_type"] == "Validation"
    for body in (
        {"q": "a"},
        {"q": "a", "source": "en", "target": "xx"},
        {"q": "a", "source": "en", "target": "de", "z": 1},
    ):
        answer = client.post("/translate", json=body)
        assert (answer.status_code, list(answer.json())) == (400, ["error"])
    assert client.post("/translate", content="q=a", headers={"Content-Type": "text/plain"}).status_code == 415
    assert list(client.get("/xx/de/unit/a").json()) == ["error"]


def test_unknown_routes_and_methods_are_refused(client: TestClient) -> None:
    assert client.get("/v1/nothing").json()["error"]["code"] == "unknown_route"
    assert client.get("/v1/completions").json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("model", "body", "status"),
    [
        ("text", {}, 400),
        ("text", {"texts": []}, 400),
        ("text", {"examples": [{"text": "a", "label": "b"}]}, 400),
        ("text", {"texts": ["a"], "pairs": [{"source": "a", "target": "b"}]}, 400),
        ("text", {"texts": ["a"], "namespace": "other/space"}, 400),
        ("text", {"texts": ["a"], "namespace": ""}, 400),
        ("text", {"texts": ["a"] * 1001}, 400),
        ("text", {"texts": [{"text": "a", "columns": {"x": {"y": 1}}}]}, 400),
        ("label", {"examples": [{"text": "a b", "label": "unheard"}]}, 400),
        ("label", {"examples": [{"text": " ", "label": "label-1"}]}, 400),
        ("label", {"examples": [{"text": "a", "label": "label-1"}, {"text": "a", "label": "label-2"}]}, 400),
        ("pair", {"pairs": [{"source": "a", "target": " "}]}, 400),
        ("none", {"texts": ["a"]}, 404),
    ],
)
def test_bad_lessons_are_refused_and_teach_nothing(
    client: TestClient, model: str, body: dict[str, Any], status: int
) -> None:
    answer = client.post(f"/v1/history/{model}", json=body)
    assert answer.status_code == status, answer.text
    assert "/" not in answer.json()["error"]["message"].replace("namespace", "").partition("pattern")[0]
    if model != "none":
        assert client.get(f"/v1/history/{model}").json()["entries"] == 0


def test_a_source_that_is_there_is_refused(make: Make) -> None:
    client = make()
    assert client.post("/v1/history/text", json={"texts": ["a b"], "source": "s"}).status_code == 200
    answer = client.post("/v1/history/text", json={"texts": ["c d"], "source": "s"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "not_taught")
    assert client.request("DELETE", "/v1/history/text", json={}).status_code == 400


def test_long_prompts_are_refused_before_they_are_read(make: Make) -> None:
    client = make("text", "label", "pair", limits=Limits(prompt_tokens=50))
    for prompt in ("a " * 60, [3] * 60, [[3], [3] * 60]):
        answer = client.post("/v1/completions", json={"model": "text", "prompt": prompt})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert client.post("/predict", json={"inputs": "a " * 60}).json()["error_type"] == "Validation"
    assert client.post("/translate", json={"q": "a " * 60, "source": "en", "target": "de"}).status_code == 400
    assert client.post("/v1/explain/text", json={"input": "a " * 60}).status_code == 400


def test_a_million_tokens_are_refused(client: TestClient) -> None:
    answer = client.post("/v1/completions", json={"model": "text", "prompt": [3] * 1_000_000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


def talk(client: TestClient, path: str, parts: list[bytes], headers: dict[str, str]) -> tuple[list[Any], int]:
    """What a server sends for a body in parts, and how many of them it takes."""
    sent: list[Any] = []
    taken = 0

    async def receive() -> Any:
        nonlocal taken
        if taken < len(parts):
            taken += 1
            return {"type": "http.request", "body": parts[taken - 1], "more_body": taken < len(parts)}
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    names = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": names,
        "query_string": b"",
        "http_version": "1.1",
    }
    app: Any = client.app
    asyncio.run(app({**scope, "raw_path": path.encode(), "root_path": "", "scheme": "http"}, receive, send))
    return sent, taken


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize(("path", "shape"), [("/v1/completions", dict), ("/predict", str), ("/translate", str)])
def test_large_bodies_are_cut_off(client: TestClient, declared: bool, path: str, shape: type) -> None:
    part, headers = b" " * (1 << 20), {"Content-Type": "application/json"}
    headers |= {"Content-Length": str(100 << 20)} if declared else {}
    sent, taken = talk(client, path, [part] * 100, headers)
    assert sent[0]["status"] == 413
    assert isinstance(json.loads(sent[1]["body"])["error"], shape)
    assert taken == (0 if declared else 5)
    assert (b"connection", b"close") in sent[0]["headers"]


def test_a_client_that_goes_frees_the_model(make: Make) -> None:
    client = make(limits=Limits(new_tokens=100_000))
    body = json.dumps({"model": "text", "prompt": "a", "max_tokens": 100_000, "stop": "unheard"}).encode()
    app: Any = client.app
    served = app.state.serving.models.get("text")
    served.model.generation_config.eos_token_id = None
    sent, _ = talk(client, "/v1/completions", [body], {"Content-Type": "application/json"})
    assert sent[0]["status"] == 499
    close(client)  # in 20 seconds, while 100,000 tokens take longer
    assert served.worker.running == 0


def test_an_answer_that_takes_too_long_is_an_error(make: Make) -> None:
    client = make(limits=Limits(new_tokens=10**6, seconds=0.3))
    app: Any = client.app
    app.state.serving.models.get("text").model.generation_config.eos_token_id = None
    body = {"model": "text", "prompt": "a", "max_tokens": 10**6}
    answer = client.post("/v1/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as streamed:
        lines = [line for line in streamed.iter_lines() if line]
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "timeout"


def test_a_full_queue_refuses(make: Make) -> None:
    client = make(limits=Limits(queue=2, batch=1))
    app: Any = client.app
    worker = app.state.serving.models.get("text").worker
    held, free = threading.Event(), threading.Event()

    def wait() -> None:
        held.set()
        free.wait()

    worker.submit(call(wait))
    held.wait()
    waiting = [call(lambda: None), call(lambda: None)]
    worker.submit(*waiting)
    answer = client.post("/v1/completions", json={"model": "text", "prompt": "a"})
    free.set()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
    assert answer.headers["retry-after"] == "1"
    assert client.post("/v1/completions", json={"model": "text", "prompt": "a"}).status_code == 200


def test_200_clients_at_once_are_all_answered(client: TestClient) -> None:
    def ask(number: int) -> int:
        body = {"model": "text", "prompt": "a b", "max_tokens": 2, "seed": number}
        return client.post("/v1/completions", json=body).status_code

    with ThreadPoolExecutor(200) as pool:
        assert set(pool.map(ask, range(200))) == {200}


def test_while_the_server_shuts_down_requests_are_refused(make: Make) -> None:
    client = make("text", "label", "pair")
    app: Any = client.app
    app.state.serving.draining = True
    answer = client.post("/v1/completions", json={"model": "text", "prompt": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
    assert client.get("/ready").status_code == 503
    assert client.get("/health").status_code == 200
    assert client.post("/predict", json={"inputs": "a"}).json()["error_type"] == "Overloaded"
    app.state.serving.draining = False
    close(client)
    assert client.post("/v1/completions", json={"model": "text", "prompt": "a"}).status_code == 503


def test_other_names_of_this_machine_are_refused(make: Make) -> None:
    from modeling_lle.serving.app import LOOPBACK, create_app

    app: Any = make().app
    local = TestClient(create_app(app.state.serving.models, hosts=LOOPBACK), base_url="http://localhost:8000")
    assert local.get("/v1/models").status_code == 200
    assert local.get("/v1/models", headers={"Host": "[::1]:8000"}).status_code == 200
    assert local.get("/v1/models", headers={"Host": "evil.example"}).json()["error"]["code"] == "wrong_host"


def test_a_damaged_history_is_an_error_of_its_tenant_alone(make: Make, tmp_path: Path) -> None:
    ask = {"model": "text", "prompt": "a b c"}
    for tenant in (ANN, BOB):
        make(keys=KEYS).post("/v1/history/text", json={"texts": ["a b c"]}, headers=bearer(tenant))
    for path in (tmp_path / "text" / "ann").glob("segment-*"):
        path.write_bytes(path.read_bytes()[:-1])
    client = make(keys=KEYS)
    answer = client.post("/v1/completions", json=ask, headers=bearer(ANN))
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "history_unavailable")
    assert str(tmp_path) not in answer.text
    assert client.post("/v1/completions", json=ask, headers=bearer(BOB)).status_code == 200


def test_a_history_whose_folder_is_removed_is_empty(make: Make, tmp_path: Path) -> None:
    client = make()
    client.post("/v1/history/text", json={"texts": ["a b c"]})
    shutil.rmtree(tmp_path / "text" / "local")
    app: Any = client.app
    app.state.serving.models.get("text").histories._looked["local"] = -10.0
    assert client.get("/v1/history/text").json()["entries"] == 0
    assert client.post("/v1/history/text", json={"texts": ["a b"]}).json()["entries"] == 3


def test_a_history_that_is_rebuilt_while_it_is_read_is_read(make: Make, tmp_path: Any) -> None:
    from modeling_lle import HistoryBank

    client = make()
    client.post("/v1/history/text", json={"texts": ["a b c"], "source": "one"})
    other = HistoryBank.open(tmp_path / "text" / "local")  # as another process
    app: Any = client.app
    histories = app.state.serving.models.get("text").histories
    other.forget(source="one")
    other.compact()
    assert client.post("/v1/completions", json={"model": "text", "prompt": "a"}).status_code == 200
    histories._looked["local"] = -10.0
    assert client.get("/v1/history/text").json()["entries"] == 0
