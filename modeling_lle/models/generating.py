"""Which tokens a language model generated itself, told to `forward` by `generate`.

Own output is read like any other text, but it makes no entries in the stream and teaches the test-time update nothing,
unless `history.stream.generated` and `history.update.generated` ask for it: a model that recalls what it has just made
up repeats it (model_cards/results/generation.json). Shapes: B batch, T time.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.utils import ModelOutput

from ..history.cache import LLECache
from ..history.loss import IGNORED
from .streaming import OF_FORWARD, Choice, Reader, one_text, refusal, tokens_of


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

    def stream(
        self,
        input_ids: Tensor | Sequence[int],
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> Iterator[int]:
        """Yields the tokens of one text as they are generated: those of `generate`, in less time.

        Args:
            input_ids: (T,) or (1, T) int64, the text so far, with the part that the cache has read.
            seed: Of the draws of a sample, with which `generate` draws the same after `torch.manual_seed(seed)`.
            generator: Of the draws; None, and no seed: torch's own.
            options: As in `generate`: `max_new_tokens`, `do_sample`, `temperature`, `top_k`, `top_p`, `eos_token_id`
                and other options of one text, whose defaults are those of `generation_config`; and `past_key_values`,
                `use_history` and `history` as in `forward`. The cache goes on with the next call, at any token.

        Raises:
            ValueError: The text is empty, not a single one, or has a token out of the vocabulary; or an option is
                not for one text, such as beams.
            TypeError: An option is unknown.

        Example:
            >>> for token in model.stream(tokenizer(text).input_ids, max_new_tokens=20):
            ...     print(tokenizer.decode(token), end="", flush=True)
        """
        model: Any = self
        tokens = one_text(input_ids).to(model.device)
        model.model.check_ids(tokens)
        of_forward = {name: options.pop(name, None) for name in OF_FORWARD}
        if seed is not None:
            generator = torch.Generator(tokens.device).manual_seed(seed)
        choose, ends, number = self.choice(tokens, generator, **options)
        return tokens_of(Reader(model, tokens, choose, **of_forward), number, ends)

    def choice(
        self, tokens: Tensor, generator: torch.Generator | None = None, **options: Any
    ) -> tuple[Choice, frozenset[int], int]:
        """How `stream` chooses the tokens after a text (1, T) int64: the choice, the tokens that end it, and how many.

        Arguments and errors as in `stream`.
        """
        config, unknown = self._prepare_stream(tokens, options)
        if unknown:
            raise TypeError(f"stream() got an unexpected keyword argument {unknown[0]!r}: see its documentation")
        refused = refusal(config)
        if refused is not None:
            raise ValueError(f"stream() cannot do {refused}: leave it out, or call generate()")
        model: Any = self
        processors = model._get_logits_processor(config, tokens.shape[1], device=tokens.device)
        ends = getattr(config, "_eos_token_tensor", None)
        number = config.max_length - tokens.shape[1]
        return Choice(config, processors, generator), frozenset([] if ends is None else ends.tolist()), number

    def can_stream(self, input_ids: Tensor | None, attention_mask: Tensor | None = None, **options: Any) -> bool:
        """Whether `stream` can do what `generate` is asked for: one text without padding, and options that it has."""
        if input_ids is None or len(input_ids) != 1 or input_ids.shape[1] == 0:
            return False
        if attention_mask is not None and not bool(attention_mask.all()):
            return False
        given = {name: value for name, value in options.items() if name not in OF_FORWARD}
        config, unknown = self._prepare_stream(input_ids, given)
        return not unknown and refusal(config) is None

    def _prepare_stream(self, tokens: Tensor, options: dict[str, Any]) -> tuple[GenerationConfig, list[str]]:
        """The generation configuration as `generate` prepares it, and the names of options that are none of it."""
        model, given = cast(Any, self), options.get("generation_config")
        lengths = [
            all(getattr(own, name, None) is None for own in (given, model.generation_config))
            and options.get(name) is None
            for name in ("max_length", "min_length")
        ]
        own = {name: value for name, value in options.items() if name != "generation_config"}
        config, unknown = model._prepare_generation_config(given, **own)
        model._prepare_special_tokens(config, device=tokens.device)
        config = model._prepare_generated_length(config, *lengths, "input_ids", tokens.shape[1], tokens)
        model._validate_generated_length(config, tokens.shape[1], lengths[0])
        return config, [name for name, value in unknown.items() if value is not None]

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


def outcomes(input_ids: Tensor, own: Tensor | bool, asked: bool, marked: bool = False) -> Tensor | None:
    """The tokens (B, T) of a segment, -100 where they are the model's own and are not `asked` for; None: all are.

    If they are to be `marked`, as for exact matches, these are `-1 - token` instead.
    """
    if asked or own is False:
        return input_ids
    if marked:
        return torch.where(own, -1 - input_ids, input_ids) if isinstance(own, Tensor) else -1 - input_ids
    return None if own is True else input_ids.masked_fill(own, IGNORED)
