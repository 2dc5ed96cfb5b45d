"""Sessions: a text in several calls, exported and imported."""

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from safetensors.torch import load, save

from modeling_lle.serving.errors import ServingError
from modeling_lle.serving.limits import Limits
from modeling_lle.serving.session_files import read_session, write_session
from modeling_lle.serving.sessions import Sessions
from tests.factories.language_models import make_language_model
from tests.factories.texts import make_ids

Make = Callable[..., TestClient]
MODEL = make_language_model(history={"matches": {"window": 30}, "bank_matches": {"longest": 4}})


def complete(client: TestClient, prompt: Any, **body: Any) -> Any:
    body = {"model": "text", "prompt": prompt, "max_tokens": 4, "temperature": 0, **body}
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def make_file(tokens: int = 9) -> bytes:
    with torch.no_grad():
        cache = MODEL(make_ids(1, tokens), use_cache=True).past_key_values
    return write_session(cache, tokens, "print")


def test_calls_with_a_session_are_one_text(client: TestClient) -> None:
    first = complete(client, [3, 4, 5, 3], session="one")
    second = complete(client, [4, 5], session="one", logprobs=0)
    assert (first["session"]["tokens"], second["session"]["tokens"]) == (8, 14)
    model = make_language_model()
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 4, "use_cache": True}
    output = model.generate(torch.tensor([[3, 4, 5, 3]]), return_dict_in_generate=True, **options)
    whole = torch.cat([output.sequences, torch.tensor([[4, 5]])], dim=1)
    expected = model.generate(whole, past_key_values=output.past_key_values, **options)[0, whole.shape[1] :]
    with_text = client.post("/detokenize", json={"tokens": expected.tolist()}).json()["prompt"]
    assert second["choices"][0]["text"].strip() == with_text.strip()


def test_a_session_goes_on_without_a_prompt(client: TestClient) -> None:
    whole = complete(client, "a b c", max_tokens=8, session="whole")["choices"][0]["text"]
    parts = [complete(client, text, session="parts")["choices"][0]["text"] for text in ("a b c", "")]
    assert "".join(parts) == whole


def test_an_exported_session_goes_on_where_it_was(client: TestClient) -> None:
    complete(client, "a b c d", session="old")
    data = client.get("/v1/sessions/text/old").content
    assert load(data)
    answer = client.put("/v1/sessions/text/new", content=data)
    assert answer.json() == {"id": "new", "tokens": 8}
    texts = [complete(client, "e f", session=name, logprobs=3)["choices"][0] for name in ("old", "new")]
    assert texts[0] == texts[1]


def test_sessions_are_listed_removed_and_gone(client: TestClient) -> None:
    complete(client, "a", session="gone")
    assert {"id": "gone", "tokens": 5} in client.get("/v1/sessions/text").json()["data"]
    assert client.delete("/v1/sessions/text/gone").json() == {"id": "gone", "deleted": True}
    for method in ("GET", "DELETE"):
        assert client.request(method, "/v1/sessions/text/gone").json()["error"]["code"] == "session_not_found"


def test_a_request_that_fails_leaves_the_session_as_it_was(client: TestClient) -> None:
    complete(client, "a b", session="kept")
    before = client.get("/v1/sessions/text/kept").content
    body = {"model": "text", "prompt": [10_000], "session": "kept"}
    assert client.post("/v1/completions", json=body).status_code == 400
    after = load(client.get("/v1/sessions/text/kept").content)
    assert all(torch.equal(after[name], tensor) for name, tensor in load(before).items())
    assert client.post("/v1/completions", json={**body, "session": "never"}).status_code == 400
    assert client.get("/v1/sessions/text/never").status_code == 404


def test_a_tenant_has_so_many_sessions_and_no_more(make: Make) -> None:
    client = make(limits=Limits(sessions=1))
    complete(client, "a", session="one")
    body = {"model": "text", "prompt": "a", "session": "two"}
    assert client.post("/v1/completions", json=body).json()["error"]["code"] == "too_many_sessions"
    client.delete("/v1/sessions/text/one")
    assert client.post("/v1/completions", json=body).status_code == 200


