"""A translator in an untrained domain with a memory of sentence pairs of the domain, beside what one would do else.

Pairs are from a catalogue, such as the PO file of a program, without repeated sources. A tenth, drawn by seed, is the
test set, the rest is the memory, so no test source is in it verbatim. Every method drafts the same test pairs:

    copy, copy_characters       the target of the most similar source of the whole memory: by edit distance in words
                                (the fuzzy match score of translators), and in characters (rapidfuzz's ratio)
    base, memory                the translator alone, and with the memory, to whose own pairs its rule is fitted
    transformer                 of `--transformer`, trained by the benchmark `translation`
    fine_tuned_short            the base fine-tuned on the pairs of the memory (peers/fine_tuned_translator.py) for as
                                long as building and calibrating the memory took
    fine_tuned                  the same for `--minutes`
    fine_tuned_short_memory,    these with the memory, encoded anew, and fitted to the tenth of its pairs that was held
    fine_tuned_memory           out from their training

A row is a method on all test pairs of a project (band "all"), or on those in a band of the best fuzzy match in the
memory; the same score cuts the bands of every method. It has

    sentences, bleu, chrf       by sacrebleu, with case; `signature`: sacrebleu's for BLEU
    placeholders_right          share of drafts that have the placeholders and the markup of their sources
    edits                       words to edit in the drafts, by edit distance, for each word of the references
    edits_saved                 share of the edits of the better copy in the same band that need not be made

and that of all pairs also, where it exists,

    sentences_per_second_1, _32 one at a time, and in batches of 32; all methods in turn
    speed_ratio_1, _32          its speed over that of the base, median over repetitions
    build_seconds, calibrate_seconds, memory_pairs, memory_megabytes    of the memory; size on disk
    base_ppl, before_ppl, after_ppl    of calibration, per target token: without the memory, before and after
    fine_tune_seconds, search_seconds, learning_rate, numbers    of training up to the weights that were kept; time of
                                training other ones; what was tried
    peak_megabytes              largest resident memory of the process up to here
    unedited, calibration_error share of the drafts that are as their references; mean distance of the confidence in
                                them, fitted to pairs of the memory, from the share that is so, in ten bins
    confident, confident_unedited   share of the drafts that are more probably right than not, and of these the share
                                that is as the reference; `copied_unedited`: of as many copies, of the best matches

Metrics are those of all pairs: `bleu_without` of the base, `bleu_with` of the memory, `bleu_copy` of the better copy,
`bleu_fine_tuned` and so on of the others, with the prefix PROJECT_SOURCE_TARGET_ except those of `HEADLINE`. Rows of
other projects and languages in the results file are kept.
"""

import functools
import math
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from modeling_lle import HistoryBank, LLEForSeq2SeqLM
from modeling_lle.data import load_pairs
from modeling_lle.entries.pairs import pair_batches
from modeling_lle.evaluation import translate
from modeling_lle.evaluation.results import this_command
from modeling_lle.evaluation.translation import TextToText
from modeling_lle.models.seq2seq import OWN_PAIRS
from modeling_lle.pipelines.confidence import fit_confidence
from modeling_lle.pipelines.translation import LLETranslationPipeline
from modeling_lle.saved import languages_of, load_translator
from modeling_lle.training.steps import keep_freed_pages

from .few_methods import slug
from .history import describe
from .memory_scores import (
    ALL,
    COPIES,
    COPY,
    COPY_CHARACTERS,
    Tested,
    add_saved,
    best_by_characters,
    best_by_words,
    calibration_error,
    split_pairs,
)
from .peers.fine_tuned_translator import FineTuned, fine_tune
from .peers.transformer_translator import load_transformer
from .timing import RESULTS, Row, compare, ratio, write_rows
from .translation import chosen

