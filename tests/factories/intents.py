"""Queries of five intents, and data sets of them in the forms of Banking77 and CLINC150."""

import csv
import json
from pathlib import Path

import numpy as np

from scripts.benchmark.intents import Examples

NAMES = ["one", "two", "three", "four", "five"]
Pairs = list[tuple[str, str]]


def make_pairs(rows: int, seed: int) -> Pairs:
    """Queries of three words, of which the first is that of the intent, and no query twice."""
    generator, words = np.random.default_rng(seed), "abcde"
    made = [(f"{words[i % 5]} {' '.join(generator.choice(list('fgh'), 2))}", NAMES[i % 5]) for i in range(rows)]
    return list(dict.fromkeys(made))


def make_examples(rows: int, seed: int) -> Examples:
    """The same as examples."""
    texts, labels = zip(*make_pairs(rows, seed), strict=True)
    return Examples(list(texts), np.array(labels))


def write_intents(folder: Path) -> None:
    """A data set in the form of Banking77, and another in that of CLINC150."""
    banking, clinc = folder / "bank-ing", folder / "clinc"
    banking.mkdir()
    for split, rows, seed in (("train", 100, 0), ("test", 30, 1)):
        with (banking / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "category"), *make_pairs(rows, seed)])
    clinc.mkdir()
    splits = {"train": make_pairs(100, 0), "val": make_pairs(30, 1), "test": make_pairs(30, 2)}
    outside = {f"oos_{split}": [("h h", "oos"), ("g h h h", "oos")] for split in splits}
    (clinc / "data_full.json").write_text(json.dumps({**splits, **outside}))
