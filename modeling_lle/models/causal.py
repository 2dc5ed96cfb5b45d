"""LLEForCausalLM: a language model whose output layer is joined by what the history recalls.

Notable: with history, `logits` are log P(y | h) of the mixture, so every sampler, beam search and pipeline works
unchanged; without, they are the plain logits. The loss is computed in chunks and never builds B x T x V.
Shapes: B batch, T time, D width, V vocabulary, W window, N entries.
"""

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.generic import can_return_tuple

from ..backbone.hub import embedding_name, make_output_layer
from ..backbone.recurrence import variational_dropout
from ..bank.protocol import Bank
from ..common.modes import evaluating
from ..configuration import LLEConfig
from ..history.attachment import Attachment
from ..history.cache import LLECache, check_cache
from ..history.calibration import Calibration
from ..history.explanation import Explanation, explain_tokens
from ..history.loss import check_targets, head_cross_entropy
from ..history.overlay import Overlay
from ..history.prediction import Prediction, ScoreOutput, collect, predict
from ..history.training import HistoryLoss
from ..history.update_statistics import collect_statistics
from ..kernels.linear import apply_linear
from .arguments import TO_BACKBONE, Packing, check_arguments, tokens_for_update
from .backbone import LLEModel, refuse_empty_rows, refuse_export, segment_mask
from .generating import LLEGenerationMixin, outcomes, own_output
from .outputs import Call, LLECausalLMOutput
from .penalties import penalties
from .pretrained import LLEPreTrainedModel
from .sources import calibrated, sources_of, take_in
from .streaming import step
from .targets import Targets, without_padding
from .wrapping import take_output_layer, wrap


