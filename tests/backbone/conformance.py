"""What every backbone must hold, as checks that any implementation of `Backbone` can be run through.

A check takes a function that makes the backbone, in evaluation mode and with the same weights each time. A new
backbone joins by a line in `BACKBONES` of test_conformance.py.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from modeling_lle import LLECache
from modeling_lle.backbone.protocol import Backbone
from modeling_lle.backbone.state import rows_of, tensors_of
from modeling_lle.bank.fingerprint import fingerprint, same_backbone

Make = Callable[[], Any]
B, T, TYPES = 3, 7, 12  # rows, tokens of a row, types of tokens that the backbone must know
LEFT_PADDED = torch.tensor([[1] * 7, [0] * 3 + [1] * 4, [0] * 6 + [1]])


def make_tokens(rows: int = B, length: int = T, seed: int = 0) -> Tensor:
    return torch.randint(TYPES, (rows, length), generator=torch.Generator().manual_seed(seed))


def encode(backbone: Any, tokens: Tensor, mask: Tensor | None = None, cache: LLECache | None = None) -> Tensor:
    with torch.no_grad():
        return backbone(tokens, mask, past_key_values=cache, use_cache=False).last_hidden_state


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def same_state(one: LLECache, other: LLECache) -> None:
    for got, want in zip(tensors_of(one.state), tensors_of(other.state), strict=True):
        close(got, want)


def it_is_a_backbone_with_states_of_its_width(make: Make) -> None:
    backbone = make()
    assert isinstance(backbone, Backbone)
    states = encode(backbone, make_tokens())
    assert states.shape == (B, T, backbone.key_size)
    assert states.isfinite().all()


def a_text_in_segments_gives_what_it_gives_at_once(make: Make) -> None:
    backbone, tokens, whole = make(), make_tokens(), LLECache()
    want = encode(backbone, tokens, cache=whole)
    close(encode(backbone, tokens), want)
    for sizes in ([4, 3], [2, 1, 4], [1] * T):
        cache = LLECache()
        parts = [encode(backbone, part, cache=cache) for part in tokens.split(sizes, dim=1)]
        close(torch.cat(parts, dim=1), want)
        same_state(cache, whole)
        assert (cache.seen_tokens, cache.batch_size) == (T, B)


def states_do_not_depend_on_later_tokens(make: Make) -> None:
    backbone, tokens = make(), make_tokens()
    changed = tokens.clone()
    changed[:, 4:] = (tokens[:, 4:] + 1) % TYPES
    got, want = encode(backbone, changed), encode(backbone, tokens)
    close(got[:, :4], want[:, :4])
    assert not torch.equal(got[:, 4:], want[:, 4:])


def a_padded_batch_gives_what_its_rows_give_alone(make: Make) -> None:
    backbone, tokens, cache = make(), make_tokens(), LLECache()
    got, more = encode(backbone, tokens, LEFT_PADDED, cache), make_tokens(seed=1)
    after = encode(backbone, more, cache=cache)
    for row, mask in enumerate(LEFT_PADDED.bool()):
        own = LLECache()
        close(got[row : row + 1, mask], encode(backbone, tokens[row : row + 1, mask], cache=own))
        close(after[row : row + 1], encode(backbone, more[row : row + 1], cache=own))
    close(encode(backbone, tokens, torch.ones(B, T)), encode(backbone, tokens))


def the_mask_may_reach_back_over_the_text_so_far(make: Make) -> None:
    backbone, tokens, cache = make(), make_tokens(), LLECache()
    want = encode(backbone, tokens, LEFT_PADDED)
    parts = [
        encode(backbone, tokens[:, :4], LEFT_PADDED[:, :4], cache),
        encode(backbone, tokens[:, 4:], LEFT_PADDED, cache),
    ]
    close(torch.cat(parts, dim=1)[LEFT_PADDED.bool()], want[LEFT_PADDED.bool()])


def rows_go_on_where_they_are_sent(make: Make) -> None:
    backbone, more = make(), make_tokens(seed=1)
    cache = LLECache()
    encode(backbone, make_tokens(), cache=cache)
    want = encode(backbone, more, cache=copy.deepcopy(cache))
    changes: list[tuple[Callable[[LLECache], None], list[int]]] = [
        (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
        (lambda cache: cache.batch_select_indices(torch.tensor([2, 1])), [2, 1]),
        (lambda cache: cache.batch_select_indices(torch.tensor([True, False, True])), [0, 2]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    ]
    for change, rows in changes:
        own = copy.deepcopy(cache)
        change(own)
        assert own.batch_size == rows_of(own.state) == len(rows)
        close(encode(backbone, more[rows], cache=own), want[rows])


def a_batch_of_another_size_does_not_go_on(make: Make) -> None:
    backbone, cache = make(), LLECache()
    encode(backbone, make_tokens(), cache=cache)
    try:
        encode(backbone, make_tokens(2), cache=cache)
    except ValueError as error:
        assert "cache" in str(error)  # noqa: PT017
    else:
        raise AssertionError("a batch of 2 rows went on with the state of 3")


def a_state_that_was_exported_goes_on(make: Make) -> None:
    backbone, cache, restored = make(), LLECache(), LLECache()
    encode(backbone, make_tokens(), cache=cache)
    restored.restore(cache.export())
    more = make_tokens(seed=1)
    close(encode(backbone, more, cache=restored), encode(backbone, more, cache=cache))
    cache.reset()
    assert cache.batch_size == -1
    close(encode(backbone, more, cache=cache), encode(backbone, more))


def a_gradient_flows_through_the_state_until_it_is_detached(make: Make) -> None:
    backbone, (first, second) = make(), make_tokens().split([4, 3], dim=1)
    for detached in (False, True):
        embedded = backbone.get_input_embeddings()(first).detach().requires_grad_()
        cache = backbone(inputs_embeds=embedded, past_key_values=LLECache()).past_key_values
        cache = cache.detach() if detached else cache
        states = backbone(second, past_key_values=cache).last_hidden_state
        (slope,) = torch.autograd.grad(states.square().sum(), embedded, allow_unused=True)
        assert (slope is None) == detached
        assert detached or slope.abs().sum() > 0


def embeddings_give_what_their_tokens_give(make: Make) -> None:
    backbone, tokens = make(), make_tokens()
    with torch.no_grad():
        embedded = backbone.get_input_embeddings()(tokens)
        close(backbone(inputs_embeds=embedded).last_hidden_state, encode(backbone, tokens))


def the_fingerprint_changes_with_the_weights_that_states_depend_on(make: Make) -> None:
    backbone, tokens = make(), make_tokens(TYPES, 4)
    known, names = fingerprint(backbone), [name for name, _ in backbone.key_weights()]
    assert names == sorted(set(names))
    assert same_backbone(known, make())
    encode(backbone, tokens)
    assert fingerprint(backbone) == known
    want = encode(backbone, tokens)
    for weight in backbone.parameters():
        with torch.no_grad():
            weight.add_(torch.linspace(0.3, 0.7, weight.numel()).view_as(weight))
        assert not torch.equal(encode(backbone, tokens), want)
        assert not same_backbone(known, backbone)
        with torch.no_grad():
            weight.copy_(dict(make().named_parameters())[name_of(backbone, weight)])
    assert same_backbone(known, backbone)


def name_of(backbone: Any, weight: Tensor) -> str:
    return next(name for name, own in backbone.named_parameters() if own is weight)


CHECKS = [
    it_is_a_backbone_with_states_of_its_width,
    a_text_in_segments_gives_what_it_gives_at_once,
    states_do_not_depend_on_later_tokens,
    a_padded_batch_gives_what_its_rows_give_alone,
    the_mask_may_reach_back_over_the_text_so_far,
    rows_go_on_where_they_are_sent,
    a_batch_of_another_size_does_not_go_on,
    a_state_that_was_exported_goes_on,
    a_gradient_flows_through_the_state_until_it_is_detached,
    embeddings_give_what_their_tokens_give,
    the_fingerprint_changes_with_the_weights_that_states_depend_on,
]
