"""The LLE models: a recurrent backbone, and heads whose output layer is joined by what the history recalls.

Notable: with history, `logits` are log P(y | h) of the mixture, so every sampler, beam search and pipeline works
unchanged; without, they are the plain logits. The loss is computed in chunks and never builds B x T x V.
Shapes: B batch, T time, D width, V vocabulary, W window, N entries.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .cache_lle import Block, LLECache
from .configuration_lle import LLEConfig
from .history_lle import Calibration, Recall, base_prediction, gate, mixed_distribution, mixed_log_prob, recall_stream
from .linear_lle import linear
from .loss_lle import IGNORED, linear_cross_entropy
from .recurrence_lle import RecurrentLayer, RecurrentStack, init_recurrent_weights, variational_dropout

# What `trust_remote_code` finds in a saved folder, whichever head was saved.
AUTO_MAP = {
    "AutoConfig": "configuration_lle.LLEConfig",
    "AutoModel": "modeling_lle.LLEModel",
    "AutoModelForCausalLM": "modeling_lle.LLEForCausalLM",
}
BLOCK = 256  # positions that are predicted together
BLOCK_ELEMENTS = 1 << 24  # at most so many scores or log probabilities at once


@dataclass
class HistoryOutput(ModelOutput):
    """Which entries moved the predictions, and by exactly how much.

    Attributes:
        base_share: (B, T) float32, the base's share of the mixture, g_0.
        shares: (B, T, N) float32, each entry's share: P(y) = base_share * p(y) + sum of the shares with outcome y.
        outcomes: (B, T, N) int64, the token that followed each entry; its share is 0 where there is no entry.
        ages: (B, T, N) int64, how many tokens ago the entry was made, 1 for the newest.
    """

    base_share: Tensor | None = None
    shares: Tensor | None = None
    outcomes: Tensor | None = None
    ages: Tensor | None = None

    @classmethod
    def join(cls, parts: list["HistoryOutput"]) -> "HistoryOutput":
        """The outputs of consecutive blocks as one; entries that a block did not see get share 0."""
        width = max(cast(Tensor, part.shares).shape[-1] for part in parts)

        def padded(name: str) -> Tensor:
            tensors = [getattr(part, name) for part in parts]
            return torch.cat([nn.functional.pad(t, (0, width - t.shape[-1])) for t in tensors], dim=1)

        base_share = torch.cat([cast(Tensor, part.base_share) for part in parts], dim=1)
        return cls(base_share, padded("shares"), padded("outcomes"), padded("ages"))


@dataclass
class LLECausalLMOutput(ModelOutput):
    """Output of `LLEForCausalLM`.

    Attributes:
        loss: Scalar float32, nats per target, when labels were given.
        logits: (B, K, V); log P(y | h) float32 with history, the output layer's values without. None when they were
            not asked for.
        past_key_values: The cache, when `use_cache`.
        hidden_states: With `output_hidden_states`, the states of every layer, (B, T, D) each.
        history: With `output_history`, what was recalled.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: LLECache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    history: HistoryOutput | None = None


@dataclass
class ScoreOutput(ModelOutput):
    """What a model gave to the tokens that came next.

    Attributes:
        log_probs: (B, T) float32 nats, with history (equal to `base_log_probs` without); 0 where the target is -100.
        base_log_probs: (B, T) float32 nats, of the plain output layer.
        stream_share: (B, T) float32, the share of the stream in the mixture.
        past_key_values: The cache that continues the text.
    """

    log_probs: Tensor | None = None
    base_log_probs: Tensor | None = None
    stream_share: Tensor | None = None
    past_key_values: LLECache | None = None


class LLEPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation of the LLE models."""

    config: LLEConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _is_stateful = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _can_record_outputs = {"hidden_states": RecurrentLayer}  # noqa: RUF012

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # generate lets forward make the LLECache

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            init.uniform_(module.weight, -self.config.initializer_range, self.config.initializer_range)
        elif module is getattr(self, "lm_head", None):
            init.uniform_(module.weight, -self.config.initializer_range, self.config.initializer_range)
            init.zeros_(module.bias)
        else:
            init_recurrent_weights(module)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *args: Any,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As in transformers, but a backbone that would be partly untrained is an error, as is a broken file."""
        name = pretrained_model_name_or_path
        kwargs |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
        try:
            loaded: Any = super().from_pretrained(name, *args, **kwargs)
        except SafetensorError as error:
            raise OSError(
                f"a weight file (.safetensors) of {name} is truncated or corrupted ({error}): "
                "download it again with force_download=True, or save the model again"
            ) from error
        model, info = loaded
        prefix = "" if model.base_model is model else f"{cls.base_model_prefix}."
        wrong = [f"{key} is missing" for key in info["missing_keys"] if key.startswith(prefix)]
        wrong += [f"{key} is {tuple(given)}, not {tuple(due)}" for key, given, due in info["mismatched_keys"]]
        if wrong and not ignore_mismatched_sizes:
            raise ValueError(
                f"the weights of {name} do not fit its config.json: {'; '.join(sorted(wrong))}. Save the model again, "
                "or pass ignore_mismatched_sizes=True to start these weights anew"
            )
        return loaded if output_loading_info else model

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Saves the model, and the code that loads it where this package is not installed, as transformers does."""
        self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, *args, **kwargs)


class LLEModel(LLEPreTrainedModel):
    """The backbone: embeddings and a stack of recurrent layers.

    Args:
        config: The configuration.
    """

    _auto_class = "AutoModel"  # type: ignore[assignment]

    def __init__(self, config: LLEConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.stack = RecurrentStack(config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor | None] | None = None,
        past_key_values: LLECache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Encodes a segment of text, from the state in `past_key_values` if there is one.

        Args:
            input_ids: (B, T) int64; or give `inputs_embeds`.
            attention_mask: (B, >= T) of 0 and 1, its last T columns are used; where it is 0 the state stands still.
            past_key_values: The cache of the text so far; it is updated.
            inputs_embeds: (B, T, D) floating.
            use_cache: Whether to make a cache where none was given.
            kwargs: `output_hidden_states`, `return_dict` and other options of transformers.

        Returns:
            `last_hidden_state` (B, T, D), `past_key_values` and, when asked for, `hidden_states`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            assert input_ids is not None
            self._check_ids(input_ids)
            inputs_embeds = self.embed_tokens(input_ids)
            if self.training and self.config.embedding_dropout > 0:
                keep = 1 - self.config.embedding_dropout
                types = torch.empty(self.config.vocab_size, device=input_ids.device).bernoulli_(keep).div_(keep)
                inputs_embeds = inputs_embeds * types[input_ids][..., None].to(inputs_embeds.dtype)
        if use_cache and past_key_values is None:
            past_key_values = LLECache(self.config.stream.window)
        if inputs_embeds.shape[1] == 0:
            raise ValueError(
                "the segment holds no token; generate() takes the whole text so far together with past_key_values, "
                "and reads what the cache has not seen"
            )
        if past_key_values is not None:
            past_key_values.check_rows(inputs_embeds.shape[0])
        states = variational_dropout(inputs_embeds, self.config.input_dropout, self.training)
        mask = segment_mask(attention_mask, inputs_embeds.shape[1])
        state = None if past_key_values is None else past_key_values.state
        states, state = self.stack(states, state, mask)
        if past_key_values is not None:
            past_key_values.state = state
            past_key_values.seen_tokens += states.shape[1]
        return BaseModelOutputWithPast(last_hidden_state=states, past_key_values=past_key_values)

    def _check_ids(self, input_ids: Tensor) -> None:
        """An index error of the embedding names neither the token nor the remedy, so this does, on a CPU."""
        if input_ids.device.type != "cpu" or torch.compiler.is_compiling() or not input_ids.numel():
            return
        highest = int(input_ids.max())
        wrong = highest if highest >= self.config.vocab_size else int(input_ids.min())
        if not 0 <= wrong < self.config.vocab_size:
            raise ValueError(
                f"token id {wrong} does not fit the model's vocabulary of {self.config.vocab_size}: "
                "use the tokenizer that the model was trained with"
            )


def segment_mask(attention_mask: Tensor | dict[str, Tensor | None] | None, length: int) -> Tensor | None:
    """The segment's mask (B, T) bool, False at padding, or None if there is no padding in it."""
    if isinstance(attention_mask, dict):
        attention_mask = attention_mask["linear_attention"]
    if attention_mask is None:
        return None
    if attention_mask.shape[1] < length:
        raise ValueError(f"the attention_mask covers {attention_mask.shape[1]} positions of a segment of {length}")
    mask = attention_mask[:, -length:].bool()
    return None if not torch.compiler.is_compiling() and bool(mask.all()) else mask


