"""The test-time update: its rule against a plain loop, and that it stays with its stream."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor
from torch.func import functional_call

from modeling_lle import LLECache, LLEForCausalLM
from modeling_lle.data import StreamDataset
from modeling_lle.history import overlay as overlay_module
from modeling_lle.history.overlay import RENEWAL, Overlay
from modeling_lle.history.updatable import change_sizes
from modeling_lle.history.update_statistics import FLOOR, STATISTICS, WEIGHT_FLOOR
from tests.factories.language_models import make_language_model
from tests.factories.texts import VOCAB, make_ids

SCOPES = ("head", "low-rank", "all")
every_scope = pytest.mark.parametrize("scope", SCOPES)
RATE = {"head": 0.05, "low-rank": 0.03, "all": 0.02}
EVERY = 5


def make_updating(scope: str, window: int = 7, **numbers: Any) -> LLEForCausalLM:
    """A model whose updates move its predictions by much."""
    values = {"rate": RATE[scope], "every": EVERY, "decay": 0.01, "momentum": 0.3, "rank": 4, **numbers}
    model = make_language_model(window)
    model.config.history.update = {"scope": scope, **values}
    stream = StreamDataset(make_ids(1, 60, seed=5)[0].numpy(), 1, 12, evaluation=True)
    model.collect_update_statistics({k: v[None] for k, v in stream[i].items()} for i in range(len(stream)))
    return model


def close(got: Any, want: Any, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)


@torch.no_grad()
def logits_of(model: LLEForCausalLM, ids: Tensor, **options: Any) -> Tensor:
    return model(ids, **options).logits


def reference(model: LLEForCausalLM, ids: Tensor, generated: Tensor | None = None) -> Tensor:
    """Log probabilities (T, V) of the base with the update of one text (T,), token by token, with full gradients.

    Tokens that are `generated` (T,) bool teach nothing.
    """
    taught = torch.ones_like(ids, dtype=torch.bool) if generated is None else ~generated
    numbers, statistics = model.config.overlay, model.update_statistics
    assert statistics is not None
    trained = {name: p.detach().clone() for name, p in model.named_parameters()}
    changes = {name: torch.zeros(size) for name, size in change_sizes(model, numbers).items()}
    velocity = {name: torch.zeros_like(change) for name, change in changes.items()}

    def base(tokens: Tensor, state: Any, own: dict[str, Tensor]) -> tuple[Tensor, Any]:
        cache = LLECache()
        cache.state = state
        weights = {n: t + own[n] for n, t in trained.items()} if numbers.scope == "all" else trained
        states = functional_call(model, weights, (tokens[None],), {"past_key_values": cache, "use_history": False})
        if numbers.scope == "all":
            return states.logits[0].log_softmax(-1), cache.state
        cache = LLECache()
        cache.state = state
        h = model.model(tokens[None], past_key_values=cache).last_hidden_state[0]
        W, b = trained["model.embed_tokens.weight"], trained["lm_head.bias"] + own["bias"]
        if numbers.scope == "head":
            W = W + own["weight"]
        else:
            h = h + (h @ statistics["directions"][:, : numbers.rank]) @ own["map"].T
        return (h @ W.T + b).log_softmax(-1), cache.state

    def rms(name: str) -> Tensor:
        r, s, e = (statistics[key] for key in ("residual", "state", "error"))
        r, s, e = r + FLOOR, s + FLOOR * s.mean(), e + FLOOR * e.mean()
        if numbers.scope == "all":
            return statistics[name] + WEIGHT_FLOOR * statistics[name].mean()
        return {"weight": r[:, None] * s, "bias": r, "map": e[:, None].expand(-1, numbers.rank)}[name]

    output, state, before, since = [], None, None, 0
    for t in range(len(ids)):
        learned = taught[since + 1 : t + 1]
        if t and t % numbers.every == 0 and bool(learned.any()):
            own = {name: change.clone().requires_grad_() for name, change in changes.items()}
            log_probs, _ = base(ids[since:t], before, own)
            nats = -log_probs[torch.arange(t - since), ids[since + 1 : t + 1]][learned].sum()
            for name, gradient in zip(own, torch.autograd.grad(nats, list(own.values())), strict=True):
                velocity[name] = numbers.momentum * velocity[name] + gradient / rms(name) ** numbers.preconditioning
                kept = (1 - numbers.decay) ** numbers.every * changes[name]
                changes[name] = kept - float(numbers.rate or 0) * velocity[name]
        since = t if t % numbers.every == 0 else since
        if t == since:
            before = None if state is None else tuple(part.clone() for part in state)
        with torch.no_grad():
            log_probs, state = base(ids[t : t + 1], state, changes)
        output.append(log_probs[0])
    return torch.stack(output)


@every_scope
@pytest.mark.parametrize("preconditioning", [0.0, 0.5, 1.0])
def test_the_rule(scope: str, preconditioning: float) -> None:
    model, ids = make_updating(scope, 0, preconditioning=preconditioning), make_ids(1, 23)
    got, want = logits_of(model, ids)[0], reference(model, ids[0])
    close(got, want, 1e-4)
    plain = logits_of(model, ids, use_history=False)[0].log_softmax(-1)
    close(got[:EVERY], plain[:EVERY])
    assert (got - plain)[EVERY:].abs().max() > 0.02


@every_scope
def test_the_rule_where_changes_fade_at_once(scope: str) -> None:
    model, ids = make_updating(scope, 0, decay=0.5), make_ids(1, 33)
    close(logits_of(model, ids)[0], reference(model, ids[0]), 1e-4)
    cache = LLECache()
    logits_of(model, ids, past_key_values=cache)
    assert RENEWAL <= float(cache.overlay.decayed[0]) <= 1


def test_outputs_that_were_negligible_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = make_updating("head", 0, momentum=0.0), make_ids(1, EVERY + 1)
    changes = {}
    for least in (0.0, 0.2):
        monkeypatch.setattr(overlay_module, "NEGLIGIBLE", least)
        cache = LLECache()
        logits_of(model, ids, past_key_values=cache)
        changes[least] = cache.overlay.changes["weight"][0]
    residual = logits_of(model, ids, use_history=False)[0, :EVERY].softmax(-1)
    residual[torch.arange(EVERY), ids[0, 1:]] -= 1
    kept = residual.abs().amax(0) >= 0.2
    assert 0 < int(kept.sum()) < len(kept)
    assert torch.equal(changes[0.2][kept], changes[0.0][kept])
    assert not changes[0.2][~kept].any()
    assert changes[0.0][~kept].any()


@every_scope
@pytest.mark.parametrize("window", [0, 7])
def test_rate_zero_is_the_identity(scope: str, window: int) -> None:
    ids, plain = make_ids(2, 17), make_language_model(window)
    want = logits_of(plain, ids) if window else logits_of(plain, ids).log_softmax(-1)
    close(logits_of(make_updating(scope, window, rate=0.0), ids), want, 1e-6)


@every_scope
def test_sums_to_one_and_does_not_see_its_target(scope: str) -> None:
    model, ids = make_updating(scope), make_ids(1, 18)
    log_probs = logits_of(model, ids)
    close(log_probs.exp().sum(-1), torch.ones(1, 18))
    for t in (4, 5, 10, 16):
        other = ids.clone()
        other[:, t + 1 :] = (other[:, t + 1 :] + 1) % VOCAB
        close(logits_of(model, other)[:, : t + 1], log_probs[:, : t + 1], 1e-6)


@every_scope
def test_token_by_token_equals_at_once(scope: str) -> None:
    model, ids = make_updating(scope), make_ids(2, 23)
    want = logits_of(model, ids)
    for sizes in ([1] * 23, [4, 1, 9, 9], [23]):
        cache, parts = None, []
        for part in ids.split(sizes, dim=1):
            with torch.no_grad():
                output = model(part, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            parts.append(output.logits)
        close(torch.cat(parts, dim=1), want, 1e-4)


@every_scope
def test_rows_are_apart_whatever_the_padding(scope: str) -> None:
    model, lengths = make_updating(scope), [19, 8, 14]
    texts = [make_ids(1, length, seed) for seed, length in enumerate(lengths)]
    ids, mask = torch.zeros(3, 19, dtype=torch.long), torch.zeros(3, 19, dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, 19 - text.shape[1] :], mask[row, 19 - text.shape[1] :] = text[0], 1
    together = logits_of(model, ids, attention_mask=mask)
    for row, text in enumerate(texts):
        close(together[row, 19 - text.shape[1] :], logits_of(model, text)[0], 1e-4)


@every_scope
def test_the_model_never_changes_and_reset_begins_anew(scope: str) -> None:
    model, ids = make_updating(scope), make_ids(1, 23)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cache = LLECache(7)
    first = logits_of(model, ids, past_key_values=cache)
    assert any(change.abs().max() > 0 for change in cache.overlay.changes.values())
    cache.reset()
    assert cache.overlay is None
    assert torch.equal(logits_of(model, ids, past_key_values=cache), first)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@every_scope
def test_rows_can_be_reordered(scope: str) -> None:
    model, ids = make_updating(scope), make_ids(3, 23)
    cache = LLECache(7)
    logits_of(model, ids[:, :13], past_key_values=cache)
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    got = logits_of(model, ids[[1, 1, 2], 13:], past_key_values=cache)
    for row, (first, second) in enumerate([(2, 1), (0, 1), (0, 2)]):
        text = torch.cat([ids[first, :13], ids[second, 13:]])[None]
        close(got[row], logits_of(model, text)[0, 13:], 1e-4)


@every_scope
def test_saved_and_loaded(scope: str, tmp_path: Path) -> None:
    model, ids = make_updating(scope, 0, momentum=0.0), make_ids(2, 30)
    cache = LLECache()
    logits_of(model, ids[:, :11], past_key_values=cache)  # two steps, and one token that waits for the next one
    cache.overlay.save(tmp_path / "own.safetensors", model)
    model.save_pretrained(tmp_path / "model")
    again = LLEForCausalLM.from_pretrained(tmp_path / "model")
    loaded = LLECache()
    loaded.overlay = Overlay.load(tmp_path / "own.safetensors", again)
    assert torch.equal(loaded.overlay.decayed, cache.overlay.decayed)
    for name, change in cache.overlay.changes.items():
        assert torch.equal(loaded.overlay.changes[name], change)
    other = LLECache()
    other.overlay = cache.overlay
    other.overlay.count[:] = 0
    want = logits_of(model, ids[:, 15:], past_key_values=other)
    assert torch.equal(logits_of(again, ids[:, 15:], past_key_values=loaded), want)


def test_overlays_that_do_not_fit(tmp_path: Path) -> None:
    model, path = make_updating("head"), tmp_path / "own.safetensors"
    cache, _ = model.cache_for(None, True, True, 1, None)
    assert cache is not None
    with pytest.raises(FileNotFoundError, match="there is no overlay at"):
        Overlay.load(path, model)
    cache.overlay.save(path, model)
    with pytest.raises(ValueError, match=r"has the scope 'head', history.update.scope is 'low-rank'"):
        Overlay.load(path, make_updating("low-rank"))
    other = make_updating("head")
    with torch.no_grad():
        other.model.embed_tokens.weight += 1
    with pytest.raises(ValueError, match="was made by another model"):
        Overlay.load(path, other)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="is damaged"):
        Overlay.load(path, model)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no overlay"):
        Overlay.load(tmp_path / "model.safetensors", model)
    with pytest.raises(OSError, match=r"cannot be written: .*own\.safetensors"):
        cache.overlay.save(tmp_path / "none" / "own.safetensors", model)


@every_scope
def test_what_explodes_is_undone(scope: str, caplog: pytest.LogCaptureFixture) -> None:
    model, ids = make_updating(scope, 0, rate=30.0, momentum=0.0, decay=0.0), make_ids(1, 60)
    with caplog.at_level(logging.WARNING):
        logits = logits_of(model, ids)
    assert logits.isfinite().all()
    assert "its changes are undone and it begins anew; lower history.update.rate (now 30)" in caplog.text


@every_scope
@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_bfloat16(scope: str, how: str) -> None:
    model, ids = make_updating(scope), make_ids(2, 23)
    want = logits_of(model, ids)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        got = logits_of(model.bfloat16() if how == "weights" else model, ids)
    close(got.float(), want, 0.3)
    cache, _ = model.cache_for(None, True, True, 2, None)
    assert cache is not None
    assert {change.dtype for change in cache.overlay.changes.values()} == {torch.float32}


@every_scope
def test_generates(scope: str) -> None:
    model, ids = make_updating(scope), make_ids(2, 9)
    for options in ({"do_sample": False}, {"num_beams": 3, "do_sample": False}):
        output = model.generate(ids, max_new_tokens=8, **options)
        assert output.shape == (2, 17)
    for generated in (8, 0):
        model.config.overlay.generated = model.config.stream.generated = not generated
        greedy = model.generate(ids[:1], max_new_tokens=8, do_sample=False)
        assert torch.equal(logits_of(model, greedy, generated=generated)[:, 8:-1].argmax(-1), greedy[:, 9:])


@every_scope
def test_it_does_not_learn_from_own_output(scope: str) -> None:
    model, ids = make_updating(scope, window=0), make_ids(1, 26)
    generated = torch.arange(26) % 13 > 3  # the second step has nothing to learn from
    generated[3 * EVERY :] &= torch.arange(26)[3 * EVERY :] != 18
    got = logits_of(model, ids, generated=generated[None])
    close(got[0].log_softmax(-1), reference(model, ids[0], generated), 1e-4)
    assert (got - logits_of(model, ids)).abs().max() > 0.01
    cache = LLECache(0)
    parts = [
        logits_of(model, ids[:, t : t + 1], past_key_values=cache, use_cache=True, generated=int(generated[t]))
        for t in range(26)
    ]
    close(torch.cat(parts, dim=1), got, 1e-4)
    model.config.overlay.generated = True
    close(logits_of(model, ids, generated=generated[None]), logits_of(model, ids))


def test_statistics_are_needed_and_saved(tmp_path: Path) -> None:
    model = make_language_model()
    model.config.history.update = {"scope": "head"}
    with pytest.raises(ValueError, match="has no statistics of 'residual': collect them once with `lle statistics"):
        model(make_ids(1, 5))
    model = make_updating("all")
    model.save_pretrained(tmp_path)
    again = LLEForCausalLM.from_pretrained(tmp_path)
    assert again.config.overlay == model.config.overlay
    assert model.update_statistics is not None
    assert again.update_statistics is not None
    for name, value in model.update_statistics.items():
        assert torch.equal(again.update_statistics[name], value)
    close(logits_of(again, make_ids(1, 20)), logits_of(model, make_ids(1, 20)))
    with pytest.raises(ValueError, match="need training text; the batches hold none"):
        model.collect_update_statistics([])


def _statistics(**changed: Tensor) -> bytes:
    right = {"residual": torch.ones(11), "state": torch.ones(6), "error": torch.ones(6), "directions": torch.eye(6)}
    return save({**right, **changed})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            _statistics()[:-9],
            r"update_statistics.safetensors is truncated or corrupted \(.*\): collect them",
        ),
        (b"", "is truncated or corrupted"),
        (save({"squares": torch.ones(11)}), "the model has no statistics of 'residual': collect them once"),
        (
            _statistics(residual=torch.ones(12)),
            r"'residual' .* have the shape \(12,\), not \(11,\): collect",
        ),
        (_statistics(state=torch.full((6,), math.nan)), "'state' .* have values that are not finite numbers"),
        (_statistics(state=torch.ones(6, dtype=torch.int32)), "'state' .* have values that are not finite numbers"),
        (_statistics(state=-torch.ones(6)), "'state' .* have negative values"),
    ],
    ids=["truncated", "empty", "names", "shape", "nan", "dtype", "negative"],
)
def test_broken_statistics_are_an_error_only_where_they_are_used(tmp_path: Path, content: bytes, message: str) -> None:
    model, ids = make_language_model(), make_ids(1, 5)
    model.save_pretrained(tmp_path)
    (tmp_path / STATISTICS).write_bytes(content)
    again = LLEForCausalLM.from_pretrained(tmp_path)
    close(logits_of(again, ids), logits_of(model, ids))
    again.config.history.update = {"scope": "head"}
    with pytest.raises(ValueError, match=message):
        again(ids)


def test_what_forward_refuses_while_it_updates() -> None:
    model, ids = make_updating("head"), make_ids(1, 5)
    for options in (
        {"inputs_embeds": model.model.embed_tokens(ids)},
        {"input_ids": ids, "output_hidden_states": True},
    ):
        with pytest.raises(ValueError, match="the test-time update reads tokens"):
            model(**options)
        model(**options, use_history=False)


def test_training_mode_does_not_update() -> None:
    model, ids = make_updating("head").train(), make_ids(1, 20)
    assert model(ids, labels=ids, use_cache=True, use_history=True).past_key_values.overlay is None
