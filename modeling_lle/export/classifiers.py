"""The graph of a classifier, of texts or of tokens, with the inputs and outputs that servers of the Hub expect.

Notable: the directions and members of a qrnn are independent stacks of equal size, which run as one batch, since a
short text spends its time in calls. Padding may be anywhere, as in the model: tokens are moved to the front first.
Shapes: B batch, T time, D width of a member, G stacks (both directions of all members), W width of the states,
C labels.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..backbone.batched_stacks import single_stacks
from ..backbone.pooling import Pooling
from ..backbone.recurrence import QRNN, RecurrentLayer, RecurrentStack, ResidualLayer
from ..models.classification import LLEForSequenceClassification, LLEForTokenClassification
from .graph import Graph, array_of
from .layers import END, Padding, embed, gated_scan, linear, normalise, plain_linear, stack

LOWEST = np.float32(np.finfo(np.float32).min)


def write_classifier(model: LLEForSequenceClassification | LLEForTokenClassification, path: Path, int8: bool) -> None:
    """Writes the graph of a classifier without its history.

    Inputs: `input_ids` and `attention_mask` (B, T) int64, 0 at padding. Outputs: `logits` (B, C) float32, of tokens
    (B, T, C); `keys` (B, key_size) float32, of tokens (B, T, key_size): the normalised states, which are keys and
    queries.

    Args:
        model: In float32.
        path: The file.
        int8: Whether to write weights in int8.
    """
    graph, config = Graph(model, int8), model.config
    sizes: list[int | str] = ["batch_size", "sequence_length"]
    ids = graph.input("input_ids", "int64", sizes)
    mask = graph.input("attention_mask", "int64", sizes)
    order = _tokens_first(graph, mask)
    ids, mask = (graph.add("GatherElements", part, order, axis=1) for part in (ids, mask))
    padding = Padding.of(graph, mask)
    items = _states(graph, model, embed(graph, model.model.embed_tokens, ids), padding)
    if model.pooling is not None:
        items, sizes = _pooled(graph, model.pooling, items, padding), sizes[:1]
    else:
        items = _moved_back(graph, items, order)
    members = config.classifier.members
    said = items if members == 1 else graph.add("Mul", items, graph.constant(np.float32(1 / members)))
    logits = _classified(graph, model.classifier, said, model.pooling is None)
    graph.output(logits, "float32", [*sizes, len(model.trained_labels)], "logits")
    graph.output(normalise(graph, items), "float32", [*sizes, model.key_size], "keys")
    graph.save(path)


def _tokens_first(graph: Graph, mask: str) -> str:
    """Returns the order (B, T) int64 of the positions of each row that puts tokens before padding."""
    length = graph.length(mask, 1)
    places = graph.add("Range", graph.constant(np.int64(0)), graph.squeeze(length, 0), graph.constant(np.int64(1)))
    early = graph.add("Sub", graph.add("Mul", mask, length), places)
    return graph.add_several(2, "TopK", early, length, axis=1, largest=1, sorted=1)[1]


def _moved_back(graph: Graph, states: str, order: str) -> str:
    """Returns states (B, T, W) at the positions that their tokens had before `_tokens_first`."""
    length = graph.length(order, 1)
    back = graph.add_several(2, "TopK", order, length, axis=1, largest=0, sorted=1)[1]
    return graph.add("GatherND", states, graph.unsqueeze(back, 2), batch_dims=1)


def _states(
    graph: Graph,
    model: LLEForSequenceClassification | LLEForTokenClassification,
    embedded: str,
    padding: Padding,
) -> str:
    """Runs the backbone over embedded tokens (B, T, M D): states (B, T, W), those of each direction in turn."""
    backbone = model.model
    ahead = single_stacks(backbone.stack)
    back = [] if backbone.backward_stack is None else single_stacks(backbone.backward_stack)
    if len(ahead + back) > 1 and all(map(_is_batched, ahead + back)):
        return _batched(graph, ahead, back, embedded, padding)
    members = graph.split(embedded, [model.config.hidden_size] * len(ahead)) if len(ahead) > 1 else [embedded]
    each = [stack(graph, own, x, padding=padding)[0] for own, x in zip(ahead, members, strict=True)]
    if back:
        each += [
            stack(graph, own, x, padding=padding, backwards=True)[0] for own, x in zip(back, members, strict=True)
        ]
    return each[0] if len(each) == 1 else graph.add("Concat", *each, axis=-1)


# Several qrnn stacks as one batch


def _layers(module: RecurrentStack) -> list[RecurrentLayer]:
    return list(cast(Iterable[RecurrentLayer], module.layers))


def _is_batched(module: RecurrentStack) -> bool:
    """Whether a stack is one that `_batched` runs: qrnn layers of one width, without an MLP."""
    return all(
        type(layer.mixer) is QRNN
        and layer.mixer.input_size == layer.mixer.output_size
        and not (isinstance(layer, ResidualLayer) and layer.mlp is not None)
        for layer in _layers(module)
    )


def _batched(
    graph: Graph, ahead: list[RecurrentStack], back: list[RecurrentStack], embedded: str, padding: Padding
) -> str:
    """Runs stacks over embedded tokens (B, T, M D), each over its member: states (B, T, G D).

    The stacks in `back` read each row from its end. Tokens are before padding, so what follows them changes nothing.
    """
    stacks = ahead + back
    both = embedded
    if back:
        lengths = graph.add("Cast", padding.lengths, to=7)
        reverse = {"batch_axis": 0, "time_axis": 1}
        both = graph.add("Concat", embedded, graph.add("ReverseSequence", embedded, lengths, **reverse), axis=-1)
    size = _layers(stacks[0])[0].mixer.output_size
    x = graph.add("Transpose", graph.reshape(both, 0, 0, len(stacks), size), perm=[2, 0, 1, 3])  # (G, B, T, D)
    for number, layers in enumerate(zip(*map(_layers, stacks), strict=True)):
        mixers = [cast(QRNN, layer.mixer) for layer in layers]
        residual = [layer for layer in layers if isinstance(layer, ResidualLayer)]
        own = _norms(graph, [layer.mixer_norm for layer in residual], x) if residual else x
        gates = _gates(graph, mixers, own, f"layers.{number}.gates")
        y, _ = gated_scan(graph, gates, size)
        x = graph.add("Add", x, y) if residual else y
    norms = [module.norm for module in stacks]
    x = _norms(graph, norms, x) if isinstance(norms[0], nn.RMSNorm) else x
    states = graph.reshape(graph.add("Transpose", x, perm=[1, 2, 0, 3]), 0, 0, len(stacks) * size)
    if not back:
        return states
    first, last = graph.split(states, [len(ahead) * size, len(back) * size])
    return graph.add("Concat", first, graph.add("ReverseSequence", last, lengths, **reverse), axis=-1)


def _gates(graph: Graph, mixers: list[QRNN], x: str, name: str) -> str:
    """Pre-activations (G, B, T, 3 D) of the gates for x (G, B, T, D)."""
    before = graph.add("Pad", x, graph.ints(0, 0, 1, 0, 0, 0, -1, 0))  # a negative pad removes
    pairs = graph.add("Concat", before, x, axis=-1)
    linears = [plain_linear(graph, mixer.gates) for mixer in mixers]
    weights = graph.constant(np.stack([array_of(own.weight).T for own in linears])[:, None], f"{name}.weight")
    biases = graph.constant(np.stack([array_of(own.bias) for own in linears])[:, None, None], f"{name}.bias")
    return graph.add("Add", graph.add("MatMul", pairs, weights), biases)


def _norms(graph: Graph, modules: list[nn.Module], x: str) -> str:
    """Applies an RMS norm to each part of x (G, B, T, D)."""
    own = cast(list[nn.RMSNorm], modules)
    square = graph.add("Pow", x, graph.constant(np.float32(2)))
    mean = graph.add("ReduceMean", square, graph.ints(-1))
    root = graph.add("Sqrt", graph.add("Add", mean, graph.constant(np.float32(own[0].eps))))
    weights: NDArray[np.float32] = np.stack([array_of(norm.weight) for norm in own])[:, None, None]
    return graph.add("Mul", graph.add("Div", x, root), graph.constant(weights, f"{graph.name_of(own[0])}.batched"))


# Pooling and the output layer


def _pooled(graph: Graph, module: Pooling, states: str, padding: Padding) -> str:
    """Pools states (B, T, W), whose tokens are before padding, to (B, ways * W)."""
    ways = {"last": _last, "mean": _mean, "max": _max, "attention": _attention}
    parts = [ways[way](graph, module, states, padding) for way in module.ways]
    return parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=-1)


def _last(graph: Graph, module: Pooling, states: str, padding: Padding) -> str:
    lengths = graph.add("Cast", padding.lengths, to=7)
    places = graph.unsqueeze(graph.add("Sub", lengths, graph.constant(np.int64(1))), 1)
    last = graph.add("GatherND", states, places, batch_dims=1)
    if not module.bidirectional:
        return last
    half = module.members * module.width
    first = graph.add("Gather", states, graph.constant(np.int64(0)), axis=1)
    return graph.add(
        "Concat",
        graph.add("Slice", last, graph.ints(0), graph.ints(half), graph.ints(-1)),
        graph.add("Slice", first, graph.ints(half), graph.ints(END), graph.ints(-1)),
        axis=-1,
    )


def _mean(graph: Graph, module: Pooling, states: str, padding: Padding) -> str:
    total = graph.add("ReduceSum", graph.add("Mul", states, padding.mask), graph.ints(1), keepdims=0)
    return graph.add("Div", total, graph.add("ReduceSum", padding.mask, graph.ints(1), keepdims=0))


def _max(graph: Graph, module: Pooling, states: str, padding: Padding) -> str:
    return graph.add("ReduceMax", _hidden(graph, states, padding.mask), graph.ints(1), keepdims=0)


def _attention(graph: Graph, module: Pooling, states: str, padding: Padding) -> str:
    assert module.attention is not None
    members, width = module.members, module.width
    directions = 1 + module.bidirectional
    apart = graph.reshape(states, 0, 0, directions, members, width)
    own = plain_linear(graph, module.attention)
    weight = array_of(own.weight).reshape(directions, members, width)
    scores = graph.add(
        "ReduceSum", graph.add("Mul", apart, graph.constant(weight, "pooling.weight")), graph.ints(2, 4)
    )
    scores = graph.add("Add", scores, graph.constant(array_of(own.bias), "pooling.bias"))  # (B, T, 1, M, 1)
    mask = graph.add("Unsqueeze", padding.mask, graph.ints(3, 4))
    weights = graph.add("Softmax", _hidden(graph, scores, mask), axis=1)
    mixed = graph.add("ReduceSum", graph.add("Mul", apart, weights), graph.ints(1), keepdims=0)
    return graph.reshape(mixed, 0, directions * members * width)


def _hidden(graph: Graph, x: str, mask: str) -> str:
    """Sets x to the lowest number where the mask, float32, is 0."""
    return graph.add("Where", graph.add("Cast", mask, to=9), x, graph.constant(LOWEST))


def _classified(graph: Graph, module: nn.Module, items: str, of_tokens: bool) -> str:
    """Applies the output layer to items (B, key_size), of tokens (B, T, key_size)."""
    if of_tokens:
        return linear(graph, module, items)
    return graph.squeeze(linear(graph, module, graph.unsqueeze(items, 1)), 1)
