"""Rows that are generated together are what each is alone."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from modeling_lle import Attachment, HistoryBank
from modeling_lle.history.cache import LLECache
from modeling_lle.models.causal import LLEForCausalLM
from modeling_lle.serving.decoding import Decoder
from modeling_lle.serving.prompts import SEGMENT
from modeling_lle.serving.rows import Row, Score
from tests.factories.language_models import make_language_model
from tests.factories.texts import WORD_TOKENIZER, make_ids, make_texts


class Heard:
    """What a row told."""

    def __init__(self) -> None:
        self.dropped = False
        self.tokens: list[int] = []
        self.scores: list[Score | None] = []
        self.prompted: Sequence[Score | None] = ()
        self.reason = ""
        self.cache: LLECache | None = None
        self.error: Exception | None = None
        self.most = 1000

    def prompt(self, scores: Sequence[Score | None]) -> None:
        self.prompted = scores

    def token(self, token: int, score: Score | None) -> bool:
        self.tokens.append(token)
        self.scores.append(score)
        return len(self.tokens) >= self.most

    def done(self, reason: str, cache: LLECache | None) -> None:
        self.reason, self.cache = reason, cache

    def failed(self, error: Exception) -> None:
        self.error = error


def make_row(
    model: LLEForCausalLM, tokens: list[int], number: int = 12, seed: int = 0, sampled: bool = True, **options: Any
) -> Row:
    generator = torch.Generator().manual_seed(seed)
    sampling = {"do_sample": True, "top_k": 0, "top_p": 0.95} if sampled else {"do_sample": False}
    choose, ends, _ = model.choice(torch.tensor([tokens]), generator, max_new_tokens=number, **sampling)
    return Row(tokens, choose, ends, number, Heard(), top=3, **options)


def heard(row: Row) -> Heard:
    assert isinstance(row.listener, Heard)
    return row.listener


def run(decoder: Decoder, *rows: Row, between: int = 0) -> list[Heard]:
    """Generates rows, each of which comes so many turns after the one before."""
    for row in rows:
        decoder.admit(row)
        for _ in range(between):
            decoder.turn()
    with torch.no_grad():
        while decoder.rows:
            decoder.turn()
    return [heard(row) for row in rows]


def values(scores: Sequence[Score | None]) -> torch.Tensor:
    return torch.tensor(
        [[0.0] if own is None else [own.logprob, *(value for _, value in own.top)][:1] for own in scores]
    )


MODELS: dict[str, dict[str, Any]] = {
    "lstm": {},
    "qrnn": {"recurrence": "qrnn", "stack": "residual"},
    "matches": {"history": {"matches": {"window": 30}, "bank_matches": {"longest": 4}}},
    "update": {"history": {"update": {"scope": "head"}}},
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("between", [0, 3])
def test_a_row_in_company_is_the_row_alone(name: str, between: int) -> None:
    model = make_language_model(**MODELS[name])
    prompts = [make_ids(1, length, seed)[0].tolist() for seed, length in enumerate((3, 9, 1, 20, 5))]
    together = run(
        Decoder(model), *(make_row(model, own, seed=7 + i) for i, own in enumerate(prompts)), between=between
    )
    for i, own in enumerate(prompts):
        (alone,) = run(Decoder(model), make_row(model, own, seed=7 + i))
        assert together[i].tokens == alone.tokens
        assert together[i].reason == alone.reason
        torch.testing.assert_close(values(together[i].scores), values(alone.scores), atol=1e-5, rtol=0)


def test_a_row_is_what_the_stream_of_the_model_gives() -> None:
    model = make_language_model()
    prompt = make_ids(1, 9)[0].tolist()
    options: dict[str, Any] = {"do_sample": True, "top_k": 0, "top_p": 0.95}
    given = list(model.stream(prompt, seed=5, max_new_tokens=12, **options))
    assert run(Decoder(model), make_row(model, prompt, seed=5))[0].tokens == given


def test_rows_of_different_banks_recall_nothing_of_each_other() -> None:
    model = make_language_model()
    banks = [HistoryBank.build(model, WORD_TOKENIZER, make_texts(6, 9, seed)) for seed in (1, 2)]
    attachments = [Attachment(bank, None, WORD_TOKENIZER).pinned() for bank in banks]
    prompt = make_ids(1, 9)[0].tolist()
    choices = [attachments[0], None, attachments[1], attachments[0]]
    rows = [make_row(model, prompt, sampled=False, attachment=own) for own in choices]
    together = run(Decoder(model), *rows)
    alone = [run(Decoder(model), make_row(model, prompt, sampled=False, attachment=own))[0] for own in choices]
    for own, other in zip(together, alone, strict=True):
        assert own.tokens == other.tokens
        torch.testing.assert_close(values(own.scores), values(other.scores), atol=1e-5, rtol=0)
    assert not torch.equal(values(together[0].scores), values(together[1].scores))


def test_the_prompt_is_scored_across_segments() -> None:
    model = make_language_model()
    prompt = make_ids(1, SEGMENT + 44)[0].tolist()
    (found,) = run(Decoder(model), make_row(model, prompt, 1, scores_prompt=True))
    logs = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    expected = logs[:-1].gather(1, torch.tensor(prompt[1:])[:, None])
    assert found.prompted[0] is None
    assert len(found.prompted) == len(prompt)
    torch.testing.assert_close(values(found.prompted)[1:], expected, atol=1e-4, rtol=0)
    best = logs[:-1].argmax(-1).tolist()
    assert [own.top[0][0] for own in found.prompted if own is not None] == best


def test_a_dropped_row_makes_room_and_the_others_go_on() -> None:
    model, prompt = make_language_model(), make_ids(1, 4)[0].tolist()
    decoder, rows = Decoder(model), [make_row(model, prompt, 12, seed) for seed in (1, 2)]
    for row in rows:
        decoder.admit(row)
    for _ in range(4):
        decoder.turn()
    rows[0].listener.dropped = True  # type: ignore[misc]
    run(decoder)
    assert heard(rows[1]).tokens == run(Decoder(model), make_row(model, prompt, 12, 2))[0].tokens
    assert len(heard(rows[0]).tokens) < 12
    assert heard(rows[0]).reason == ""


def test_an_error_ends_its_row_and_no_other() -> None:
    model, prompt = make_language_model(), make_ids(1, 4)[0].tolist()
    bad = make_row(model, prompt)
    bad.tokens = [10_000]
    found = run(Decoder(model), bad, make_row(model, prompt, seed=3))
    assert isinstance(found[0].error, Exception)
    assert found[1].error is None
    assert len(found[1].tokens) == 12


def test_a_choice_that_fails_ends_its_row_and_no_other() -> None:
    model, prompt = make_language_model(), make_ids(1, 4)[0].tolist()
    rows = [make_row(model, prompt, seed=seed) for seed in (1, 2, 3)]
    inner, calls = rows[1].choose, iter(range(100))

    def choose(text: torch.Tensor, logits: torch.Tensor) -> int:
        if next(calls) == 3:
            raise RuntimeError("no token")
        return inner(text, logits)

    rows[1].choose = choose  # type: ignore[assignment]
    choose.reads_text, choose.is_greedy = inner.reads_text, False  # type: ignore[attr-defined]
    found = run(Decoder(model), *rows)
    assert [str(own.error) for own in found] == ["None", "no token", "None"]
    for place in (0, 2):
        assert found[place].tokens == run(Decoder(model), make_row(model, prompt, seed=place + 1))[0].tokens


def test_a_listener_ends_its_row() -> None:
    model, prompt = make_language_model(), make_ids(1, 4)[0].tolist()
    row = make_row(model, prompt)
    heard(row).most = 3
    (found,) = run(Decoder(model), row)
    assert (len(found.tokens), found.reason) == (3, "stop")


def test_a_kept_cache_goes_on_as_one_text() -> None:
    model = make_language_model()
    first, second = make_ids(1, 6)[0].tolist(), make_ids(1, 3, 1)[0].tolist()
    company = [make_row(model, first, 5, seed=seed, sampled=False) for seed in (1, 2)]
    (found, *_) = run(Decoder(model), make_row(model, first, 4, sampled=False, keeps_cache=True), *company)
    assert found.cache is not None
    assert found.cache.unread is not None
    tokens = [*found.cache.unread.tolist(), *second]
    (later,) = run(Decoder(model), make_row(model, tokens, 4, sampled=False, cache=found.cache))
    cache = None
    output = model.generate(
        torch.tensor([first]), do_sample=False, max_new_tokens=4, return_dict_in_generate=True, use_cache=True
    )
    cache, text = output.past_key_values, output.sequences[0].tolist()
    assert found.tokens == text[len(first) :]
    whole = torch.tensor([[*text, *second]])
    assert (
        later.tokens
        == model.generate(whole, do_sample=False, max_new_tokens=4, past_key_values=cache)[
            0, whole.shape[1] :
        ].tolist()
    )
