"""History on pretrained recurrent and hybrid models: perplexity with each source, and with what could be had instead.

Each model reads the test split once as one row, after every number was fitted on the validation split: without
history, with the stream, with a bank of the training split, with both, and with the exact matches beside them. In the
same run, its predictions are mixed with

    n-gram cache        counts of the text read, of contexts of 0 to 5 tokens, all of it or the stream's window
    unigram cache       the same without context
    Kneser-Ney 5-gram   of the texts of the bank
    neural cache        of raw states (peers/neural_cache.py)
    kNN-LM              of the texts of the bank (peers/nearest_neighbours.py)

Counts are mixed in by a gate like LLE's, which sees how much they rest on; order, discount and window are searched.
The last two are as published, with one share. `time` is processor time of reading with the stream, alone and with the
matches, over that without history, medians of pairwise ratios. Models with attention begin anew after --context
tokens, for every method alike; stream and matches go on.
"""

import contextlib
import copy
import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from modeling_lle import HistoryBank, LLECache, LLEForCausalLM
from modeling_lle.data import TextTokens, collect, load_texts, tokenize
from modeling_lle.evaluation import LanguageModelMetric
from modeling_lle.evaluation.results import this_command
from modeling_lle.training.steps import keep_freed_pages

from .families import MINUTES, VOCABULARY, WIDTH, Minutes, train_families
from .history import describe
from .inputs import CONTEXT, context_of, load_model, read_tokens, segments_of
from .peers import Datastore, KneserNey, NearestNeighbours, NeuralCache, read_cache
from .peers.language_models import count
from .peers.mixture import GatedCounts, Segment, read_with_features
from .peers.ngrams import ORDER, Counted, Counts
from .speed import read_twice
from .timing import RESULTS, Row, ratio, write_rows

BASE = "base"
HISTORIES: dict[str, tuple[str, ...]] = {  # the sources of each, by their names in the configuration
    "LLE stream": ("stream",),
    "LLE bank": ("bank",),
    "LLE stream + bank": ("stream", "bank"),
    "LLE stream + matches": ("stream", "matches"),
    "LLE stream + matches + bank": ("stream", "matches", "bank"),
    "LLE all": ("stream", "matches", "bank", "bank_matches"),
}
WITH_TIME = ("LLE stream", "LLE stream + matches")
TIMED = 512  # tokens of a segment whose reading is timed
NEIGHBOURS = 1024  # of the bank, as kNN-LM has
REACH = 65_536  # tokens among which exact matches are found
LONGEST = 16  # tokens of an exact match in the bank that are counted
DISCOUNTS = (0.1, 0.3, 0.5, 0.7, 0.9)
ORDERS = range(1, ORDER + 1)
UNIGRAM_WINDOWS = (500, 2000, None)
Measured = dict[str, tuple[Tensor, str]]  # log P of the test tokens (Q,) by method, and its parameters as text


@dataclasses.dataclass(frozen=True)
class Texts:
    """What a model is measured on.

    Attributes:
        rows: The texts of the bank.
        corpus: Their token ids, as one text.
        validation: Token ids, (Q + 1,).
        test: Token ids, words and bytes.
    """

    rows: Any
    corpus: np.ndarray
    validation: np.ndarray
    test: TextTokens


def load(source: str, tokenizer: Any, tokens: int, test_tokens: int | None, bank_tokens: int | None) -> Texts:
    """The three splits of a source, the training split in whole rows of at most `bank_tokens` tokens."""
    rows: Any = load_texts(source, split="train")
    encoded: Any = tokenize(rows, tokenizer)
    if bank_tokens is not None:
        lengths = np.cumsum([len(ids) for ids in encoded["input_ids"]])
        chosen = range(max(1, int(np.searchsorted(lengths, bank_tokens, side="right"))))
        rows, encoded = rows.select(chosen), encoded.select(chosen)
    corpus = collect(encoded, start=tokenizer.eos_token_id).ids
    validation = read_tokens(source, "validation", tokenizer, tokens + 1).ids
    test = read_tokens(source, "test", tokenizer, None if test_tokens is None else test_tokens + 1)
    return Texts(rows, corpus, validation, test)


