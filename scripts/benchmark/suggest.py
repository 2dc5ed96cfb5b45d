"""Which texts to label next: random ones, the least certain ones, or those of `modeling_lle.suggest`.

Everything is of the training split, and no test split is read: of each label `--held-out` texts measure accuracy,
`--first` ones are the examples to begin with, and `--pool` of the others have no label until they are chosen. In each
round, as many are chosen as there are labels, and taught without training (`learn`); the choice is made by the
classifier as it is taught so far. After the rounds of `--trained-after`, another classifier is trained on all examples
anew (`teach`), for its accuracy alone. A row is a method and a round, with means over the seeds:

    examples              that are taught
    accuracy              of the taught classifier, on held-out texts
    trained_accuracy      of one trained anew on the same examples
    choose_seconds        of the choice of a round
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from modeling_lle import LLETextClassificationPipeline
from modeling_lle import suggest as choose
from modeling_lle.data import load_labelled
from modeling_lle.evaluation import write_results
from modeling_lle.evaluation.results import this_command
from modeling_lle.training import few

from .timing import RESULTS, Row

BATCH = 256


class Texts(NamedTuple):
    """Texts of one seed, by their rows in the data set: `examples`, `pool` and `held_out`."""

    examples: list[int]
    pool: list[int]
    held_out: list[int]


def suggest(
    source: Annotated[str, typer.Argument(help="Labelled texts with a training split, such as Banking77.")],
    seeds: Annotated[int, typer.Option(min=1, help="Draws of the texts.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of choosing and teaching.")] = 5,
    first: Annotated[int, typer.Option(min=2, help="Examples of each label to begin with.")] = 2,
    held_out: Annotated[int, typer.Option(min=1, help="Texts of each label to measure on.")] = 10,
    pool: Annotated[int, typer.Option(min=1, help="Texts without labels to choose from.")] = 3000,
    trained_after: Annotated[str, typer.Option(help="Rounds after which to train anew.")] = "5",
    output: Annotated[Path, typer.Option(help="Results file.")] = RESULTS / "suggest.json",
) -> None:
    """Accuracy by labelled texts, when they are chosen at random, by uncertainty, or by `suggest`."""
    loaded = load_labelled(source, split="train")
    texts, labels = loaded["text"][:], loaded["label"][:]
    trained = {int(number) for number in trained_after.split(",")} & set(range(1, rounds + 1))
    measured: dict[tuple[str, int], list[Row]] = {}
    for seed in range(seeds):
        parts = draw(labels, seed, first, held_out, pool)
        for method in METHODS:
            for number, row in enumerate(measure(texts, labels, parts, method, rounds, trained, seed)):
                measured.setdefault((method, number), []).append(row)
                typer.echo({"seed": seed, "method": method, "round": number, **row})
    rows: list[Row] = []
    for (method, number), found in measured.items():
        means = {key: float(np.mean([row[key] for row in found])) for key in found[0] if found[0][key] is not None}
        rows.append({"method": method, "round": number, **{key: means.get(key) for key in found[0]}})
    metrics = {f"{row['method']}_accuracy": row["accuracy"] for row in rows if row["round"] == rounds}
    metrics |= {f"{row['method']}_trained_accuracy": row["trained_accuracy"] for row in rows if row["round"] == rounds}
    write_results(output, this_command(), {key: value for key, value in metrics.items() if value is not None}, rows)


def draw(labels: Sequence[str], seed: int, first: int, held_out: int, pool: int) -> Texts:
    """Draws the texts of a seed."""
    generator = np.random.default_rng(seed)
    taken: dict[str, int] = {}
    parts = Texts([], [], [])
    for row in generator.permutation(len(labels)).tolist():
        place = taken[labels[row]] = taken.get(labels[row], -1) + 1
        part = parts.held_out if place < held_out else parts.examples if place < held_out + first else parts.pool
        part.append(row)
    drawn = generator.permutation(len(parts.pool))[:pool]
    return parts._replace(pool=[parts.pool[place] for place in drawn])


def measure(
    texts: Sequence[str],
    labels: Sequence[str],
    parts: Texts,
    method: str,
    rounds: int,
    trained: set[int],
    seed: int,
) -> list[Row]:
    """The rows of a method and a seed: before the first round, and after each."""
    examples, pool = list(parts.examples), list(parts.pool)
    generator = np.random.default_rng(seed)

    def make() -> LLETextClassificationPipeline:
        return few.teach([texts[row] for row in examples], [labels[row] for row in examples], seed=seed)

    def accuracy(classifier: LLETextClassificationPipeline) -> float:
        found = classifier([texts[row] for row in parts.held_out], batch_size=BATCH)
        return float(np.mean([one["label"] == labels[row] for one, row in zip(found, parts.held_out, strict=True)]))

    classifier = make()
    rows: list[Row] = []
    seconds = None
    for number in range(rounds + 1):
        if number:
            begin = time.perf_counter()
            chosen = METHODS[method](classifier, [texts[row] for row in pool], len(set(labels)), generator)
            seconds = time.perf_counter() - begin
            new = [pool[place] for place in chosen]
            model: Any = classifier.model
            model.learn([texts[row] for row in new], [labels[row] for row in new], classifier.tokenizer)
            examples += new
            pool = [row for row in pool if row not in set(new)]
        found = accuracy(classifier)
        rows.append(
            {
                "examples": len(examples),
                "accuracy": found,
                "trained_accuracy": accuracy(make()) if number in trained else None if number else found,
                "choose_seconds": seconds,
            }
        )
    return rows


def _random(
    classifier: LLETextClassificationPipeline, texts: Sequence[str], number: int, generator: np.random.Generator
) -> list[int]:
    return generator.permutation(len(texts))[:number].tolist()


def _margin(
    classifier: LLETextClassificationPipeline, texts: Sequence[str], number: int, generator: np.random.Generator
) -> list[int]:
    found: Any = classifier(list(texts), batch_size=BATCH, top_k=2)
    margins = [one[0]["score"] - one[1]["score"] for one in found]
    return np.argsort(margins, kind="stable")[:number].tolist()


def _suggest(
    classifier: LLETextClassificationPipeline, texts: Sequence[str], number: int, generator: np.random.Generator
) -> list[int]:
    return [one.row for one in choose(classifier, texts, number)]


Method = Callable[[LLETextClassificationPipeline, Sequence[str], int, np.random.Generator], list[int]]
METHODS: dict[str, Method] = {"random": _random, "margin": _margin, "suggest": _suggest}