class LLEForCausalLM(LLEPreTrainedModel, GenerationMixin):
    """A language model that keeps learning from the text that it reads.

    Args:
        config: The configuration; `config.history` holds the numbers of the rule.
    """

    _auto_class = "AutoModelForCausalLM"  # type: ignore[assignment]
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: LLEConfig) -> None:
        super().__init__(config)
        self.model = LLEModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor | None] | None = None,
        past_key_values: LLECache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        use_cache: bool | None = None,
        use_history: bool | None = None,
        output_history: bool = False,
        logits_to_keep: int | Tensor = 0,
        return_logits: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> LLECausalLMOutput:
        """Predicts the next token at every position, and measures the loss if labels are given.

        Args:
            input_ids: (B, T) int64; or give `inputs_embeds`, which leaves no entries in the stream.
            attention_mask: (B, >= T) of 0 and 1, 0 at padding; its last T columns are used.
            past_key_values: The cache of the text so far; it is updated.
            inputs_embeds: (B, T, D) floating.
            labels: (B, T) int64, usually the input itself: shifted here; -100 counts nothing.
            shift_labels: (B, T) int64, the token after each position; overrules `labels`.
            use_cache: Whether to return a cache.
            use_history: Whether the history takes part; None: as the config says, and never in training mode.
            output_history: Whether to return the recalled entries with their shares (large: B x T x N).
            logits_to_keep: As in transformers: the last n positions, or an index of positions.
            return_logits: Whether to build the logits; None: unless this is a training step with labels.
            num_items_in_batch: What the summed loss is divided by; None: the number of targets.
            kwargs: `output_hidden_states` and other options of transformers.
        """
        if shift_labels is None and labels is not None:
            shift_labels = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        if return_logits is None:
            return_logits = shift_labels is None or not self.training
        use_cache = self.config.use_cache if use_cache is None else use_cache
        cache, with_history = self._cache_for(past_key_values, use_cache, use_history)
        if return_logits and attention_mask is not None and (cache is None or cache.seen_tokens == 0):
            refuse_empty_rows(attention_mask)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=cache,
            inputs_embeds=inputs_embeds,
            use_cache=False,
            **kwargs,
        )
        states = outputs.last_hidden_state
        dropped = variational_dropout(states, self.config.output_dropout, self.training)
        mask = segment_mask(attention_mask, states.shape[1])
        output = LLECausalLMOutput(past_key_values=cache if use_cache else None, hidden_states=outputs.hidden_states)
        if with_history:
            first = states.shape[1] - logits_to_keep if isinstance(logits_to_keep, int) and logits_to_keep else 0
            first = 0 if shift_labels is not None or output_history else max(0, first)
            predictions = self._predictions(states, input_ids, mask, cache, first)
            self._collect(output, predictions, shift_labels, return_logits, output_history)
            if output.logits is not None:
                output.logits = slice_logits_to_keep(output.logits, logits_to_keep)
        else:
            self._record(states, input_ids, mask, cache)
            if return_logits:
                output.logits = self.lm_head(slice_logits_to_keep(dropped, logits_to_keep))
            if shift_labels is not None:
                output.loss = linear_cross_entropy(dropped, self.lm_head.weight, self.lm_head.bias, shift_labels)
        if output.loss is not None and shift_labels is not None:
            if num_items_in_batch is None:
                num_items_in_batch = (shift_labels != IGNORED).sum().clamp(min=1)
            output.loss = output.loss / num_items_in_batch
            if self.training:
                output.loss = output.loss + self._penalties(states, dropped)
        return output

    def _cache_for(
        self, cache: LLECache | None, use_cache: bool, use_history: bool | None
    ) -> tuple[LLECache | None, bool]:
        """The cache to read with, made where one is needed, and whether the history takes part."""
        if use_history is None:
            use_history = self.config.use_history and not self.training
        window = self.config.stream.window if use_history else 0
        if cache is None and (use_cache or window > 0):
            cache = LLECache(window)
        return cache, use_history and cache is not None and cache.stream is not None

    def _penalties(self, states: Tensor, dropped: Tensor) -> Tensor:
        """Activation and temporal activation regularisation (Merity et al. 2018, arXiv:1708.02182, section 4.6)."""
        penalty = states.new_zeros((), dtype=torch.float32)
        if self.config.activation_penalty:
            penalty = penalty + self.config.activation_penalty * dropped.float().square().mean()
        if self.config.smoothness_penalty and states.shape[1] > 1:
            penalty = penalty + self.config.smoothness_penalty * states.float().diff(dim=1).square().mean()
        return penalty

    def _predictions(
        self, states: Tensor, tokens: Tensor | None, mask: Tensor | None, cache: LLECache | None, first: int = 0
    ) -> Iterator["_Prediction"]:
        """Predictions for the positions from `first` on, block by block, recording the whole segment in the stream."""
        rows, length, _ = states.shape
        window = 0 if cache is None else cache.window
        size = max(1, min(BLOCK, BLOCK_ELEMENTS // (rows * max(self.config.vocab_size, window))))
        if cache is None or cache.stream is None:
            for start in range(first, length, size):
                part = slice(start, min(start + size, length))
                yield _Prediction(part, base_prediction(self._output(states[:, part]))[0])
            return
        numbers = self.config.stream
        for block in cache.stream.read(states, tokens, mask, size):
            if block.positions.stop <= first:
                continue
            base, features = base_prediction(self._output(states[:, block.positions]))
            recall = recall_stream(block, numbers.sharpness, numbers.recency)
            log_shares = gate([recall.mass], features, [numbers.gate])
            yield _Prediction(block.positions, base, block, [recall], log_shares)

    def _output(self, states: Tensor) -> Tensor:
        """What the output layer makes of the states (..., D): the logits (..., V)."""
        return linear(states, self.lm_head.weight, self.lm_head.bias)

    def _record(self, states: Tensor, tokens: Tensor | None, mask: Tensor | None, cache: LLECache | None) -> None:
        """Takes a segment into the stream, if there is one, that is predicted without it."""
        if cache is not None and cache.stream is not None:
            for _ in cache.stream.read(states, tokens, mask, BLOCK):
                pass

    def _collect(
        self,
        output: LLECausalLMOutput,
        predictions: Iterable["_Prediction"],
        targets: Tensor | None,
        with_logits: bool,
        with_history: bool,
    ) -> None:
        """Fills the summed loss, the logits and the history of `output`."""
        nats, logits, history = [], [], []
        for prediction in predictions:
            if targets is not None:
                nats.append(prediction.log_probs(targets[:, prediction.positions]).sum())
            if with_history:
                history.append(prediction.history())
            if with_logits:
                logits.append(prediction.distribution())
        if nats:
            output.loss = -torch.stack(nats).sum()
        if logits:
            output.logits = torch.cat(logits, dim=1)
        if history:
            output.history = HistoryOutput.join(history)

    @torch.no_grad()
    def score(
        self,
        input_ids: Tensor,
        shift_labels: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: LLECache | None = None,
        use_history: bool | None = None,
    ) -> ScoreOutput:
        """Log probabilities of the tokens that came next, with and without history, in one pass.

        Args:
            input_ids: (B, T) int64.
            shift_labels: (B, T) int64, the token after each position, -100 where there is none.
            attention_mask: (B, T) of 0 and 1, 0 at padding.
            past_key_values: The cache of the text so far; it is updated.
            use_history: As in `forward`.
        """
        cache, with_history = self._cache_for(past_key_values, True, use_history)
        states = self.model(input_ids, attention_mask, past_key_values=cache, use_cache=False).last_hidden_state
        mask = segment_mask(attention_mask, states.shape[1])
        if not with_history:
            self._record(states, input_ids, mask, cache)
        columns = []
        for prediction in self._predictions(states, input_ids, mask, cache if with_history else None):
            targets = shift_labels[:, prediction.positions]
            columns.append((prediction.log_probs(targets), prediction.base_log_probs(targets), prediction.share()))
        mixed, base, share = (torch.cat(column, dim=1) for column in zip(*columns, strict=True))
        return ScoreOutput(log_probs=mixed, base_log_probs=base, stream_share=share, past_key_values=cache)

    def calibrate(
        self, batches: Iterable[dict[str, Tensor]], max_positions: int = 3000, steps: int = 40, seed: int = 0
    ) -> dict[str, float]:
        """Fits the numbers of the rule on held-out text, by gradient descent, and stores them in the config.

        Args:
            batches: Consecutive segments of text: `input_ids` and `shift_labels`, (B, T) int64; row r of a batch
                continues row r of the batch before. A few windows of text are enough.
            max_positions: Positions that are fitted on, drawn evenly from the text.
            steps: Steps of the quasi-Newton descent.
            seed: Seed of the draw.

        Returns:
            `positions`, and perplexities on them: `base_ppl`, `before_ppl` and `after_ppl`.
        """
        if self.config.stream.window == 0:
            raise ValueError("nothing to calibrate: the stream is off (history.stream.window is 0)")
        calibration = Calibration(self.config.stream, max_positions, seed)
        cache = LLECache(self.config.stream.window)
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                for batch in batches:
                    ids, targets = batch["input_ids"].to(self.device), batch["shift_labels"].to(self.device)
                    states = self.model(ids, past_key_values=cache, use_cache=False).last_hidden_state
                    for prediction in self._predictions(states, ids, None, cache):
                        assert prediction.block is not None
                        calibration.add(prediction.base, prediction.block, targets[:, prediction.positions])
        finally:
            self.train(training)
        return calibration.fit(steps)


@dataclass
class _Prediction:
    """The prediction of one block: the base's log p (B, T, V) and, with history, what is mixed in."""

    positions: slice
    base: Tensor
    block: Block | None = None
    recalls: list[Recall] | None = None
    log_shares: Tensor | None = None

    def base_log_probs(self, targets: Tensor) -> Tensor:
        """log p of the targets (B, T), 0 where the target is -100."""
        ignored = targets == IGNORED
        return self.base.gather(-1, targets.masked_fill(ignored, 0)[..., None])[..., 0].masked_fill(ignored, 0.0)

    def log_probs(self, targets: Tensor) -> Tensor:
        """log P of the targets (B, T), 0 where the target is -100."""
        base = self.base_log_probs(targets)
        if self.recalls is None or self.log_shares is None:
            return base
        recalled = [recall.probability(targets) for recall in self.recalls]
        return mixed_log_prob(base, recalled, self.log_shares).masked_fill(targets == IGNORED, 0.0)

    def distribution(self) -> Tensor:
        """log P of every token, (B, T, V); uses up `base`."""
        if self.recalls is None or self.log_shares is None:
            return self.base
        return mixed_distribution(self.base, self.recalls, self.log_shares)

    def share(self) -> Tensor:
        """The share of the stream, (B, T)."""
        return torch.zeros_like(self.base[..., 0]) if self.log_shares is None else self.log_shares[..., 1].exp()

    def history(self) -> HistoryOutput:
        """The entries and their shares."""
        assert self.recalls is not None
        assert self.log_shares is not None
        assert self.block is not None
        shares, recall = self.log_shares.exp(), self.recalls[0]
        return HistoryOutput(
            base_share=shares[..., 0],
            shares=recall.weights * shares[..., 1:],
            outcomes=recall.outcomes.expand(recall.weights.shape).clone(),  # the stream may go on writing into them
            ages=self.block.age,
        )


def refuse_empty_rows(attention_mask: Tensor | dict[str, Tensor | None]) -> None:
    """Raises a ValueError if a row holds nothing but padding: there is nothing to predict from."""
    mask = segment_mask(attention_mask, 0 if isinstance(attention_mask, dict) else attention_mask.shape[1])
    if mask is not None and not bool(mask.any(dim=1).all()):
        row = int((~mask.any(dim=1)).nonzero()[0])
        raise ValueError(
            f"row {row} of the batch holds only padding, so there is nothing to predict from: "
            "drop it, or begin it with the tokenizer's bos_token"
        )
