"""Ratios of times within one run, and where results go."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "model_cards" / "results"


def compare(measured: dict[str, Callable[[], Any]], repeats: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds of each callable, called in turn, so that a machine that slows down slows all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in measured}
    for repeat in range(warmup + repeats):
        for name, call in measured.items():
            begin = time.perf_counter()
            call()
            if repeat >= warmup:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratio(one: list[float], other: list[float]) -> float:
    """Median of the pairwise ratios one / other."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))