def fit_rule(model: LLEForCausalLM, ids: np.ndarray, context: int | None) -> None:
    """Fits the numbers of the sources that take part."""
    cache = LLECache.of(model.config.history)
    model.calibrate(segments_of(ids, cache, model.device, context), past_key_values=cache)


def score(model: LLEForCausalLM, ids: np.ndarray, context: int | None) -> Tensor:
    """log P (Q,) float32 nats of each token of a text but the first, with history."""
    cache, parts = LLECache.of(model.config.history), []
    for segment in segments_of(ids, cache, model.device, context):
        log_probs = model.score(segment["input_ids"], segment["shift_labels"], past_key_values=cache).log_probs
        assert log_probs is not None
        parts.append(log_probs[0].cpu())
    return torch.cat(parts)


def measure_history(
    model: LLEForCausalLM, bank: HistoryBank, texts: Texts, context: int | None, window: int, say: Callable[[str], Any]
) -> Measured:
    """`HISTORIES`, each fitted by itself from the numbers that the model came with."""
    found: Measured = {}
    for name, sources in HISTORIES.items():
        say(f"  {name}")
        with recalling(model, sources, window):
            if "bank" in sources:
                model.attach_history(bank)
            fit_rule(model, texts.validation, context)
            sections = {source: dataclasses.asdict(getattr(model.config, source)) for source in sources}
            numbers = "; ".join(f"{source}: {describe(section)}" for source, section in sections.items())
            found[name] = (score(model, texts.test.ids, context), numbers)
            model.detach_history()
    return found


@contextlib.contextmanager
def recalling(model: LLEForCausalLM, sources: Collection[str], window: int) -> Iterator[None]:
    """Gives the model windows of some sources and of no others; its configuration is afterwards as it was."""
    before = copy.deepcopy(model.config.history)
    model.config.history.stream.window = window if "stream" in sources else 0
    model.config.history.matches.window = REACH if "matches" in sources else 0
    model.config.history.bank.neighbours = NEIGHBOURS
    model.config.history.bank_matches.longest = LONGEST if "bank_matches" in sources else 0
    try:
        yield
    finally:
        model.config.history = before


@dataclasses.dataclass(frozen=True)
class Predicted:
    """Predictions of the network alone: log p of the targets (Q,) and `base_features` (Q, 2)."""

    base: Tensor
    features: Tensor


def read_along(
    model: LLEForCausalLM, ids: np.ndarray, context: int | None, peers: dict[str, Any]
) -> tuple[Predicted, dict[str, Tensor]]:
    """Reads a text once: the predictions of the network alone, and log P (Q,) by peers that mix in entries."""
    plain, *streams = itertools.tee(read_with_features(model, ids, context), 1 + len(peers))

    def only(stream: Iterator[tuple[Segment, Tensor]]) -> Iterator[Segment]:
        return (Segment(*(part.cpu() for part in segment)) for segment, _ in stream)

    readers = [peer.read(only(stream)) for peer, stream in zip(peers.values(), streams, strict=True)]
    base, features, mixed = [], [], []
    for (segment, of_base), *found in zip(plain, *readers, strict=True):  # in step, so that little waits in memory
        base.append(segment.base.cpu())
        features.append(of_base.cpu())
        mixed.append(found)
    columns = zip(*mixed, strict=True) if peers else ()
    whole = dict(zip(peers, map(torch.cat, columns), strict=True))
    return Predicted(torch.cat(base), torch.cat(features)), whole


def measure_entries(
    model: LLEForCausalLM, texts: Texts, context: int | None, chosen: list[str]
) -> tuple[Predicted, Predicted, Measured]:
    """The network alone on validation and test text, and the neural cache and kNN-LM."""
    before, _ = read_along(model, texts.validation, context, {})
    peers: dict[str, Any] = {}
    numbers: dict[str, dict[str, Any]] = {}

    def validation() -> Iterator[Segment]:
        for segment, _ in read_with_features(model, texts.validation, context):
            yield Segment(*(part.cpu() for part in segment))

    if "neural cache" in chosen:
        cache = NeuralCache.tuned(validation())
        peers["neural cache"] = cache
        numbers["neural cache"] = {"theta": cache.theta, "lambda": cache.share, "window": cache.window}
    if "kNN-LM" in chosen:
        nearest = NearestNeighbours.tuned(Datastore(model, texts.corpus, context=context), validation())
        peers["kNN-LM"] = nearest
        numbers["kNN-LM"] = {"temperature": nearest.temperature, "lambda": nearest.share}
    test, found = read_along(model, texts.test.ids, context, peers)
    return before, test, {name: (log_probs, describe(numbers[name])) for name, log_probs in found.items()}


