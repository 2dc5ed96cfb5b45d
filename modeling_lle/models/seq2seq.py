"""LLEForSeq2SeqLM: a translator whose output layer is joined by what a translation memory recalls.

Notable: the decoder's recurrent layers each look at the source, so that with a linear recurrence a whole target is
read at once under teacher forcing (encoder_decoder.py). Keys are decoder states, outcomes are tokens. Of a memory,
the sentence pairs with the most similar source are chosen first (entries/pairs.py); the entries of their targets
are what each position recalls by the rule.
Shapes: E sources, B = E * R targets, R of each source side by side (1 but in a search), N tokens of the source, T of
the target, D width, S width of the encoder's states, V vocabulary, L decoder layers, H heads, K candidates.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from ..backbone.recurrence import padding_is_last, variational_dropout
from ..bank.found import Found
from ..bank.protocol import Bank, EntryKind, Outcome
from ..common.packages import raise_missing
from ..common.precision import outside_autocast
from ..configuration import LLEConfig, LLESeq2SeqConfig
from ..history.cache import LLECache, check_cache
from ..history.calibration import Calibration
from ..history.loss import (
    IGNORED,
    check_targets,
    head_cross_entropy,
    head_smoothing_nats,
)
from ..history.prediction import HistoryOutput, Prediction, block_size, collect
from ..history.rule import Recall, base_prediction, recall_bank
from ..kernels.available import fused
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
            use_history: Whether an attached memory takes part; None: as the config says, but never in training mode.
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
        source = self.read_source(
            input_ids,
            attention_mask,
            use_history,
            inputs_embeds=inputs_embeds,
            encoder_outputs=encoder_outputs,
            output_hidden_states=output_hidden_states,
        )
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            if labels is None:
                raise ValueError("give decoder_input_ids, or labels to make them of; generate() makes translations")
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        if labels is not None:
            given = decoder_input_ids if decoder_inputs_embeds is None else decoder_inputs_embeds
            assert given is not None
            labels = check_targets(labels, given.shape[:2], self.config.vocab_size)
        if decoder_attention_mask is None and labels is not None:
            decoder_attention_mask = _needed(labels != IGNORED)
        if use_cache is None:
            use_cache = self.config.use_cache and labels is None
        cache = past_key_values if past_key_values is not None or not use_cache else LLECache()
        outputs = self.model.decode(
            source,
            decoder_input_ids,
            decoder_attention_mask,
            cache,
            output_attentions,
            output_hidden_states,
            decoder_inputs_embeds,
        )
        states = outputs.last_hidden_state
        whole = labels is not None or output_history  # what else there is needs every position
        if not whole:
            states = slice_logits_to_keep(states, logits_to_keep)
        if return_logits is None:
            return_logits = labels is None or not self.training
        if use_history and source.candidate_keys is not None:
            predictions = self.predictions(states, source)
            loss, logits, history = collect(predictions, labels, return_logits, output_history)
        else:
            (loss, logits), history = self._base_outputs(states, labels, return_logits), None
        if loss is not None and labels is not None:
            if num_items_in_batch is None:
                num_items_in_batch = (labels != IGNORED).sum().clamp(min=1)
            loss = loss / num_items_in_batch
        return LLESeq2SeqOutput(
            loss=loss,
            logits=slice_logits_to_keep(logits, logits_to_keep) if whole and logits is not None else logits,
            past_key_values=cache if use_cache else None,
            decoder_hidden_states=outputs.decoder_hidden_states,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            history=history,
        )

    def _base_outputs(
        self, states: Tensor, labels: Tensor | None, return_logits: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The summed loss and the logits after the decoder's states (B, T, D) without a memory, where asked for."""
        states = variational_dropout(states, self.config.output_dropout, self.training)
        logits = self.lm_head(states) if return_logits else None
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
        use_history: bool = True,
        leave_out: bool = False,
        inputs_embeds: Tensor | None = None,
        encoder_outputs: Any = None,
        output_hidden_states: bool = False,
        memory: Any = None,
    ) -> LLESource:
        """What is known of source sentences, as `encoder_outputs`; with the candidates of an attached memory.

        Args:
            input_ids: (E, N) int64.
            attention_mask: (E, N) of 0 and 1, 0 at padding.
            use_history: Whether to ask the memory.
            leave_out: Whether it leaves out the pairs of the very same source.
            inputs_embeds, encoder_outputs, output_hidden_states: As in `forward`.
            memory: What `memory` was at some time, to go on with the same; None: as it is now.
        """
        if encoder_outputs is not None:
            source = self.model.source_of(encoder_outputs, attention_mask)
        elif (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give the source as exactly one of input_ids and inputs_embeds, or as encoder_outputs")
        else:
            source = self.model.read(input_ids, attention_mask, inputs_embeds, output_hidden_states)
        if not use_history or self.history_bank is None or source.candidate_keys is not None:
            return source
        if input_ids is None:
            raise ValueError(
                "the memory finds similar sentences by their words, and input_ids are not given: give them too, or "
                "leave the memory out with use_history=False"
            )
        self.check_history()
        refuse_export("what a memory recalls", "export with use_history=False")
        memory = self.memory if memory is None else memory
        candidates = memory.candidates(input_ids, attention_mask, self.config.translator.sentences, leave_out)
        keys, outcomes, ids = (part.to(input_ids.device) for part in candidates)
        return LLESource(**{**source, "candidate_keys": keys, "candidate_outcomes": outcomes, "candidate_ids": ids})

    def encode(self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The keys of target positions (B, T, D) float32: the normalised states that the labels (B, T) come after.

        Args:
            input_ids, labels, attention_mask: As in forward.
        """
        return nn.functional.normalize(
            self._states(self.model.read(input_ids, attention_mask), labels).float(), dim=-1
        )

    def _states(self, source: LLESource, labels: Tensor) -> Tensor:
        labels = check_targets(labels, labels.shape, self.config.vocab_size)
        inputs = self.prepare_decoder_input_ids_from_labels(labels)
        return self.model.decode(source, inputs, _needed(labels != IGNORED)).last_hidden_state

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; the memory is asked once for each sentence, and `use_history` may be given.

        The source may be tokens, `inputs_embeds` or `encoder_outputs`, as in `forward`. Where no length is given, a
        target may have `longest_target` tokens.
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
            )
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

    def attach_history(self, bank: Bank, namespaces: Any = None, tokenizer: Any = None) -> None:
        """As for every LLE model; the tokenizer is needed, unless the bank was built with it in this process."""
        _ = self.entry_kind  # without the package there is no memory: now, and not in the first sentence
        super().attach_history(bank, namespaces, tokenizer)
        if bank.encoder is None or bank.encoder[1] is None:
            self.detach_history()
            raise ValueError("a memory finds similar sentences by their words: attach it with tokenizer=tokenizer")

    @property
    def memory(self) -> Any:
        """The attached bank as it is now, as sentence pairs, `modeling_lle.entries.pairs.Memory`."""
        bank, namespaces = self.history_bank, self.history_namespaces
        tokenizer = None if bank is None or bank.encoder is None else bank.encoder[1]
        if bank is None or tokenizer is None:
            raise ValueError("no memory is attached: call attach_history first")
        try:
            from modeling_lle.entries.pairs import Memory
        except ModuleNotFoundError as error:
            raise_missing(error)
        state = bank.snapshot()
        return state.once((Memory, id(tokenizer), namespaces), lambda: Memory(state, tokenizer, namespaces))

    def predictions(self, states: Tensor, source: LLESource) -> Iterator[Prediction]:
        """Predictions with the memory after the decoder's states (B, T, D), block by block."""
        assert source.candidate_ids is not None
        size = block_size(len(states), max(self.config.vocab_size, source.candidate_ids.shape[1]))
        for start in range(0, states.shape[1], size):
            own = states[:, start : start + size]
            base, features = base_prediction(apply_linear(self.lm_head, own))
            found, recall = recall_memory(own, source, self.config.bank.sharpness)
            prediction = Prediction(slice(start, start + own.shape[1]), base, features, found=found)
            prediction.add("bank", recall, self.config.bank.gate)
            yield prediction

    def calibrate(
        self,
        batches: Iterable[dict[str, Tensor]] | None = None,
        max_positions: int = 6000,
        steps: int = 40,
        seed: int = 0,
    ) -> dict[str, float]:
        """Fits the numbers of the memory on sentence pairs, by gradient descent; the config keeps them.

        No pair is recalled for a sentence that is its source, so that pairs of the memory can be predicted from the
        others.

        Args:
            batches: `input_ids`, `attention_mask` and `labels`, as forward takes them, of pairs that are not in the
                training set; None: `OWN_PAIRS` pairs of the memory itself, or all.
            max_positions, steps, seed: As in `LLEForCausalLM.calibrate`.

        Returns:
            `positions`, and perplexities on them: `base_ppl`, `before_ppl` and `after_ppl`.
        """
        if self.history_bank is None:
            raise ValueError("nothing to calibrate: no memory is attached")
        calibration = Calibration([self.config.bank], max_positions, seed)
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                for batch in self.memory.sample(OWN_PAIRS, seed) if batches is None else batches:
                    batch = {name: value.to(self.device) for name, value in batch.items()}
                    labels = batch["labels"]
                    source = self.read_source(batch["input_ids"], batch.get("attention_mask"), leave_out=True)
                    for prediction in self.predictions(self._states(source, labels), source):
                        own = labels[:, prediction.positions]
                        row, column = calibration.choose(own)
                        if len(row):
                            calibration.add(*prediction.sample(row, column, own[row, column]))
        finally:
            self.train(training)
        return calibration.fit(steps)


def longest_target(tokens: int) -> int:
    """Tokens that the translation of a source of so many may have, unless another length is asked for."""
    return 2 * tokens + 16


@outside_autocast
def recall_memory(states: Tensor, source: LLESource, sharpness: float) -> tuple[Found, Recall]:
    """What the decoder's states (B, T, D) recall from the candidates of their sources: all, and by the rule."""
    keys, outcomes, ids = source.candidate_keys, source.candidate_outcomes, source.candidate_ids
    assert keys is not None
    assert outcomes is not None
    assert ids is not None
    queries, repeats = nn.functional.normalize(states.float(), dim=-1), len(states) // len(keys)
    counts = (ids >= 0).sum(1)
    ids, outcomes = (part.repeat_interleave(repeats, 0)[:, None] for part in (ids, outcomes))
    if states.shape[1] == 1 and fused(queries):
        from ..kernels.recall_numba import recall_candidates

        parts = recall_candidates(queries[:, 0], keys, counts, sharpness)
        similarity, weights, mass = (part[:, None] for part in parts)
        return Found(similarity, ids, outcomes, (ids >= 0).int()), Recall(weights, outcomes, mass)
    together = queries.reshape(len(keys), -1, queries.shape[-1])  # the beams of a sentence have the same keys
    similarity = (together @ keys).view(*states.shape[:2], keys.shape[2])
    ids, outcomes = ids.expand(similarity.shape), outcomes.expand(similarity.shape)
    found = Found(similarity, ids, outcomes, (ids >= 0).int())
    return found, recall_bank(found.similarity, found.outcomes, found.counts, sharpness)


def _needed(mask: Tensor) -> Tensor | None:
    """A target's mask (B, T) bool, or None if all padding lies at the end, where a causal decoder does not see it."""
    return None if padding_is_last(mask) else mask
