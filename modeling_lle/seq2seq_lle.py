"""LLEForSeq2SeqLM: a translator whose output layer is joined by what a translation memory recalls.

Notable: an encoder in both directions, and a decoder whose recurrent layers each look at the source, so that with a
linear recurrence a whole target is read at once under teacher forcing. Keys are decoder states, outcomes are tokens.
Of a memory, the sentence pairs with the most similar source are chosen first (banks/translated.py); the entries of
their targets are what each position recalls by the rule. All that is known of a source is found once and kept as an
`LLESource`, the encoder's output, which all beams of a search share.
Shapes: E sources, B = E * R targets, R of each source side by side (1 but in a search), N tokens of the source, T of
the target, D width, S width of the encoder's states, V vocabulary, L decoder layers, H heads, K candidates.
"""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .attention_lle import SourceAttention
from .backbone_lle import LLEModel, refuse_empty_rows, segment_mask
from .bank_lle import Found, HistoryBank, bank_tool
from .cache_lle import LLECache
from .configuration_lle import LLEConfig
from .history_lle import Calibration, Recall, base_prediction, fused, recall_bank
from .linear_lle import linear
from .loss_lle import IGNORED, linear_cross_entropy, smoothing_nats
from .prediction_lle import HistoryOutput, Prediction, block_size, collect
from .pretrained_lle import LLEPreTrainedModel
from .recurrence_lle import padding_is_last, variational_dropout

OWN_PAIRS = 500  # pairs of a memory that its numbers are fitted on


@dataclass
class LLESource(ModelOutput):
    """A batch of source sentences as the decoder needs them.

    Attributes:
        last_hidden_state: (E, N, S) floating, the encoder's states.
        mask: (E, N) bool, False at padding; None for none.
        attention_keys, attention_values: For each decoder layer (E, H, N, D / H) floating, what it attends to.
        candidate_keys: (E, D, K) float32, keys of the entries that each sentence may recall; None without a memory.
        candidate_outcomes, candidate_ids: (E, K) int64, their target tokens, and their ids in the bank; -1 for none.
    """

    last_hidden_state: Tensor | None = None
    mask: Tensor | None = None
    attention_keys: tuple[Tensor, ...] | None = None
    attention_values: tuple[Tensor, ...] | None = None
    candidate_keys: Tensor | None = None
    candidate_outcomes: Tensor | None = None
    candidate_ids: Tensor | None = None


