"""LLEModel: the backbone, which encodes tokens into states that serve as keys and queries, in one or both directions.

Notable: a bidirectional backbone has a stack per direction; the forward one equals that of a language model and can
start from its weights. Members of an ensemble are side by side within each direction: of M D channels, or a multiple,
a member has every M-th block of D. It implements `Backbone` (backbone/protocol.py) in one direction.
Shapes: B batch, T time, D width of a member in a direction, E of its embeddings, M members, W width of a state.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults

from ..backbone.batched_stacks import is_read_together, read_together, single_stacks
from ..backbone.hub import make_backbone, read_segment
from ..backbone.hub_families import check_family, family_of, scale_of
from ..backbone.protocol import StateHolder
from ..backbone.recurrence import Seen, make_stack, variational_dropout
from ..configuration import LLEConfig
from ..history.cache import LLECache, check_cache
from .arguments import TO_BACKBONE, Packing, check_arguments
from .pretrained import LLEPreTrainedModel


class LLEModel(LLEPreTrainedModel):
    """The backbone: embeddings and a stack of recurrent layers, or an ensemble of them.

    Args:
        config: The configuration.
    """

    auto_class = "AutoModel"

    def __init__(self, config: LLEConfig) -> None:
        super().__init__(config)
        if config.is_encoder_decoder:
            raise ValueError("this is the configuration of a translator: load it with AutoModelForSeq2SeqLM")
        self.backbone: PreTrainedModel | None = None
        self.gradient_checkpointing = False
        if config.wrapped is not None:
            self._wrap(config)
        else:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.classifier.members * config.embedding_width)
            self.stack = make_stack(config)
            self.backward_stack = make_stack(config) if config.bidirectional else None
        self.post_init()

    def _wrap(self, config: LLEConfig) -> None:
        """Makes the model of transformers that is the backbone."""
        assert config.wrapped is not None
        if config.classifier.members > 1:
            raise ValueError("a backbone of transformers has no members: leave classifier.members out")
        check_family(config.wrapped)
        self.backbone = make_backbone(config.wrapped)
        self.family = family_of(config.wrapped, self.backbone)
        self.scale = scale_of(config.wrapped, self.family)

    def get_input_embeddings(self) -> nn.Module:
        """As in transformers."""
        return self.embed_tokens if self.backbone is None else self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """As in transformers."""
        if self.backbone is None:
            self.embed_tokens = value  # type: ignore[assignment]
        else:
            self.backbone.set_input_embeddings(value)

    @merge_with_config_defaults
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor | None] | None = None,
        past_key_values: StateHolder | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        after_layer: Callable[[int, Tensor], Tensor] | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Encodes a segment of text, starting from the state in `past_key_values` if there is one.

        Args:
            input_ids: (B, T) int64; or give `inputs_embeds`.
            attention_mask: (B, >= T) of 0 and 1, whose last T columns are used; 0 leaves the state unchanged.
            past_key_values: The cache of the text so far; it is updated. Under gradient checkpointing, one of a
                backbone of transformers keeps no state, and a text cannot go on.
            inputs_embeds: (B, T, M E) floating.
            use_cache: Whether to make a cache where none was given.
            after_layer: Maps the output of each layer, as `after` of `RecurrentStack`; not if bidirectional.
            output_hidden_states: Whether to return the states of all layers, or the numbers of the layers; None: as
                configured.
            kwargs: `return_dict` and other options of transformers.

        Returns:
            `last_hidden_state` (B, T, W), `past_key_values` and, on request, `hidden_states`. W is M D, or 2 M D for a
            bidirectional backbone, which has no state to continue from. `hidden_states` are the input of the first
            layer (B, T, M E), then the outputs of the layers (B, T, W), both directions and all members side by side;
            the last is `last_hidden_state`, after the final norm. All are undefined at padding.
        """
        check_arguments(self, kwargs, *TO_BACKBONE)
        check_cache(past_key_values)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if self.backbone is not None:
            return self._read_wrapped(
                input_ids, inputs_embeds, attention_mask, past_key_values, use_cache, output_hidden_states, kwargs
            )
        if inputs_embeds is None:
            assert input_ids is not None
            self.check_ids(input_ids)
            inputs_embeds = self.embed_tokens(input_ids)
            if self.training and self.config.embedding_dropout > 0:
                keep = 1 - self.config.embedding_dropout
                size = self.config.vocab_size, self.config.classifier.members
                types = torch.empty(size, device=input_ids.device).bernoulli_(keep).div_(keep)
                inputs_embeds = self._scale(inputs_embeds, types[input_ids])
        _refuse_empty(inputs_embeds)
        if self.training and self.config.token_dropout > 0:
            kept = torch.empty_like(inputs_embeds[..., : self.config.classifier.members])
            inputs_embeds = self._scale(inputs_embeds, kept.bernoulli_(1 - self.config.token_dropout))
        embedded = variational_dropout(inputs_embeds, self.config.input_dropout, self.training)
        mask = segment_mask(attention_mask, embedded.shape[1])
        if Packing.take(kwargs, embedded.shape[0], embedded.shape[1], mask) is not None:
            raise ValueError("only LLEForCausalLM reads packed documents: give each a row of its own")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        seen: Seen = None if output_hidden_states is False else []
        if self.backward_stack is not None:
            if past_key_values is not None:
                raise ValueError("a bidirectional backbone reads whole texts: it takes no past_key_values")
            states = self._read_both_ways(embedded, mask, seen)
            return BaseModelOutputWithPast(states, None, _chosen(embedded, seen, states, output_hidden_states))
        if use_cache and past_key_values is None:
            past_key_values = LLECache.of(self.config.history)
        if past_key_values is not None:
            refuse_export("an LLECache", "export with use_cache=False; one step exports as model.stack(x, state)")
            past_key_values.check_rows(embedded.shape[0])
        state = None if past_key_values is None else past_key_values.state
        states, state = self.stack(embedded, state, mask, after=after_layer, seen=seen)
        if past_key_values is not None:
            past_key_values.state = state
            past_key_values.seen_tokens += states.shape[1]
        holder: Any = past_key_values  # transformers declares its own Cache, which an LLECache is
        return BaseModelOutputWithPast(states, holder, _chosen(embedded, seen, states, output_hidden_states))

    def _read_wrapped(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        attention_mask: Tensor | dict[str, Tensor | None] | None,
        holder: StateHolder | None,
        use_cache: bool | None,
        output_hidden_states: bool | int | list[int] | None,
        options: dict[str, Any],
    ) -> BaseModelOutputWithPast:
        """`forward` of a backbone of transformers."""
        given: dict[str, Tensor] = {}
        if input_ids is not None:
            self.check_ids(input_ids)
            given["input_ids"] = input_ids
        elif inputs_embeds is not None:
            given["inputs_embeds"] = inputs_embeds
        (tokens,) = given.values()
        _refuse_empty(tokens)
        mask = segment_mask(attention_mask, tokens.shape[1])
        if Packing.take(options, tokens.shape[0], tokens.shape[1], mask) is not None:
            raise ValueError("only LLEForCausalLM reads packed documents: give each a row of its own")
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        if use_cache and holder is None:
            holder = LLECache.of(self.config.history)
        backbone: Any = self.backbone
        keeps = holder is not None and self._keeps_state(backbone)
        if holder is not None:
            refuse_export("an LLECache", "export with use_cache=False")
            holder.check_rows(tokens.shape[0])
            if holder.seen_tokens and holder.state is None:
                raise ValueError(
                    f"in training, no state is kept of a text by a model of the type {backbone.config.model_type!r}, "
                    "or under gradient checkpointing: begin each segment with a new cache, or give whole texts"
                )
        state = None if holder is None else holder.state
        encoded = read_segment(backbone, self.family, given, mask, state, keeps, wanted is not False)
        if holder is not None:
            holder.state = encoded.state
            holder.seen_tokens += tokens.shape[1]
        states = encoded.states if self.scale == 1 else encoded.states * self.scale
        states = states.to(backbone.get_input_embeddings().weight.dtype)  # some keep residuals in float32
        past: Any = holder
        if encoded.hidden_states is None:
            return BaseModelOutputWithPast(states, past)
        first, *others = encoded.hidden_states
        return BaseModelOutputWithPast(states, past, _chosen(first, others, states, wanted))

    def _keeps_state(self, backbone: PreTrainedModel) -> bool:
        """Whether a state is kept: not where gradients would have to flow through it and cannot."""
        if not (self.training and torch.is_grad_enabled()):
            return True
        return self.family.differentiable and not backbone.is_activation_checkpointing

    def _scale(self, embedded: Tensor, factors: Tensor) -> Tensor:
        """Scales embedded tokens (B, T, M E) by a factor per token and member (B, T, M)."""
        members = embedded.unflatten(-1, (self.config.classifier.members, self.config.embedding_width))
        return (members * factors[..., None].to(embedded.dtype)).flatten(-2)

    def _read_both_ways(self, embedded: Tensor, mask: Tensor | None, seen: Seen) -> Tensor:
        """Returns states (B, T, 2 M D) of whole texts, the forward stack first; adds those of each layer to `seen`."""
        assert self.backward_stack is not None
        ahead: list[Tensor] = []
        back: list[Tensor] = []
        own: tuple[Seen, Seen] = (None, None) if seen is None else (ahead, back)
        if mask is None and is_read_together((self.stack, self.backward_stack), embedded):
            members = embedded.unflatten(-1, (self.config.classifier.members, -1)).movedim(-2, 0)  # (M, B, T, D)
            stacks = single_stacks(self.stack) + single_stacks(self.backward_stack)
            states = read_together(stacks, torch.cat([members, members.flip(2)]), own[0])
            if seen is not None:
                seen += [_side_by_side(layer) for layer in ahead]
            return _side_by_side(states)
        forwards, _ = self.stack(embedded, None, mask, final=False, seen=own[0])
        flipped = None if mask is None else mask.flip(1)
        backwards, _ = self.backward_stack(embedded.flip(1), None, flipped, final=False, seen=own[1])
        if seen is not None:
            seen += [torch.cat([one, two.flip(1)], dim=-1) for one, two in zip(ahead, back, strict=True)]
        return torch.cat([forwards, backwards.flip(1)], dim=-1)

    def check_ids(self, input_ids: Tensor) -> None:
        """Raises a ValueError on a CPU that names the token and the remedy, unlike the embedding's IndexError."""
        if input_ids.device.type != "cpu" or torch.compiler.is_compiling() or not input_ids.numel():
            return
        highest = int(input_ids.max())
        wrong = highest if highest >= self.config.vocab_size else int(input_ids.min())
        if not 0 <= wrong < self.config.vocab_size:
            raise ValueError(
                f"token id {wrong} does not fit the model's vocabulary of {self.config.vocab_size}: "
                "use the tokenizer that the model was trained with"
            )


