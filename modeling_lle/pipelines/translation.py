"""`pipeline("translation")`, which transformers 5 no longer has: for LLE, and for every other model from text to text.

Notable: the texts of a batch are padded here, so that what needs no model, blank lines and sentences that the memory
holds, takes no place in it; and each text has its own limit, so that a translation does not depend on its batch.
Shapes: B texts, R translations of each, T tokens of a translation.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Pipeline, StoppingCriteria, StoppingCriteriaList

from ..data.placeholders import differences
from ..data.text import encode_sentences
from ..entries.attribution import attribute
from ..models.seq2seq import longest_target


class LLETranslationPipeline(Pipeline):
    """Translates texts; `import modeling_lle` makes `pipeline("translation")` use it.

    A text gives a list with a mapping that has the translation under `translation_text`; a list of texts gives such a
    mapping for each, with `num_return_sequences` a list of them. Data sets and generators are read as they are
    needed, and give a list for each text. Blank texts have an empty translation. Where placeholders or markup of the
    source are not in the translation they are under `lost`, and what the translation has instead under `added`.
    All arguments of `generate` may be given. Unless the model or the call says otherwise, a translation has at most
    16 tokens more than twice those of its source.

    An LLE translator with a memory knows more arguments:
        return_history: Puts under `history` the `history_top` sentence pairs (3) that moved the translation most:
            their `text`, `translation`, `share`, fuzzy match score `match`, `source` and `row`. Shares are means over
            the tokens of the translation; those of all pairs and the `base_share` add up to one. Under `tokens`, each
            token that was generated has its `text`, its probability by the base, `base_prob`, and with the memory,
            `prob`, and the `base_share`.
        return_match: Puts under `match` the `text`, `translation` and `score` of the pair with the best fuzzy match
            score, None without a pair that shares a word.
        exact_matches: Takes the translation of a source that the memory has as it is, and puts True under `exact`.

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
        return_history: bool | None = None,
        history_top: int | None = None,
        return_match: bool | None = None,
        exact_matches: bool | None = None,
        **generate: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if (return_history or return_match or exact_matches) and not hasattr(self.model, "read_source"):
            raise TypeError(
                "return_history, return_match and exact_matches need an LLE translator; this is a "
                f"{type(self.model).__name__}"
            )
        during = {"return_history": return_history, "history_top": history_top, "exact_matches": exact_matches}
        given = {name: value for name, value in during.items() if value is not None}
        return {}, {**generate, **given}, {} if return_match is None else {"return_match": return_match}

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
        return_history: bool = False,
        history_top: int = 3,
        exact_matches: bool = False,
        **generate: Any,
    ) -> dict[str, Any]:
        """Texts with their `results`, whose `ids` are those of the translation, or one text likewise."""
        alone, memory = isinstance(model_inputs["text"], str), self.memory
        texts, encoded = ([model_inputs[name]] if alone else model_inputs[name] for name in ("text", "ids"))
        results: list[list[dict[str, Any]]] = [[] for _ in texts]
        rows = []
        for row, (text, ids) in enumerate(zip(texts, encoded, strict=True)):
            if not ids:
                results[row] = [{"ids": [], **(self._history(text, None, 0, memory) if return_history else {})}]
            elif exact_matches and memory is not None and text in memory.exact:
                results[row] = [self._exact_match(text, return_history, memory)]
            else:
                rows.append(row)
        if rows:
            sequences = self._generate([encoded[row] for row in rows], generate)
            owners = [row for row in rows for _ in range(len(sequences) // len(rows))]
            targets = [self._target(sequence) for sequence in sequences.tolist()]
            found: list[Any] = [None] * len(targets)
            if return_history and self._uses_history(generate.get("use_history")):
                read, model = [encoded[row] for row in owners], self._translator
                found = attribute(model, read, targets, self._tokenizer.pad_token_id, memory)
            for row, target, item in zip(owners, targets, found, strict=True):
                history = self._history(texts[row], item, history_top, memory) if return_history else {}
                results[row].append({"ids": target, **history})
        return {"text": texts[0] if alone else texts, "results": results[0] if alone else results}

    def postprocess(  # type: ignore[override]
        self, model_outputs: dict[str, Any], return_match: bool = False
    ) -> list[dict[str, Any]]:
        """The records of a text."""
        text, records = model_outputs["text"], []
        for result in model_outputs["results"]:
            more = dict(result)
            translation = self._tokenizer.decode(more.pop("ids"), skip_special_tokens=True)
            record = {"translation_text": translation, **more}
            lost, added = differences(text, record["translation_text"])
            record |= {"lost": lost} if lost else {}
            record |= {"added": added} if added else {}
            if return_match:
                memory = self.memory
                best = memory.matches(text) if memory is not None else []
                names = ("score", "text", "translation")
                record["match"] = {name: getattr(best[0], name) for name in names} if best else None
            records.append(record)
        return records

    @property
    def memory(self) -> Any:
        """The sentence pairs that are attached to the model, a `Memory`; None if there are none."""
        model: Any = self.model
        return None if getattr(model, "history_bank", None) is None else model.memory

    def _uses_history(self, given: bool | None) -> bool:
        return self.memory is not None and bool(self.model.config.use_history if given is None else given)

    @property
    def _translator(self) -> Any:
        return self.model

    @property
    def _tokenizer(self) -> Any:
        return self.tokenizer

    def _exact_match(self, text: str, return_history: bool, memory: Any) -> dict[str, Any]:
        """The result for a source that the memory has: nothing else moved it."""
        pair = memory.pairs[memory.exact[text]]
        result = {"ids": [], "translation_text": pair["translation"], "exact": True}
        if return_history:
            result |= {"base_share": 0.0, "history": [{**pair, "share": 1.0, "match": 1.0}], "tokens": []}
        return result

    def _history(self, text: str, found: Any, top: int, memory: Any) -> dict[str, Any]:
        """What is reported of an `Attribution`; None if there was no memory."""
        if found is None:
            return {"base_share": 1.0, "history": [], "tokens": []}
        from ..bank.lexical import fuzzy_match  # here, as it needs the extra "translation"

        history = []
        for place, share in list(found.shares.items())[:top]:
            pair = memory.pairs[place]
            history.append({**pair, "share": share, "match": fuzzy_match(text, pair["text"])})
        return {
            "base_share": found.base_share,
            "history": history,
            "tokens": [
                {
                    "text": self._tokenizer.decode([token.id]),
                    "base_prob": token.base_prob,
                    "prob": token.prob,
                    "base_share": token.base_share,
                }
                for token in found.tokens
            ],
        }

    def _generate(self, encoded: list[list[int]], options: dict[str, Any]) -> Tensor:
        """Sequences (B * R, 1 + T) int64 for B sources, from the start token on."""
        model: Any = self.model
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
        generated = model.generate(**batch, **options)
        return getattr(generated, "sequences", generated)

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


class _Limits(StoppingCriteria):
    """Ends each translation after so many new tokens; beams of a text lie one after another."""

    def __init__(self, limits: list[int]) -> None:
        self.limits = torch.tensor(limits)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        limits = self.limits.to(input_ids.device).repeat_interleave(len(input_ids) // len(self.limits))
        return limits < input_ids.shape[1]
