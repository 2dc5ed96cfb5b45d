"""LLESeq2SeqModel: the backbone of a translator, a bidirectional encoder and a decoder that attends to the source.

Notable: the inputs of the decoder from a source are computed once and kept as an `LLESource`, the output of the
encoder, which all beams of a search share. Shapes: E sources, B = E * G targets, G per source, side by side (1 except
in a search), S tokens of the source, T of the target, D width, W width of the encoder's states, V vocabulary, H heads.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from ..backbone.recurrence import variational_dropout
from ..backbone.source_attention import SourceAttention
from ..configuration import LLEConfig, LLESeq2SeqConfig
from ..history.cache import LLECache
from ..history.candidates import Candidates
from .arguments import check_arguments
from .backbone import LLEModel, refuse_empty_rows, segment_mask
from .pretrained import LLEPreTrainedModel


@dataclass
class LLESource(ModelOutput):
    """A batch of encoded source sentences, the input of the decoder.

    Attributes:
        last_hidden_state: (E, S, W) floating, the encoder's states.
        mask: (E, S) bool, False at padding; None for none.
        attention_keys, attention_values: For each decoder layer (E, H, S, D / H) floating.
        candidates: The entries that each sentence may recall; None without a memory.
        hidden_states: With `output_hidden_states`, the hidden states of the encoder, as in `LLEModel`.
    """

    last_hidden_state: Tensor | None = None
    mask: Tensor | None = None
    attention_keys: tuple[Tensor, ...] | None = None
    attention_values: tuple[Tensor, ...] | None = None
    candidates: Candidates | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class LLESeq2SeqModelOutput(ModelOutput):
    """Output of `LLESeq2SeqModel`, under the names of transformers.

    Attributes:
        last_hidden_state: (B, T, D) floating, the decoder's states.
        past_key_values: The decoder's cache, if there is one.
        decoder_hidden_states: With `output_hidden_states`, the hidden states of the decoder, as in `LLEModel`.
        decoder_attentions: None: a recurrent decoder does not attend to itself.
        cross_attentions: With `output_attentions`, for each decoder layer (B, H, T, S) float32.
        encoder_last_hidden_state: (E, S, W) floating.
        encoder_hidden_states: With `output_hidden_states`, the hidden states of the encoder.
        encoder_attentions: None: a recurrent encoder does not attend to itself.
    """

    last_hidden_state: Tensor | None = None
    past_key_values: LLECache | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None


class LLESeq2SeqModel(LLEPreTrainedModel):
    """The backbone of a translator: encoder, decoder, and the decoder's attention to the source.

    Args:
        config: The configuration.
    """

    config: LLESeq2SeqConfig
    auto_class = "AutoModel"

    def __init__(self, config: LLEConfig) -> None:
        config = LLESeq2SeqConfig.of(config)
        super().__init__(config)
        if config.classifier.members > 1:
            raise ValueError("an ensemble of members is for classifiers: set classifier={'members': 1}")
        if config.translator.share_embeddings:
            if not config.tie_word_embeddings:
                raise ValueError("share_embeddings=True needs tie_word_embeddings=True: set both or neither")
            self._tied_weights_keys = {"encoder.embed_tokens.weight": "decoder.embed_tokens.weight"}
        self.encoder = LLEModel(
            config.part(bidirectional=True, num_hidden_layers=config.translator.num_encoder_layers)
        )
        self.decoder = LLEModel(config.part(bidirectional=False))
        size = self.encoder.config.state_size
        self.attentions = nn.ModuleList(SourceAttention(config, size) for _ in range(config.num_hidden_layers))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Returns the embeddings of the source."""
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the embeddings of the source, and those of the target if they are shared."""
        self.encoder.embed_tokens = value  # type: ignore[assignment]
        if self.config.translator.share_embeddings:
            self.decoder.embed_tokens = value  # type: ignore[assignment]

    def _resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resizes the embeddings of both sides."""
        for part in (self.decoder, self.encoder):
            embeddings = part.resize_token_embeddings(*args, **kwargs)
        return embeddings

    def read(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> LLESource:
        """Encodes source sentences.

        Args:
            input_ids: (E, S) int64; or give `inputs_embeds`, (E, S, D) floating.
            attention_mask: (E, S) of 0 and 1, 0 at padding, which may be anywhere.
            output_hidden_states: Whether to keep the states of all layers.
        """
        if attention_mask is not None:
            refuse_empty_rows(attention_mask)
        outputs = self.encoder(
            input_ids,
            attention_mask,
            inputs_embeds=inputs_embeds,
            use_cache=False,
            output_hidden_states=output_hidden_states,
        )
        return self.source_of(outputs, attention_mask)

    def source_of(self, encoder_outputs: Any, attention_mask: Tensor | None) -> LLESource:
        """Makes an `LLESource` from an encoder's output, as an object or tuple; returns an `LLESource` as it is."""
        if isinstance(encoder_outputs, LLESource):
            return encoder_outputs
        states, *more = encoder_outputs if isinstance(encoder_outputs, tuple) else (encoder_outputs.last_hidden_state,)
        hidden = more[0] if more else getattr(encoder_outputs, "hidden_states", None)
        if states.dim() != 3 or states.shape[-1] != self.encoder.config.state_size:
            raise ValueError(
                f"encoder_outputs hold states of the shape {tuple(states.shape)}, not (sources, tokens, "
                f"{self.encoder.config.state_size}): give what get_encoder() or read_source() returned"
            )
        pairs = [attention.read(states) for attention in self.attentions]  # type: ignore[operator]
        keys, values = zip(*pairs, strict=True)
        return LLESource(states, segment_mask(attention_mask, states.shape[1]), keys, values, hidden_states=hidden)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: LLECache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> LLESeq2SeqModelOutput:
        """Encodes source and target.

        Args:
            input_ids: (E, S) int64, the source; or give `inputs_embeds` or `encoder_outputs`.
            attention_mask: (E, S) of 0 and 1, 0 at padding, which may be anywhere.
            decoder_input_ids: (B, T) int64, the target before each position; or give `decoder_inputs_embeds`.
            decoder_attention_mask: (B, T) of 0 and 1, 0 at padding.
            encoder_outputs: The result of `read` or of the encoder, or a tuple that begins with its states (E, S, W).
            past_key_values: The cache of the target so far; it is updated.
            inputs_embeds: (E, S, D) floating.
            decoder_inputs_embeds: (B, T, D) floating.
            use_cache: Whether to make a cache if none is given; None: as configured.
            output_attentions: Whether to return the attention to the source; None: as configured.
            output_hidden_states: Whether to return the states of all layers; None: as configured.
            kwargs: Other options of transformers; those without effect are refused.
        """
        check_arguments(self, kwargs)
        if output_hidden_states is None:
            output_hidden_states = bool(self.config.output_hidden_states)
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if encoder_outputs is None:
            if (input_ids is None) == (inputs_embeds is None):
                raise ValueError("give the source as exactly one of input_ids, inputs_embeds and encoder_outputs")
            source = self.read(input_ids, attention_mask, inputs_embeds, output_hidden_states)
        else:
            source = self.source_of(encoder_outputs, attention_mask)
        if past_key_values is None and (self.config.use_cache if use_cache is None else use_cache):
            past_key_values = LLECache()
        return self.decode(
            source,
            decoder_input_ids,
            decoder_attention_mask,
            past_key_values,
            output_attentions,
            output_hidden_states,
            decoder_inputs_embeds,
        )

    def decode(
        self,
        source: LLESource,
        decoder_input_ids: Tensor | None,
        decoder_attention_mask: Tensor | None = None,
        past_key_values: LLECache | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        decoder_inputs_embeds: Tensor | None = None,
    ) -> LLESeq2SeqModelOutput:
        """Encodes targets of encoded sources; arguments as in `forward`."""
        if (decoder_input_ids is None) == (decoder_inputs_embeds is None):
            raise ValueError("give the target as exactly one of decoder_input_ids and decoder_inputs_embeds")
        assert source.attention_keys is not None
        assert source.attention_values is not None
        weights: list[Tensor] = []
        by_layer = list(zip(source.attention_keys, source.attention_values, strict=True))

        def attend(index: int, x: Tensor) -> Tensor:
            attention: Any = self.attentions[index]
            found, own = attention(x, *by_layer[index], source.mask)
            weights.append(own)
            return x + variational_dropout(found, self.config.hidden_dropout, self.training)

        outputs = self.decoder(
            decoder_input_ids,
            decoder_attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=decoder_inputs_embeds,
            use_cache=False,
            after_layer=attend,
            output_hidden_states=output_hidden_states,
        )
        return LLESeq2SeqModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=past_key_values,
            decoder_hidden_states=outputs.hidden_states,
            cross_attentions=tuple(weights) if output_attentions else None,
            encoder_last_hidden_state=source.last_hidden_state,
            encoder_hidden_states=source.hidden_states,
        )