BASE, MEMORY, TRANSFORMER = "base", "memory", "transformer"
FINE_TUNED_SHORT, FINE_TUNED = "fine_tuned_short", "fine_tuned"
HEADLINE = ("pretix", "en-de")  # project and languages of the metrics without a prefix
SIDES = {BASE: "without", MEMORY: "with", COPY: "copy_words"}  # in names of metrics; others are called as in the rows
MEASURES = ("bleu", "chrf", "placeholders_right", "edits", "edits_saved")
BATCH = 32  # sentences
CONFIDENT = 0.5  # probability from which a draft is taken for right
SIZES = {1: "_1", BATCH: ""}  # sentences of a batch for measuring speed, and suffix of the metrics
OF_CONFIDENCE = ("unedited", "calibration_error", "confident", "confident_unedited", "copied_unedited")
OF_MEMORY = (
    *OF_CONFIDENCE,
    *("memory_pairs", "memory_megabytes", "build_seconds", "calibrate_seconds"),
    *("base_ppl", "before_ppl", "after_ppl", "peak_megabytes"),
)
Draft = Callable[[Sequence[str], int], list[str]]  # texts, and the size of a batch


class Comparison:
    """Methods on the test pairs of a project; rows are saved after each.

    Args:
        key: `project` and `languages`.
        tested: The test pairs.
        save: Saves the rows.
    """

    def __init__(self, key: Row, tested: Tested, save: Callable[[list[Row]], None]) -> None:
        self.key, self.tested, self.save = key, tested, save
        self.drafts: dict[str, Draft] = {}
        self.rows: list[Row] = []

    def add(self, drafts: dict[str, Draft], **values: Any) -> None:
        """Measures methods; the rows of all pairs get the values."""
        for method, draft in drafts.items():
            begin = time.perf_counter()
            rows = [
                {**self.key, "method": method, **row} for row in self.tested.rows(draft(self.tested.sources, BATCH))
            ]
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            rows[0] |= {**values, "peak_megabytes": peak}
            self.drafts[method] = draft
            self.rows += rows
            typer.echo(f"{' '.join(self.key.values())}, {time.perf_counter() - begin:.0f} seconds: {rows[0]}")
        add_saved(self.rows)
        self.save(self.rows)

    def time(self, number: int, repetitions: int) -> None:
        """Adds the speed of every method, in turn, on some of the test sentences."""
        texts = chosen(self.tested.sources, number)
        for size in SIZES:
            calls = {method: functools.partial(draft, texts, size) for method, draft in self.drafts.items()}
            seconds = compare(calls, repetitions, warmup=1)
            for row in self.rows:
                if row["band"] == ALL:
                    own = seconds[row["method"]]
                    row[f"sentences_per_second_{size}"] = len(texts) / statistics.median(own)
                    row[f"speed_ratio_{size}"] = ratio(seconds[BASE], own)
        self.save(self.rows)


def copying(memory: Dataset, find: Callable[[Sequence[str], Sequence[str]], list[int]]) -> Draft:
    """Drafts that are the target of the source that `find` chooses."""
    sources, targets = memory["source"][:], memory["target"][:]

    def draft(texts: Sequence[str], size: int) -> list[str]:
        return [targets[place] for place in find(texts, sources)]

    return draft


def drafting(
    model: TextToText, tokenizer: PreTrainedTokenizerBase, beams: int, use_history: bool | None = None
) -> Draft:
    """Drafts of a model."""

    def draft(texts: Sequence[str], size: int) -> list[str]:
        return translate(model, tokenizer, texts, beams, size, use_history=use_history)

    return draft


