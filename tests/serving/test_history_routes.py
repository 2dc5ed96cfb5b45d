"""Teaching, listing and forgetting the texts of a language model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from modeling_lle import Attachment, HistoryBank
from tests.factories.language_models import make_language_model
from tests.factories.texts import WORD_TOKENIZER

Make = Callable[..., TestClient]
ASK: dict[str, Any] = {"model": "text", "prompt": [3, 4, 5], "echo": True, "logprobs": 0, "max_tokens": 0}


def logprobs(client: TestClient) -> list[float]:
    answer = client.post("/v1/completions", json=ASK).json()
    return answer["choices"][0]["logprobs"]["token_logprobs"][1:]


def test_what_is_taught_is_recalled_and_what_is_forgotten_never_was(make: Make) -> None:
    client = make()
    before = logprobs(client)
    taught = client.post("/v1/history/text", json={"texts": ["a b c d", "e f"], "source": "notes"}).json()
    assert taught == {"added": 8, "entries": 8, "source": "notes", "namespace": "default"}
    model = make_language_model()
    attachment = Attachment(HistoryBank.build(model, WORD_TOKENIZER, ["a b c d", "e f"]), None, WORD_TOKENIZER)
    logs = model(torch.tensor([ASK["prompt"]]), history=attachment).logits[0].detach().log_softmax(-1)
    assert logprobs(client) == pytest.approx([float(logs[0, 4]), float(logs[1, 5])], abs=1e-5)
    assert client.request("DELETE", "/v1/history/text", json={"source": "notes"}).json() == {
        "forgotten": 8,
        "entries": 0,
    }
    assert logprobs(client) == before


def test_forgotten_texts_leave_the_disk(make: Make, tmp_path: Path) -> None:
    client = make()
    client.post("/v1/history/text", json={"texts": [{"text": "a b", "columns": {"author": "unmistakable"}}]})

    def found() -> bool:
        return any(b"unmistakable" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())

    assert found()
    client.request("DELETE", "/v1/history/text", json={"texts": ["a b"]})
    assert not found()


def test_texts_are_listed_in_pages_and_searched(make: Make) -> None:
    client = make()
    rows = [{"text": f"a {'b ' * number}".strip(), "columns": {"number": number}} for number in range(1, 6)]
    client.post("/v1/history/text", json={"texts": rows, "source": "one"})
    client.post("/v1/history/text", json={"texts": ["c d"], "source": "two", "namespace": "other"})
    whole = client.get("/v1/history/text").json()
    assert [row["text"] for row in whole["data"]] == [*(str(row["text"]) for row in rows), "c d"]
    assert [row["columns"] for row in whole["data"]][:2] == [{"number": 1}, {"number": 2}]
    assert whole["sources"][0] == {"namespace": "default", "source": "one", "documents": 5, "entries": 25}
    first = client.get("/v1/history/text?limit=4").json()
    assert (len(first["data"]), first["next"]) == (4, 4)
    last = client.get("/v1/history/text?limit=4&offset=4").json()
    assert (len(last["data"]), last["next"]) == (2, None)
    for query, count in (
        ("search=C D", 1),
        ("source=one", 5),
        ("namespace=other", 1),
        ("search=zzz", 0),
        ("limit=0", 0),
    ):
        assert len(client.get(f"/v1/history/text?{query}").json()["data"]) == count
    assert client.get("/v1/history/text?limit=100000").status_code == 400


def test_what_was_taught_is_there_after_a_restart(make: Make) -> None:
    client = make()
    client.post("/v1/history/text", json={"texts": ["a b c d"]})
    assert logprobs(make()) == pytest.approx(logprobs(client), abs=1e-6)


def test_the_explanation_adds_up(make: Make) -> None:
    client = make()
    client.post("/v1/history/text", json={"texts": ["a b c d"], "source": "mine"})
    history = client.post("/v1/explain/text", json={"input": "a b c d", "history_top": 2}).json()["history"]
    assert [item["text"].strip() for item in history] == ["a", "b", "c", "d"]
    for item in history:
        effects = sum(cause["effect"] for cause in item["causes"]) + item["rest"]
        assert item["prob"] - item["base_prob"] == pytest.approx(effects, abs=1e-5)
    assert any("mine:0" in cause["where"] for item in history for cause in item["causes"])
