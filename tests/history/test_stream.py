"""The stream alone: its ring buffer, and segments read whole and in blocks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_lle import LLECache
from modeling_lle.history.stream import Stream
from tests.factories.texts import make_ids


def test_a_stream_needs_a_window() -> None:
    assert LLECache(0).stream is None
    with pytest.raises(ValueError, match="at least one entry"):
        Stream(0)


@given(
    window=st.integers(1, 6),
    steps=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    block=st.integers(1, 9),
    first=st.integers(0, 8),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=60)
def test_the_ring_buffer_holds_the_newest_entries(
    window: int, steps: list[int], block: int, first: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    stream, entries, pending = Stream(window), [[], []], [None, None]
    for length in steps:
        states, tokens = torch.randn(2, length, 3, generator=generator), make_ids(2, length, seed)
        mask = torch.rand(2, length, generator=generator) < 0.7
        unit = torch.nn.functional.normalize(states, dim=-1)
        starts = set()
        for part in stream.read(states, tokens, mask, block, min(first, length - 1)):
            starts.add(part.positions.start)
            for b in range(2):
                for t, place in enumerate(range(part.positions.start, min(part.positions.stop, length))):
                    if not mask[b, place]:
                        continue
                    if pending[b] is not None:
                        entries[b].append((pending[b], int(tokens[b, place])))
                    pending[b] = unit[b, place]
                    usable = entries[b][-window:][::-1]
                    valid = part.valid[b, t]
                    order = part.age[b, t][valid].argsort()
                    assert part.age[b, t][valid][order].tolist() == list(range(1, len(usable) + 1))
                    assert part.outcomes[b][valid][order].tolist() == [outcome for _, outcome in usable]
                    want = torch.tensor([float(unit[b, place] @ key) for key, _ in usable])
                    torch.testing.assert_close(part.similarity()[b, t][valid][order], want, atol=1e-5, rtol=0.0)
        assert min(first, length - 1) in starts
    assert stream.count.tolist() == [len(row) for row in entries]


@pytest.mark.parametrize("window", [1, 3, 50])
@pytest.mark.parametrize("length", [1, 8])
def test_a_segment_read_whole_is_the_segment_read_in_blocks(window: int, length: int) -> None:
    whole, parts = Stream(window), Stream(window)
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        states = torch.randn(2, length, 4, generator=generator).requires_grad_()
        tokens, mask = make_ids(2, length, step), torch.rand(2, length, generator=generator) < 0.7
        block = whole.read_whole(states, tokens, mask)
        place = 0
        for part in parts.read(states, tokens, mask, 3):
            for position in range(part.made.shape[1]):
                for row in range(2):
                    entries = [
                        sorted(
                            (
                                int(b.age[row, p, n]),
                                int(b.outcomes[row, n]),
                                round(b.similarity()[row, p, n].item(), 4),
                            )
                            for n in b.valid[row, p].nonzero()[:, 0]
                        )
                        for b, p in ((block, place + position), (part, position))
                    ]
                    assert entries[0] == entries[1]
            place += part.made.shape[1]
        for name in Stream.tensors:
            got, want = getattr(whole, name), getattr(parts, name)
            torch.testing.assert_close(got, want)
            assert not got.requires_grad
        if length > 1:
            block.similarity().sum().backward()  # although the entries were written since
            assert states.grad is not None
