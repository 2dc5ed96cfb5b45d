"""Classifiers from few examples of each intent and from all, with their peers: accuracy, training, speed and size.

Every method gets the same examples, and nothing is fitted on a test split. A row is a method with some number of
examples of each intent of a data set, and has, where it exists,

    accuracy                       of the test queries in scope, with none refused; median of the draws
    accuracies                     of each draw
    in_scope_accuracy,             at the threshold with the highest recall of out-of-scope validation queries at which
    out_of_scope_recall            `--keep` of the rightly labelled validation queries are accepted
    new_classes_accuracy, ..       of LLE, where 20 intents are taught after the others, from as many examples, without
                                   training; as in `scripts.benchmark classification`
    seconds_training, ..processor  from texts on with the chosen penalty, by the clock and of the processor, one thread
    seconds_search                 of choosing the penalty
    minutes_before                 of the processor for distillation, once for a data set
    ms, ms_onnxruntime, ms_int8    of the processor for a query, tokens included, one thread, all methods in turn
    times_encoder                  all-MiniLM-L6-v2 in onnxruntime over the method's fastest form but int8
    bytes                          weights, tokenizer and bank on disk
    numbers, note                  chosen parameters; why something is missing

With all examples nothing is drawn, so that methods without a seed are trained once. The rows are saved after each
measurement, and replace those of the same method, data set and number of examples in the results file.
"""

import dataclasses
import functools
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from threadpoolctl import threadpool_limits

from modeling_lle.configuration_fields import check_keys
from modeling_lle.evaluation import read_results, write_results
from modeling_lle.evaluation.results import this_command

from .classification import Comparison
from .deployed import FLOAT32, INT8
from .deployment import TORCH
from .few_methods import (
    METHODS,
    ONCE,
    SETFIT,
    Draw,
    Fitted,
    LeftOutError,
    Method,
    Setting,
    by_recipe,
    draw,
    exported_encoder,
    slug,
)
from .history import describe
from .intents import SEED, Classifier, Intents, load_intents
from .peers.rejection import choose_threshold
from .timing import RESULTS, Row, compare, ratio

ALL = "all"
COLUMNS = (
    "accuracy",
    "accuracies",
    "in_scope_accuracy",
    "out_of_scope_recall",
    "new_classes_accuracy",
    "taught_classes_accuracy",
    "old_classes_drop",
    "forget_largest_difference",
    "seconds_training",
    "seconds_training_processor",
    "seconds_search",
    "minutes_before",
    "ms",
    "ms_onnxruntime",
    "ms_int8",
    "times_encoder",
    "bytes",
    "numbers",
    "note",
)
FORMS = {TORCH: "ms", FLOAT32: "ms_onnxruntime", INT8: "ms_int8"}
IN_METRICS = ("accuracy", "in_scope_accuracy", "out_of_scope_recall", "seconds_training", "times_encoder", "bytes")
REFERENCE = "reference"  # all-MiniLM-L6-v2 in onnxruntime, timed with whatever else is
Times = dict[tuple[str, str], list[float]]  # seconds of a query in each repetition, by method and form


class Results:
    """The rows of a results file, written whenever some change.

    Args:
        file: Results file; its rows are kept, unless they are measured again.
        command: Command that measures.
    """

    def __init__(self, file: Path, command: str) -> None:
        self.file = file
        before: dict[str, Any] = read_results(file) if file.exists() else {"rows": [], "command": ""}
        self.rows: dict[tuple[str, ...], Row] = {self._key(row): row for row in before["rows"]}
        commands = [old for old in before["command"].split(" && ") if old and old != command]
        self.command = " && ".join([*commands, command])

    @staticmethod
    def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
        return row["source"], row["examples"], row["method"]

    def put(self, rows: Iterable[Row]) -> None:
        """Adds rows in place of those of the same method, data set and number of examples, and writes the file."""
        for row in rows:
            self.rows[self._key(row)] = row
        ordered = sorted(
            self.rows.values(), key=lambda row: (row["source"], float(row["examples"].replace(ALL, "inf")))
        )
        write_results(self.file, self.command, metrics_of(ordered), ordered)