def measure_counts(before: Predicted, test: Predicted, texts: Texts, vocabulary: int, window: int) -> Measured:
    """The n-gram caches, the unigram cache and the Kneser-Ney model, mixed with the predictions of a network."""

    def cached(size: int | None, order: int) -> list[Counts]:
        return [read_cache(ids, order, size) for ids in (texts.validation, texts.test.ids)]

    def best(tried: dict[str, Callable[[bool], Counted]]) -> tuple[Tensor, str]:
        gates = {
            numbers: GatedCounts.tuned(before.base, before.features, counted(False))
            for numbers, counted in tried.items()
        }
        numbers = min(gates, key=lambda key: gates[key][1])
        return gates[numbers][0].log_probs(test.base, test.features, tried[numbers](True)), numbers

    def smoothed(counts: list[Counts], order: int, discount: float) -> Callable[[bool], Counted]:
        return lambda on_test: counts[on_test].smoothed(order, discount)

    found: Measured = {}
    for name, size in (("n-gram cache", None), (f"n-gram cache of {window:,}", window)):
        counts = cached(size, ORDER)
        found[name] = best({f"order {k}, discount {d}": smoothed(counts, k, d) for k in ORDERS for d in DISCOUNTS})
    found["unigram cache"] = best(
        {f"window {size or 'all'}": smoothed(cached(size, 0), 0, 0.0) for size in UNIGRAM_WINDOWS}
    )
    corpus = KneserNey(texts.corpus, vocabulary)
    counted = [corpus.read(ids) for ids in (texts.validation, texts.test.ids)]
    found["Kneser-Ney 5-gram"] = best({f"{len(texts.corpus):,} tokens": lambda on_test: counted[on_test]})
    return found


def measure_time(
    model: LLEForCausalLM, text: np.ndarray, corpus: np.ndarray, sources: Collection[str], window: int, repeats: int
) -> dict[str, list[float]]:
    """Processor seconds of reading a segment, as by `read_twice`, with full windows of some sources.

    Args:
        model: The model.
        text: Token ids, (T,), of which the first are read.
        corpus: Token ids, (N,), the earlier text that matches are found in.
        sources: As in `HISTORIES`.
        window: Entries of the stream.
        repeats: Repetitions.
    """
    part, earlier = (
        torch.from_numpy(ids.astype(np.int64))[None].to(model.device)
        for ids in (text[: TIMED + 1], np.resize(corpus, REACH))
    )
    with recalling(model, sources, window):
        return read_twice(model, part, repeats, time.process_time, earlier)


def measure(
    name: str,
    path: str,
    source: str,
    sizes: tuple[int, int | None, int | None],
    window: int,
    most: int,
    repeats: int,
    chosen: list[str],
    say: Callable[[str], Any],
    device: str,
) -> list[Row]:
    """Rows of a model, one a method."""
    model, tokenizer = load_model(path)
    model.to(device)
    texts, context = load(source, tokenizer, *sizes), context_of(model, most)
    texts.test.check_vocabulary(model.config.vocab_size)
    say("  base and its mixtures")
    before, test, found = measure_entries(model, texts, context, chosen)
    found |= measure_counts(before, test, texts, model.config.vocab_size, window)
    with tempfile.TemporaryDirectory() as folder:
        say("  bank")
        bank = HistoryBank.build(model, tokenizer, texts.rows, Path(folder) / "bank")
        found = {BASE: (test.base, ""), **measure_history(model, bank, texts, context, window, say), **found}
    wrapped = getattr(model.config, "wrapped", None)
    kind = model.config.recurrence if wrapped is None else wrapped.model_type
    common = {"model": name, "type": kind, "parameters": count(model), "time": None}
    rows = []
    for method, (log_probs, numbers) in found.items():
        own: Any = LanguageModelMetric(keep_in_memory=True).compute(nats=-log_probs.numpy(), words=texts.test.words)
        rows.append({**common, "method": method, "word_ppl": own["word_ppl"], "ppl": own["ppl"], "numbers": numbers})
    for row in rows:
        if row["method"] in WITH_TIME:
            sources = HISTORIES[row["method"]]
            seconds = measure_time(model, texts.test.ids, texts.corpus, sources, window, repeats)
            row["time"] = ratio(seconds["stream"], seconds["base"])
    return [{**row, "over_base": row["word_ppl"] / rows[0]["word_ppl"]} for row in rows]


