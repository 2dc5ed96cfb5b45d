"""Prompts that are read together are what each is alone, and one that several rows begin with is read once."""

from collections import deque
from typing import Any

import pytest
import torch

from modeling_lle import Attachment, HistoryBank
from modeling_lle.serving.decoding import PACE, Decoder
from modeling_lle.serving.prompts import SEGMENT, TOGETHER, Prompt, add, take
from modeling_lle.serving.rows import Row
from tests.factories.language_models import make_language_model
from tests.factories.texts import WORD_TOKENIZER, make_ids, make_texts
from tests.serving.test_decoding import MODELS, Heard, heard, make_row, run, values

LENGTHS = (3, SEGMENT + 30, 5, SEGMENT - 1, 2 * SEGMENT + 7)


def rows_of(model: Any, count: int = len(LENGTHS), **options: Any) -> list[Row]:
    return [make_row(model, make_ids(1, size, size)[0].tolist(), 4, size, **options) for size in LENGTHS[:count]]


@pytest.mark.parametrize("name", MODELS)
def test_long_prompts_in_company_give_what_each_gives_alone(name: str) -> None:
    model = make_language_model(**MODELS[name])
    for own, row in zip(run(Decoder(model), *rows_of(model)), rows_of(model), strict=True):
        (alone,) = run(Decoder(model), row)
        assert own.tokens == alone.tokens
        torch.testing.assert_close(values(own.scores), values(alone.scores), atol=1e-5, rtol=0)


@pytest.mark.parametrize("top", [0, 3])
def test_prompts_that_are_scored_together_have_the_scores_of_each_alone(top: int) -> None:
    model = make_language_model()
    bank = HistoryBank.build(model, WORD_TOKENIZER, make_texts(6, 9, 1))
    given: dict[str, Any] = {"attachment": Attachment(bank, None, WORD_TOKENIZER).pinned(), "scores_prompt": True}
    rows, again = rows_of(model, **given), rows_of(model, **given)
    for row in (*rows, *again):
        row.top = top
    for own, row in zip(run(Decoder(model), *rows), again, strict=True):
        (alone,) = run(Decoder(model), row)
        assert len(own.prompted) == len(row.tokens)
        torch.testing.assert_close(values(own.prompted), values(alone.prompted), atol=1e-5, rtol=0)
        assert [len(score.top) for score in own.prompted if score is not None] == [top] * (len(row.tokens) - 1)


def test_rows_with_the_same_prompt_read_it_once_and_draw_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    model, read = make_language_model(), []
    inner = model.forward

    def forward(ids: torch.Tensor, **options: Any) -> Any:
        read.append(tuple(ids.shape))
        return inner(ids, **options)

    monkeypatch.setattr(model, "forward", forward)
    prompt = make_ids(1, SEGMENT + 3)[0].tolist()
    found = run(Decoder(model), *(make_row(model, prompt, 1, seed) for seed in range(4)))
    assert read == [(1, SEGMENT), (1, 3)]
    assert len({tuple(own.tokens) for own in found}) > 1


def test_a_prompt_that_is_dropped_is_not_read_and_its_copies_go_on() -> None:
    model, prompt = make_language_model(), make_ids(1, 9)[0].tolist()
    rows = [make_row(model, prompt, 3, seed) for seed in (1, 2)]
    decoder = Decoder(model)
    for row in rows:
        decoder.admit(row)
    rows[0].listener.dropped = True  # type: ignore[misc]
    run(decoder)
    assert heard(rows[0]).tokens == []
    assert heard(rows[1]).tokens == run(Decoder(model), make_row(model, prompt, 3, 2))[0].tokens


def test_rows_that_are_generated_get_half_of_the_time() -> None:
    model = make_language_model()
    decoder, first, second = Decoder(model), Heard(), Heard()
    rows = [make_row(model, make_ids(1, 4 * PACE, seed)[0].tolist(), 20, seed) for seed in (1, 2)]
    rows[0].listener, rows[1].listener = first, second
    rows[0].ends = rows[1].ends = frozenset()
    decoder.admit(rows[0])
    decoder.turn()
    decoder.admit(rows[1])
    with torch.no_grad():
        while not second.tokens:
            decoder.turn()
    assert len(first.tokens) - len(second.tokens) == 4


def prompt_of(size: int, key: str = "a", **options: Any) -> Prompt:
    row = make_row(make_language_model(), make_ids(1, size, size)[0].tolist(), **options)
    return Prompt([row], key)


def test_prompts_of_similar_length_and_one_kind_are_taken_together() -> None:
    sizes = [10, 90, 20, 12, 5, 4]
    waiting = deque([*map(prompt_of, sizes), prompt_of(11, "b")])
    assert [len(own.tokens) for own in take(waiting, 9)] == [10, 20, 12]
    assert [len(own.tokens) for own in waiting] == [90, 5, 4, 11]
    many = deque(Prompt(prompt_of(SEGMENT).rows, "a") for _ in range(20))
    assert len(take(many, 9)) == TOGETHER // SEGMENT
    scored = deque(prompt_of(10, scores_prompt=True) for _ in range(3))
    assert len(take(scored, 1 << 20)) == 1


def test_a_prompt_joins_one_that_waits_only_if_it_is_the_same() -> None:
    waiting: deque[Prompt] = deque()
    for prompt in (prompt_of(5), prompt_of(5), prompt_of(6), prompt_of(5, "b")):
        add(prompt, waiting)
    assert [len(prompt.rows) for prompt in waiting] == [2, 1, 1]
    waiting[0].read = 2
    add(prompt_of(5), waiting)
    assert len(waiting) == 4
