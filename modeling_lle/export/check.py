"""`check_graphs`: compares the graphs of an exported folder with the model that they were made of.

Several batch sizes and lengths, with padding where a head has it, and with the state carried over from one call to the
next. Shapes: B batch, T time, E sources, S tokens of a source.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..backbone.state import tensors_of
from ..common.modes import evaluating
from ..history.cache import LLECache
from ..models.causal import LLEForCausalLM
from ..models.classification import LLEForSequenceClassification, LLEForTokenClassification
from ..models.pretrained import LLEPreTrainedModel
from ..models.seq2seq import LLEForSeq2SeqLM
from .errors import ExportError
from .graphs import KINDS, Files

# Largest difference, relative to the largest value of an output where that is above 1: in int8 a wrong graph differs
# by more than rounding does, too.
TOLERANCE = {"float32": 1e-3, "int8": 0.2}
NEEDED = "onnxruntime 1.23"  # the oldest of the extra "export"
SEGMENTS = ((1, (1, 7, 1)), (3, (5, 1, 8)))  # batch sizes, and the lengths of successive segments
Arrays = dict[str, NDArray[Any]]
Run = Callable[[str, Arrays], Arrays]  # a graph, by its name, over inputs
Results = Iterator[
    tuple[str, Arrays, Arrays]
]  # graph, its outputs, those of them that were checked as the model has it


def check_graphs(model: LLEPreTrainedModel, folder: Path, graphs: Files) -> float:
    """Compares every graph with the model, on random tokens.

    Args:
        model: The model that was exported.
        folder: The exported folder.
        graphs: What `write_graphs` returned.

    Returns:
        The largest difference of an output in float32.

    Raises:
        ExportError: A graph differs, or onnxruntime cannot run it; the message names the graph and the output.
    """
    largest = {}
    for kind in KINDS:
        files = {graph: folder / files[kind] for graph, files in graphs.items() if kind in files}
        largest[kind] = _largest_difference(model, files, TOLERANCE[kind]) if files else 0.0
    return largest["float32"]


def _largest_difference(model: LLEPreTrainedModel, files: dict[str, Path], tolerance: float) -> float:
    """Compares graphs in one kind of weights; raises an ExportError at the first that differs."""
    sessions = {graph: open_graph(file) for graph, file in files.items()}

    def run(graph: str, inputs: Arrays) -> Arrays:
        names = [output.name for output in sessions[graph].get_outputs()]
        try:
            return dict(zip(names, sessions[graph].run(names, inputs), strict=True))
        except Exception as error:  # the classes of onnxruntime's errors are its own
            raise ExportError(f"onnxruntime cannot run {files[graph].name}: {error}") from error

    largest = 0.0
    with torch.no_grad(), evaluating(model):
        for graph, found, right in _RESULTS[type(model)](model, run):
            for name, want in right.items():
                got = found[name]
                difference = float(np.abs(got - want).max()) if got.shape == want.shape else np.inf
                if not difference <= tolerance * max(1.0, float(np.abs(want).max())):
                    raise ExportError(
                        f"{files[graph].name} is not the model: its output {name} has the shape {got.shape}, the "
                        f"model's {want.shape}, and differs by up to {difference:.2g}. Please report this with the "
                        "model's config.json"
                    )
                largest = max(largest, difference)
    return largest


def open_graph(path: Path) -> onnxruntime.InferenceSession:
    """Opens a graph for one thread of a CPU; raises an ExportError where onnxruntime cannot."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the classes of onnxruntime's errors are its own
        raise ExportError(
            f"onnxruntime {onnxruntime.__version__} cannot load {path.name}: install {NEEDED} or newer, or, if it is "
            f"that, report this: {error}"
        ) from error


def random_ids(model: LLEPreTrainedModel, rows: int, length: int, seed: int) -> Tensor:
    """Returns random tokens (rows, length) int64, on the model's device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.vocab_size, (rows, length), generator=generator).to(model.device)


def random_batches(model: LLEPreTrainedModel) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields random tokens and masks (B, T) int64: single rows, and rows with padding at the end."""
    for seed, lengths in enumerate(([1], [9], [4, 7, 1])):
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        yield random_ids(model, len(lengths), max(lengths), seed), mask.to(model.device)


