"""Each tested type of transformers is a backbone: in pieces, padded on the left, reordered, with gradients, saved."""

from typing import Any

import pytest
import torch
from torch import Tensor

from modeling_lle import LLECache
from modeling_lle.backbone.hub_families import FAMILIES
from tests.backbone import conformance
from tests.backbone.conformance import CHECKS, LEFT_PADDED, TYPES, close, encode, make_tokens
from tests.factories.hub_models import CONFIGS, make_wrapped_model

# One of each kind: without attention, token by token, with positions, with attention in the same layer, unmasked.
KINDS = ["mamba2", "mamba", "bamba", "falcon_h1", "xlstm"]
TELLING = [
    conformance.a_text_in_segments_gives_what_it_gives_at_once,
    conformance.a_padded_batch_gives_what_its_rows_give_alone,
    conformance.rows_go_on_where_they_are_sent,
    conformance.a_state_that_was_exported_goes_on,
]
BY_TRAINING = conformance.a_gradient_flows_through_the_state_until_it_is_detached
BY_EMBEDDINGS = conformance.embeddings_give_what_their_tokens_give  # falcon_h1 scales tokens, and not embeddings
BY_WEIGHTS = conformance.the_fingerprint_changes_with_the_weights_that_states_depend_on  # zamba2 has unused ones


def make(kind: str) -> Any:
    return make_wrapped_model(kind, vocab_size=TYPES).model


def holds(check: Any, kind: str) -> bool:
    if check == BY_TRAINING:
        return FAMILIES[kind].differentiable
    return (check, kind) not in ((BY_EMBEDDINGS, "falcon_h1"), (BY_WEIGHTS, "zamba2"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("check", TELLING, ids=lambda check: check.__name__)
def test_a_model_of_transformers_holds(check: Any, kind: str) -> None:
    check(lambda: make(kind))


@pytest.mark.parametrize("check", [check for check in CHECKS if check not in TELLING], ids=lambda own: own.__name__)
def test_mamba2_holds(check: Any) -> None:
    check(lambda: make("mamba2"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(FAMILIES))
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_type_of_the_table_holds(check: Any, kind: str) -> None:
    if holds(check, kind):
        check(lambda: make(kind))


def test_every_type_of_the_table_is_tested() -> None:
    assert CONFIGS.keys() == FAMILIES.keys()


@pytest.mark.parametrize("kind", ["mamba2", "bamba"])
def test_states_tell_the_first_token_of_a_text(kind: str) -> None:
    """Otherwise the other tests would pass with a state that is lost."""
    backbone, tokens = make(kind), make_tokens()
    changed = tokens.clone()
    changed[:, 0] = (tokens[:, 0] + 1) % TYPES
    last = encode(backbone, tokens)[:, -1]
    assert (encode(backbone, changed)[:, -1] - last).abs().mean() > 0.1 * last.abs().mean()


@pytest.mark.parametrize("kind", ["mamba2", "mamba", "bamba", "xlstm"])
def test_padding_after_a_text_is_harmless_and_nothing_goes_on_from_it(kind: str) -> None:
    backbone, tokens, cache = make(kind), make_tokens(), LLECache()
    mask = LEFT_PADDED.flip(1)
    got, want = encode(backbone, tokens, mask, cache), encode(backbone, tokens)
    close(got[mask.bool()], want[mask.bool()])
    more = torch.cat([mask, torch.tensor([[1, 1], [0, 0], [0, 0]])], dim=1)
    encode(backbone, make_tokens(length=2), more, cache)  # only the row without padding goes on
    with pytest.raises(ValueError, match=r"row 1 has padding in the middle of its text.*pad on the left"):
        encode(backbone, make_tokens(length=2), torch.ones(3, 2), cache)


def test_padding_within_a_text_is_refused() -> None:
    with pytest.raises(ValueError, match="row 1 has padding in the middle"):
        encode(make("bamba"), make_tokens(2), torch.tensor([[1] * 7, [0, 1, 1, 0, 1, 1, 1]]))


@pytest.mark.parametrize("kind", ["mamba2", "bamba", "jamba"])
def test_rows_begin_one_after_another_while_a_text_is_read_token_by_token(kind: str) -> None:
    backbone, tokens, cache = make(kind), make_tokens(), LLECache()
    states = [encode(backbone, tokens[:, t : t + 1], LEFT_PADDED[:, : t + 1], cache) for t in range(7)]
    want = encode(backbone, tokens, LEFT_PADDED)
    close(torch.cat(states, dim=1)[LEFT_PADDED.bool()], want[LEFT_PADDED.bool()])


def test_a_state_stays_as_it_was_when_a_text_goes_on() -> None:
    for kind in ("mamba2", "bamba"):
        backbone, cache = make(kind), LLECache()
        encode(backbone, make_tokens(), cache=cache)
        before, exported = cache.state, {name: tensor.clone() for name, tensor in cache.export().items()}
        encode(backbone, make_tokens(length=1), cache=cache)
        cache.state = before
        after: dict[str, Tensor] = cache.export()
        assert all(torch.equal(tensor, after[name]) for name, tensor in exported.items())


def test_a_text_does_not_go_on_where_training_kept_no_state() -> None:
    backbone, tokens = make("mamba2"), make_tokens()
    backbone.train()
    backbone.activation_checkpointing_enable()
    cache = backbone(tokens, past_key_values=LLECache()).past_key_values
    with pytest.raises(ValueError, match=r"no state is kept.*begin each segment with a new cache"):
        backbone(tokens, past_key_values=cache)


@pytest.mark.parametrize("kind", ["mamba", "bamba"])
def test_hidden_states_are_those_of_every_layer(kind: str) -> None:
    backbone, tokens = make(kind), make_tokens()
    whole = backbone(tokens, output_hidden_states=True)
    assert len(whole.hidden_states) >= 3
    close(whole.hidden_states[-1], whole.last_hidden_state)