def remember(
    model: LLEForSeq2SeqLM,
    tokenizer: PreTrainedTokenizerBase,
    memory: Dataset,
    calibrate: bool,
    fitted_to: Dataset | None = None,
) -> Row:
    """Makes and attaches a memory, and fits the rule to `fitted_to` or else to pairs of it; returns what that took."""
    begin = time.perf_counter()
    bank = HistoryBank.build(model, tokenizer, memory)
    model.attach_history(bank, tokenizer=tokenizer)
    built = time.perf_counter()
    batches = None if fitted_to is None else pair_batches(fitted_to["source"][:], fitted_to["target"][:], tokenizer)
    nats = model.calibrate(batches) if calibrate else {}
    names = ("sharpness", "match", "continuation", "length", "gate")
    numbers = {name: getattr(model.config.bank, name) for name in names}
    return {
        "memory_pairs": len(memory),
        "memory_megabytes": bank.info()["bytes"] / 1e6,
        "build_seconds": built - begin,
        "calibrate_seconds": time.perf_counter() - built,
        **{f"{name.removesuffix('_nats')}_ppl": math.exp(nats[name]) for name in nats if name.endswith("_nats")},
        "numbers": describe(numbers),
    }


def trust(
    model: LLEForSeq2SeqLM, tokenizer: PreTrainedTokenizerBase, memory: Dataset, tested: Tested, beams: int, seed: int
) -> Row:
    """Fits the confidence to pairs of the attached memory, and measures it on the test pairs."""
    rows = np.random.default_rng(seed).permutation(len(memory))[:OWN_PAIRS]
    own = memory.select(np.sort(rows))
    fit_confidence(model, tokenizer, own["source"][:], own["target"][:], beams)
    translate_all = LLETranslationPipeline(model=model, tokenizer=tokenizer, num_beams=beams, batch_size=BATCH)
    drafts = translate_all(tested.sources, return_confidence=True)
    probability = np.array([draft["confidence"] for draft in drafts])
    right = tested.right([draft["translation_text"] for draft in drafts])
    sure = probability >= CONFIDENT
    copies = tested.right(copying(memory, best_by_words)(tested.sources, BATCH))
    best = np.argsort(-np.array(tested.scores), kind="stable")[: int(sure.sum())]
    return {
        "unedited": float(right.mean()),
        "calibration_error": calibration_error(probability, right),
        "confident": float(sure.mean()),
        "confident_unedited": float(right[sure].mean()) if sure.any() else None,
        "copied_unedited": float(copies[best].mean()) if sure.any() else None,
    }


def values_of(tuned: FineTuned) -> Row:
    """What fine-tuning took."""
    tried = {f"{rate:.2g}": right for rate, right in tuned.rates.items()}
    return {
        "fine_tune_seconds": tuned.best.seconds,
        "search_seconds": tuned.search_seconds,
        "learning_rate": tuned.best.rate,
        "numbers": f"steps {tuned.best.steps}, right tokens {tuned.best.right:.4g}, by rate: {describe(tried)}",
    }


def metrics_of(rows: Sequence[Row]) -> dict[str, float]:
    """Metrics of the results file."""
    metrics: dict[str, float | None] = {}
    for row in (row for row in rows if row["band"] == ALL):
        prefix = prefix_of(row)
        method = row["method"]
        side = SIDES.get(method, method)
        metrics |= {f"{prefix}{name}_{side}": row[name] for name in MEASURES}
        for size, suffix in SIZES.items():
            metrics[f"{prefix}sentences_per_second_{side}{suffix}"] = row.get(f"sentences_per_second_{size}")
            if method == MEMORY:
                metrics[f"{prefix}speed_ratio{suffix}"] = row.get(f"speed_ratio_{size}")
        if method == MEMORY:
            metrics |= {prefix + name: row.get(name) for name in OF_MEMORY}
            metrics[f"{prefix}test_pairs"] = row["sentences"]
        if method == FINE_TUNED:
            metrics |= {prefix + name: row[name] for name in ("fine_tune_seconds", "search_seconds", "learning_rate")}
        if method in COPIES:
            for name in ("bleu", "chrf"):
                metrics[f"{prefix}{name}_copy"] = max(row[name], metrics.get(f"{prefix}{name}_copy") or 0.0)
    return {name: value for name, value in metrics.items() if value is not None}


