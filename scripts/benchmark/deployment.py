"""Every form of the three heads: torch, onnxruntime and int8, beside transformers in onnxruntime: time and quality.

Heads whose folder is not given are left out. A row is a form of a head, and has, as far as it was measured,

    ms, spread_percent                  per token, text or sentence, one at a time; half the range between quartiles
    ms_with_history, spread_percent_... the same with the full stream of a language model
    quality, quality_with_history       perplexity per token, accuracy in percent, or BLEU, as `measure` says
    megabytes                           of the graphs or the weights
    start_seconds, memory_megabytes     of a process that loads the model and generates a token

Rows of the form "context T" are the runner in int8 after T tokens, with the stream; `grown_megabytes` is the memory
that it took while reading them. Metrics are ratios of times within this run:

    stream_speed_over_generate, int8_ratio_eager    over `generate` of the checkout that --before names; with the
                                                    suffix _history both with the full stream
    generate_ratio_gpt2, ..._history                model.stream over `generate` of GPT-2 after 1,000 tokens
    step_over_floor, onnx_step_over_floor           over the time of reading the weights (deployed.py)
    int8_ppl_ratio, ..._history                     perplexity in int8 over that in torch
    runner_start_seconds, runner_memory_ratio       of the runner in int8; over a process with torch
    classifier_int8_over_minilm_int8                texts per second over those of all-MiniLM-L6-v2
    classifier_int8_accuracy_drop                   percentage points
    translator_int8_bleu_drop                       BLEU
    context_time_ratio, context_megabytes           a token after the longest context over one after the shortest;
                                                    the most memory that reading a longer one than that took
"""

import functools
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import torch
import typer

from modeling_lle.data import check_labelled, load_labelled, load_pairs, split_out_of_scope
from modeling_lle.evaluation import TranslationMetric, evaluate_stream, translate, write_results
from modeling_lle.evaluation.results import this_command
from modeling_lle.export import export
from modeling_lle.saved import languages_of, load_classifier, load_language_model, load_translator

from . import deployed
from .before import Before
from .deployed import BEFORE, FLOAT32, FLOOR, GENERATE, GPT2, INT8, STREAM, forms_of, load_runner, milliseconds
from .inputs import read_tokens
from .processes import measure_starts
from .timing import RESULTS, Row, compare, ratio
from .translation import chosen

TORCH = "torch"
FORMS = (STREAM, FLOAT32, INT8)  # of LLE, which are started in processes of their own
ENCODER = "all-MiniLM-L6-v2"
PROMPT = 64  # tokens before a text without history: their number changes nothing
GPT2_CONTEXT = 1000  # tokens
CONTEXTS = (512, 4096, 65536)  # tokens
Results = tuple[list[Row], dict[str, float]]
# Loads a model and generates a token, as a program with torch does.
_WITH_TORCH = """
import sys, torch
from modeling_lle.saved import load_language_model
torch.set_num_threads({threads})
model, tokenizer = load_language_model(sys.argv[1])
model.generate(**tokenizer(sys.argv[2], return_tensors="pt"), max_new_tokens=1)
"""