def comparisons(rows: list[Row]) -> dict[str, float]:
    """Ratios to the base of each history, and to the best alternative, for each data set and model."""
    metrics: dict[str, float] = {}
    for key in dict.fromkeys((row["dataset"], row["model"]) for row in rows):
        own = {row["method"]: row for row in rows if (row["dataset"], row["model"]) == key}
        prefix = "_".join(key).lower().replace("-", "_").replace(".", "_")
        others = [row["word_ppl"] for name, row in own.items() if name != BASE and not name.startswith("LLE")]
        for name, sources in HISTORIES.items():
            if name in own:  # results of before have no matches
                short = {"LLE stream + bank": "both", "LLE all": "all"}.get(name, "_".join(sources))
                metrics[f"{prefix}_{short}_over_base"] = own[name]["over_base"]
                metrics[f"{prefix}_{short}_over_best_other"] = own[name]["word_ppl"] / min(others)
                metrics |= {f"{prefix}_{short}_time": own[name]["time"]} if own[name]["time"] else {}
    return metrics


def backbones(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL]... SOURCE",
            help="Folders or names on the Hub, and last the text, with train, validation and test splits.",
        ),
    ],
    dataset: Annotated[str | None, typer.Option(help="Name in the results; by default the folder's.")] = None,
    tokens: Annotated[int, typer.Option(help="Validation tokens that everything is fitted on.")] = 20_000,
    test_tokens: Annotated[int | None, typer.Option(help="Read only the first tokens of the test split.")] = None,
    bank_tokens: Annotated[int | None, typer.Option(help="First tokens of the training split that make the bank.")] = (
        None
    ),
    window: Annotated[int, typer.Option(help="Entries of the stream.")] = 2000,
    context: Annotated[int, typer.Option(help="Tokens after which a model with attention begins anew.")] = CONTEXT,
    repeats: Annotated[int, typer.Option(help="Repetitions of the timing.")] = 15,
    without: Annotated[
        list[str] | None, typer.Option(help='Leave out "neural cache" or "kNN-LM", the slow ones; repeatable.')
    ] = None,
    train: Annotated[Path | None, typer.Option(help="Train models of the families into this folder first.")] = None,
    train_source: Annotated[str | None, typer.Option(help="Text to train on; by default the source.")] = None,
    minutes: Minutes = MINUTES,
    vocabulary: Annotated[int, typer.Option(help="Types of the tokenizer that is trained.")] = VOCABULARY,
    width: Annotated[int, typer.Option(help="Width of the LSTM; the others have as many parameters.")] = WIDTH,
    rate: Annotated[float | None, typer.Option(help="Learning rate; by default searched for each family.")] = None,
    output: Annotated[Path, typer.Option(help="Results file.")] = RESULTS / "backbones.json",
) -> None:
    """Perplexity of recurrent models with history, and with caches and counts in its place."""
    keep_freed_pages()
    *paths, source = arguments
    models = [(Path(path).name, path) for path in paths]
    if train is not None:
        made = train_families(train_source or source, train, typer.echo, minutes, vocabulary, width, rate)
        models = [*((family, str(path)) for family, path in made.items()), *models]
    if not models:
        raise typer.BadParameter(f"{source} is taken as the text: give a model before it, or --train FOLDER")
    chosen = [name for name in ("neural cache", "kNN-LM") if name not in (without or [])]
    name = dataset or Path(source).name
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows: list[Row] = []
    for model, path in models:
        typer.echo(f"{name}: {path}")
        sizes = (tokens, test_tokens, bank_tokens)
        for row in measure(model, path, source, sizes, window, context, repeats, chosen, typer.echo, device):
            rows.append({"dataset": name, **row})
            typer.echo(rows[-1])
    write_rows(output, this_command(), source, rows, comparisons)
