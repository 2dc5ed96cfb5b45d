"""Evaluation of translators, base and memory side by side: BLEU, chrF, TER and kept placeholders.

Notable: sentences of similar length share a batch, none is truncated; sacrebleu's signatures are kept with scores.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from datasets import Dataset
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from ..common.batches import batches
from ..common.modes import Trainable, evaluating
from ..common.precision import in_precision
from ..common.terminal import counted
from ..common.terminal import progress as progress_bar
from ..data import load_pairs
from ..data.placeholders import differences
from ..data.sources import Split, describe
from ..data.text import encode_sentences
from ..entries.pairs import Memory
from ..models.seq2seq import LLEForSeq2SeqLM, longest_target
from ..pipelines.faithful import Search, search_faithfully
from ..saved import attach_bank, languages_of, load_translator
from ..training.overlap import Seen
from .metrics import TranslationMetric
from .results import describe_files, this_command, train_minutes, write_results

BATCH_SIZE = 32
BEAMS = 5
BASE, HISTORY = "base", "history"
EXAMPLE_WORDS = 10  # of the sentence whose attention is drawn, or the nearest length


@dataclass
class TranslationEvaluation:
    """Measurements of one pass, per sentence in order.

    Attributes:
        sources, references: Sentences, and their correct translations.
        translations: Translations for "base", and with a memory for "history".
        scores: `bleu`, `chrf` and `ter` of each side.
        signatures: sacrebleu's signature of each metric.
        seconds: Duration of each side.
        entries, pairs: Target tokens and sentence pairs of the memory; 0 without one.
    """

    sources: list[str]
    references: list[str]
    translations: dict[str, list[str]]
    scores: dict[str, dict[str, float]]
    signatures: dict[str, str]
    seconds: dict[str, float]
    entries: int
    pairs: int

    @property
    def last(self) -> str:
        """The most complete side: "history", or "base" without a memory."""
        return HISTORY if HISTORY in self.translations else BASE

    def metrics(self) -> dict[str, float]:
        """Flat metrics.

        `bleu`, `chrf`, `ter`, `placeholders_lost` and `placeholders_added`, the numbers of translations that lack a
        placeholder of the source or have an additional one, and `sentences_per_second`; with a memory, the prefix
        `base_` is for the base alone. Then sizes.
        """
        values: dict[str, float] = {}
        for side, translations in self.translations.items():
            kept = [differences(*pair) for pair in zip(self.sources, translations, strict=True)]
            own = {
                **self.scores[side],
                "placeholders_lost": sum(bool(lost) for lost, _ in kept),
                "placeholders_added": sum(bool(added) for _, added in kept),
                "sentences_per_second": len(self.sources) / self.seconds[side],
            }
            prefix = "" if side == self.last else f"{side}_"
            values |= {prefix + name: value for name, value in own.items()}
        return {**values, "sentences": len(self.sources), "entries": self.entries, "pairs": self.pairs}

    def table(self) -> list[dict[str, Any]]:
        """A row for each of BLEU, chrF and TER: `metric`, value of each side, and `signature`."""
        return [
            {"metric": name, **{side: own[name] for side, own in self.scores.items()}, "signature": signature}
            for name, signature in self.signatures.items()
        ]

    def examples(self) -> list[dict[str, str]]:
        """A row for each sentence: `source`, `reference`, `translation`, and with a memory `base_translation`."""
        columns = {"source": self.sources, "reference": self.references, "translation": self.translations[self.last]}
        if self.last != BASE:
            columns["base_translation"] = self.translations[BASE]
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


class TextToText(Trainable, Protocol):
    """Any encoder-decoder model of transformers."""

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        ...

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers."""
        ...