@dataclass
class LLESeq2SeqOutput(ModelOutput):
    """Output of `LLEForSeq2SeqLM`.

    Attributes:
        loss: Scalar float32, nats per target token, when labels were given.
        logits: (B, T, V); log P(y | h) float32 with a memory, the output layer's values without. None when they were
            not asked for.
        past_key_values: The decoder's cache, when `use_cache`.
        cross_attentions: With `output_attentions`, for each decoder layer (B, H, T, N) float32.
        encoder_last_hidden_state: (E, N, S) floating.
        history: With `output_history`, which entries of the memory were recalled.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: LLECache | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None
    history: HistoryOutput | None = None


class LLESeq2SeqModel(LLEPreTrainedModel):
    """The backbone of a translator: encoder, decoder, and the decoder's attention to the source.

    Args:
        config: The configuration.
    """

    def __init__(self, config: LLEConfig) -> None:
        super().__init__(config)
        if config.members > 1:
            raise ValueError("an ensemble of members is for classifiers: set members=1")
        if config.share_embeddings:
            if not config.tie_word_embeddings:
                raise ValueError("share_embeddings=True needs tie_word_embeddings=True: set both or neither")
            self._tied_weights_keys = {"encoder.embed_tokens.weight": "decoder.embed_tokens.weight"}
        self.encoder = LLEModel(_part(config, bidirectional=True, num_hidden_layers=config.num_encoder_layers))
        self.decoder = LLEModel(_part(config, bidirectional=False))
        size = self.encoder.config.state_size
        self.attentions = nn.ModuleList(SourceAttention(config, size) for _ in range(config.num_hidden_layers))
        self.post_init()

    def read(self, input_ids: Tensor, attention_mask: Tensor | None) -> LLESource:
        """What the decoder needs of source sentences (E, N) int64, with their mask (E, N) of 0 and 1."""
        states = self.encoder(input_ids, attention_mask, use_cache=False).last_hidden_state
        pairs = [attention.read(states) for attention in self.attentions]  # type: ignore[operator]
        keys, values = zip(*pairs, strict=True)
        return LLESource(states, segment_mask(attention_mask, states.shape[1]), keys, values)

    def forward(
        self,
        source: LLESource,
        decoder_input_ids: Tensor,
        decoder_attention_mask: Tensor | None = None,
        past_key_values: LLECache | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """The decoder's states (B, T, D), and if they are asked for its attention weights, as in `LLESeq2SeqOutput`.

        Args:
            source: What `read` returned.
            decoder_input_ids: (B, T) int64, the target before each position.
            decoder_attention_mask: (B, T) of 0 and 1, 0 at padding.
            past_key_values: The cache of the target so far; it is updated.
            output_attentions: Whether to return the weights.
        """
        weights: list[Tensor] = []
        assert source.attention_keys is not None
        assert source.attention_values is not None
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
            use_cache=False,
            after_layer=attend,
        )
        return outputs.last_hidden_state, tuple(weights) if output_attentions else None


def _part(config: LLEConfig, **values: Any) -> LLEConfig:
    """The configuration of the encoder or the decoder."""
    own = copy.deepcopy(config)
    for name, value in {"is_encoder_decoder": False, **values}.items():
        setattr(own, name, value)
    return own


class LLEForSeq2SeqLM(LLEPreTrainedModel, GenerationMixin):
    """A translator, or another model from text to text, with a memory that changes the next sentence at once.

    The target begins with `config.bos_token_id`. The memory is a bank: `HistoryBank.build(model, tokenizer, pairs)`,
    attached by `attach_history`.

    Args:
        config: The configuration.
    """

    _auto_class = "AutoModelForSeq2SeqLM"  # type: ignore[assignment]
    _tied_weights_keys = {"lm_head.weight": "model.decoder.embed_tokens.weight"}  # noqa: RUF012
    bank_module = "translated"
    label_smoothing = 0.0  # of the training loss; what the Trainer's own would do, without logits of all positions

    def __init__(self, config: LLEConfig) -> None:
        config.is_encoder_decoder = True
        super().__init__(config)
        self.model = LLESeq2SeqModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Those of the source."""
        return self.model.encoder.embed_tokens

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
        encoder_outputs: LLESource | None = None,
        past_key_values: LLECache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        use_history: bool | None = None,
        output_history: bool = False,
        output_attentions: bool | None = None,
        return_logits: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> LLESeq2SeqOutput:
        """Predicts each token of the target from those before it, and measures the loss if labels are given.

        Args:
            input_ids: (E, N) int64, the source; or give `encoder_outputs`.
            attention_mask: (E, N) of 0 and 1, 0 at padding, wherever it lies.
            decoder_input_ids: (B, T) int64, what `prepare_decoder_input_ids_from_labels` makes of the labels, which
                is what None means.
            decoder_attention_mask: (B, T) of 0 and 1, 0 at padding; None: as the labels say.
            encoder_outputs: What `read_source` returned.
            past_key_values: The cache of the target so far; it is updated.
            labels: (B, T) int64, the target, which ends with the end token; -100 counts nothing.
            use_cache: Whether to return a cache; None: as the config says, but not with labels.
            use_history: Whether an attached memory takes part; None: as the config says, but never in training mode.
            output_history: Whether to return the recalled entries with their shares.
            output_attentions: Whether to return the attention to the source.
            return_logits: Whether to build the logits; None: unless this is a training step with labels.
            num_items_in_batch: What the summed loss is divided by; None: the number of targets.
            kwargs: Other options of transformers, without effect.
        """
        if use_history is None:
            use_history = self.config.use_history and not self.training
        if encoder_outputs is None:
            if input_ids is None:
                raise ValueError("give the source as input_ids, or as encoder_outputs")
            encoder_outputs = self.read_source(input_ids, attention_mask, use_history)
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("give decoder_input_ids, or labels to make them of; generate() makes translations")
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        if decoder_attention_mask is None and labels is not None:
            decoder_attention_mask = _needed(labels != IGNORED)
        if return_logits is None:
            return_logits = labels is None or not self.training
        if use_cache is None:
            use_cache = self.config.use_cache and labels is None
        cache = past_key_values if past_key_values is not None or not use_cache else LLECache()
        states, attentions = self.model(
            encoder_outputs, decoder_input_ids, decoder_attention_mask, cache, bool(output_attentions)
        )
        output = LLESeq2SeqOutput(
            past_key_values=cache if use_cache else None,
            cross_attentions=attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
        )
        if use_history and encoder_outputs.candidate_keys is not None:
            collect(output, self.predictions(states, encoder_outputs), labels, return_logits, output_history)
        else:
            dropped = variational_dropout(states, self.config.output_dropout, self.training)
            weight, bias = self.lm_head.weight, self.lm_head.bias
            if return_logits:
                output.logits = self.lm_head(dropped)
            if labels is not None:
                output.loss = linear_cross_entropy(dropped, weight, bias, labels)
                if self.training and self.label_smoothing:
                    output.loss = output.loss + self.label_smoothing * smoothing_nats(dropped, weight, bias, labels)
        if output.loss is not None and labels is not None:
            if num_items_in_batch is None:
                num_items_in_batch = (labels != IGNORED).sum().clamp(min=1)
            output.loss = output.loss / num_items_in_batch
        return output

    def read_source(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        use_history: bool = True,
        leave_out: bool = False,
        memory: Any = None,
    ) -> LLESource:
        """What is known of source sentences, as `encoder_outputs`; with the candidates of an attached memory.

        Args:
            input_ids: (E, N) int64.
            attention_mask: (E, N) of 0 and 1, 0 at padding.
            use_history: Whether to ask the memory.
            leave_out: Whether it leaves out the pairs of the very same source.
            memory: What `memory` was at some time, to go on with the same; None: as it is now.
        """
        if attention_mask is not None:
            refuse_empty_rows(attention_mask)
        source = self.model.read(input_ids, attention_mask)
        if use_history and self.history_bank is not None:
            sentences = self.config.bank.sentences
            memory = self.memory if memory is None else memory
            candidates = memory.candidates(input_ids, attention_mask, sentences, leave_out)
            source.candidate_keys, source.candidate_outcomes, source.candidate_ids = (
                part.to(input_ids.device) for part in candidates
            )
        return source

    def encode(self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The keys of target positions (B, T, D) float32: the normalised states that the labels (B, T) come after.

        Args:
            input_ids, labels, attention_mask: As in forward.
        """
        return nn.functional.normalize(
            self._states(self.model.read(input_ids, attention_mask), labels).float(), dim=-1
        )

    def _states(self, source: LLESource, labels: Tensor) -> Tensor:
        inputs = self.prepare_decoder_input_ids_from_labels(labels)
        return self.model(source, inputs, _needed(labels != IGNORED))[0]

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; the memory is asked once for each sentence, and `use_history` may be given.

        Where no length is given, a target may have `longest_target` tokens.
        """
        tokens = kwargs.get("input_ids") if inputs is None else inputs
        own = kwargs.get("generation_config") or self.generation_config
        given = [kwargs.get(name) or getattr(own, name) for name in ("max_length", "max_new_tokens")]
        if tokens is not None and not args and not any(given):
            kwargs["max_new_tokens"] = longest_target(tokens.shape[1])
        if tokens is not None and kwargs.get("encoder_outputs") is None:
            use_history = kwargs.get("use_history")
            use_history = self.config.use_history if use_history is None else use_history
            with torch.no_grad():
                kwargs["encoder_outputs"] = self.read_source(tokens, kwargs.get("attention_mask"), use_history)
        return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]

    def _expand_inputs_for_generation(self, expand_size: int = 1, **kwargs: Any) -> Any:  # type: ignore[override]
        """As in transformers, but for the source, which the beams share."""
        source, options = kwargs.pop("encoder_outputs"), {**kwargs, "is_encoder_decoder": False}
        tokens, expanded = super()._expand_inputs_for_generation(expand_size, **options)  # type: ignore[misc]
        return tokens, {**expanded, "encoder_outputs": source}

    # The memory

    def attach_history(self, bank: HistoryBank, namespaces: Any = None, tokenizer: Any = None) -> None:
        """As for every LLE model; the tokenizer is needed, unless the bank was built with it in this process."""
        super().attach_history(bank, namespaces, tokenizer)
        if bank.encoder is None or bank.encoder[1] is None:
            self.detach_history()
            raise ValueError("a memory finds similar sentences by their words: attach it with tokenizer=tokenizer")

    @property
    def memory(self) -> Any:
        """The attached bank as it is now, as sentence pairs, `modeling_lle.banks.translated.Memory`."""
        bank, namespaces = self.history_bank, self.history_namespaces
        if bank is None or bank.encoder is None:
            raise ValueError("no memory is attached: call attach_history first")
        state, tokenizer, make = bank.snapshot(), bank.encoder[1], bank_tool("translated").Memory
        return state.once((make, id(tokenizer), namespaces), lambda: make(state, tokenizer, namespaces))

    def predictions(self, states: Tensor, source: LLESource) -> Iterator[Prediction]:
        """Predictions with the memory after the decoder's states (B, T, D), block by block."""
        assert source.candidate_ids is not None
        size = block_size(len(states), max(self.config.vocab_size, source.candidate_ids.shape[1]))
        for start in range(0, states.shape[1], size):
            own = states[:, start : start + size]
            base, features = base_prediction(linear(own, self.lm_head.weight, self.lm_head.bias))
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
        from .recall_kernels_lle import recall_candidates

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
