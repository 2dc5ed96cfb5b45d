"""LLEForSeq2SeqLM: a translator whose output layer is joined by what a translation memory recalls.

Notable: the decoder's recurrent layers each look at the source, so that with a linear recurrence a whole target is
read at once under teacher forcing (encoder_decoder.py). Keys are decoder states, outcomes are tokens. Of a memory,
the sentence pairs with the most similar source are chosen first (entries/pairs.py); the entries of their targets
are what each position recalls by the rule.
Shapes: E sources, B = E * R targets, R of each source side by side (1 but in a search), N tokens of the source, T of
the target, D width, S width of the encoder's states, V vocabulary, L decoder layers, H heads, K candidates.
"""

import functools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedTokenizerBase
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from ..backbone.recurrence import padding_is_last, variational_dropout
from ..bank.protocol import Bank, EntryKind, Outcome
from ..common.modes import evaluating
from ..common.packages import raise_missing
from ..configuration import LLEConfig, LLESeq2SeqConfig
from ..history.attachment import Attachment
from ..history.cache import LLECache, check_cache
from ..history.calibration import Calibration
from ..history.candidates import PairSource, follow
from ..history.explanation import Explained, Explanation, explain_targets, explained_targets
from ..history.loss import (
    IGNORED,
    check_targets,
    head_cross_entropy,
    head_smoothing_nats,
)
from ..history.prediction import HistoryOutput, Prediction, collect, even_blocks, predict
from ..kernels.linear import apply_linear
from .arguments import check_arguments
from .backbone import refuse_export
from .encoder_decoder import LLESeq2SeqModel, LLESource
from .pretrained import LLEPreTrainedModel

OWN_PAIRS = 500  # pairs of a memory that its numbers are fitted on