def metrics_of(rows: Iterable[Row]) -> dict[str, float]:
    """Metrics of the results file, under names such as banking77_5_setfit_accuracy."""
    return {
        "_".join([slug(row["source"]), row["examples"], slug(row["method"]), measure]): row[measure]
        for row in rows
        for measure in IN_METRICS
        if row[measure] is not None
    }


def reported(intents: Intents, validation: bool) -> Intents:
    """The data set with what is reported on as its test split.

    Args:
        intents: The data set.
        validation: Whether that is held out from training: validation queries that were, or every second one of a
            validation split, whose others remain for thresholds.
    """
    if not validation:
        return intents
    known, unknown = intents.validation, intents.outside_validation
    if not unknown:
        return dataclasses.replace(intents, train=intents.tuning, test=known, outside_test=[])
    even = np.arange(len(known.labels)) % 2 == 0
    return dataclasses.replace(
        intents,
        train=intents.tuning,
        validation=known.take(even),
        test=known.take(~even),
        outside_validation=unknown[::2],
        outside_test=unknown[1::2],
    )


def threshold_of(classifier: Classifier, intents: Intents, keep: float) -> float | None:
    """Least refused score, at which `keep` of the rightly labelled validation queries are accepted; None: no such."""
    if not intents.outside_test:
        return None
    known = classifier.answer(intents.validation.texts)
    unknown = classifier.answer(intents.outside_validation)
    right = known.labels == intents.validation.labels
    return choose_threshold(known.out_of_scope, right, unknown.out_of_scope, keep * float(right.mean()))


def measure(setting: Setting, fitted: Fitted) -> Row:
    """Values of one draw."""
    classifier, intents = fitted.classifier, setting.intents
    threshold = threshold_of(classifier, intents, setting.keep)
    found = Comparison(intents, 0.0, 0).measure(classifier, threshold)
    return {
        **{name: found.get(name) for name in ("accuracy", "in_scope_accuracy", "out_of_scope_recall", "bytes")},
        "seconds_training": fitted.cost.wall,
        "seconds_training_processor": fitted.cost.processor,
        "seconds_search": fitted.search.wall,
        **fitted.values,
    }


def row_of(key: Row, draws: Sequence[Row], fitted: Fitted, note: str = "") -> Row:
    """Row of a method: medians of the draws."""
    values: Row = {}
    for name in draws[0]:
        own = [one[name] for one in draws if one[name] is not None]
        values[name] = statistics.median(own) if own else None
    values |= {"accuracies": [one["accuracy"] for one in draws], "numbers": describe(fitted.numbers)}
    return {**key, "draws": len(draws), **{name: values.get(name) for name in COLUMNS}, "note": note}


def timed(fitted: Mapping[str, Fitted], texts: Sequence[str], repetitions: int) -> Times:
    """Seconds of a query by method and form, one at a time; all take turns, and the encoder is always among them."""
    calls = {(name, form): call for name, own in fitted.items() for form, call in own.make_calls().items()}
    try:
        calls[REFERENCE, FLOAT32] = exported_encoder(np.linalg.norm)[FLOAT32]
    except ImportError as error:
        typer.echo(f"times_encoder is left out: {error}", err=True)

    def ask(call: Callable[[str], Any]) -> None:
        for text in texts:
            call(text)

    names = {f"{name}/{form}": (name, form) for name, form in calls}
    turns = {name: functools.partial(ask, calls[key]) for name, key in names.items()}
    seconds = compare(turns, repetitions, warmup=1, clock=time.process_time)
    return {names[name]: [each / len(texts) for each in own] for name, own in seconds.items()}


def speeds(times: Times, method: str) -> Row:
    """Milliseconds of the forms of a method, and its speed over that of the encoder."""
    own = {form: seconds for (name, form), seconds in times.items() if name == method}
    values: Row = {FORMS[form]: 1000 * statistics.median(seconds) for form, seconds in own.items()}
    exact = [seconds for form, seconds in own.items() if form != INT8]
    if (REFERENCE, FLOAT32) in times and exact:
        values["times_encoder"] = ratio(times[REFERENCE, FLOAT32], min(exact, key=statistics.median))
    return values


