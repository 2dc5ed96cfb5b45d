"""Prompts: what the rows of a language model begin with, read in batches before their tokens are generated.

Notable: rows with the same prompt share one, which is read once, as the `n` completions of a request do. Prompts of
similar length are read together, padded on the left, a segment at a time.
Shapes: B prompts, T tokens, V vocabulary.
"""

import dataclasses
from collections import deque
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from ..history.cache import LLECache
from ..history.prediction import BLOCK_ELEMENTS
from ..models.causal import LLEForCausalLM
from .rows import Row, Score

SEGMENT = 256  # tokens of a prompt that are read at once
TOGETHER = 4096  # tokens of all prompts that are, padding included
UNEVEN = 2  # a prompt is read with others whose segments are at most this many times as long, or as short


@dataclasses.dataclass(eq=False)
class Prompt:
    """The tokens that some rows begin with.

    Attributes:
        rows: The rows; all have the same tokens, attachment and `use_history`, and want the same scores.
        key: Prompts with the same key may be read together.
        cache: The cache of what comes before the tokens that are not read yet; None: a text begins.
        read: Tokens that are read.
        scores: Those of the tokens so far, if they are wanted.
    """

    rows: list[Row]
    key: Hashable
    cache: LLECache | None = None
    read: int = 0
    scores: list[Score | None] = dataclasses.field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        """All tokens."""
        return self.rows[0].tokens

    @property
    def segment(self) -> list[int]:
        """The tokens that are read next."""
        return self.tokens[self.read : self.read + SEGMENT]

    @property
    def is_read(self) -> bool:
        """Whether all tokens are read."""
        return self.read >= len(self.tokens)

    @property
    def _company(self) -> Hashable:
        """What prompts that are read together have in common; a session is read alone, as it knows its last token."""
        alone = self.cache is not None and self.cache.unread is not None
        return id(self) if alone else (self.key, self.cache is None)

    def shares(self, other: "Prompt") -> bool:
        """Whether the rows of another prompt, which has not been read yet, can begin with this one."""
        return not (self.read or self.cache or other.cache) and self.key == other.key and self.tokens == other.tokens


def add(prompt: Prompt, waiting: deque[Prompt]) -> None:
    """Adds a prompt to those that wait, or its rows to one of these that is the same."""
    for other in waiting:
        if other.shares(prompt):
            other.rows += prompt.rows
            return
    waiting.append(prompt)


def take(waiting: deque[Prompt], vocabulary: int) -> list[Prompt]:
    """Takes the first prompt that waits, and others that are read with it.

    Args:
        waiting: The prompts, without those whose rows were all dropped.
        vocabulary: V, which limits how many positions are scored at once.
    """
    first = waiting.popleft()
    shortest = longest = len(first.segment)
    most = min(TOGETHER, BLOCK_ELEMENTS // vocabulary) if first.rows[0].scores_prompt else TOGETHER
    batch = [first]
    for other in list(waiting):
        size = len(other.segment)
        low, high = min(shortest, size), max(longest, size)
        if other._company != first._company or high > UNEVEN * low or high * (len(batch) + 1) > most:
            continue
        shortest, longest = low, high
        waiting.remove(other)
        batch.append(other)
    return batch


def read(model: LLEForCausalLM, batch: Sequence[Prompt]) -> tuple[Tensor, LLECache]:
    """Reads the next segment of each prompt; nothing of them is changed, except for the cache of a single one.

    Args:
        model: The model.
        batch: Prompts that `take` gave.

    Returns:
        The logits (B, T, V), padded on the left, of all positions or of the last one; and the cache after them.
    """
    row, segments = batch[0].rows[0], [prompt.segment for prompt in batch]
    longest = max(map(len, segments))
    ids = torch.tensor([[0] * (longest - len(own)) + own for own in segments], device=model.device)
    mask = None
    if any(len(own) < longest for own in segments):
        mask = torch.tensor([[0] * (longest - len(own)) + [1] * len(own) for own in segments], device=model.device)
    caches = [prompt.cache for prompt in batch if prompt.cache is not None]
    cache = LLECache.joined(caches) if len(caches) > 1 else next(iter(caches), None)
    output = model(
        ids,
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
        use_history=row.use_history,
        history=row.attachment,
        logits_to_keep=0 if row.scores_prompt else 1,
    )
    return output.logits, output.past_key_values
