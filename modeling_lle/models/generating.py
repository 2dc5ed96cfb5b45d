"""Which tokens a language model generated itself, told to `forward` by `generate`.

Own output is read like any other text, but it makes no entries in the stream and teaches the test-time update nothing,
unless `history.stream.generated` and `history.update.generated` ask for it: a model that recalls what it has just made
up repeats it (model_cards/results/generation.json). Shapes: B batch, T time.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.utils import ModelOutput

from ..history.cache import LLECache
from ..history.loss import IGNORED


class LLEGenerationMixin(GenerationMixin):
    """transformers' generation, which tells `forward` how many tokens were generated."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, with `history`, `use_history` and `generated` as in `forward`.

        The cache of a call goes on with the next turn: `generate(ids, past_key_values=cache)` with the whole text so
        far. The new part of it is read and makes entries; what was generated before it does not.
        """
        output: Any = super().generate(*args, **kwargs)  # type: ignore[misc]
        returned = isinstance(output, ModelOutput)
        cache: Any = output.get("past_key_values") if returned else kwargs.get("past_key_values")
        last = (output["sequences"] if returned else output)[:, -1]
        if hasattr(cache, "unread"):  # the beams of a cache are not those of the sequences
            cache.unread = last.clone() if len(last) == cache.batch_size else None
        return output

    def _update_model_kwargs_for_generation(
        self,
        outputs: ModelOutput,
        model_kwargs: dict[str, Any],
        is_encoder_decoder: bool = False,
        num_new_tokens: int = 1,
    ) -> dict[str, Any]:
        """Counts the new tokens; a first forward, of what was given, has none."""
        updated = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, is_encoder_decoder, num_new_tokens
        )
        generated = updated.get("generated")
        if isinstance(generated, Tensor):
            updated["generated"] = torch.nn.functional.pad(generated, (0, num_new_tokens), value=True)
        else:
            updated["generated"] = (generated or 0) + num_new_tokens
        return updated


def own_output(generated: Tensor | int, input_ids: Tensor, cache: LLECache | None) -> Tensor | bool:
    """Which tokens of a segment the model generated, (B, T) bool; True for all, False for none.

    The tokens that the cache has as unread are among them, if the segment begins with them.

    Args:
        generated: As in `LLEForCausalLM.forward`.
        input_ids: (B, T) int64.
        cache: The cache that the segment is read with, which forgets its unread tokens.

    Raises:
        ValueError: The mask does not cover the segment.
    """
    rows, length = input_ids.shape
    unread, own = None, None
    if cache is not None:
        unread, cache.unread = cache.unread, None
    if isinstance(generated, Tensor):
        if generated.shape[0] != rows or generated.dim() != 2 or generated.shape[1] < length:
            raise ValueError(
                f"generated is {tuple(generated.shape)} for a segment of {(rows, length)}: give (B, T) bool"
            )
        own = generated[:, -length:].to(input_ids.device, torch.bool)
    elif generated is True or generated >= length:
        return True
    elif generated > 0:
        own = torch.arange(length, device=input_ids.device).expand(rows, -1) >= length - generated
    if unread is not None and len(unread) == rows:
        begins = torch.zeros(input_ids.shape, dtype=torch.bool, device=input_ids.device)
        begins[:, 0] = input_ids[:, 0] == unread.to(input_ids.device)
        own = begins if own is None else own | begins
    return False if own is None else own


def outcomes(input_ids: Tensor, own: Tensor | bool, asked: bool) -> Tensor | None:
    """The tokens (B, T) of a segment, -100 where they are the model's own and are not `asked` for; None: all are."""
    if asked or own is False:
        return input_ids
    return None if own is True else input_ids.masked_fill(own, IGNORED)
