"""Explanations: effects add up to the change, and are told in the terminal, on a page and by a pipeline."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, pipeline

from modeling_lle import HistoryBank, LLEForCausalLM
from modeling_lle.evaluation.explanations import format_explanations, write_page
from modeling_lle.history.explanation import as_values, decode
from tests.factories.language_models import make_language_model
from tests.factories.texts import WORD_TOKENIZER, make_ids, make_texts


@pytest.fixture(params=["stream", "bank", "both"])
def model(request: pytest.FixtureRequest) -> LLEForCausalLM:
    model = make_language_model(window=0 if request.param == "bank" else 7)
    if request.param != "stream":
        rows = [{"text": text, "user": f"<b>{n}"} for n, text in enumerate(make_texts(8, 6))]
        model.attach_history(HistoryBank.build(model, WORD_TOKENIZER, rows, source="</script>"))
    return model


def test_effects_add_up(model: LLEForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modeling_lle.history.explanation.SEGMENT", 4)
    ids = make_ids(1, 15)
    explanations = model.explain(ids, top=4)
    with torch.no_grad():
        mixed = model(ids).logits[0, :-1].exp().gather(-1, ids[0, 1:, None])[:, 0]
        base = model(ids, use_history=False).logits[0, :-1].softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    assert [item.position for item in explanations] == list(range(1, 15))
    assert [item.target for item in explanations] == ids[0, 1:].tolist()
    for item, prob, base_prob in zip(explanations, mixed.tolist(), base.tolist(), strict=True):
        assert item.prob == pytest.approx(prob, abs=1e-5)
        assert item.base_prob == pytest.approx(base_prob, abs=1e-5)
        assert sum(cause.effect for cause in item.causes) + item.rest == pytest.approx(prob - base_prob, abs=1e-5)
        for cause in item.causes:
            assert cause.effect == pytest.approx(cause.share * ((cause.outcome == item.target) - base_prob), abs=1e-5)
        effects = [abs(cause.effect) for cause in item.causes]
        assert effects == sorted(effects, reverse=True)


def test_all_causes_leave_no_rest(model: LLEForCausalLM) -> None:
    for item in model.explain(make_ids(1, 9), top=1000):
        assert item.rest == pytest.approx(0, abs=1e-5)
        assert item.base_share + sum(cause.share for cause in item.causes) == pytest.approx(1, abs=1e-5)


def test_where_the_entries_are(model: LLEForCausalLM) -> None:
    ids = make_ids(1, 12)[0]
    for item in model.explain(ids, top=20):
        for cause in item.causes:
            if cause.source == "stream":
                at = item.position - cause.age
                assert ids[at] == cause.outcome
                assert ids[max(0, at - 16) : at].tolist() == cause.before
                assert ids[at + 1 : item.position].tolist() == cause.after
            else:
                entry = model.history_bank.describe([cause.id])[0]
                assert (entry.outcome, f"</script>:{entry.row}") == (cause.outcome, cause.place)


def test_the_terminal(model: LLEForCausalLM) -> None:
    explanations = model.explain(make_ids(1, 6), top=2)
    plain = format_explanations(explanations, WORD_TOKENIZER, colour=False)
    assert re.sub("\x1b\\[\\d+m", "", format_explanations(explanations, WORD_TOKENIZER)) == plain
    assert plain.count("share of the base") == 5
    assert "ago" in plain or model.config.stream.window == 0
    assert "</script>:" in plain or model.history_bank is None


def test_the_page_holds_everything_and_no_markup_of_the_text(model: LLEForCausalLM, tmp_path: Path) -> None:
    explanations = model.explain(make_ids(1, 6), top=2)
    page = write_page(tmp_path / "page.html", explanations, WORD_TOKENIZER, "A <title> & more").read_text()
    assert "<title>A &lt;title&gt; &amp; more</title>" in page
    assert page.count("</script>") == 2  # the two of the page itself
    assert not re.findall(r"(?:src|href)=|https?://", page)
    held = re.search(r'id="explained">(.*?)</script>', page, re.DOTALL)
    (passage,) = json.loads(held.group(1))["passages"]
    for shown in (cause for token in passage["tokens"] for cause in token["causes"]):
        assert shown.pop("age", None) is None or shown["source"] == "stream"
    assert passage["tokens"] == as_values(explanations, WORD_TOKENIZER)


def test_tokens_keep_the_spaces_between_them(model: LLEForCausalLM) -> None:
    ids = WORD_TOKENIZER("a b c d", add_special_tokens=False)["input_ids"]
    values = as_values(model.explain(torch.tensor(ids), top=1), WORD_TOKENIZER)
    assert [value["text"] for value in values] == ["b", " c", " d"]


def test_a_forgotten_token_is_a_box() -> None:
    ids = WORD_TOKENIZER("a b c", add_special_tokens=False)["input_ids"]
    assert decode(WORD_TOKENIZER, [ids[0], -1, ids[2]]) == "a▯c"


@pytest.mark.parametrize("ids", [torch.zeros(1, dtype=torch.long), torch.zeros(2, 3, dtype=torch.long)])
def test_what_cannot_be_explained(ids: Any) -> None:
    with pytest.raises(ValueError, match="explain takes one text of two tokens at least"):
        make_language_model().explain(ids)


def test_the_pipeline_returns_the_history(model: LLEForCausalLM) -> None:
    generate = pipeline("text-generation", model=model, tokenizer=WORD_TOKENIZER)
    options = {"max_new_tokens": 4, "do_sample": False}
    records = generate(["a b c d", "e"], **options, return_history=True, history_top=2, batch_size=2)
    plain = generate(["a b c d", "e"], **options, batch_size=2)
    for (record,), (expected,), text in zip(records, plain, ["a b c d", "e"], strict=True):
        assert record["generated_text"] == expected["generated_text"]
        assert set(expected) == {"generated_text"}
        ids = WORD_TOKENIZER(text)["input_ids"]
        out = model.generate(torch.tensor([ids]), **options)[0]
        explanations = model.explain(out, 2, generated=len(out) - len(ids))
        assert record["history"] == as_values(explanations[len(ids) - 1 :], WORD_TOKENIZER)
        assert len(record["history"]) == len(out) - len(ids)


def test_other_models_have_no_history() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_embd=8, n_layer=1, n_head=1, eos_token_id=0, bos_token_id=0))
    generate = pipeline("text-generation", model=model, tokenizer=WORD_TOKENIZER)
    assert generate("a b", max_new_tokens=2)[0]["generated_text"].startswith("a b")
    with pytest.raises(TypeError, match="a history needs an LLE model; this is a GPT2LMHeadModel"):
        generate("a b", max_new_tokens=2, return_history=True)