@dataclass
class LLESeq2SeqOutput(ModelOutput):
    """Output of `LLEForSeq2SeqLM`; the names that are not described are those of `LLESeq2SeqModelOutput`.

    Attributes:
        loss: Scalar float32, nats per target token, when labels were given.
        logits: (B, T, V); log P(y | h) float32 with a memory, the output layer's values without. None when they were
            not asked for.
        past_key_values: The decoder's cache, when `use_cache`.
        history: With `output_history`, which entries of the memory were recalled.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: LLECache | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None
    history: HistoryOutput | None = None


class LLEForSeq2SeqLM(LLEPreTrainedModel, GenerationMixin):
    """A translator, or another model from text to text, with a memory that changes the next sentence at once.

    The target begins with `config.bos_token_id`. The memory is a bank: `HistoryBank.build(model, tokenizer, pairs)`,
    attached by `attach_history`.

    Args:
        config: The configuration.
    """

    config: LLESeq2SeqConfig
    auto_class = "AutoModelForSeq2SeqLM"
    _tied_weights_keys = {"lm_head.weight": "model.decoder.embed_tokens.weight"}  # noqa: RUF012
    outcome: Outcome = "target token"
    label_smoothing = 0.0  # of the training loss; what the Trainer's own would do, without logits of all positions

    def __init__(self, config: LLEConfig) -> None:
        config = LLESeq2SeqConfig.of(config)
        super().__init__(config)
        config.check_sections("LLEForSeq2SeqLM")
        self.model = LLESeq2SeqModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def _resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in transformers: those of source and target, then the output layer, which has a bias of its own."""
        self.model.resize_token_embeddings(*args, **kwargs)
        return super()._resize_token_embeddings(*args, **kwargs)

    @property
    def entry_kind(self) -> EntryKind[Any]:
        """How entries for this model are made; raises an ImportError where this package is not installed."""
        try:
            from modeling_lle.entries.pairs import PairEntries
        except ModuleNotFoundError as error:
            raise_missing(error)
        return PairEntries()

    @property
    def start_token_id(self) -> int:
        """The token that every target begins after."""
        if self.config.bos_token_id is None:
            raise ValueError("config.bos_token_id is not set: a target begins after it")
        return self.config.bos_token_id

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """The decoder's input (B, T) for targets (B, T) int64, -100 at padding, wherever it lies."""
        before = nn.functional.pad(labels[:, :-1], (1, 0), value=IGNORED)
        inputs = before.masked_fill(before == IGNORED, self.start_token_id)
        padding = self.start_token_id if self.config.pad_token_id is None else self.config.pad_token_id
        return inputs.masked_fill(labels == IGNORED, padding)

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
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        use_history: bool | None = None,
        history: Attachment | Bank | None = None,
        output_history: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_logits: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> LLESeq2SeqOutput:
        """Predicts each token of the target from those before it, and measures the loss if labels are given.

        Args:
            input_ids: (E, N) int64, the source; or give `inputs_embeds` or `encoder_outputs`.
            attention_mask: (E, N) of 0 and 1, 0 at padding, wherever it lies.
            decoder_input_ids: (B, T) int64, what `prepare_decoder_input_ids_from_labels` makes of the labels, which
                is what None means.
            decoder_attention_mask: (B, T) of 0 and 1, 0 at padding; None: as the labels say.
            encoder_outputs: What `read_source` or `get_encoder()` returned, or a tuple that begins with the encoder's
                states (E, N, S). With a memory, the latter two need `input_ids` too.
            past_key_values: The cache of the target so far; it is updated.
            inputs_embeds: (E, N, D) floating, embedded tokens of the source, of which a memory knows nothing.
            decoder_inputs_embeds: (B, T, D) floating, instead of `decoder_input_ids`.
            labels: (B, T) int64, the target, which ends with the end token; -100 counts nothing.
            use_cache: Whether to return a cache; None: as the config says, but not with labels.
            use_history: Whether a memory takes part; None: as the config says, but never in training mode.
            history: The memory to recall from, as an Attachment with the tokenizer; None: the one that
                `attach_history` set. An `LLESource` that has its candidates keeps them.
            output_history: Whether to return the recalled entries with their shares.
            output_attentions: Whether to return the attention to the source; None: as the config says.
            output_hidden_states: Whether to return what the layers made; None: as the config says.
            logits_to_keep: As in transformers: the last n positions, or an index of positions.
            return_logits: Whether to build the logits; None: unless this is a training step with labels.
            num_items_in_batch: What the summed loss is divided by; None: the number of targets.
            kwargs: Other options of transformers; what would have no effect is refused.
        """
        check_arguments(self, kwargs)
        check_cache(past_key_values)
        if use_history is None:
            use_history = self.config.use_history and not self.training
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = bool(self.config.output_hidden_states)
        own: dict[str, Any] = {"inputs_embeds": inputs_embeds, "encoder_outputs": encoder_outputs, "history": history}
        source = self.read_source(
            input_ids, attention_mask, use_history, output_hidden_states=output_hidden_states, **own
        )
        inputs, mask, labels = self._target(decoder_input_ids, decoder_inputs_embeds, decoder_attention_mask, labels)
        if use_cache is None:
            use_cache = self.config.use_cache and labels is None
        cache = past_key_values if past_key_values is not None or not use_cache else LLECache()
        read = inputs if decoder_inputs_embeds is None else decoder_inputs_embeds
        lengths = follow(source.candidates, read, mask, cache) if use_history else None
        outputs = self.model.decode(
            source, inputs, mask, cache, output_attentions, output_hidden_states, decoder_inputs_embeds
        )
        if return_logits is None:
            return_logits = labels is None or not self.training
        asked: dict[str, Any] = {"return_logits": return_logits, "output_history": output_history}
        parts = outputs.last_hidden_state, source, lengths, labels, num_items_in_batch
        loss, logits, recalled = self._outputs(*parts, logits_to_keep=logits_to_keep, **asked)
        return LLESeq2SeqOutput(
            loss=loss,
            logits=logits,
            past_key_values=cache if use_cache else None,
            decoder_hidden_states=outputs.decoder_hidden_states,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            history=recalled,
        )

    def _target(
        self, inputs: Tensor | None, embeds: Tensor | None, mask: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The decoder's tokens (None with `embeds`), its mask, and the labels, checked; see `forward`."""
        if inputs is None and embeds is None:
            if labels is None:
                raise ValueError("give decoder_input_ids, or labels to make them of; generate() makes translations")
            inputs = self.prepare_decoder_input_ids_from_labels(labels)
        if labels is not None:
            given = inputs if embeds is None else embeds
            assert given is not None
            labels = check_targets(labels, given.shape[:2], self.config.vocab_size)
            mask = _needed(labels != IGNORED) if mask is None else mask
        return inputs, mask, labels

    def _outputs(
        self,
        states: Tensor,
        source: LLESource,
        lengths: Tensor | None,
        labels: Tensor | None,
        items: Tensor | int | None,
        *,
        logits_to_keep: int | Tensor,
        return_logits: bool,
        output_history: bool,
    ) -> tuple[Tensor | None, Tensor | None, HistoryOutput | None]:
        """The loss, the logits and the history after the decoder's states (B, T, D), as far as asked for.

        `lengths` is what `_follow` returned.
        """
        whole = labels is not None or output_history  # the loss and the history need every position
        if not whole:
            states = slice_logits_to_keep(states, logits_to_keep)
            lengths = None if lengths is None else slice_logits_to_keep(lengths, logits_to_keep)
        if lengths is None:
            (loss, logits), recalled = self._base_outputs(states, labels, return_logits), None
        else:
            loss, logits, recalled = collect(
                self.predictions(states, source, lengths), labels, return_logits, output_history
            )
        if loss is not None and labels is not None:
            loss = loss / ((labels != IGNORED).sum().clamp(min=1) if items is None else items)
        if whole and logits is not None:
            logits = slice_logits_to_keep(logits, logits_to_keep)
        return loss, logits, recalled

    def _base_outputs(
        self, states: Tensor, labels: Tensor | None, return_logits: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The summed loss and the logits after the decoder's states (B, T, D) without a memory, where asked for."""
        states = variational_dropout(states, self.config.output_dropout, self.training)
        logits = apply_linear(self.lm_head, states) if return_logits else None
        if labels is None:
            return None, logits
        loss = head_cross_entropy(states, self.lm_head, labels)
        if self.training and self.label_smoothing:
            loss = loss + self.label_smoothing * head_smoothing_nats(states, self.lm_head, labels)
        return loss, logits

    def read_source(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        use_history: bool | None = True,
        leave_out: bool = False,
        inputs_embeds: Tensor | None = None,
        encoder_outputs: Any = None,
        output_hidden_states: bool = False,
        history: Attachment | Bank | None = None,
    ) -> LLESource:
        """Encodes source sentences, with their candidates if a memory takes part; `encoder_outputs` of other calls.

        Args:
            input_ids: (E, N) int64.
            attention_mask: (E, N) of 0 and 1, 0 at padding.
            use_history, history: As in `forward`.
            leave_out: Whether the memory leaves out the pairs of the very same source.
            inputs_embeds, encoder_outputs, output_hidden_states: As in `forward`.
        """
        if encoder_outputs is not None:
            source = self.model.source_of(encoder_outputs, attention_mask)
        elif (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give the source as exactly one of input_ids and inputs_embeds, or as encoder_outputs")
        else:
            source = self.model.read(input_ids, attention_mask, inputs_embeds, output_hidden_states)
        if source.candidates is not None:
            return source
        attachment = self.recalled_from(history, use_history)
        if attachment is None:
            return source
        if input_ids is None:
            raise ValueError(
                "the memory finds similar sentences by their words, and input_ids are not given: give them too, or "
                "leave the memory out with use_history=False"
            )
        refuse_export("what a memory recalls", "export with use_history=False")
        own = self.config.translator
        candidates = _memory_of(attachment).candidates(
            input_ids, attention_mask, own.sentences, leave_out, own.neighbours, self.config.bank.search
        )
        return LLESource(**{**source, "candidates": candidates.to(input_ids.device)})

    def encode(self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The keys of target positions (B, T, D) float32: the normalised states that the labels (B, T) come after.

        Args:
            input_ids, labels, attention_mask: As in forward.
        """
        states, _ = self._read_target(self.model.read(input_ids, attention_mask), labels)
        return nn.functional.normalize(states.float(), dim=-1)

    def _read_target(self, source: LLESource, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """The decoder's states (B, T, D) that the labels (B, T) come after, and how far these follow candidates."""
        inputs, mask, _ = self._target(None, None, None, labels)
        return self.model.decode(source, inputs, mask).last_hidden_state, follow(source.candidates, inputs, mask)

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, with `use_history` and `history` as in `forward`.

        The memory is asked once for each sentence, so that a whole translation is of one state of it. The source may
        be tokens, `inputs_embeds` or `encoder_outputs`, as in `forward`. Where no length is given, a target may have
        `longest_target` tokens.
        """
        tokens = kwargs.get("input_ids") if inputs is None else inputs
        embedded, encoded = kwargs.pop("inputs_embeds", None), kwargs.pop("encoder_outputs", None)
        if tokens is None and embedded is None and encoded is None:
            return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]
        own = kwargs.get("generation_config") or self.generation_config
        use_history, hidden = kwargs.get("use_history"), kwargs.get("output_hidden_states")
        with torch.no_grad():
            kwargs["encoder_outputs"] = source = self.read_source(
                tokens,
                kwargs.get("attention_mask"),
                self.config.use_history if use_history is None else use_history,
                inputs_embeds=embedded,
                encoder_outputs=encoded,
                output_hidden_states=bool(own.output_hidden_states if hidden is None else hidden),
                history=kwargs.pop("history", None),
            )
        if source.candidates is None:
            kwargs["use_history"] = False  # nor with a memory that is attached in the meantime
        given = [kwargs.get(name) or getattr(own, name) for name in ("max_length", "max_new_tokens")]
        if not args and not any(given):
            assert source.last_hidden_state is not None
            kwargs["max_new_tokens"] = longest_target(source.last_hidden_state.shape[1])
        return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]

    def _expand_inputs_for_generation(self, expand_size: int = 1, **kwargs: Any) -> Any:  # type: ignore[override]
        """As in transformers, but for the source, which the beams share."""
        source, options = kwargs.pop("encoder_outputs"), {**kwargs, "is_encoder_decoder": False}
        tokens, expanded = super()._expand_inputs_for_generation(expand_size, **options)  # type: ignore[misc]
        return tokens, {**expanded, "encoder_outputs": source}

    # The memory

    def attach_history(
        self,
        bank: Bank,
        namespaces: Sequence[str] | str | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        """As for every LLE model; the tokenizer is needed, unless the bank was built with it in this process."""
        _ = self.entry_kind  # without the package there is no memory: now, and not in the first sentence
        if tokenizer is None and (bank.encoder is None or bank.encoder[1] is None):
            raise ValueError("a memory finds similar sentences by their words: attach it with tokenizer=tokenizer")
        super().attach_history(bank, namespaces, tokenizer)

    def predictions(self, states: Tensor, source: LLESource, lengths: Tensor | None) -> Iterator[Prediction]:
        """Predictions after the decoder's states (B, T, D), block by block, with the candidates of the source.

        Args:
            states: (B, T, D) floating.
            source: The sources, with their candidates.
            lengths: What `follow` returned; None: without a memory.
        """
        (rows, time), widest = states.shape[:2], self.config.vocab_size
        head = functools.partial(apply_linear, self.lm_head)
        if source.candidates is None or lengths is None:
            return predict(states, head, [], even_blocks(rows, time, widest))
        recalled = PairSource(source.candidates, lengths, self.config.bank)
        blocks = even_blocks(rows, time, max(widest, lengths.shape[2]))
        return predict(states, head, [recalled], recalled.blocks(blocks))

    def explain(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        top: int = 5,
        history: Attachment | Bank | None = None,
    ) -> list[Explanation]:
        """Which entries of the memory moved each token of a translation, and by exactly how much.

        Args:
            input_ids: (N,) or (1, N) int64, one source sentence.
            attention_mask: Its mask, of the same shape.
            labels: (T,) or (1, T) int64, a translation with its end token; None: the one that `generate` makes.
            top: Entries to name for each token.
            history: As in `forward`.

        Returns:
            An `Explanation` for each token of the translation. The `columns` of a cause have `text` and `translation`
            of its sentence pair.
        """
        ids, mask, target = (None if own is None else own.view(1, -1) for own in (input_ids, attention_mask, labels))
        if ids is None or (input_ids.dim() > 1 and len(input_ids) > 1):
            raise ValueError(f"explain takes one source sentence, (N,) or (1, N), got {tuple(input_ids.shape)}")
        attachment = self.recalled_from(history, True)
        with torch.no_grad(), evaluating(self):
            source = self.read_source(ids, mask, history=attachment)
            if target is None:
                target = self.generate(ids, attention_mask=mask, encoder_outputs=source, use_history=True)[:1, 1:]
            (explained,) = self.explained(source, target)
        return explain_targets(explained, attachment, top)

    @torch.no_grad()
    def explained(self, source: LLESource, labels: Tensor) -> list[Explained]:
        """The tokens of translations with all that moved them, on the CPU, an item for each translation.

        Args:
            source: What `read_source` returned.
            labels: (B, T) int64, the translations, -100 at padding.
        """
        states, lengths = self._read_target(source, labels)
        return explained_targets(self.predictions(states, source, lengths), labels)

    def calibrate(
        self,
        batches: Iterable[dict[str, Tensor]] | None = None,
        *,
        fixed: Collection[str] = (),
        max_predictions: int = 6000,
        steps: int = 40,
        seed: int = 0,
        history: Attachment | Bank | None = None,
    ) -> dict[str, float]:
        """Fits the parameters of the memory on sentence pairs, by gradient descent, and stores them in the config.

        No pair is recalled for a sentence that is its source, so that pairs of the memory can be predicted from the
        others.

        Args:
            batches: `input_ids`, `attention_mask` and `labels`, as forward takes them, of pairs that are not in the
                training set; None: `OWN_PAIRS` pairs of the memory itself, or all.
            fixed: Parameters that stay as they are: "sharpness", "match", "continuation", "length" or "gate".
            max_predictions, steps, seed: As in `LLEForCausalLM.calibrate`.
            history: As in `forward`.

        Returns:
            As `LLEForCausalLM.calibrate`.
        """
        attachment = self.recalled_from(history, True)
        if attachment is None:
            raise ValueError("nothing to calibrate: no memory is attached")
        calibration = Calibration({"bank": self.config.bank}, fixed, max_predictions, seed)
        with evaluating(self), torch.no_grad():
            for batch in _memory_of(attachment).sample(OWN_PAIRS, seed) if batches is None else batches:
                own = {name: value.to(self.device) for name, value in batch.items()}
                source = self.read_source(
                    own["input_ids"], own.get("attention_mask"), leave_out=True, history=attachment
                )
                states, lengths = self._read_target(source, own["labels"])
                for prediction in self.predictions(states, source, lengths):
                    calibration.take(prediction, own["labels"])
        return calibration.fit(steps)


def longest_target(tokens: int) -> int:
    """Largest number of tokens of the translation of a source of `tokens`, unless another length is asked for."""
    return 2 * tokens + 16


def _memory_of(attachment: Attachment) -> Any:
    """The sentence pairs of an attachment, `modeling_lle.entries.pairs.Memory`, which is not saved with a model."""
    try:
        from modeling_lle.entries.pairs import Memory
    except ModuleNotFoundError as error:
        raise_missing(error)
    return Memory.of(attachment)


def _needed(mask: Tensor) -> Tensor | None:
    """A target's mask (B, T) bool, or None if all padding lies at the end, where a causal decoder does not see it."""
    return None if padding_is_last(mask) else mask