class LLEForCausalLM(LLEPreTrainedModel, LLEGenerationMixin):
    """A language model that keeps learning from the text that it reads.

    Args:
        config: The configuration; `config.history` holds the numbers of the rule. If `history.training` asks for
            training with history, they are learned in training mode: `eval()` and `save_pretrained` write them back.
    """

    auto_class = "AutoModelForCausalLM"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _keys_to_ignore_on_save = _keys_to_ignore_on_load_missing = {"history_loss.values"}  # noqa: RUF012

    def __init__(self, config: LLEConfig) -> None:
        super().__init__(config)
        if config.bidirectional:
            raise ValueError("a language model must not see what it predicts: set bidirectional=False")
        self.model = LLEModel(config)
        config.check_sections("LLEForCausalLM")
        if self.model.backbone is not None:
            self._tied_weights_keys = {"lm_head.weight": f"model.backbone.{embedding_name(self.model.backbone)}"}
        self.lm_head = make_output_layer(config.hidden_size, config.vocab_size, config.wrapped)
        self.history_loss = HistoryLoss(config) if config.training.window else None
        self.post_init()

    @classmethod
    def from_backbone(cls, name: str | os.PathLike[str], **options: Any) -> "LLEForCausalLM":
        """A language model around a pretrained recurrent or hybrid one of transformers; nothing is copied.

        Args:
            name: Its folder or name on the Hub. Its tokenizer is kept, and saved with the model.
            options: `history`, `use_history` and `use_cache` as in `LLEConfig`; others as in `from_pretrained`.

        Raises:
            ValueError: The model cannot be a backbone (docs/backbones.md).
        """
        model, causal = wrap(cls, name, options)
        take_output_layer(model.lm_head, causal)
        if model.history_loss is not None:
            model.history_loss = HistoryLoss(model.config).to(model.device)
            model.history_loss.load()
        return model

    def train(self, mode: bool = True) -> "LLEForCausalLM":
        """As in torch; when training mode ends, the configuration gets the numbers that were learned."""
        if not mode and self.history_loss is not None:
            self.history_loss.store()
        return super().train(mode)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As for every LLE model; the configuration that is saved holds the numbers that were learned."""
        if self.history_loss is not None:
            self.history_loss.store()
        super().save_pretrained(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor | None] | None = None,
        past_key_values: LLECache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        use_history: bool | None = None,
        history: Attachment | Bank | None = None,
        output_history: bool = False,
        logits_to_keep: int | Tensor = 0,
        return_logits: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        generated: int | Tensor = 0,
        **kwargs: Any,
    ) -> LLECausalLMOutput:
        """Predicts the next token at every position, and measures the loss if labels are given.

        Args:
            input_ids: (B, T) int64; or give `inputs_embeds`, which leaves no entries in the stream.
            attention_mask: (B, >= T) of 0 and 1, 0 at padding, which neither predicts nor is predicted; its last T
                columns are used.
            past_key_values: The cache of the text so far; it is updated.
            inputs_embeds: (B, T, D) floating.
            labels: (B, T) int64, usually the input itself: shifted here; -100 counts nothing.
            use_cache: Whether to return a cache.
            use_history: Whether the history takes part; None: as the config says, in training mode only in the loss
                where `history.training` asks for it and no logits are built.
            history: The bank to recall from, as an Attachment or alone; None: the one that `attach_history` set.
            output_history: Whether to return the recalled entries with their shares (large: B x T x N).
            logits_to_keep: As in transformers: the last n positions, or an index of positions.
            return_logits: Whether to build the logits; None: unless this is a training step with labels.
            num_items_in_batch: What the summed loss is divided by: the targets of all batches that a step of the
                optimizer adds up, counted as the Trainer does, in `labels[:, 1:]`; None: those of this batch.
            generated: Which tokens the model generated itself, (B, >= T) bool, whose last T columns are used, or how
                many at the end; they make no entries, unless `history.stream.generated` asks for it. `generate` tells.
            kwargs: `shift_labels` (B, T) int64, the token after each position, overrules `labels`. It is no parameter,
                because the Trainer asks every batch for those that are named like labels. `position_ids`, `seq_idx`
                or `cu_seq_lens_q` of packed documents (`DataCollatorWithFlattening`), each of which begins anew.
                `output_hidden_states`.
        """
        shift_labels = kwargs.pop("shift_labels", None)
        check_arguments(self, kwargs, *TO_BACKBONE)
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given is None:
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        rows, length = given.shape[:2]
        mask = segment_mask(attention_mask, length)
        packing = Packing.take(kwargs, rows, length, mask)
        targets: Targets | None = None
        given_labels: Tensor | None = labels if shift_labels is None else shift_labels
        if given_labels is not None:
            own = check_targets(given_labels, (rows, length), self.config.vocab_size)
            targets = Targets(own, shift_labels is not None, mask, packing, num_items_in_batch)
        call = Call(use_cache, use_history, history, output_history, return_logits, logits_to_keep, generated, kwargs)
        if packing is None:
            return self._predict(input_ids, inputs_embeds, attention_mask, mask, targets, past_key_values, call)
        if past_key_values is not None or use_cache or isinstance(generated, Tensor) or generated:
            raise ValueError(
                "packed documents end in the middle of a row: give no past_key_values, use_cache or generated"
            )
        tokens, embeds = (None if tensor is None else packing.split(tensor) for tensor in (input_ids, inputs_embeds))
        call = replace(call, use_cache=False, logits_to_keep=0)
        output = self._predict(tokens, embeds, packing.mask, packing.mask, targets, None, call)
        for name, value in output.items():
            if name in ("logits", "hidden_states", "history"):
                output[name] = packing.join(value)
        if output.logits is not None:
            output.logits = slice_logits_to_keep(output.logits, logits_to_keep)
        return output

    def _predict(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        attention_mask: Tensor | dict[str, Tensor | None] | None,
        mask: Tensor | None,
        measured: Targets | None,
        past_key_values: LLECache | None,
        call: Call,
    ) -> LLECausalLMOutput:
        """The output for rows that hold a text each; `mask` is that of the segment, (B, T) bool or None."""
        targets = None if measured is None else measured.tokens
        return_logits, output_history = call.return_logits, call.output_history
        if return_logits is None:
            return_logits = targets is None or not self.training
        use_cache = self.config.use_cache if call.use_cache is None else call.use_cache
        in_loss = self.training and targets is not None and not (return_logits or output_history)
        history_loss = self.history_loss if in_loss and call.use_history is not False else None
        if history_loss is not None and past_key_values is None and use_cache:
            past_key_values = LLECache(self.config.training.window)
        given = input_ids if inputs_embeds is None else inputs_embeds
        assert given is not None
        attachment = self.recalled_from(call.history, call.use_history)
        cache, with_history = self.cache_for(past_key_values, use_cache, call.use_history, given.shape[0], attachment)
        if return_logits and attention_mask is not None and (cache is None or cache.seen_tokens == 0):
            refuse_empty_rows(attention_mask)
        hidden_states = loss = logits = recalled = None
        if with_history and cache is not None and cache.overlay is not None:
            tokens = tokens_for_update(input_ids, call.options)
            predictions = self.read(tokens, mask, cache, attachment, call.generated)
        else:
            outputs = self.model(input_ids, mask, cache, inputs_embeds, use_cache=False, **call.options)
            hidden_states, states = outputs.hidden_states, outputs.last_hidden_state
            dropped = variational_dropout(states, self.config.output_dropout, self.training)
            kept = call.logits_to_keep
            kept = kept if isinstance(kept, int) and kept else states.shape[1]
            first = 0 if targets is not None or output_history else max(0, states.shape[1] - kept)
            entries = self._entries(input_ids, call.generated, cache)
            predictions = self.predictions(states, entries, mask, cache, attachment, first)
            if with_history and return_logits and not output_history and targets is None and mask is None:
                logits = self.step(states, entries, cache, attachment)
        if history_loss is not None:
            stream = None if cache is None else cache.stream
            loss = history_loss(stream, states, dropped, entries, mask, targets, self.lm_head)
        elif with_history:
            if logits is None:
                loss, logits, recalled = collect(predictions, targets, return_logits, output_history)
            logits = None if logits is None else slice_logits_to_keep(logits, call.logits_to_keep)
        else:
            self.record(states, entries, mask, cache)
            loss = None if targets is None else head_cross_entropy(dropped, self.lm_head, targets)
            wanted = slice_logits_to_keep(dropped, call.logits_to_keep)
            logits = apply_linear(self.lm_head, wanted) if return_logits else None
        if loss is not None and measured is not None:
            loss = loss / measured.number
            if self.training:
                loss = loss + penalties(self.config, states, dropped, mask) * measured.share
        return LLECausalLMOutput(loss, logits, cache if use_cache else None, hidden_states, recalled)

    def cache_for(
        self,
        cache: LLECache | None,
        use_cache: bool,
        use_history: bool | None,
        rows: int,
        attachment: Attachment | None,
    ) -> tuple[LLECache | None, bool]:
        """The cache to read `rows` texts with, made where one is needed, and whether the history takes part."""
        check_cache(cache)
        if use_history is None:
            use_history = self.config.use_history and not self.training
        updating = use_history and self.config.overlay.scope != "none" and not self.training
        of_bank = attachment is not None and self.config.bank_matches.longest
        recalling = use_history and (self.config.stream.window or self.config.matches.window or of_bank)
        if cache is None and (use_cache or recalling or updating):
            cache = LLECache.of(self.config.history) if use_history else LLECache()
        if cache is not None and cache.overlay is None and updating:
            cache.overlay = Overlay(self, rows)
        own = () if cache is None else (cache.stream, cache.matches, cache.overlay)
        use_history = use_history and (attachment is not None or any(part is not None for part in own))
        if use_history:
            refuse_export("what a history recalls", "export with use_history=False")
        return cache, use_history

    def read(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | dict[str, Tensor | None] | None,
        cache: LLECache,
        attachment: Attachment | None,
        generated: int | Tensor = 0,
    ) -> Iterator[Prediction]:
        """Predictions with history for the tokens (B, T) of a segment, block by block; the cache takes it in.

        Each must have been used before the next one is asked for. They recall from `attachment`, which is pinned.
        """
        mask, overlay = segment_mask(attention_mask, input_ids.shape[1]), cache.overlay
        own = own_output(generated, input_ids, cache)
        entries = outcomes(input_ids, own, self.config.stream.generated, cache.takes_tokens)
        if overlay is None:
            states = self.model(input_ids, attention_mask, past_key_values=cache, use_cache=False).last_hidden_state
            yield from self.predictions(states, entries, mask, cache, attachment)
            return
        taught = outcomes(input_ids, own, self.config.overlay.generated)
        for part, states in overlay.states(self, input_ids, taught, mask, cache):
            ids, own_mask = (None if tensor is None else tensor[:, part] for tensor in (entries, mask))
            for prediction in self.predictions(states, ids, own_mask, cache, attachment, output=overlay.output):
                overlay.remember(states, prediction.positions, prediction.base, own_mask)
                start, stop = prediction.positions.start, prediction.positions.stop
                prediction.positions = slice(part.start + start, part.start + stop)
                yield prediction

    def predictions(
        self,
        states: Tensor,
        entries: Tensor | None,
        mask: Tensor | None,
        cache: LLECache | None,
        attachment: Attachment | None,
        first: int = 0,
        output: Callable[["LLEForCausalLM", Tensor], Tensor] | None = None,
    ) -> Iterator[Prediction]:
        """Predictions for the positions from `first` on, block by block, recording the whole segment in the stream.

        Args:
            states: (B, T, D) floating, the backbone's states of the segment.
            entries: (B, T) int64, the tokens, negative for one that makes no entry; None if none does (`outcomes`).
            mask: (B, T) bool, False at padding, or None.
            cache: The cache whose stream and exact matches are recalled; None: neither.
            attachment: The bank to recall from, pinned; None: no bank.
            first: The first position that is wanted.
            output: Makes logits of states in place of the output layer.
        """
        sources, blocks = sources_of(self.config, states, entries, mask, cache, attachment, first)

        def logits(block: Tensor) -> Tensor:
            return output(self, block) if output else apply_linear(self.lm_head, block)

        return predict(states, logits, sources, (positions for positions in blocks if positions.stop > first))

    def step(
        self, states: Tensor, entries: Tensor | None, cache: LLECache | None, attachment: Attachment | None
    ) -> Tensor | None:
        """`step` of streaming.py; a subclass that changes `predictions` returns None, so that they are asked for."""
        return step(self, states, entries, cache, attachment)

    def _entries(self, tokens: Tensor | None, generated: int | Tensor, cache: LLECache | None) -> Tensor | None:
        """The tokens (B, T) that make entries of the stream, as `predictions` takes them."""
        if tokens is None:
            return None
        own, marked = own_output(generated, tokens, cache), cache is not None and cache.takes_tokens
        return outcomes(tokens, own, self.config.stream.generated, marked)

    def record(self, states: Tensor, entries: Tensor | None, mask: Tensor | None, cache: LLECache | None) -> None:
        """Takes a segment that is predicted without history into the stream and the matches, if there are any."""
        take_in(self.config, states, entries, mask, cache)

    def explain(
        self,
        input_ids: Tensor,
        top: int = 5,
        history: Attachment | Bank | None = None,
        generated: int | Tensor = 0,
    ) -> list[Explanation]:
        """Which entries moved the prediction of each token of a text, and by exactly how much.

        Args:
            input_ids: (T,) int64, or (1, T).
            top: Entries to name for each token.
            history: As in `forward`.
            generated: As in `forward`, (1, T) bool or how many at the end: the entries are those that these tokens
                were generated with.

        Returns:
            An `Explanation` for each token but the first.
        """
        text = input_ids[0] if input_ids.dim() == 2 and len(input_ids) == 1 else input_ids
        if text.dim() != 1 or len(text) < 2:
            raise ValueError(f"explain takes one text of two tokens at least, (T,), got {tuple(text.shape)}")
        text, attachment = text.to(self.device), self.recalled_from(history, True)
        with torch.no_grad(), evaluating(self):
            cache, _ = self.cache_for(None, True, True, 1, attachment)
            assert cache is not None
            own = own_output(generated, text[None], None)
            own = torch.full_like(text[None], own, dtype=torch.bool) if isinstance(own, bool) else own
            made = torch.ones_like(own[0]) if self.config.stream.generated else ~own[0]

            def read(part: slice) -> Iterator[Prediction]:
                return self.read(text[None, part], None, cache, attachment, own[:, part])

            return explain_tokens(text, made, read, attachment, top)

    def collect_update_statistics(self, batches: Iterable[dict[str, Tensor]]) -> None:
        """Collects what the rule of the test-time update needs to know of training text; saved with the model.

        Args:
            batches: As for `calibrate`, of training text and of one row each.
        """
        with evaluating(self):
            self.update_statistics = collect_statistics(self, batches)

    @torch.no_grad()
    def score(
        self,
        input_ids: Tensor,
        shift_labels: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: LLECache | None = None,
        use_history: bool | None = None,
        history: Attachment | Bank | None = None,
    ) -> ScoreOutput:
        """Log probabilities of the tokens that came next, with and without history, in one pass.

        Args:
            input_ids: (B, T) int64.
            shift_labels: (B, T) int64, the token after each position, -100 where there is none.
            attention_mask: (B, T) of 0 and 1, 0 at padding, which predicts nothing.
            past_key_values: The cache of the text so far; it is updated.
            use_history, history: As in `forward`.
        """
        attachment = self.recalled_from(history, use_history)
        mask = segment_mask(attention_mask, input_ids.shape[1])
        targets = self._next_tokens(input_ids, shift_labels, mask)
        cache, with_history = self.cache_for(past_key_values, True, use_history, len(input_ids), attachment)
        assert cache is not None
        if with_history:
            predictions = self.read(input_ids, mask, cache, attachment)
        else:
            states = self.model(input_ids, mask, past_key_values=cache, use_cache=False).last_hidden_state
            self.record(states, self._entries(input_ids, 0, cache), mask, cache)
            predictions = self.predictions(states, None, mask, None, None)
        parts = [prediction.scores(targets[:, prediction.positions]) for prediction in predictions]
        columns = {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}
        return ScoreOutput(**columns, past_key_values=cache)

    def _next_tokens(self, input_ids: Tensor, shift_labels: Tensor, mask: Tensor | None) -> Tensor:
        """What comes next, (B, T) int64, -100 where nothing counts."""
        labels = check_targets(shift_labels, input_ids.shape, self.config.vocab_size, "shift_labels")
        return without_padding(labels, mask)

    def calibrate(
        self,
        batches: Iterable[dict[str, Tensor]],
        *,
        fixed: Collection[str] = (),
        max_predictions: int = 3000,
        steps: int = 40,
        seed: int = 0,
        past_key_values: LLECache | None = None,
        history: Attachment | Bank | None = None,
    ) -> dict[str, float]:
        """Fits the parameters of the rule on held-out text, by gradient descent, and stores them in the config.

        Those of the stream, of the exact matches and, if one is attached, of the bank and of the exact matches in it
        are fitted together.

        Args:
            batches: Consecutive segments of text: `input_ids` and `shift_labels`, (B, T) int64, and `attention_mask`
                where there is padding; row r of a batch continues row r of the batch before. A few windows of text
                are enough.
            fixed: Parameters that stay as they are: "sharpness", "recency", "agreement", "success" or "gate", or
                of one source "bank.gate".
            max_predictions: Predictions that are fitted on, drawn evenly from the text.
            steps: Steps of the quasi-Newton descent.
            seed: Seed of the draw.
            past_key_values: The cache of the text so far; it is updated. None: the batches begin a text.
            history: As in `forward`.

        Returns:
            `predictions`, their number, and the mean nats of a token on them: `base_nats` without history,
            `before_nats` and `after_nats` with the parameters as they were and as they are now.
        """
        attachment = self.recalled_from(history, True)
        calibration = Calibration(calibrated(self.config, attachment), fixed, max_predictions, seed)
        cache = past_key_values
        with evaluating(self), torch.no_grad():
            for batch in batches:
                ids, mask = batch["input_ids"].to(self.device), batch.get("attention_mask")
                mask = None if mask is None else segment_mask(mask.to(self.device), ids.shape[1])
                targets = self._next_tokens(ids, batch["shift_labels"].to(self.device), mask)
                cache, _ = self.cache_for(cache, True, True, len(ids), attachment)
                assert cache is not None
                for prediction in self.read(ids, mask, cache, attachment):
                    calibration.take(prediction, targets)
        metrics = calibration.fit(steps)
        if self.history_loss is not None:
            self.history_loss.load()
        return metrics
