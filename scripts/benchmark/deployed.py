"""The forms in which a language model generates, by time per token: torch, onnxruntime, and GPT-2 in both.

Notable: forms take turns, a round each, so that a slowing machine affects all alike; the time of a round is the median
of its tokens, without the first, which includes reading the prompt. The memory floor of a step is the time of summing
an array as large as the weights that a step reads. Shapes: T tokens.
"""

import functools
import importlib.util
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .before import Before, timed_generate
from .timing import Row

BEFORE, GENERATE, STREAM = "generate, before", "generate", "stream"
FLOAT32, INT8 = "onnxruntime", "onnxruntime int8"
FLOOR = "memory floor"
GPT2 = "GPT-2"
Round = Callable[[], list[float]]  # seconds of each token


def load_runner(folder: Path, int8: bool, threads: int) -> Any:
    """Loads the model in an exported folder by the run.py in it."""
    spec = importlib.util.spec_from_file_location(f"run_{folder.name}", folder / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(folder, int8=int8, threads=threads)


def timed(tokens: Iterable[int]) -> list[float]:
    """Seconds of each token but the first."""
    times = [time.perf_counter() for _ in tokens]
    return [after - before for before, after in itertools.pairwise(times)]


def take_turns(forms: Mapping[str, Round], rounds: int) -> dict[str, list[float]]:
    """Median seconds of a token in each round, by form; a first round is for warming up."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(1 + rounds):
        for name, play in forms.items():
            median = statistics.median(play())
            if turn:
                seconds[name].append(median)
    return seconds


def milliseconds(seconds: Sequence[float], suffix: str = "") -> Row:
    """Median milliseconds, and half the range between the quartiles in percent of them."""
    low, median, high = np.percentile(seconds, (25, 50, 75)) * 1000
    return {f"ms{suffix}": float(median), f"spread_percent{suffix}": float(50 * (high - low) / median)}


def without_end(model: Any) -> Any:
    """The model, of which no token ends a text."""
    if isinstance(model, nn.Module):
        generation: Any = model.generation_config
        generation.eos_token_id = None
    else:
        model.tokens["eos"] = []
    return model


def forms_of(
    model: Any, runners: Mapping[str, Any], before: Before | None, ids: Sequence[int], tokens: int, use_history: bool
) -> dict[str, Round]:
    """The forms of a language model after a prompt.

    Args:
        model: In torch.
        runners: By name.
        before: The process of another checkout; None: none.
        ids: The prompt.
        tokens: Tokens of a round.
        use_history: Whether the stream takes part.
    """
    options: dict[str, Any] = {"use_history": use_history}
    forms: dict[str, Round] = {}
    if before is not None:
        forms[BEFORE] = functools.partial(before.generate, ids, tokens, use_history)
    forms[GENERATE] = functools.partial(timed_generate, model, ids, tokens, **options)
    prompt = torch.tensor([list(ids)])
    forms[STREAM] = lambda: timed(model.stream(prompt, max_new_tokens=tokens, do_sample=False, **options))
    for name, runner in runners.items():
        stream = functools.partial(runner.stream, ids, max_new_tokens=tokens, do_sample=False, **options)
        forms[name] = functools.partial(_timed_call, stream)
    return forms


def _timed_call(begin: Callable[[], Iterator[int]]) -> list[float]:
    return timed(begin())


def floor(model: nn.Module, repeats: int = 5) -> Round:
    """Sums an array as large as the weights that a step reads: all but an embedding that is not the output layer."""
    own: Any = model
    read = sum(weight.numel() for weight in own.parameters())
    if own.get_input_embeddings().weight is not own.get_output_embeddings().weight:
        read -= own.get_input_embeddings().weight.numel()
    weights = torch.ones(read)

    def play() -> list[float]:
        seconds = []
        for _ in range(repeats):
            begin = time.perf_counter()
            weights.sum()
            seconds.append(time.perf_counter() - begin)
        return seconds

    return play


def gpt2_forms(ids: Sequence[int], tokens: int, parameters: int, vocabulary: int, threads: int) -> dict[str, Round]:
    """GPT-2 of equal size after a prompt, with its cache: transformers' `generate`, and onnxruntime."""
    from .peers.exported import ExportedGPT2, make_gpt2

    model = make_gpt2(vocabulary, parameters, len(ids) + tokens)
    forms: dict[str, Round] = {f"{GPT2}, {GENERATE}": functools.partial(timed_generate, model, ids, tokens)}
    for name, int8 in ((FLOAT32, False), (INT8, True)):
        exported = ExportedGPT2(model, threads, int8)
        forms[f"{GPT2}, {name}"] = functools.partial(_timed_call, functools.partial(_greedy, exported, ids, tokens))
    return forms


def _greedy(model: Any, ids: Sequence[int], tokens: int) -> Iterator[int]:
    model.reset()
    logits = model(ids)
    for place in range(tokens):
        token = int(logits.argmax())
        yield token
        if place + 1 < tokens:
            logits = model([token])