def _refuse_empty(tokens: Tensor) -> None:
    """Raises a ValueError if a segment (B, T, ...) holds no row or no token."""
    if tokens.shape[0] == 0:
        raise ValueError("the batch holds no row: give at least one text")
    if tokens.shape[1] == 0:
        raise ValueError(
            "the segment holds no token; generate() takes the whole text so far together with past_key_values, "
            "and reads what the cache has not seen"
        )


def _side_by_side(states: Tensor) -> Tensor:
    """Turns states (2 M, B, T, D), the second half of them in reversed time, into (B, T, 2 M D)."""
    ahead, back = states.chunk(2)
    return torch.cat([*ahead, *back.flip(2)], dim=-1)


def _chosen(embedded: Tensor, seen: Seen, last: Tensor, wanted: bool | int | list[int] | None) -> Any:
    """Returns the hidden states; if they are requested by number, as transformers allows, None for the others."""
    if seen is None:
        return None
    every = (embedded, *seen[:-1], last)
    if wanted is None or isinstance(wanted, bool):
        return every
    numbers = {number % len(every) for number in ([wanted] if isinstance(wanted, int) else wanted)}
    return tuple(states if number in numbers else None for number, states in enumerate(every))


def segment_mask(attention_mask: Tensor | dict[str, Tensor | None] | None, length: int) -> Tensor | None:
    """Returns the mask (B, T) bool of a segment, False at padding, or None without padding."""
    if isinstance(attention_mask, dict):
        attention_mask = attention_mask["linear_attention"]
    if attention_mask is None:
        return None
    if attention_mask.shape[1] < length:
        raise ValueError(f"the attention_mask covers {attention_mask.shape[1]} positions of a segment of {length}")
    mask = attention_mask[:, -length:].bool()
    return None if not torch.compiler.is_compiling() and bool(mask.all()) else mask


def refuse_export(what: str, instead: str) -> None:
    """Raises a ValueError if torch.export is tracing the model."""
    if torch.compiler.is_exporting():
        raise ValueError(f"torch.export cannot trace {what}: {instead}")


def refuse_empty_rows(attention_mask: Tensor | dict[str, Tensor | None]) -> None:
    """Raises a ValueError if a row is all padding, with nothing to predict from."""
    if torch.compiler.is_compiling():
        return
    mask = segment_mask(attention_mask, 0 if isinstance(attention_mask, dict) else attention_mask.shape[1])
    if mask is not None and not bool(mask.any(dim=1).all()):
        row = int((~mask.any(dim=1)).nonzero()[0])
        raise ValueError(
            f"row {row} of the batch holds only padding, so there is nothing to predict from: "
            "drop it, or begin it with the tokenizer's bos_token"
        )
