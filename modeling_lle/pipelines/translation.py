"""`pipeline("translation")`, which transformers 5 no longer has: for LLE, and for every other model from text to text.

Notable: the texts of a batch are padded here, so that what needs no model, blank lines and sentences that the memory
holds, takes no place in it; and each text has its own limit, so that a translation does not depend on its batch.
Shapes: B texts, R translations of each, T tokens of a translation.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, Pipeline, StoppingCriteria, StoppingCriteriaList

from ..bank.protocol import Bank
from ..data.glossary import Glossary, Occurrence, check_terms
from ..data.placeholders import faults
from ..data.text import encode_sentences
from ..entries.attribution import attribute
from ..entries.pairs import Memory, padded
from ..history.attachment import Attachment
from ..history.explanation import as_values, explain_targets
from ..models.seq2seq import longest_target
from .confidence import confidence, features
from .faithful import search_faithfully
from .terms import Speller, TermPreference, put_terms

_Translated: TypeAlias = tuple[str, list[int], list[int]]  # a text, its tokens, and those of its translation
UNMOVED: dict[str, Any] = {"base_share": 1.0, "history": [], "tokens": []}  # of a translation without a memory


class LLETranslationPipeline(Pipeline):
    """Translates texts; `import modeling_lle` makes `pipeline("translation")` use it.

    A text gives a list with a mapping that has the translation under `translation_text`; a list of texts gives such a
    mapping for each, with `num_return_sequences` a list of them. Data sets and generators are read as they are
    needed, and give a list for each text. Blank texts have an empty translation. Where placeholders, markup or
    accelerators (`&File`) of the source are not in the translation they are under `lost`, and what the translation has
    instead under `added`. Unless `num_return_sequences` asks for several or `do_sample` for a random one, the
    translation is the most probable hypothesis with the fewest such faults (pipelines/faithful.py). All arguments of
    `generate` may be given.
    Unless the model or the call says otherwise, a translation has at most 16 tokens more than twice those of its
    source.

    With a `glossary`, which `load_glossary` reads, its terms are preferred where they stand in the source. Each record
    has them under `terms`, as mappings of the term `source`, the `target` that the translation has or should have, and
    whether it was `found`, perhaps inflected. That is said of exact matches too, which stay as they are.

    An LLE translator with a memory knows more arguments:
        history: The memory to recall from, as an Attachment or a bank; None: the one that `attach_history` set. All
            that a call returns is of one state of it.
        return_history: Puts under `history` the `history_top` sentence pairs (3) that moved the translation most:
            their `text`, `translation`, `share`, fuzzy match score `match`, `source`, `row` and `where` they come
            from. Shares are means over the tokens of the translation; those of all pairs and the `base_share` add up
            to one. Under `tokens` lies an item for each token that was generated, as `as_values` makes it of an
            `Explanation`: its text, its probability by the base and with the memory, and the `history_top` entries of
            the largest effects.
        return_match: Puts under `match` the `text`, `translation` and `score` of the pair with the best fuzzy match
            score, None without a pair that shares a word. If the memory has other translations of that text too, they
            are under `alternatives`, each with `where` it comes from: those of the attachment's first namespace first,
            then the newest.
        exact_matches: Takes the translation of a source that the memory has as it is, and puts True under `exact`; of
            several translations the one that comes first by the same order.
        return_confidence: Puts under `confidence` the probability that nobody would edit the translation, which
            `fit_confidence` of pipelines/confidence.py calibrates.

    Example:
        >>> translate = pipeline("translation", model=folder)
        >>> translate("A man sleeps.", num_beams=5)[0]["translation_text"]
        >>> memory = HistoryBank.build(translate.model, translate.tokenizer, pairs)
        >>> translate.model.attach_history(memory, tokenizer=translate.tokenizer)
        >>> translate("A man sleeps.", return_history=True)[0]["history"][0]["translation"]
    """

    _load_tokenizer = True  # type: ignore[assignment]
    _load_processor = False  # type: ignore[assignment]
    _load_image_processor = False  # type: ignore[assignment]
    _load_video_processor = False  # type: ignore[assignment]
    _load_feature_extractor = False  # type: ignore[assignment]
    _pipeline_calls_generate = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.model.config.is_encoder_decoder or not self.model.can_generate():
            raise TypeError(
                f"translation needs a model from text to text, such as LLEForSeq2SeqLM; this is a "
                f"{type(self.model).__name__}"
            )

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The translation of a text, or those of several; see the class.

        Args:
            inputs: A text, a list of texts, or a data set or generator of texts.
            args: Not used.
            kwargs: What the class describes, arguments of `generate`, and `batch_size`.
        """
        if isinstance(inputs, Sequence) and not isinstance(inputs, str):
            inputs = list(inputs)  # a column of a data set too
            if not inputs:
                return []
        results = super().__call__(inputs, *args, **kwargs)
        if isinstance(inputs, list) and all(len(records) == 1 for records in results):
            return [records[0] for records in results]
        return results

    def _sanitize_parameters(
        self,
        history: Attachment | Bank | None = None,
        return_history: bool | None = None,
        history_top: int | None = None,
        return_match: bool | None = None,
        exact_matches: bool | None = None,
        return_confidence: bool | None = None,
        glossary: Glossary | None = None,
        **generate: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        asked = return_history or return_match or exact_matches or return_confidence
        if (asked or history is not None) and not self._is_lle:
            raise TypeError(
                "history, return_history, return_match, exact_matches and return_confidence need an LLE translator; "
                f"this is a {type(self.model).__name__}"
            )
        during: dict[str, Any] = {"history": Attachment.of(history), "history_top": history_top}
        during |= {"return_history": return_history, "return_match": return_match}
        during |= {"exact_matches": exact_matches, "return_confidence": return_confidence, "glossary": glossary}
        return {}, {**generate, **{name: value for name, value in during.items() if value is not None}}, {}

    def preprocess(self, inputs: Any) -> dict[str, Any]:  # type: ignore[override]
        """A text and its token ids, of which there are none if it is blank."""
        if not isinstance(inputs, str):
            raise TypeError(f"cannot translate {inputs!r:.80}, which is {type(inputs).__name__}: give texts")
        if not inputs.strip():
            return {"text": inputs, "ids": []}
        assert self.tokenizer is not None
        return {"text": inputs, "ids": encode_sentences([(self.prefix or "") + inputs], self.tokenizer)[0]}

    def _forward(  # type: ignore[override]
        self,
        model_inputs: dict[str, Any],
        history: Attachment | None = None,
        return_history: bool = False,
        history_top: int = 3,
        return_match: bool = False,
        exact_matches: bool = False,
        return_confidence: bool = False,
        glossary: Glossary | None = None,
        **generate: Any,
    ) -> dict[str, Any]:
        """Texts with their `results`, whose `ids` are those of the translation, or one text likewise."""
        alone = isinstance(model_inputs["text"], str)
        texts, encoded = ([model_inputs[name]] if alone else model_inputs[name] for name in ("text", "ids"))
        attachment = self._pinned(history)
        asks = attachment is not None and (return_history or return_match or exact_matches)
        memory = Memory.of(attachment) if attachment is not None and asks else None
        results: list[list[dict[str, Any]]] = [[] for _ in texts]
        rows, sure = [], {"confidence": 1.0} if return_confidence else {}
        for row, (text, ids) in enumerate(zip(texts, encoded, strict=True)):
            if not ids:
                results[row] = [{"ids": [], **(UNMOVED if return_history else {}), **sure}]
            elif exact_matches and memory is not None and text in memory.exact:
                results[row] = [_exact_match(text, return_history, memory) | sure]
            else:
                rows.append(row)
        terms = None if glossary is None else [glossary.find(text) for text in texts]
        if rows:
            wanted = [terms[row] if terms else [] for row in rows]
            owners, targets = self._hypotheses(rows, texts, encoded, attachment, wanted, generate)
            if terms:
                use_history = generate.get("use_history")
                targets = [
                    self._with_terms(texts[row], target, terms[row], attachment, use_history)
                    for row, target in zip(owners, targets, strict=True)
                ]
            moved = self._moved_by(attachment, generate.get("use_history"))
            own = [(texts[row], encoded[row], target) for row, target in zip(owners, targets, strict=True)]
            told = self._told(own, moved, history_top if return_history else None, return_confidence)
            for row, target, more in zip(owners, targets, told, strict=True):
                results[row].append({"ids": target, **more})
        if return_match:
            for text, own_results in zip(texts, results, strict=True):
                match = _best_match(text, memory)
                for result in own_results:
                    result["match"] = match
        if terms is not None:
            for own_terms, own_results in zip(terms, results, strict=True):
                for result in own_results:
                    result["terms"] = [own.term for own in own_terms]
        return {"text": texts[0] if alone else texts, "results": results[0] if alone else results}

    def postprocess(self, model_outputs: dict[str, Any]) -> list[dict[str, Any]]:  # type: ignore[override]
        """The records of a text."""
        text, records = model_outputs["text"], []
        for result in model_outputs["results"]:
            more = dict(result)
            match = {"match": more.pop("match")} if "match" in more else {}
            terms = more.pop("terms", None)
            translation = self._tokenizer.decode(more.pop("ids"), skip_special_tokens=True)
            record = {"translation_text": translation, **more}
            lost, added = faults(text, record["translation_text"])
            record |= {"lost": lost} if lost else {}
            record |= {"added": added} if added else {}
            if terms is not None:
                uses = check_terms(record["translation_text"], terms)
                record["terms"] = [dataclasses.asdict(use) for use in uses]
            records.append({**record, **match})
        return records

    @property
    def _is_lle(self) -> bool:
        return hasattr(self.model, "read_source")

    @property
    def _translator(self) -> Any:
        return self.model

    @property
    def _tokenizer(self) -> Any:
        return self.tokenizer

    @functools.cached_property
    def _speller(self) -> Speller:
        return Speller(self._tokenizer)

    def _pinned(self, history: Attachment | None) -> Attachment | None:
        """The memory of a call, in the state that it has now; it compares sentences by the pipeline's tokenizer."""
        attachment = Attachment.of(history, getattr(self.model, "history", None)) if self._is_lle else None
        if attachment is None:
            return None
        if attachment.tokenizer is None:
            attachment = dataclasses.replace(attachment, tokenizer=self.tokenizer)
        return attachment.pinned()

    def _moved_by(self, attachment: Attachment | None, use_history: bool | None) -> Attachment | None:
        """The memory, if it takes part."""
        if attachment is None or use_history is not None:
            return attachment if use_history else None
        return attachment if self.model.config.use_history else None

    def _told(
        self, translations: Sequence[_Translated], attachment: Attachment | None, top: int | None, confident: bool
    ) -> list[dict[str, Any]]:
        """What is told of each translation: the `top` pairs that moved it, unless that is None, and the confidence."""
        told = [{} for _ in translations] if top is None else self._history(translations, attachment, top)
        if confident:
            for own, more in zip(translations, told, strict=True):
                more["confidence"] = self._confidence(own, attachment)
        return told

    @torch.no_grad()
    def _confidence(self, translation: _Translated, attachment: Attachment | None) -> float:
        """The confidence in a translation, 0 in an empty one."""
        _, source, target = translation
        if not target:
            return 0.0
        ids, labels = (torch.tensor([own], device=self.device) for own in (source, target))
        read = self._translator.read_source(ids, use_history=attachment is not None, history=attachment)
        return float(confidence(self._translator, features(self._translator, read, labels)))

    def _history(
        self, translations: Sequence[_Translated], attachment: Attachment | None, top: int
    ) -> list[dict[str, Any]]:
        """What moved each translation."""
        rows = [row for row, (_, _, target) in enumerate(translations) if target]
        told = [dict(UNMOVED) for _ in translations]
        if attachment is None or not rows:
            return told
        from ..bank.lexical import fuzzy_match  # here, as it needs the extra "translation"

        model, memory = self._translator, Memory.of(attachment)
        _, sources, targets = zip(*(translations[row] for row in rows), strict=True)
        batch = padded(sources, targets, self._tokenizer.pad_token_id)
        ids, mask, labels = (batch[name].to(self.device) for name in ("input_ids", "attention_mask", "labels"))
        explained = model.explained(model.read_source(ids, mask, history=attachment), labels)
        for row, own in zip(rows, explained, strict=True):
            found, text, pairs = attribute(own.history, memory), translations[row][0], []
            for place, share in list(found.shares.items())[:top]:
                pair = memory.pairs[place]
                pairs.append({**pair, "share": share, "match": fuzzy_match(text, pair["text"])})
            tokens = as_values(explain_targets(own, attachment, top), self._tokenizer)
            told[row] = {"base_share": found.base_share, "history": pairs, "tokens": tokens}
        return told

    def _hypotheses(
        self,
        rows: list[int],
        texts: list[str],
        encoded: list[list[int]],
        attachment: Attachment | None,
        terms: list[list[Occurrence]],
        options: dict[str, Any],
    ) -> tuple[list[int], list[list[int]]]:
        """Rows of the translations of some texts, and their tokens: one of each text, or as many as are asked for."""
        known = self._get_set_generation_params(self._prepare_generate_kwargs(options))
        own = [encoded[row] for row in rows]
        if known.get("do_sample") or known.get("num_return_sequences") not in (None, 1):
            sequences = self._generate(own, attachment, terms, options).tolist()
            each = len(sequences) // len(rows)
            return [row for row in rows for _ in range(each)], [self._target(sequence) for sequence in sequences]

        def search(
            places: list[int], beams: int, processor: LogitsProcessor | None
        ) -> list[list[tuple[str, list[int]]]]:
            processors = [*(options.get("logits_processor") or []), *([] if processor is None else [processor])]
            changed = {**options, "num_beams": beams, "num_return_sequences": beams}
            changed["logits_processor"] = LogitsProcessorList(processors)
            wanted = [terms[place] for place in places]
            sequences = self._generate([own[place] for place in places], attachment, wanted, changed)
            targets = [self._target(sequence) for sequence in sequences.tolist()]
            both = list(zip(self._tokenizer.batch_decode(targets, skip_special_tokens=True), targets, strict=True))
            return [both[start : start + beams] for start in range(0, len(both), beams)]

        given, ends = [texts[row] for row in rows], self.model.generation_config.eos_token_id
        beams = known.get("num_beams") or 1
        best = search_faithfully(given, search, beams, lambda hypothesis: hypothesis[0], self._tokenizer, ends)
        return rows, [target for _, target in best]

    def _generate(
        self,
        encoded: list[list[int]],
        attachment: Attachment | None,
        terms: list[list[Occurrence]],
        options: dict[str, Any],
    ) -> Tensor:
        """Sequences (B * R, 1 + T) int64 for B sources and the terms in them, from the start token on."""
        model: Any = self.model
        if any(terms):
            preference = TermPreference([[own.term for own in found] for found in terms], self._speller)
            given = options.get("logits_processor") or []
            options = {**options, "logits_processor": LogitsProcessorList([*given, preference])}
        options = self._prepare_generate_kwargs(options)
        known = {name for name, value in self._get_set_generation_params(options).items() if value is not None}
        if known.isdisjoint({"max_new_tokens", "max_length"}):
            limits = [longest_target(len(ids)) for ids in encoded]
            most = getattr(model.config, "max_position_embeddings", None)
            limits = [limit if most is None else min(limit, most) for limit in limits]
            options = self._prepare_generate_kwargs(options, max_new_tokens=max(limits))
            given = options.get("stopping_criteria") or []
            options["stopping_criteria"] = StoppingCriteriaList([*given, _Limits(limits)])
        batch = self._tokenizer.pad({"input_ids": encoded}, return_tensors="pt").to(self.device)
        history = {} if attachment is None else {"history": attachment}
        generated = model.generate(**batch, **options, **history)
        return getattr(generated, "sequences", generated)

    @torch.no_grad()
    def _with_terms(
        self,
        text: str,
        target: list[int],
        occurrences: list[Occurrence],
        attachment: Attachment | None,
        use_history: bool | None,
    ) -> list[int]:
        """The tokens of a translation, with the terms that it lacks in the place of what looked at their source."""
        tokenizer, model, before = self._tokenizer, self._translator, len(self.prefix or "")
        if not occurrences or not self._is_lle or not tokenizer.is_fast:  # where tokens stand, and what looks at them
            return target
        options = {"split_special_tokens": True, "return_offsets_mapping": True, "return_tensors": "pt"}
        source = tokenizer((self.prefix or "") + text, **options, verbose=False)
        spans = (source.pop("offset_mapping")[0] - before).tolist()
        places = [
            [place for place, (start, end) in enumerate(spans) if max(start, own.start) < min(end, own.end)]
            for own in occurrences
        ]
        moved = self._moved_by(attachment, use_history)
        ids, mask = (source[name].to(self.device) for name in ("input_ids", "attention_mask"))
        read = model.read_source(ids, mask, moved is not None, history=moved)

        def look(ids: list[int]) -> Tensor:
            labels = torch.tensor([ids], device=self.device)
            options = {"use_history": moved is not None, "output_attentions": True, "return_logits": False}
            found = model(encoder_outputs=read, labels=labels, **options).cross_attentions
            return torch.stack(found).float().mean((0, 2))[0].cpu()

        return put_terms(target, occurrences, places, self._speller, look)

    def _target(self, sequence: list[int]) -> list[int]:
        """The tokens of a translation, its end token included, without the start token and padding."""
        ids = sequence[1:]
        end = self.model.generation_config.eos_token_id
        ends = [place for place, id in enumerate(ids) if id in (end if isinstance(end, list) else [end])]
        if ends:
            return ids[: ends[0] + 1]
        while ids and ids[-1] == self._tokenizer.pad_token_id:
            ids.pop()
        return ids


def _exact_match(text: str, return_history: bool, memory: Memory) -> dict[str, Any]:
    """The result for a source that the memory has: nothing else moved it."""
    pair = memory.pairs[memory.exact[text]]
    result = {"ids": [], "translation_text": pair["translation"], "exact": True}
    if return_history:
        result |= {"base_share": 0.0, "history": [{**pair, "share": 1.0, "match": 1.0}], "tokens": []}
    return result


def _best_match(text: str, memory: Memory | None) -> dict[str, Any] | None:
    """The pair with the best fuzzy match score, if there is one."""
    best = [] if memory is None else memory.matches(text)
    if memory is None or not best:
        return None
    match = {name: getattr(best[0], name) for name in ("score", "text", "translation")}
    others = [{name: pair[name] for name in ("translation", "where")} for pair in memory.alternatives(best[0].text)]
    return {**match, "alternatives": others} if others else match


class _Limits(StoppingCriteria):
    """Ends each translation after so many new tokens; beams of a text lie one after another."""

    def __init__(self, limits: list[int]) -> None:
        self.limits = torch.tensor(limits)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        limits = self.limits.to(input_ids.device).repeat_interleave(len(input_ids) // len(self.limits))
        return limits < input_ids.shape[1]