def test_an_unused_session_expires() -> None:
    now = 0.0
    sessions = Sessions(2, 10.0, lambda: now)
    cache = MODEL(make_ids(1, 3), use_cache=True).past_key_values
    sessions.put("ann", "one", cache, 3)
    now = 9.0
    assert sessions.get("ann", "one")[1] == 3
    now = 18.0
    assert sessions.names("ann") == {"one": 3}
    now = 20.0
    assert sessions.names("ann") == {}


def test_one_call_goes_on_with_a_session_at_a_time() -> None:
    sessions = Sessions(2, 10.0, lambda: 0.0)
    sessions.begin("ann", "one")
    with pytest.raises(ServingError, match="another call"):
        sessions.begin("ann", "one")
    sessions.begin("bob", "one")
    sessions.end("ann", "one", None, 0)
    assert sessions.names("ann") == {}
    sessions.begin("ann", "one")


def test_a_file_is_read_as_it_was_written() -> None:
    cache, tokens = read_session(make_file(), MODEL, "print")
    assert tokens == 9
    with torch.no_grad():
        expected = MODEL(make_ids(1, 9), use_cache=True).past_key_values
    assert cache.seen_tokens == expected.seen_tokens
    for name, tensor in expected.export().items():
        assert torch.equal(cache.export()[name], tensor), name


def changed(change: Callable[[dict[str, torch.Tensor], dict[str, str]], Any]) -> bytes:
    """A file with changed tensors or header."""
    data = make_file()
    tensors = load(data)
    about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    change(tensors, about)
    return save(tensors, about)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensors, about: about.update(fingerprint="other"), "another model"),
        (lambda tensors, about: about.update(kind="model"), "was not exported"),
        (lambda tensors, about: about.update(version="9"), "another version"),
        (lambda tensors, about: about.update(tokens="-3"), "number of tokens"),
        (lambda tensors, about: about.update(seen="1e9"), "number of seen"),
        (lambda tensors, about: about.pop("seen"), "number of seen"),
        (lambda tensors, about: tensors.pop("stream.keys"), "stream.keys"),
        (lambda tensors, about: tensors.update(more=torch.zeros(1)), "more"),
        (
            lambda tensors, about: tensors.update({"stream.keys": tensors["stream.keys"][..., :3].contiguous()}),
            "needed",
        ),
        (lambda tensors, about: tensors.update({"stream.keys": tensors["stream.keys"].double()}), "float64"),
        (lambda tensors, about: tensors["stream.keys"].fill_(torch.nan), "not finite"),
        (lambda tensors, about: tensors["stream.outcomes"].fill_(99), "no tokens"),
        (lambda tensors, about: tensors["stream.outcomes"].fill_(-1), "no tokens"),
        (lambda tensors, about: tensors["stream.count"].fill_(2**40), "entries in"),
        (lambda tensors, about: tensors["stream.count"].fill_(-1), "entries in"),
        (lambda tensors, about: tensors["matches.tokens"].fill_(99), "no tokens"),
        (lambda tensors, about: tensors["matches.named"].fill_(99), "no tokens"),
        (lambda tensors, about: tensors["last.tokens"].fill_(99), "no tokens"),
        (
            lambda tensors, about: tensors.update({"matches.tokens": tensors["matches.tokens"][:, :1].contiguous()}),
            "slots",
        ),
    ],
)
def test_a_file_that_the_model_could_not_have_written_is_refused(change: Any, reason: str) -> None:
    with pytest.raises(ServingError, match=reason):
        read_session(changed(change), MODEL, "print")


def test_no_cut_and_no_flipped_byte_crashes() -> None:
    data = make_file()
    generator = torch.Generator().manual_seed(0)
    for place in torch.randint(len(data), (60,), generator=generator).tolist():
        for broken in (data[:place], data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]):
            with contextlib.suppress(ServingError):  # some changes are of values that may be
                read_session(broken, MODEL, "print")
    with pytest.raises(ServingError):
        read_session(b"\x80\x04\x95", MODEL, "print")  # as a pickle begins