def deployment(
    language_model: Annotated[Path | None, typer.Option(help="Folder of a language model.")] = None,
    texts: Annotated[str, typer.Option(help="Its text, with a test split.")] = "data/ptb",
    classifier: Annotated[Path | None, typer.Option(help="Folder of a classifier of texts.")] = None,
    intents: Annotated[str, typer.Option(help="Its labelled texts, with a test split.")] = "data/banking77",
    translator: Annotated[Path | None, typer.Option(help="Folder of a translator.")] = None,
    sentences: Annotated[str, typer.Option(help="Its test pairs.")] = "data/multi30k/test_2016_flickr.*",
    before: Annotated[
        Path | None, typer.Option(help="Checkout whose `generate` is the measure; else this one.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of every form.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in which the forms take turns.")] = 9,
    tokens: Annotated[int, typer.Option(min=3, help="Tokens generated in a round.")] = 48,
    timed: Annotated[int, typer.Option(min=1, help="Texts, and sentences, of a round.")] = 64,
    limit: Annotated[int | None, typer.Option(min=2, help="Most tokens, texts and sentences for quality.")] = None,
    beams: Annotated[int, typer.Option(min=1, help="Beam size for the quality of translations.")] = 5,
    output: Annotated[Path, typer.Option(help="Results file.")] = RESULTS / "deployment.json",
) -> None:
    """All forms of a language model, a classifier and a translator, beside GPT-2 and MiniLM in onnxruntime."""
    if language_model is classifier is translator is None:
        raise typer.BadParameter("give --language-model, --classifier or --translator")
    torch.set_num_threads(threads)
    rows: list[Row] = []
    metrics: dict[str, float] = {}
    parts: list[tuple[Path | None, Callable[[Path, Path], Results]]] = [
        (language_model, functools.partial(_language, texts, before, threads, rounds, tokens, limit)),
        (classifier, functools.partial(_classifier, intents, threads, rounds, timed, limit)),
        (translator, functools.partial(_translator, sentences, threads, rounds, timed, limit, beams)),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for model, measure in parts:
            if model is not None:
                own, numbers = measure(model, Path(folder) / f"head-{len(metrics)}")
                for row in own:
                    typer.echo(row)
                rows += own
                metrics |= numbers
    write_results(output, this_command(), metrics | {"threads": threads}, rows)
    for name, value in metrics.items():
        typer.echo(f"{name:40}{value:,.3f}")


def _exported(model: Any, tokenizer: Any, folder: Path, threads: int) -> dict[str, Any]:
    """Exports a model, and loads the runner in float32 and in int8."""
    export(model, tokenizer, folder, int8=True)
    return {FLOAT32: load_runner(folder, False, threads), INT8: load_runner(folder, True, threads)}


def _megabytes(runner: Any, int8: bool) -> float:
    """Size of a runner's graphs."""
    files = [own["int8" if int8 else "float32"] for own in runner.export["graphs"].values()]
    return sum((runner.folder / file).stat().st_size for file in files) / 1e6


def _sizes(model: Any, runners: dict[str, Any]) -> dict[str, Row]:
    weights = 4 * sum(weight.numel() for weight in model.parameters()) / 1e6
    graphs = {name: {"megabytes": _megabytes(runner, name == INT8)} for name, runner in runners.items()}
    return {TORCH: {"megabytes": weights}, **graphs}


def _language(
    texts: str,
    before: Path | None,
    threads: int,
    rounds: int,
    tokens: int,
    limit: int | None,
    folder: Path,
    home: Path,
) -> Results:
    """Rows and metrics of a language model in `folder`, exported to `home`."""
    model, tokenizer = load_language_model(folder)
    model.eval()
    runners = _exported(model, tokenizer, home, threads)
    text = read_tokens(texts, "test", tokenizer, limit)
    quality = {STREAM: evaluate_stream(model, text).metrics()}
    quality[STREAM] = {"perplexity": quality[STREAM]["history_ppl"], "base_perplexity": quality[STREAM]["base_ppl"]}
    quality |= {name: runner.score(text.ids.tolist()) for name, runner in runners.items()}
    for form in (model, *runners.values()):
        deployed.without_end(form)
    seconds = _language_seconds(model, runners, text.ids, before, folder, rounds, tokens, threads)
    starts = _starts(folder, home, str(tokenizer.decode(text.ids[:PROMPT])), threads)
    sizes = {STREAM if name == TORCH else name: own for name, own in _sizes(model, runners).items()}
    rows = []
    for name in seconds[False]:
        row: Row = {"head": "language model", "form": name, **milliseconds(seconds[False][name])}
        if name in seconds[True] and name != FLOOR:
            row |= milliseconds(seconds[True][name], "_with_history")
        if name in quality:
            own = quality[name]
            row |= {
                "quality": own["base_perplexity"],
                "quality_with_history": own["perplexity"],
                "measure": "perplexity",
            }
        rows.append({**row, **sizes.get(name, {}), **starts.get(name, {})})
    contexts, growth = _contexts(runners[INT8], text.ids, tokens)
    return rows + contexts, {**_language_metrics(seconds, quality), **_start_metrics(starts), **growth}


def _language_seconds(
    model: Any,
    runners: dict[str, Any],
    ids: np.ndarray,
    before: Path | None,
    folder: Path,
    rounds: int,
    tokens: int,
    threads: int,
) -> dict[bool, dict[str, list[float]]]:
    """Seconds of a token by form, without and with the stream; GPT-2 and the floor are in both."""
    window = model.config.stream.window
    prompts = {False: ids[:PROMPT].tolist(), True: np.resize(ids, window + 1).tolist()}
    others = {FLOOR: deployed.floor(model)}
    context = np.resize(ids, GPT2_CONTEXT).tolist()
    others |= deployed.gpt2_forms(context, tokens, model.num_parameters(), model.config.vocab_size, threads)
    process = None if before is None else Before(before, folder, threads)
    try:
        return {
            history: deployed.take_turns(
                {**forms_of(model, runners, process, prompt, tokens, history), **others}, rounds
            )
            for history, prompt in prompts.items()
        }
    finally:
        if process is not None:
            process.close()


def _language_metrics(
    seconds: dict[bool, dict[str, list[float]]], quality: dict[str, dict[str, Any]]
) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for history, suffix, kind in ((False, "", "base_perplexity"), (True, "_history", "perplexity")):
        own = seconds[history]
        measure = own.get(BEFORE, own[GENERATE])
        metrics |= {
            f"generate_milliseconds{suffix}": 1000 * statistics.median(measure),
            f"stream_speed_over_generate{suffix}": ratio(measure, own[STREAM]),
            f"generate_ratio_gpt2{suffix}": ratio(own[f"{GPT2}, {GENERATE}"], own[STREAM]),
            f"onnx_ratio_eager{suffix}": ratio(measure, own[FLOAT32]),
            f"int8_ratio_eager{suffix}": ratio(measure, own[INT8]),
            f"int8_ratio_gpt2_int8{suffix}": ratio(own[f"{GPT2}, {INT8}"], own[INT8]),
            f"int8_ppl_ratio{suffix}": quality[INT8][kind] / quality[STREAM][kind],
        }
    base = seconds[False]
    metrics["step_over_floor"] = ratio(base[STREAM], base[FLOOR])
    metrics["onnx_step_over_floor"] = ratio(base[FLOAT32], base[FLOOR])
    return metrics


def _starts(folder: Path, home: Path, text: str, threads: int, repeats: int = 5) -> dict[str, Row]:
    """Time and memory of processes that load the model and generate one token."""
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "with_torch.py"
        program.write_text(_WITH_TORCH.format(threads=threads), encoding="utf-8")
        generate = [str(home / "run.py"), "generate", text, "--max-new-tokens", "1", "--threads", str(threads)]
        programs = {
            STREAM: [str(program), str(folder), text],
            FLOAT32: generate,
            INT8: [*generate, "--int8"],
        }
        package = Path(__file__).resolve().parents[2]
        environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": str(threads)}
        starts = measure_starts(programs, repeats, environment)
    return {name: {"start_seconds": own.seconds, "memory_megabytes": own.megabytes} for name, own in starts.items()}


def _start_metrics(starts: dict[str, Row]) -> dict[str, float]:
    return {
        "runner_start_seconds": starts[INT8]["start_seconds"],
        "torch_start_seconds": starts[STREAM]["start_seconds"],
        "runner_memory_ratio": starts[INT8]["memory_megabytes"] / starts[STREAM]["memory_megabytes"],
    }


def _contexts(runner: Any, ids: np.ndarray, tokens: int) -> Results:
    """A token of a runner after contexts of several lengths, and the memory that reading them took."""
    rows: list[Row] = []
    for context in CONTEXTS:
        before = psutil.Process().memory_info().rss
        text, size = runner.begin(), 256
        given = np.resize(ids, context).tolist()
        for start in range(0, context - 1, size):
            runner.predict(text, given[start : min(start + size, context - 1)], 1)
        grown = psutil.Process().memory_info().rss - before
        seconds = deployed.timed(runner.stream(given[-1:], max_new_tokens=tokens, do_sample=False, text=text))
        row = {"head": "language model", "form": f"context {context}", **milliseconds(seconds, "_with_history")}
        rows.append({**row, "grown_megabytes": grown / 1e6})
    times = [row["ms_with_history"] for row in rows]
    growth = max(row["grown_megabytes"] for row in rows[1:])
    return rows, {"context_time_ratio": times[-1] / times[0], "context_megabytes": growth}


def _classifier(
    intents: str, threads: int, rounds: int, timed: int, limit: int | None, folder: Path, home: Path
) -> Results:
    """Rows and metrics of a classifier in `folder`, exported to `home`, without a bank."""
    from .peers.exported import ExportedEncoder

    model, tokenizer = load_classifier(folder)
    model.eval()
    runners = _exported(model, tokenizer, home, threads)
    dataset = load_labelled(intents, split="test")
    check_labelled(dataset, where=f"the test split of {intents}")
    inside, _ = split_out_of_scope(dataset)
    texts, labels = inside["text"][:limit], inside["label"][:limit]

    @torch.inference_mode()
    def with_torch(text: str) -> str:
        output = model(**tokenizer(text, return_tensors="pt"), use_history=False)
        return output.label_names[int(output.logits.argmax())]

    calls: dict[str, Callable[[str], Any]] = {
        TORCH: with_torch,
        **{name: functools.partial(_label, runner) for name, runner in runners.items()},
    }
    accuracy = {
        name: 100 * float(np.mean([call(text) == label for text, label in zip(texts, labels, strict=True)]))
        for name, call in calls.items()
    }
    for name, int8 in ((FLOAT32, False), (INT8, True)):
        calls[f"{ENCODER}, {name}"] = ExportedEncoder(threads, int8)
    seconds = _seconds_each(calls, chosen(texts, timed), rounds)
    rows = [
        {
            "head": "classifier",
            "form": name,
            **milliseconds(own),
            **({"quality": accuracy[name], "measure": "accuracy"} if name in accuracy else {}),
            **_sizes(model, runners).get(name, {}),
        }
        for name, own in seconds.items()
    ]
    return rows, {
        "classifier_int8_over_minilm_int8": ratio(seconds[f"{ENCODER}, {INT8}"], seconds[INT8]),
        "classifier_float32_over_minilm_int8": ratio(seconds[f"{ENCODER}, {INT8}"], seconds[FLOAT32]),
        "classifier_int8_ratio_eager": ratio(seconds[TORCH], seconds[INT8]),
        "classifier_int8_accuracy_drop": accuracy[TORCH] - accuracy[INT8],
    }


def _label(runner: Any, text: str) -> str:
    return runner.classify([text])[0]["label"]


def _seconds_each(calls: dict[str, Callable[[str], Any]], texts: list[str], rounds: int) -> dict[str, list[float]]:
    """Mean seconds of a text in each round, by form; forms take turns."""

    def ask(call: Callable[[str], Any]) -> None:
        for text in texts:
            call(text)

    seconds = compare({name: functools.partial(ask, call) for name, call in calls.items()}, rounds, warmup=1)
    return {name: [each / len(texts) for each in own] for name, own in seconds.items()}


def _translator(
    sentences: str, threads: int, rounds: int, timed: int, limit: int | None, beams: int, folder: Path, home: Path
) -> Results:
    """Rows and metrics of a translator in `folder`, exported to `home`, without a memory."""
    model, tokenizer = load_translator(folder)
    model.eval()
    runners = _exported(model, tokenizer, home, threads)
    from_language, to_language = languages_of(folder)
    pairs = load_pairs(sentences, split="test", source_language=from_language, target_language=to_language)
    sources, references = pairs["source"][:limit], pairs["target"][:limit]
    found = {TORCH: translate(model, tokenizer, sources, beams, use_history=False)}
    for name, runner in runners.items():
        found[name] = [runner.translate(text, beams=beams) for text in sources]
    bleu = {}
    for name, own in found.items():
        metric = TranslationMetric(keep_in_memory=True)
        values = metric.compute(predictions=own, references=references, lowercase=True, language=to_language)
        bleu[name] = values["bleu"]
    calls: dict[str, Callable[[str], Any]] = {
        TORCH: lambda text: translate(model, tokenizer, [text], beams=1, use_history=False),
        **{name: functools.partial(runner.translate, beams=1) for name, runner in runners.items()},
    }
    seconds = _seconds_each(calls, chosen(sources, timed), rounds)
    rows = [
        {
            "head": "translator",
            "form": name,
            **milliseconds(own),
            "quality": bleu[name],
            "measure": "BLEU",
            **_sizes(model, runners)[name],
        }
        for name, own in seconds.items()
    ]
    return rows, {
        "translator_onnx_ratio_eager": ratio(seconds[TORCH], seconds[FLOAT32]),
        "translator_int8_ratio_eager": ratio(seconds[TORCH], seconds[INT8]),
        "translator_int8_bleu_drop": bleu[TORCH] - bleu[INT8],
    }