def _language_model_results(model: LLEForCausalLM, run: Run) -> Results:
    for rows, lengths in SEGMENTS:
        cache, state = LLECache(), None
        for seed, length in enumerate(lengths):
            ids = random_ids(model, rows, length, seed)
            states = model.model(ids, past_key_values=cache, use_cache=False).last_hidden_state
            right = _step_outputs(model, states, cache)
            state = _zero_state(cache) if state is None else state
            found = run("model", {"input_ids": arrays(ids), "num_logits_to_keep": np.array(seed % 2), **state})
            state = _next_state(found)
            yield "model", found, _kept(right, seed % 2)


def _translator_results(model: LLEForSeq2SeqLM, run: Run) -> Results:
    for ids, mask in random_batches(model):
        source = model.read_source(ids, mask, use_history=False)
        encoded = run("encoder", {"input_ids": arrays(ids), "attention_mask": arrays(mask)})
        assert source.last_hidden_state is not None
        pairs = {"attention_keys": source.attention_keys, "attention_values": source.attention_values}
        read = {f"{name}.{place}": part for name, parts in pairs.items() for place, part in enumerate(parts or ())}
        right = {name: arrays(part * mask[:, None, :, None]) for name, part in read.items()}
        right["last_hidden_state"] = arrays(source.last_hidden_state * mask[..., None])
        yield "encoder", {name: _masked(part, arrays(mask)) for name, part in encoded.items()}, right
        del encoded["last_hidden_state"]
        cache, state = LLECache(), None
        for seed, length in enumerate((1, 4, 1)):
            own = random_ids(model, len(ids), length, seed)
            states = model.model.decode(source, own, None, cache).last_hidden_state
            assert states is not None
            right = _step_outputs(model, states, cache)
            state = _zero_state(cache) if state is None else state
            given = {"input_ids": arrays(own), "encoder_attention_mask": arrays(mask), **encoded, **state}
            found = run("decoder", {**given, "num_logits_to_keep": np.array(seed % 2)})
            state = _next_state(found)
            yield "decoder", found, _kept(right, seed % 2)


def _classifier_results(model: LLEForSequenceClassification | LLEForTokenClassification, run: Run) -> Results:
    for ids, mask in random_batches(model):
        found = run("model", {"input_ids": arrays(ids), "attention_mask": arrays(mask)})
        logits, keys = model(ids, mask, use_history=False).logits, model.encode(ids, mask)
        right = {"logits": logits, "keys": keys}
        if model.pooling is None:  # nothing is said of padding
            right = {name: part * mask[..., None] for name, part in right.items()}
            found = {name: part * arrays(mask)[..., None] for name, part in found.items()}
        yield "model", found, {name: arrays(part) for name, part in right.items()}


def _step_outputs(model: LLEForCausalLM | LLEForSeq2SeqLM, states: Tensor, cache: LLECache) -> Arrays:
    """The outputs after states (B, T, D) of a decoder, which `cache` has taken in."""
    outputs = {"logits": model.lm_head(states), "keys": torch.nn.functional.normalize(states, dim=-1)}
    outputs |= {f"new_state.{place}": part for place, part in enumerate(tensors_of(cache.state))}
    return {name: arrays(part) for name, part in outputs.items()}


def _kept(outputs: Arrays, count: int) -> Arrays:
    return {**outputs, "logits": outputs["logits"][:, -count:]}


def _zero_state(cache: LLECache) -> Arrays:
    """The state at the beginning, like the one in a cache."""
    return {f"state.{place}": arrays(torch.zeros_like(part)) for place, part in enumerate(tensors_of(cache.state))}


def _next_state(outputs: Arrays) -> Arrays:
    return {name.removeprefix("new_"): part for name, part in outputs.items() if name.startswith("new_state.")}


def _masked(part: NDArray[Any], mask: NDArray[Any]) -> NDArray[Any]:
    """Sets to 0 what an output (E, S, W) or (E, H, S, W) holds at padding, 0 in the mask (E, S)."""
    return part * (mask[..., None] if part.ndim == 3 else mask[:, None, :, None])


def arrays(tensor: Tensor) -> NDArray[Any]:
    """Returns a tensor as an array of numpy."""
    return tensor.detach().cpu().numpy()


_RESULTS: dict[type[LLEPreTrainedModel], Callable[[Any, Run], Results]] = {
    LLEForCausalLM: _language_model_results,
    LLEForSequenceClassification: _classifier_results,
    LLEForTokenClassification: _classifier_results,
    LLEForSeq2SeqLM: _translator_results,
}
