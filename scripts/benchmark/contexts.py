"""Prefill and generation of language models against the length of the context: time and memory, and start-up.

Each measurement runs in a process of its own, whose memory is bounded. One that takes longer than the limit is ended,
and its row says so in `skipped`, as do those of longer contexts that would take longer by the time of a shorter one.

    prefill_seconds             processor time of reading the context
    step_ms                     median processor time of a greedy step after it
    state_mb                    tensors of the state, or cache, after the context
    peak_mb                     most memory of the process above that with the model loaded

Shapes: B batch, T time.
"""

import multiprocessing
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from modeling_lle import LLECache
from modeling_lle.training.steps import keep_freed_pages

from .minutes import Plan
from .peers.language_models import FAMILIES, LLE, PLAIN, WINDOW, make_model
from .timing import Row

HISTORY = f"{LLE}, history"
SEGMENT = 2048  # tokens that models with a state read at once
STEPS = 20
FIRST_TOKEN = """
import resource, sys, time
import torch
from transformers import AutoModelForCausalLM
if sys.argv[2] == "LLE":
    import modeling_lle
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
with torch.inference_mode():
    int(model(torch.tensor([[1, 2, 3]])).logits[0, -1].argmax())
print(time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


class Reader:
    """Reads a context and goes on greedily.

    Args:
        name: Model, or LLE with history.
        plan: Sizes.
        length: Longest text.
    """

    def __init__(self, name: str, plan: Plan, length: int) -> None:
        self.name = LLE if name == HISTORY else name
        window = WINDOW if name == HISTORY else 0
        self.model = make_model(self.name, plan.vocabulary, plan.width, length, plan.seed, window).eval()
        self.state: Any = LLECache(window) if self.name == LLE else None
        if self.name == "xLSTM":
            self.model.config.mode = "inference"  # else it takes multiples of a chunk only

    def read(self, ids: Tensor) -> Tensor:
        """The most probable next token (B, 1) after ids (B, T) int64."""
        if self.name in FAMILIES:
            return self._read(ids)
        for part in ids.split(SEGMENT, dim=1):
            if self.name == LLE:
                logits = self.model(part, past_key_values=self.state, use_cache=True, logits_to_keep=1).logits
            else:
                states, self.state = self.model.lstm(self.model.embedding(part), self.state)
                logits = self.model.output(states[:, -1:])
        return logits[:, -1:].argmax(-1)

    def _read(self, ids: Tensor) -> Tensor:
        """By transformers: the whole context at once, and the output layer for the last token only."""
        key = FAMILIES[self.name].cache
        given = {} if self.state is None else {key: self.state}
        output = self.model.base_model(ids, use_cache=True, **given)
        self.state = getattr(output, key)
        return self.model.get_output_embeddings()(output.last_hidden_state[:, -1:]).argmax(-1)


def tensor_bytes(value: Any, seen: set[int] | None = None) -> int:
    """Bytes of all tensors that an object holds."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, nn.Module | type):
        return 0
    seen.add(id(value))
    if isinstance(value, Tensor):
        return value.untyped_storage().nbytes()
    if isinstance(value, dict):
        return sum(tensor_bytes(each, seen) for each in value.values())
    if isinstance(value, list | tuple):
        return sum(tensor_bytes(each, seen) for each in value)
    return sum(tensor_bytes(each, seen) for each in getattr(value, "__dict__", {}).values())


def read_context(name: str, plan: Plan, batch: int, context: int) -> Row:
    """Time and memory of one model at one batch size and context, measured in this process."""
    torch.set_num_threads(1)
    keep_freed_pages()
    ids = torch.randint(plan.vocabulary, (batch, context), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        Reader(name, plan, 64).read(ids[:, :64])  # loads and compiles off the clock
        reader = Reader(name, plan, context + STEPS)
        before = psutil.Process().memory_info().rss
        begin = time.process_time()
        token = reader.read(ids)
        prefill = time.process_time() - begin
        seconds = []
        for _ in range(STEPS):
            begin = time.process_time()
            token = reader.read(token)
            seconds.append(time.process_time() - begin)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "prefill_seconds": prefill,
        "step_ms": 1000 * statistics.median(seconds),
        "state_mb": tensor_bytes(reader.state) / 1e6,
        "peak_mb": max(0, peak - before) / 1e6,
    }


def _child(pipe: Any, gigabytes: float, *arguments: Any) -> None:
    """Runs `read_context` in a process with bounded memory, and sends its row, or why there is none."""
    limit = int(gigabytes * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        pipe.send(read_context(*arguments))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "alloc" not in str(error):
            raise
        pipe.send({"skipped": f"more than {gigabytes:g} GB"})


def bounded(name: str, plan: Plan, batch: int, context: int, limit: float, gigabytes: float) -> Row:
    """`read_context` in a process of its own; beyond `limit` seconds of processor time or the memory it is skipped."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_child, args=(there, gigabytes, name, plan, batch, context))
    process.start()
    there.close()
    watched = psutil.Process(process.pid)
    while not here.poll(0.2):
        if process.is_alive() and sum(watched.cpu_times()[:2]) > limit:
            process.terminate()
            process.join()
            return {"skipped": f"more than {limit:g} s"}
    try:
        row = here.recv()
    except EOFError:
        row = {"skipped": f"ended with status {process.exitcode}"}
    process.join()
    return row


def measure_contexts(
    names: list[str],
    plan: Plan,
    batches: list[int],
    contexts: list[int],
    limit: float,
    gigabytes: float,
    say: Callable[[str], None],
) -> list[Row]:
    """A row for each model, batch size and context."""
    rows = []
    for name in [*names, *([HISTORY] if LLE in names else [])]:
        for batch in batches:
            before: Row = {}
            for context in sorted(contexts):
                least = before.get("prefill_seconds", 0.0) * context / before.get("context", context)
                row: Row = {"model": name, "batch": batch, "context": context}
                if "skipped" in before or least > limit:
                    row["skipped"] = before.get("skipped", f"more than {limit:g} s")
                else:
                    row |= bounded(name, plan, batch, context, limit, gigabytes)
                say(str(row))
                rows.append(row)
                before = row
    return rows


def measure_start(names: list[str], plan: Plan, folder: Path, repeats: int = 3) -> list[Row]:
    """Rows with processor seconds and memory from the start of a process to the first token."""
    saved = {}
    for name in names:
        if name != PLAIN:  # has no format
            model = make_model(name, plan.vocabulary, plan.width)
            if name == "xLSTM":  # transformers does not tie it, and saves no shared weights
                model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
                model.config.mode = "inference"
            saved[name] = folder / "saved" / name
            model.save_pretrained(saved[name])
    measured: dict[str, list[list[float]]] = {name: [] for name in saved}
    for _ in range(repeats):
        for name, path in saved.items():
            command = [sys.executable, "-c", FIRST_TOKEN, str(path), name]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            measured[name].append([float(value) for value in output.split()[-2:]])
    return [
        {
            "model": name,
            "start_seconds": statistics.median(seconds for seconds, _ in values),
            "start_mb": statistics.median(megabytes for _, megabytes in values),
        }
        for name, values in measured.items()
    ]
