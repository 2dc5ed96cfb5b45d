"""Which sources of the history a language model recalls from, and how they take in a text.

Shapes: B batch, T time, D width.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ..configuration import LLEConfig
from ..history.attachment import Attachment
from ..history.bank_matches import BankMatchSource
from ..history.cache import LLECache
from ..history.prediction import BLOCK, block_size, even_blocks
from ..history.source import BankSource, MatchSource, Source, StreamSource


def sources_of(
    config: LLEConfig,
    states: Tensor,
    entries: Tensor | None,
    mask: Tensor | None,
    cache: LLECache | None,
    attachment: Attachment | None,
    first: int = 0,
) -> tuple[list[Source], Iterator[slice]]:
    """The sources for a segment, in the order of `calibrated`, and the positions of its blocks; one begins at `first`.

    They take the segment in when the first block is asked for; arguments are as in `LLEForCausalLM.predictions`.
    """
    rows, length, _ = states.shape
    stream = None if cache is None else cache.stream
    widest = max(config.vocab_size, 0 if stream is None else stream.window)
    sources: list[Source] = []
    blocks = even_blocks(rows, length, widest, first)
    if stream is not None:
        own = StreamSource(stream, config.stream)
        blocks = own.blocks(states, entries, mask, block_size(rows, widest), first)
        sources.append(own)
    if cache is not None and cache.matches is not None:
        matches = MatchSource(cache.matches, config.matches)
        blocks = matches.blocks(entries, mask, states, blocks)
        sources.append(matches)
    if attachment is not None:
        sources.append(BankSource(attachment, config.bank))
    if cache is not None and cache.last is not None:
        of_bank = BankMatchSource(cache.last, attachment, config.bank_matches)
        blocks = of_bank.blocks(entries, mask, states, blocks)
        sources += [] if attachment is None else [of_bank]
    return sources, blocks


def calibrated(config: LLEConfig, attachment: Attachment | None) -> dict[str, Any]:
    """The sections that are fitted, by the names of their sources; raises a ValueError if there is none."""
    own: dict[str, Any] = {"stream": config.stream, "matches": config.matches}
    numbers = {name: section for name, section in own.items() if section.window}
    numbers |= {} if attachment is None else {"bank": config.bank}
    if attachment is not None and config.bank_matches.longest:
        numbers["bank_matches"] = config.bank_matches
    if not numbers:
        raise ValueError(
            "nothing to calibrate: history.stream.window and history.matches.window are 0, and no bank is attached"
        )
    return numbers


def take_in(
    config: LLEConfig, states: Tensor, entries: Tensor | None, mask: Tensor | None, cache: LLECache | None
) -> None:
    """Takes a segment that is predicted without history into the stream and the matches, if there are any."""
    if cache is not None and cache.matches is not None:
        MatchSource(cache.matches, config.matches).read(entries, mask, states.shape[:2], states.device)
    if cache is not None and cache.last is not None:
        last = BankMatchSource(cache.last, None, config.bank_matches)
        last.read(entries, mask, states.shape[:2], states.device)
    if cache is not None and cache.stream is not None:
        for _ in cache.stream.read(states, entries, mask, BLOCK):
            pass