def prefix_of(row: Row) -> str:
    """Prefix of the metrics of a project and its languages."""
    return (
        "" if (row["project"], row["languages"]) == HEADLINE else f"{slug(row['project'])}_{slug(row['languages'])}_"
    )


def memory(
    model_path: Annotated[Path, typer.Argument(metavar="MODEL", help="A folder with a trained translator.")],
    catalogue: Annotated[str, typer.Argument(metavar="CATALOGUE", help="Sentence pairs of another domain.")],
    project: Annotated[
        str | None, typer.Option(help="Name of the pairs in the results; else that of the file.")
    ] = None,
    source_language: Annotated[str | None, typer.Option(help="Else that of the model's recipe.")] = None,
    target_language: Annotated[str | None, typer.Option(help="Else that of the model's recipe.")] = None,
    transformer: Annotated[Path | None, typer.Option(help="A Transformer of the benchmark `translation`.")] = None,
    minutes: Annotated[float, typer.Option(min=0, help="Minutes of fine-tuning; 0: leave fine-tuning out.")] = 10.0,
    calibrate: Annotated[bool, typer.Option(help="Fit the rule to pairs of the memory.")] = True,
    confidence: Annotated[bool, typer.Option(help="Measure the confidence in the drafts with the memory.")] = True,
    test_share: Annotated[float, typer.Option(help="Share of pairs for the test set.")] = 0.1,
    sentences_tested: Annotated[int, typer.Option(min=1, help="Test at most so many pairs.")] = 1000,
    beams: Annotated[int, typer.Option(min=1, help="Beam size.")] = 5,
    sentences: Annotated[int, typer.Option(min=1, help="Test sentences for measuring speed.")] = 32,
    repetitions: Annotated[int, typer.Option(min=1, help="Repetitions of the speed measurement.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of the split and of fine-tuning.")] = 0,
    output: Annotated[Path, typer.Option(help="Results file.")] = RESULTS / "translation-memory.json",
) -> None:
    """Translator in another domain with a memory of nine tenths of a catalogue, and its peers."""
    keep_freed_pages()
    from_language, to_language = languages_of(model_path, source_language, target_language)
    model, tokenizer = load_translator(model_path)
    pairs = load_pairs(catalogue, source_language=from_language, target_language=to_language, skip_broken=True)
    kept, test = split_pairs(pairs, test_share, seed, sentences_tested)
    key = {"project": project or Path(catalogue).stem, "languages": f"{from_language}-{to_language}"}
    save = functools.partial(write_rows, output, this_command(), catalogue, metrics=metrics_of, keys=tuple(key))
    comparison = Comparison(key, Tested.of(test, kept, to_language), save)
    comparison.add({COPY: copying(kept, best_by_words), COPY_CHARACTERS: copying(kept, best_by_characters)})
    comparison.add({BASE: drafting(model.eval(), tokenizer, beams, False)})
    made = remember(model, tokenizer, kept, calibrate)
    trusted = trust(model, tokenizer, kept, comparison.tested, beams, seed) if confidence else {}
    comparison.add({MEMORY: drafting(model, tokenizer, beams, True)}, **made, **trusted)
    if transformer:
        comparison.add({TRANSFORMER: drafting(*load_transformer(transformer), beams)})
    equal = (made["build_seconds"] + made["calibrate_seconds"]) / 60
    for method, own in {FINE_TUNED_SHORT: equal, FINE_TUNED: minutes}.items() if minutes else ():
        tuned = fine_tune(functools.partial(load_translator, model_path), kept, own, seed)
        comparison.add({method: drafting(tuned.model, tokenizer, beams, False)}, **values_of(tuned))
        made = remember(tuned.model, tokenizer, kept, calibrate, tuned.held_out)
        comparison.add({f"{method}_memory": drafting(tuned.model, tokenizer, beams, True)}, **made)
    comparison.time(sentences, repetitions)