@torch.no_grad()
def translate(
    model: TextToText,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    beams: int = BEAMS,
    batch_size: int = BATCH_SIZE,
    *,
    use_history: bool | None = None,
    max_new_tokens: int | None = None,
    progress: bool = False,
) -> list[str]:
    """Translates sentences with any encoder-decoder model, faithfully (`search_faithfully`) as the pipeline does.

    Args:
        model: Model.
        tokenizer: Its tokenizer.
        texts: Sentences in any order.
        beams: Beam size; 1 is greedy.
        batch_size: Maximum sentences per batch; fewer if they are long.
        use_history: Whether to use an attached memory; None: as configured.
        max_new_tokens: Maximum tokens of a translation; None: `longest_target` of the longest source of the batch.
        progress: Whether to show a progress bar on a terminal.
    """
    options: dict[str, Any] = {} if use_history is None else {"use_history": use_history}
    translations = [""] * len(texts)
    encoded = encode_sentences(list(texts), tokenizer) if texts else []

    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    with evaluating(model), progress_bar(len(texts), "Translating", "sentences", progress) as bar:
        for rows in batches([len(ids) for ids in encoded], batch_size):
            search = _searcher(model, tokenizer, [encoded[row] for row in rows], max_new_tokens, options)
            own = search_faithfully([texts[row] for row in rows], search, beams, str, tokenizer, ends)
            for row, text in zip(rows, own, strict=True):
                translations[row] = text
            bar.update(len(rows))
    return translations


def _searcher(
    model: TextToText,
    tokenizer: PreTrainedTokenizerBase,
    encoded: list[list[int]],
    max_new_tokens: int | None,
    options: dict[str, Any],
) -> Search[str]:
    """Searches for translations of encoded sentences, for `search_faithfully`."""

    def search(rows: list[int], beams: int, processor: LogitsProcessor | None) -> list[list[str]]:
        batch = tokenizer.pad({"input_ids": [encoded[row] for row in rows]}, return_tensors="pt").to(model.device)
        found = model.generate(
            **batch,
            **options,
            num_beams=beams,
            num_return_sequences=beams,
            do_sample=False,
            max_new_tokens=max_new_tokens or longest_target(batch["input_ids"].shape[1]),
            logits_processor=LogitsProcessorList([] if processor is None else [processor]),
        )
        hypotheses = tokenizer.batch_decode(found, skip_special_tokens=True)
        return [hypotheses[start : start + beams] for start in range(0, len(hypotheses), beams)]

    return search


def evaluate_translator(
    model: LLEForSeq2SeqLM,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    beams: int = BEAMS,
    batch_size: int = BATCH_SIZE,
    *,
    lowercase: bool = False,
    target_language: str | None = None,
    progress: bool = False,
) -> TranslationEvaluation:
    """Translates sentences without and with the attached memory, and measures both.

    Args:
        model: Translator.
        tokenizer: Its tokenizer.
        pairs: Columns `source` and `target`, as made by `load_pairs`.
        beams, batch_size: As in `translate`.
        lowercase: Whether to ignore case.
        target_language: As `language` in `TranslationMetric`.
        progress: As in `translate`.

    Raises:
        ValueError: There are no pairs, or a sentence is missing or blank.
        FloatingPointError: The weights hold NaN or infinite values.
    """
    sources, references = pairs["source"][:], pairs["target"][:]
    _check(sources, references)
    for name, weight in model.named_parameters():
        if not bool(weight.isfinite().all()):
            raise FloatingPointError(f"{name} holds NaN or infinite values: the model cannot be measured")
    metric = TranslationMetric(keep_in_memory=True)
    memory = None if model.history is None else Memory.of(model.history)  # builds its index off the clock
    sides = {BASE: False} if memory is None else {BASE: False, HISTORY: True}
    translations, scores, seconds = {}, {}, {}
    for side, use_history in sides.items():
        begin = time.perf_counter()
        options: dict[str, Any] = {"use_history": use_history, "progress": progress}
        translations[side] = translate(model, tokenizer, sources, beams, batch_size, **options)
        seconds[side] = time.perf_counter() - begin
        scores[side] = metric.compute(
            predictions=translations[side], references=references, lowercase=lowercase, language=target_language
        )
    return TranslationEvaluation(
        sources=sources,
        references=references,
        translations=translations,
        scores=scores,
        signatures=metric.signatures,
        seconds=seconds,
        entries=0 if model.history_bank is None else len(model.history_bank),
        pairs=0 if memory is None else len(memory.pairs),
    )


def _check(sources: list[Any], references: list[Any]) -> None:
    if not sources:
        raise ValueError("no sentence pairs to measure")
    for row, pair in enumerate(zip(sources, references, strict=True)):
        for side, text in zip(("source", "target"), pair, strict=True):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(
                    f"the {side} in row {row} is {'missing' if text is None else 'blank'}: remove the row"
                )


