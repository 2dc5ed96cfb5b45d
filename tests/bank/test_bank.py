"""The bank: what it holds, how it joins the prediction, and that what is forgotten is gone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modeling_lle import HistoryBank, LLEForCausalLM
from modeling_lle.bank.files import BankError
from tests.factories.language_models import make_language_model
from tests.factories.texts import VOCAB, WORD_TOKENIZER, make_ids, make_texts

MODEL = make_language_model()
TEXTS = make_texts(12, 9)


@pytest.fixture(autouse=True)
def detached() -> Any:
    yield
    MODEL.detach_history()


def build(texts: Any = TEXTS, model: LLEForCausalLM = MODEL, **options: Any) -> HistoryBank:
    return HistoryBank.build(model, WORD_TOKENIZER, texts, **options)


def content(bank: HistoryBank) -> tuple[Tensor, Tensor]:
    segments = [bank.folder.read_segment(info) for info in bank.manifest.segments]
    return torch.cat([s.keys for s in segments]).float(), torch.cat([s.outcomes for s in segments])


@torch.no_grad()
def predict(model: LLEForCausalLM, ids: Tensor) -> Tensor:
    """P (B, T, V)."""
    return model(ids).logits.exp()


def test_the_rule_with_a_bank() -> None:
    """Against the rule written out for one position."""
    model, bank = make_language_model(window=0), build()
    model.attach_history(bank)
    ids = make_ids(2, 6)
    with torch.no_grad():
        states = torch.nn.functional.normalize(model.model(ids).last_hidden_state, dim=-1)
        base = model(ids, use_history=False).logits.log_softmax(-1)
    keys, outcomes = content(bank)
    numbers = model.config.bank
    scores, nearest = (states @ keys.T).sort(dim=-1, descending=True, stable=True)
    scores = (scores[..., : numbers.neighbours] - 1) * numbers.sharpness
    recalled = torch.zeros(2, 6, VOCAB).scatter_add_(
        -1, outcomes[nearest[..., : numbers.neighbours]], scores.softmax(-1)
    )
    bias, of_mass, of_entropy, of_max = numbers.gate
    entropy, highest = -(base.exp() * base).sum(-1), base.amax(-1)
    share = (bias + of_mass * scores.logsumexp(-1) + of_entropy * entropy + of_max * highest).sigmoid()[..., None]
    torch.testing.assert_close(predict(model, ids), (1 - share) * base.exp() + share * recalled, atol=1e-5, rtol=0)


@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("skip_above", [1.0, 0.2])
def test_the_mixture_sums_to_one_and_does_not_see_its_target(window: int, skip_above: float) -> None:
    model = make_language_model(window=window)
    model.config.bank.skip_above = skip_above
    model.attach_history(build())
    ids = make_ids(3, 14)
    predicted = predict(model, ids)
    torch.testing.assert_close(predicted.sum(-1), torch.ones(3, 14), atol=1e-5, rtol=0)
    other = ids.clone()
    other[:, 8:] = (other[:, 8:] + 1) % VOCAB
    torch.testing.assert_close(predict(model, other)[:, :8], predicted[:, :8], atol=1e-6, rtol=0)
    targets = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    scores = model.score(ids, targets)
    expected = predicted[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].log()
    torch.testing.assert_close(scores.log_probs[:, :-1], expected, atol=1e-5, rtol=0)


def test_scores_of_each_source_alone() -> None:
    model, ids = make_language_model(window=5), make_ids(2, 9)
    targets = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    alone = model.score(ids, targets)
    model.attach_history(build())
    both = model.score(ids, targets)
    torch.testing.assert_close(both.stream_log_probs, alone.log_probs)
    torch.testing.assert_close(both.base_log_probs, alone.base_log_probs)
    model.config.stream.window = 0
    torch.testing.assert_close(model.score(ids, targets).log_probs, both.bank_log_probs)
    assert not torch.allclose(both.log_probs, both.stream_log_probs)


def test_shares_add_up() -> None:
    model, ids = make_language_model(window=5), make_ids(2, 9)
    model.attach_history(build())
    with torch.no_grad():
        output = model(ids, output_history=True)
        base = model(ids, use_history=False).logits.softmax(-1)
    history = output.history
    total = history.base_share[..., None] * base
    total.scatter_add_(-1, history.outcomes, history.shares)
    total.scatter_add_(-1, history.bank_outcomes, history.bank_shares)
    torch.testing.assert_close(total, output.logits.exp(), atol=1e-5, rtol=0)
    texts = model.history_bank.describe(history.bank_ids[0, 3].tolist())
    assert [text.outcome for text in texts] == history.bank_outcomes[0, 3].tolist()


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("how", [{"source": "mine"}, {"where": {"user": "ann"}}, {"namespace": "other"}, "ids"])
def test_forgetting_is_exact(how: Any, compacted: bool) -> None:
    """Bit for bit the logits of a bank that never held what was forgotten."""
    rows = [{"text": text, "user": "bob"} for text in TEXTS]
    more = [{"text": text, "user": "ann"} for text in make_texts(9, 9, seed=5)]
    never, bank = build(rows, source="first"), build(rows[:6], source="first")
    before = len(bank)
    bank.add(more, source="mine", namespace="other" if "namespace" in how else "default")
    bank.add(rows[6:], source="second")
    added = len(bank) - len(never)
    given = {"ids": range(before, before + added)} if how == "ids" else how
    assert bank.forget(**given) == added
    assert len(bank) == len(never)
    if compacted:
        assert bank.compact() > 0
        assert bank.verify() == []
    model, ids = make_language_model(), make_ids(3, 20)
    model.attach_history(never)
    expected = model(ids).logits
    model.attach_history(HistoryBank.open(bank.folder.path))
    assert torch.equal(model(ids).logits, expected)


def test_compact_takes_the_bytes_from_the_disk(tmp_path: Path) -> None:
    rows = [{"text": text, "user": "bob"} for text in TEXTS]
    bank = build(rows, path=tmp_path, source="kept")
    secret = "h g h g f h g h"
    bank.add([{"text": secret, "user": "zebulon"}, rows[0]], source="private")
    tokens = torch.tensor(WORD_TOKENIZER(secret, add_special_tokens=False)["input_ids"], dtype=torch.int32)
    traces = tokens.numpy().tobytes(), b"zebulon"
    on_disk = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert all(trace in on_disk for trace in traces)
    bank.forget(where={"user": "zebulon"})
    assert bank.compact() > 0
    on_disk = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert not any(trace in on_disk for trace in traces)
    assert len(bank) == len(build(rows)) + len(TEXTS[0].split()) + 1
    # A single entry takes its token along at once, also where the token stood before another entry.
    assert bank.describe([3])[0].outcome != -1
    bank.forget([3])
    assert bank.describe([4])[0].before[-1] == -1
    bank.compact()
    assert bank.describe([4])[0].before[-1] == -1


def test_compact_joins_small_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, model, ids = build(TEXTS[:3], namespace="ann"), make_language_model(), make_ids(2, 9)
    for number, text in enumerate(TEXTS[3:9]):
        bank.add([{"text": text, "number": number}], namespace="ann" if number < 4 else "bob", merge=number % 2 == 0)
    model.attach_history(bank)
    expected, described = model(ids).logits, bank.describe(range(len(bank)))
    bank.compact()
    assert [info.namespace for info in bank.manifest.segments] == ["ann", "bob"]
    assert torch.equal(model(ids).logits, expected)
    assert bank.describe(range(len(bank))) == described
    generation = bank.manifest.generation
    assert bank.compact() == 0
    assert bank.manifest.generation == generation
    monkeypatch.setattr("modeling_lle.bank.changes.LARGE", 30)
    again = build(TEXTS[:3])
    for text in TEXTS[3:]:
        again.add([text])
    again.compact()
    sizes = [info.entries for info in again.manifest.segments]
    assert 1 < len(sizes) < 9
    assert max(sizes) <= 30
    assert torch.equal(content(again)[1], content(build())[1])


def test_namespaces_are_apart() -> None:
    bank, model, ids = build(TEXTS[:6], namespace="ann"), make_language_model(), make_ids(2, 9)
    bank.add(TEXTS[6:], namespace="bob")
    assert bank.namespaces == ["ann", "bob"]
    for name, texts in (("ann", TEXTS[:6]), ("bob", TEXTS[6:])):
        model.attach_history(bank, namespaces=name)
        mine = model(ids).logits
        model.attach_history(build(texts))
        assert torch.equal(mine, model(ids).logits)
    model.attach_history(bank)
    everything = model(ids).logits
    model.attach_history(bank, namespaces=["bob", "ann"])
    assert torch.equal(model(ids).logits, everything)
    with pytest.raises(BankError, match="no namespace 'eve'; it has: ann, bob"):
        model.attach_history(bank, namespaces="eve")


def test_a_namespace_that_was_forgotten_is_gone() -> None:
    bank, model, ids = build(TEXTS[:6], namespace="ann"), make_language_model(window=0), make_ids(2, 9)
    bank.add(TEXTS[6:], namespace="bob")
    model.attach_history(bank, namespaces="ann")
    bank.forget(namespace="ann")
    bank.compact()
    assert bank.namespaces == ["bob"]
    torch.testing.assert_close(model(ids).logits, model(ids, use_history=False).logits.log_softmax(-1))


def test_an_empty_bank_is_the_base() -> None:
    bank, model, ids = build(), make_language_model(window=0), make_ids(2, 5)
    model.attach_history(bank)
    bank.forget(namespace="default")
    assert len(bank) == 0
    base = model(ids, use_history=False).logits.log_softmax(-1)
    torch.testing.assert_close(model(ids).logits, base)
    bank.compact()
    torch.testing.assert_close(model(ids).logits, base)
    assert bank.namespaces == []


def test_another_backbone_is_refused() -> None:
    bank = build()
    other = make_language_model()
    other.lm_head.bias.data += 1
    other.attach_history(bank)  # only the backbone counts
    with pytest.raises(BankError, match="was encoded by another backbone"):
        make_language_model(recurrence="gru").attach_history(bank)
    with torch.no_grad():
        next(other.model.stack.parameters()).mul_(1.1)
    with pytest.raises(BankError, match="load the model that built it"):
        other.attach_history(bank)
    make_language_model().bfloat16().attach_history(bank)


def test_saved_only_when_asked(tmp_path: Path) -> None:
    model, ids = make_language_model(), make_ids(2, 7)
    with pytest.raises(ValueError, match="no bank is attached"):
        model.save_pretrained(tmp_path / "none", save_history=True)
    model.attach_history(build())
    expected = model(ids).logits
    model.save_pretrained(tmp_path / "without")
    assert not (tmp_path / "without" / "history").exists()
    model.save_pretrained(tmp_path / "with", save_history=True)
    again = LLEForCausalLM.from_pretrained(tmp_path / "with")
    assert again.history_bank is None
    again.attach_history(HistoryBank.from_pretrained(tmp_path / "with"))
    assert torch.equal(again(ids).logits, expected)
    with pytest.raises(FileNotFoundError, match="there is no bank at"):
        HistoryBank.from_pretrained(tmp_path / "without")


def test_calibration_of_both_sources() -> None:
    model = make_language_model(window=20)
    model.attach_history(build())
    texts = " ".join(make_texts(12, 9))
    ids = torch.tensor([[0, *WORD_TOKENIZER(texts, add_special_tokens=False)["input_ids"]]])
    batch = {"input_ids": ids[:, :-1], "shift_labels": ids[:, 1:]}
    before = json.dumps(model.config.to_dict()["history"])
    fitted = model.calibrate([batch])
    assert fitted["after_nats"] < fitted["before_nats"]
    after = model.config.to_dict()["history"]
    for source in ("stream", "bank"):
        assert after[source]["gate"] != json.loads(before)[source]["gate"]
        assert after[source]["sharpness"] != json.loads(before)[source]["sharpness"]
    nats = -model.score(**batch).log_probs.mean()
    assert float(nats) == pytest.approx(fitted["after_nats"], rel=1e-3)


def test_nothing_encodes_without_a_model(tmp_path: Path) -> None:
    build(path=tmp_path)
    bank = HistoryBank.open(tmp_path)
    with pytest.raises(ValueError, match="No encoder: pass model= and tokenizer="):
        bank.add(TEXTS)
    with pytest.raises(FileExistsError, match="there is a bank at"):
        build(path=tmp_path)
    MODEL.attach_history(bank, tokenizer=WORD_TOKENIZER)
    assert bank.add(TEXTS) == len(bank) // 2
