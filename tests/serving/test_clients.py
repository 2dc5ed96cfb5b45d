"""Real clients of a real server, over the loopback: openai, lm-evaluation-harness, LibreTranslate and forms."""

import asyncio
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.factories.pairs import WORD_PAIRS
from tests.factories.running import Running
from tests.factories.served import ANN, BOB
from tests.factories.texts import make_texts

pytestmark = pytest.mark.server


def test_the_openai_client_completes_streams_and_chats(server: Running) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=ANN, max_retries=0)
    assert [model.id for model in client.models.list()] == ["text", "label", "pair"]
    options: dict[str, Any] = {"model": "text", "prompt": "a b c", "max_tokens": 8, "seed": 3}
    whole = client.completions.create(**options, logprobs=2)
    assert len(whole.choices[0].logprobs.tokens) == whole.usage.completion_tokens
    parts = list(client.completions.create(**options, stream=True))
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    messages = [{"role": "user", "content": "a b c"}]
    chat = client.chat.completions.create(model="text", messages=messages, max_tokens=8, seed=3)
    assert chat.choices[0].message.content == whole.choices[0].text
    streamed = client.chat.completions.create(model="text", messages=messages, max_tokens=8, seed=3, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in streamed) == whole.choices[0].text
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0).models.list()
    with pytest.raises(openai.BadRequestError, match="unknown field"):
        client.completions.create(**options, extra_body={"nonsense": 1})
    with pytest.raises(openai.NotFoundError, match="no model"):
        client.completions.create(model="other", prompt="a")


def test_the_async_openai_client_gets_what_each_request_gets_alone(server: Running) -> None:
    openai = pytest.importorskip("openai")

    async def ask() -> list[str]:
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=ANN, max_retries=0)

        async def one(seed: int) -> str:
            answer = await client.completions.create(model="text", prompt="a b c", max_tokens=8, seed=seed)
            return str(answer.choices[0].text)

        return list(await asyncio.gather(*(one(seed) for seed in range(16))))

    alone = [
        server.ask("/v1/completions", {"model": "text", "prompt": "a b c", "max_tokens": 8, "seed": seed})
        for seed in range(16)
    ]
    assert asyncio.run(ask()) == [answer["choices"][0]["text"] for answer in alone]


def make_remote(server: Running, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The harness's model `local-completions`, which asks the server."""
    pytest.importorskip("tenacity")
    pytest.importorskip("lm_eval")
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    monkeypatch.setenv("OPENAI_API_KEY", ANN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return LocalCompletionsAPI(
        base_url=f"{server.url}/v1/completions",
        model="text",
        tokenizer_backend="remote",
        auth_token=ANN,
        batch_size=2,
        max_length=64,
    )


def test_lm_evaluation_harness_gets_what_it_gets_in_process(
    server: Running, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = make_remote(server, monkeypatch)
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    local = HFLM(pretrained=str(folder / "text"), device="cpu", batch_size=1, max_length=64, dtype="float32")
    choices = [("a b c a b", " c"), ("a b c a b", " d"), ("c d", " d a"), ("h", " a b c")]

    def instances() -> list[Any]:
        return [Instance("loglikelihood", {}, given, place) for place, given in enumerate(choices)]

    found, expected = (model.loglikelihood(instances(), disable_tqdm=True) for model in (remote, local))
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


TASKS: dict[str, dict[str, Any]] = {
    "tiny_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "tiny_perplexity": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
}


def test_a_task_of_the_harness_has_the_result_that_it_has_in_process(
    server: Running, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = make_remote(server, monkeypatch)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from modeling_lle.evaluation.lm_eval import HarnessModel

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    texts = make_texts(12, 14, seed=5)
    rows = [
        {"text": text, "choices": ["a b", "c", "d e f", "g h"], "label": place % 4} for place, text in enumerate(texts)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}}}
    for name, task in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, "test_split": "test", **data, **task}))
    local = HarnessModel(str(folder / "text"), device="cpu", batch_size=3)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found, expected = (
        simple_evaluate(model, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0)["results"]
        for model in (remote, local)
    )
    for name, task in TASKS.items():
        for metric in (own["metric"] for own in task["metric_list"]):
            assert found[name][f"{metric},none"] == pytest.approx(expected[name][f"{metric},none"], rel=1e-4)
            assert found[name][f"{metric},none"] > 0


def test_a_form_translates_and_a_suggestion_is_recalled(server: Running) -> None:
    data = b"q=a+cat&source=en&target=de&api_key=" + BOB.encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{server.url}/translate", data, timeout=60) as answer:
        assert "translatedText" in json.load(answer)
    server.ask("/suggest", {"q": "a cat", "s": "eine Katze", "source": "en", "target": "de"})
    assert server.ask("/en/de/unit/a%20cat")[0]["quality"] == 100.0
    assert server.ask("/en/de/unit/a%20cat", key=BOB) == []


def test_the_client_of_libretranslate_translates_with_the_memory(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    libretranslatepy = pytest.importorskip("libretranslatepy")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    client = libretranslatepy.LibreTranslateAPI(server.url, api_key=ANN)
    assert [language["code"] for language in client.languages()] == ["en"]
    pair = WORD_PAIRS[0]
    assert client.translate(pair["source"], "auto", "de") != pair["target"]
    server.ask("/suggest", {"q": pair["source"], "s": pair["target"], "source": "en", "target": "de"})
    assert client.translate(pair["source"], "en", "de") == pair["target"]
    with pytest.raises(urllib.error.HTTPError):
        libretranslatepy.LibreTranslateAPI(server.url, api_key="wrong").translate("a", "en", "de")