def evaluate_translator_folder(
    model_path: str | Path,
    source: Any,
    *,
    name: str | None = None,
    split: Split = ("test", "validation"),
    source_language: str | None = None,
    target_language: str | None = None,
    source_column: str | None = None,
    target_column: str | None = None,
    bank: str | Path | None = None,
    namespaces: Sequence[str] | None = None,
    beams: int = BEAMS,
    batch_size: int = BATCH_SIZE,
    lowercase: bool = False,
    precision: str = "auto",
    output: str | Path | None = None,
    command: str | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluates a saved translator on sentence pairs, as `lle evaluate` does.

    Args:
        model_path: Folder, or name on the Hub, of a model and its tokenizer.
        source, name, split, source_column, target_column: Pairs, as in `load_pairs`.
        source_language, target_language: Languages; None: those of the model's recipe.
        bank: Memory to recall from; None: the one saved with the model, if any.
        namespaces: Namespaces to recall from; None: all.
        beams, batch_size, lowercase: As in `evaluate_translator`.
        precision: "auto", "float32" or "bfloat16", as in `resolve_precision`.
        output: Folder for evaluation.json and attention.png; None: write nothing.
        command: Command recorded in the JSON; None: the current one.
        progress: As in `translate`.

    Returns:
        `metrics`, with `parameters` and, if known, `train_minutes`; `rows`, scores with signatures; `examples`, the
        translations, which evaluation.json has as further rows; and `read`, a line on what was read.

    Raises:
        ValueError: A language is unknown; others as in `evaluate_translator`.
    """
    if output is not None:
        from .attention import draw_translation  # first: a missing extra fails early
        from .pictures import save_figure
    from_language, to_language = languages_of(model_path, source_language, target_language)
    model, tokenizer = load_translator(model_path)
    cast(torch.nn.Module, model).to("cuda" if torch.cuda.is_available() else "cpu")
    attach_bank(model, tokenizer, model_path, bank, namespaces)
    pairs = load_pairs(
        source,
        name=name,
        split=split,
        source_language=from_language,
        target_language=to_language,
        source_column=source_column,
        target_column=target_column,
    )
    Seen(model_path, model.history).tell(pairs["source"][:], describe(source))
    with in_precision(model, precision):
        options: dict[str, Any] = {"lowercase": lowercase, "target_language": to_language, "progress": progress}
        evaluation = evaluate_translator(model, tokenizer, pairs, beams, batch_size, **options)
    metrics = {"parameters": model.num_parameters(), **train_minutes(model_path), **evaluation.metrics()}
    rows, examples = evaluation.table(), evaluation.examples()
    if output is not None:
        output = Path(output)
        write_results(output / "evaluation.json", command or this_command(), metrics, [*rows, *examples])
        chosen = min(examples, key=lambda row: abs(len(row["source"].split()) - EXAMPLE_WORDS))
        figure = draw_translation(model, tokenizer, chosen["source"], chosen["translation"])
        save_figure(figure, output / "attention.png")
    read = f"{counted(len(pairs), 'pair')} of {describe_files(pairs, source)}."
    return {"metrics": metrics, "rows": rows, "examples": examples, "read": read}


def format_translation(metrics: dict[str, float]) -> str:
    """Metrics of a `TranslationEvaluation` as a table for the terminal."""
    with_memory = bool(metrics["entries"])
    prefixes = {"base": "base_", "history": ""} if with_memory else {"base": ""}
    lines = [f"{'':20}" + "".join(f"{name:>12}" for name in prefixes)]
    for label, key, digits in (
        ("BLEU", "bleu", 2),
        ("chrF", "chrf", 2),
        ("TER", "ter", 2),
        ("placeholders lost", "placeholders_lost", 0),
        ("placeholders added", "placeholders_added", 0),
        ("sentences / second", "sentences_per_second", 1),
    ):
        cells = [metrics[prefix + key] for prefix in prefixes.values()]
        lines.append(f"{label:20}" + "".join(f"{cell:>12,.{digits}f}" for cell in cells))
    memory = f", a memory of {counted(metrics['pairs'], 'pair')}" if with_memory else ""
    return "\n".join([*lines, "", f"{counted(metrics['sentences'], 'sentence')}{memory}."])
