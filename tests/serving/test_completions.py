"""Completions, as OpenAI's clients and lm-evaluation-harness read them."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from tests.factories.language_models import make_language_model
from tests.factories.texts import WORD_TOKENIZER


def complete(client: TestClient, **body: Any) -> Any:
    answer = client.post("/v1/completions", json={"model": "text", "max_tokens": 6, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(client: TestClient, path: str = "/v1/completions", **body: Any) -> list[Any]:
    with client.stream("POST", path, json={"model": "text", "max_tokens": 6, "stream": True, **body}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_a_greedy_completion_is_what_generate_gives(client: TestClient) -> None:
    model, ids = make_language_model(), WORD_TOKENIZER("a b c", return_tensors="pt")["input_ids"]
    sequence = model.generate(ids, do_sample=False, max_new_tokens=6)[0]
    found = complete(client, prompt="a b c", temperature=0, echo=True)
    assert found["choices"][0]["text"].strip() == WORD_TOKENIZER.decode(sequence, skip_special_tokens=True).strip()
    assert found["usage"]["prompt_tokens"] == 3


@pytest.mark.parametrize("temperature", [1e-190, 1e-5, 0])
def test_a_tiny_temperature_is_greedy(client: TestClient, temperature: float) -> None:
    found = complete(client, prompt="a b c", temperature=temperature)["choices"][0]["text"]
    assert found == complete(client, prompt="a b c", temperature=0)["choices"][0]["text"]


def test_a_seed_repeats_a_completion_alone_or_in_a_list(client: TestClient) -> None:
    alone = [complete(client, prompt=text, seed=4)["choices"][0]["text"] for text in ("a b", "c d e f", "g")]
    listed = complete(client, prompt=["a b", "c d e f", "g"], seed=4)["choices"]
    assert [choice["index"] for choice in listed] == [0, 1, 2]
    assert [choice["text"] for choice in listed] == alone
    several = complete(client, prompt="a b", seed=4, n=3)["choices"]
    assert several[0]["text"] == alone[0]
    assert len({choice["text"] for choice in several}) > 1


def test_texts_and_token_ids_are_the_same_prompts(client: TestClient) -> None:
    ids = WORD_TOKENIZER("a b c")["input_ids"]
    texts = [complete(client, prompt=prompt, seed=1)["choices"][0]["text"] for prompt in ("a b c", ids, [ids])]
    assert len(set(texts)) == 1


def test_echo_with_logprobs_is_what_lm_eval_sums(client: TestClient) -> None:
    prompts = [[3, 4, 5, 6, 3, 4], [7, 3]]
    body: dict[str, Any] = {
        "prompt": prompts,
        "echo": True,
        "logprobs": 1,
        "max_tokens": 1,
        "temperature": 0,
        "seed": 1,
    }
    for choice, prompt in zip(complete(client, **body)["choices"], prompts, strict=True):
        found = choice["logprobs"]
        assert {len(found[name]) for name in found} == {len(prompt) + 1}
        assert found["token_logprobs"][0] is None
        assert found["top_logprobs"][0] is None
        logs = make_language_model()(torch.tensor([prompt])).logits[0].log_softmax(-1)
        expected = logs[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(found["token_logprobs"][1:-1]), expected, atol=1e-5, rtol=0)
        for place, token in enumerate(prompt[1:]):
            is_greedy = found["token_logprobs"][place + 1] == max(found["top_logprobs"][place + 1].values())
            assert is_greedy == (int(logs[place].argmax()) == token)
        assert "".join(found["tokens"]) == choice["text"]
        assert found["text_offset"] == [len("".join(found["tokens"][:i])) for i in range(len(prompt) + 1)]


def test_max_tokens_0_scores_a_text(client: TestClient) -> None:
    choice = complete(client, prompt=[3, 4, 5], echo=True, logprobs=0, max_tokens=0)["choices"][0]
    assert len(choice["logprobs"]["token_logprobs"]) == 3
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize("options", [{}, {"echo": True}, {"logprobs": 2}, {"echo": True, "logprobs": 1}, {"n": 2}])
def test_a_stream_adds_up_to_the_answer(client: TestClient, options: dict[str, Any]) -> None:
    body: dict[str, Any] = {"prompt": "a b c", "seed": 2, **options}
    whole, parts = complete(client, **body), events(client, **body, stream_options={"include_usage": True})
    assert parts[-1]["usage"] == whole["usage"]
    for expected in whole["choices"]:
        own = [part["choices"][0] for part in parts[:-1] if part["choices"][0]["index"] == expected["index"]]
        assert "".join(part["text"] for part in own) == expected["text"]
        assert own[-1]["finish_reason"] == expected["finish_reason"]
        if "logprobs" in options:
            for name in ("tokens", "token_logprobs", "text_offset"):
                joined = [value for part in own if part["logprobs"] for value in part["logprobs"][name]]
                assert joined == (pytest.approx(expected["logprobs"][name], abs=1e-5) if name[0] != "t" else joined)


def test_a_stop_string_ends_the_text_and_is_no_part_of_it(client: TestClient) -> None:
    whole = complete(client, prompt="a b c", seed=2, max_tokens=20)["choices"][0]["text"]
    stop = whole[4:8]
    choice = complete(client, prompt="a b c", seed=2, max_tokens=20, stop=[stop, "unheard"])["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (whole[: whole.index(stop)], "stop")
    streamed = events(client, prompt="a b c", seed=2, max_tokens=20, stop=stop)
    assert "".join(part["choices"][0]["text"] for part in streamed) == choice["text"]


def test_options_are_prepared_once_unless_they_look_at_the_text(make: Callable[..., TestClient]) -> None:
    client = make("text")
    served: Any = client.app.state.serving.models.get("text")  # type: ignore[attr-defined]
    for temperature in (0, 0, 0.5, 0.5):
        complete(client, prompt="a b c", temperature=temperature)
    assert len(served._choices) == 2
    before = complete(client, prompt="a b c d", temperature=0)["choices"][0]["text"]
    served._choices.clear()
    served.model.generation_config.repetition_penalty = 100.0
    after = [complete(client, prompt="a b c d", temperature=0)["choices"][0]["text"] for _ in range(2)]
    assert after[0] == after[1] != before
    assert not served._choices


def test_an_empty_prompt_begins_a_text(client: TestClient) -> None:
    assert complete(client)["usage"]["prompt_tokens"] == 1
    assert complete(client, prompt="")["usage"]["prompt_tokens"] == 1


def test_the_history_of_a_completion_is_the_record_of_the_pipeline(client: TestClient) -> None:
    from modeling_lle.pipelines.text_generation import LLETextGenerationPipeline

    pipeline = LLETextGenerationPipeline(model=make_language_model(), tokenizer=WORD_TOKENIZER)
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 4, "return_history": True}
    expected = pipeline("a b c a b", **options)[0]["history"]
    found = complete(client, prompt="a b c a b", temperature=0, max_tokens=4, return_history=True)
    history = found["choices"][0]["history"]
    assert [item["text"] for item in history] == [item["text"] for item in expected]
    for own, due in zip(history, expected, strict=True):
        assert own["prob"] == pytest.approx(due["prob"], abs=1e-5)
        assert [cause["where"] for cause in own["causes"]] == [cause["where"] for cause in due["causes"]]
        moved = sum(cause["effect"] for cause in own["causes"]) + own["rest"]
        assert own["prob"] - own["base_prob"] == pytest.approx(moved, abs=1e-5)


def test_without_history_it_is_the_base(client: TestClient) -> None:
    model, ids = make_language_model(), torch.tensor([[3, 4, 5, 3, 4]])
    logs = model(ids, use_history=False).logits[0].detach().log_softmax(-1)
    options: dict[str, Any] = {"echo": True, "logprobs": 0, "max_tokens": 0, "use_history": False}
    found = complete(client, prompt=ids[0].tolist(), **options)["choices"][0]["logprobs"]["token_logprobs"]
    expected = [float(logs[place, token]) for place, token in enumerate(ids[0, 1:].tolist())]
    assert found[1:] == pytest.approx(expected, abs=1e-5)


def test_the_tokenizer_is_told(client: TestClient) -> None:
    assert client.get("/tokenizer_info").json()["eos_token"] == "<eos>"
    found = client.post("/tokenize", json={"prompt": "a b", "add_special_tokens": False}).json()
    assert found["tokens"] == WORD_TOKENIZER("a b")["input_ids"]
    assert client.post("/tokenize", json={"inputs": "a b"}).json()["count"] == 2
    assert client.post("/detokenize", json={"tokens": found["tokens"]}).json() == {"prompt": "a b"}


def test_models_are_listed(client: TestClient) -> None:
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["text", "label", "pair"]
    assert client.get("/v1/models/text").json()["id"] == "text"


def test_a_model_without_a_chat_template_says_so(client: TestClient) -> None:
    body = {"model": "text", "messages": [{"role": "user", "content": "a"}]}
    answer = client.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_chat_template")


def test_a_chat_is_a_completion_of_its_template(client: TestClient) -> None:
    app: Any = client.app
    tokenizer: Any = app.state.serving.models.get("text")._own
    served: Any = app.state.serving.models.get("text").tokenizer
    template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    tokenizer.chat_template, before, served.chat_template = template, served.chat_template, template
    try:
        messages = [{"role": "user", "content": "a b"}, {"role": "user", "content": [{"type": "text", "text": "c"}]}]
        body: dict[str, Any] = {"messages": messages, "seed": 3, "logprobs": True, "top_logprobs": 2}
        answer = client.post("/v1/chat/completions", json={"model": "text", "max_tokens": 6, **body}).json()
        choice = answer["choices"][0]
        assert choice["message"]["role"] == "assistant"
        assert choice["message"]["content"] == complete(client, prompt="a b c", seed=3)["choices"][0]["text"]
        assert len(choice["logprobs"]["content"]) == answer["usage"]["completion_tokens"]
        parts = events(client, "/v1/chat/completions", **body)
        assert parts[0]["choices"][0]["delta"]["role"] == "assistant"
        joined = "".join(part["choices"][0]["delta"].get("content", "") for part in parts)
        assert joined == choice["message"]["content"]
    finally:
        served.chat_template = before
