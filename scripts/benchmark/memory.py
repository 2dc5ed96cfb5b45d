"""A translator in an untrained domain, without and with a memory of sentence pairs of the domain.

Pairs are from a catalogue, such as the PO file of a program, without repeated sources. A tenth, drawn by seed, is the
test set, the rest is the memory, so no test source is in it verbatim. The first row is for all test pairs, others are
for bands of the best fuzzy match in the memory. A row has

    sentences                               test pairs
    bleu_without, bleu_with                 by sacrebleu; prefix `lowercased_`: ignoring case
    chrf_without, chrf_with                 the same
    signature                               sacrebleu's for cased BLEU

Metrics are those of the first row and

    memory_pairs, build_seconds             size of the memory, and time for encoding it
    sentences_per_second_without, _with     with batches of 32; suffix `_1`: one at a time; both in turn
    speed_ratio                             second over first, median over repetitions
    base_ppl, before_ppl, after_ppl         of `--calibrate`, per target token of the memory: without it, and with its
                                            other pairs before and after
"""

import functools
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from modeling_lle import Attachment, HistoryBank
from modeling_lle.data import load_pairs
from modeling_lle.entries.pairs import Memory
from modeling_lle.evaluation import TranslationMetric, translate, write_results
from modeling_lle.evaluation.results import this_command
from modeling_lle.evaluation.translation import TextToText
from modeling_lle.saved import languages_of, load_translator

from .history import describe
from .timing import RESULTS, Row, compare, ratio
from .translation import chosen

BANDS = {"85-100 %": 0.85, "70-85 %": 0.7, "50-70 %": 0.5, "below 50 %": 0.0}  # up to the previous one
SIDES = {"without": False, "with": True}
BATCH = 32  # sentences


def split_pairs(pairs: Dataset, test_share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Splits pairs with distinct sources into memory and test set, by seed.

    Raises:
        ValueError: One part would be empty.
    """
    first: dict[str, int] = {}
    for row, text in enumerate(pairs["source"][:]):
        first.setdefault(text.strip(), row)
    rows = np.random.default_rng(seed).permutation(list(first.values()))
    tests = round(test_share * len(rows))
    if not 0 < tests < len(rows):
        raise ValueError(f"{len(rows)} distinct sources cannot be split: give more pairs, or another --test-share")
    return pairs.select(np.sort(rows[tests:])), pairs.select(np.sort(rows[:tests]))


def measure(translations: dict[str, list[str]], references: list[str], language: str | None = None) -> Row:
    """Scores of both sides, cased and lowercased."""
    row: Row = {"sentences": len(references)}
    for lowercase in (False, True):
        for side, found in translations.items():
            metric = TranslationMetric(keep_in_memory=True)
            values = metric.compute(predictions=found, references=references, lowercase=lowercase, language=language)
            prefix = "lowercased_" if lowercase else ""
            row |= {f"{prefix}{name}_{side}": values[name] for name in ("bleu", "chrf")}
            if not lowercase:
                row["signature"] = metric.signatures["bleu"]
    return row


def by_band(
    translations: dict[str, list[str]], references: list[str], scores: list[float], language: str | None = None
) -> list[Row]:
    """A row for all sentences, and one for each non-empty band of fuzzy match scores."""
    rows = [{"band": "all", **measure(translations, references, language)}]
    above = np.inf
    for band, least in BANDS.items():
        own = [place for place, score in enumerate(scores) if least <= score < above]
        above = least
        if own:
            parts = {side: [found[place] for place in own] for side, found in translations.items()}
            rows.append({"band": band, **measure(parts, [references[place] for place in own], language)})
    return rows


def speeds(
    model: TextToText,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    size: int,
    beams: int,
    repetitions: int,
) -> dict[str, float]:
    """Sentences a second without and with the memory, and their ratio, in turn."""
    calls: dict[str, Callable[[], Any]] = {
        side: functools.partial(translate, model, tokenizer, texts, beams, size, use_history=use_history)
        for side, use_history in SIDES.items()
    }
    seconds = compare(calls, repetitions, warmup=1)
    values = {f"sentences_per_second_{side}": len(texts) / statistics.median(own) for side, own in seconds.items()}
    return {**values, "speed_ratio": ratio(seconds["without"], seconds["with"])}


def memory(
    model_path: Annotated[Path, typer.Argument(metavar="MODEL", help="A folder with a trained translator.")],
    catalogue: Annotated[str, typer.Argument(metavar="CATALOGUE", help="Sentence pairs of another domain.")],
    source_language: Annotated[str | None, typer.Option(help="Else that of the model's recipe.")] = None,
    target_language: Annotated[str | None, typer.Option(help="Else that of the model's recipe.")] = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Fit the rule to pairs of the memory.")] = False,
    test_share: Annotated[float, typer.Option(help="Share of pairs for the test set.")] = 0.1,
    beams: Annotated[int, typer.Option(min=1, help="Beam size.")] = 5,
    sentences: Annotated[int, typer.Option(min=1, help="Test sentences for measuring speed.")] = 96,
    repetitions: Annotated[int, typer.Option(min=1, help="Repetitions of the speed measurement.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    output: Annotated[Path, typer.Option(help="Results file.")] = RESULTS / "translation-memory.json",
) -> None:
    """Translator in another domain, without and with a memory of nine tenths of a catalogue."""
    from_language, to_language = languages_of(model_path, source_language, target_language)
    model, tokenizer = load_translator(model_path)
    model.eval()
    pairs = load_pairs(catalogue, source_language=from_language, target_language=to_language, skip_broken=True)
    kept, test = split_pairs(pairs, test_share, seed)
    begin = time.perf_counter()
    bank = HistoryBank.build(model, tokenizer, kept)
    seconds = time.perf_counter() - begin
    model.attach_history(bank, tokenizer=tokenizer)
    fitted = model.calibrate() if calibrate else {}
    texts = test["source"][:]
    translations = {}
    for side, use_history in SIDES.items():
        typer.echo(f"{catalogue}: {len(texts)} sentences {side} a memory of {len(kept)}")
        translations[side] = translate(model, tokenizer, texts, beams, BATCH, use_history=use_history)
    matches = Memory.of(Attachment(bank, tokenizer=tokenizer)).matches
    best = [matches(text) for text in texts]
    scores = [found[0].score if found else 0.0 for found in best]
    rows = by_band(translations, test["target"][:], scores, to_language)
    numbers = {"sharpness": model.config.bank.sharpness, "gate": model.config.bank.gate}
    rows[0]["numbers"] = describe(numbers)
    for row in rows:
        typer.echo(row)
    metrics = {name: value for name, value in rows[0].items() if name not in ("band", "sentences", "signature")}
    del metrics["numbers"]
    timed = chosen(texts, sentences)
    metrics |= speeds(model, tokenizer, timed, BATCH, beams, repetitions)
    one = speeds(model, tokenizer, timed, 1, beams, repetitions)
    metrics |= {f"{name}_1": value for name, value in one.items()}
    metrics |= {
        f"{name.removesuffix('_nats')}_ppl": math.exp(nats) for name, nats in fitted.items() if name.endswith("_nats")
    }
    metrics |= {"memory_pairs": len(kept), "test_pairs": len(test), "build_seconds": seconds}
    write_results(output, this_command(), metrics, rows)