def with_examples(
    setting: Setting, methods: Mapping[str, Method], number: int | None, draws: int, results: Results
) -> dict[str, Fitted]:
    """Measures every method with some examples of each intent; returns those of the first draw, for their speed."""
    kept: dict[str, Fitted] = {}
    for name, method in methods.items():
        key = {"method": name, "source": setting.name, "examples": ALL if number is None else str(number)}
        once = name == SETFIT or (number is None and name in ONCE)
        rows: list[Row] = []
        for seed in range(1 if once else draws):
            train = setting.intents.train
            drawn = Draw(train if number is None else draw(train, number, seed), number, seed)
            try:
                fitted = method(setting, drawn)
            except LeftOutError as error:
                results.put([{**key, "draws": 0, **dict.fromkeys(COLUMNS), "note": f"left out: {error}"}])
                break
            except ImportError as error:
                typer.echo(f"{name} is left out: {error}", err=True)
                break
            kept.setdefault(name, fitted)
            rows.append(measure(setting, fitted))
            results.put([row_of(key, rows, kept[name])])
            typer.echo(f"{' '.join(key.values())}, draw {seed}: {rows[-1]}")
    return kept


def few(
    sources: Annotated[list[str], typer.Argument(help="Queries with intents, such as Banking77 or CLINC150.")],
    method: Annotated[list[str] | None, typer.Option(help="Only this method, a recipe's too; repeatable.")] = None,
    recipe: Annotated[
        list[Path] | None, typer.Option(help="Recipe of an LLE classifier, for all examples; repeatable.")
    ] = None,
    examples: Annotated[
        list[str] | None, typer.Option(help="Examples of each intent, or 'all'; repeatable. Else 5, 10, 20, all.")
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Draws of the examples, and seeds with all.")] = 3,
    keep: Annotated[
        float, typer.Option(help="Share of rightly labelled validation queries that a threshold accepts.")
    ] = 0.99,
    queries: Annotated[int, typer.Option(min=1, help="Queries for measuring speed, one at a time.")] = 64,
    repetitions: Annotated[int, typer.Option(min=1, help="Repetitions of the speed measurement.")] = 9,
    folder: Annotated[Path, typer.Option(help="Folder of models that take minutes; they are reused.")] = Path("runs"),
    validation: Annotated[
        bool, typer.Option("--validation", help="Report on held-out training queries, while developing.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Results file; else model_cards/results/few.json, or one in --folder.")
    ] = None,
) -> None:
    """LLE, TF-IDF, static embeddings, MiniLM and SetFit with 5, 10, 20 and all examples of each intent."""
    recipes = {f"LLE, {file.stem}": functools.partial(by_recipe, file) for file in recipe or []}
    methods: dict[str, Method] = {**METHODS, **recipes}
    check_keys(method or [], methods, "--method")
    methods = {name: methods[name] for name in method or methods}
    numbers = [_number(text) for text in examples or ["5", "10", "20", ALL]]
    results = Results(
        output or (folder / "few-validation.json" if validation else RESULTS / "few.json"), this_command()
    )
    torch.set_num_threads(1)
    with threadpool_limits(1), tempfile.TemporaryDirectory() as scratch:
        for source, number in itertools.product(sources, numbers):
            intents = reported(load_intents(source), validation)
            setting = Setting(source, Path(source).name, intents, validation, keep, folder, Path(scratch))
            own = methods if number is None else {name: one for name, one in methods.items() if name not in recipes}
            fitted = with_examples(setting, own, number, draws, results)
            texts = intents.test.texts
            asked = [texts[place] for place in np.random.default_rng(SEED).permutation(len(texts))[:queries]]
            times = timed(fitted, asked, repetitions) if fitted else {}
            keys = {name: (setting.name, ALL if number is None else str(number), name) for name in fitted}
            results.put({**results.rows[key], **speeds(times, name)} for name, key in keys.items())
            for key in keys.values():
                typer.echo(results.rows[key])


def _number(text: str) -> int | None:
    """Number of examples; None for all."""
    if text == ALL:
        return None
    if not text.isdigit() or int(text) < 2:
        raise typer.BadParameter(f"--examples {text}: give a number from 2 on, or {ALL!r}")
    return int(text)
