"""The graph of a classifier, of texts or of tokens, with the inputs and outputs that servers of the Hub expect.

Notable: the directions and members of a qrnn are independent stacks of equal size, which run as one batch, since a
short text spends its time in calls. States stay in the order of reading, in which the last one of each direction has
read the whole text. Padding is at the end of each row.
Shapes: B batch, T time, D width of a member, E of its embeddings, G stacks (both directions of all members), W width
of the states, Q of what is pooled, P of what is classified, M members, C labels.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from torch import nn

from ..backbone.batched_stacks import single_stacks
from ..backbone.pooling import Pooling
from ..backbone.recurrence import QRNN, RecurrentLayer, RecurrentStack, ResidualLayer, TorchRecurrence
from ..configuration import LLEConfig
from ..models.backbone import LLEModel
from ..models.classification import LLEForSequenceClassification, LLEForTokenClassification
from .graph import Graph, array_of
from .layers import (
    LOWEST,
    Padding,
    both_ways,
    embed,
    gated_scan,
    matrix_product,
    normalise,
    output_layer,
    plain_linear,
    scaled,
    stack,
)
from .quantised import products


def write_classifier(model: LLEForSequenceClassification | LLEForTokenClassification, path: Path, int8: bool) -> None:
    """Writes the graph of a classifier without its history.

    Inputs: `input_ids` and `attention_mask` (B, T) int64, 0 at padding, which follows the tokens. Outputs: `logits`
    (B, C) float32, of tokens (B, T, C); `keys` (B, key_size) float32, of tokens (B, T, key_size): the normalised
    states, which are keys and queries.

    Args:
        model: In float32.
        path: The file.
        int8: Whether to write weights in int8.
    """
    graph, config = Graph(model, int8), model.config
    sizes: list[int | str] = ["batch_size", "sequence_length"]
    ids = graph.input("input_ids", "int64", sizes)
    padding = Padding.of(graph, graph.input("attention_mask", "int64", sizes))
    embedded = embed(graph, model.model.embed_tokens, ids)
    orderless = model.pooling is not None and not {"last", "attention"} & set(model.pooling.ways)
    states = _read(graph, model.model, embedded, padding, orderless)
    if model.pooling is not None:
        items, sizes = _pooled(graph, model.pooling, states, embedded, padding), sizes[:1]
    else:
        items = _aligned(graph, states, config, padding)
    members = config.classifier.members
    said = items if members == 1 else graph.add("Mul", items, graph.constant(np.float32(1 / members)))
    logits = _classified(graph, model.classifier, said, model.pooling is None)
    graph.output(logits, "float32", [*sizes, len(model.trained_labels)], "logits")
    graph.output(normalise(graph, items), "float32", [*sizes, model.key_size], "keys")
    graph.save(path)


def _read(graph: Graph, backbone: LLEModel, embedded: str, padding: Padding, orderless: bool) -> str:
    """Runs the stacks over embedded tokens (B, T, M E): (G, B, T, D), those that read backwards in their order.

    Where the order does not matter (`orderless`), single layers in both directions are one operator, and their states
    are in the order of the text: on a short text the calls of operators take most of the time.
    """
    ahead = single_stacks(backbone.stack)
    back = [] if backbone.backward_stack is None else single_stacks(backbone.backward_stack)
    stacks, both = ahead + back, embedded
    single = [_only_recurrence(graph, own) for own in stacks]
    if len(stacks) == 2 and back and orderless and None not in single:
        forward, backward = cast(list[TorchRecurrence], single)
        return both_ways(graph, forward, backward, embedded, padding)
    if back:
        both = graph.add("Concat", embedded, _reversed(graph, embedded, padding), axis=-1)
    apart = _apart(graph, both, len(stacks), backbone.config.embedding_width)
    if len(stacks) > 1 and all(map(_is_batched, stacks)):
        return _read_together(graph, stacks, apart)
    parts = graph.split(apart, [1] * len(stacks), axis=0)
    read = [stack(graph, own, graph.squeeze(x, 0))[0] for own, x in zip(stacks, parts, strict=True)]
    return graph.add("Concat", *(graph.unsqueeze(y, 0) for y in read), axis=0)


def _only_recurrence(graph: Graph, module: RecurrentStack) -> TorchRecurrence | None:
    """The recurrence of a plain stack of one layer, if onnxruntime has an operator for it; else None."""
    layers = _layers(module)
    mixer = layers[0].mixer
    if len(layers) > 1 or isinstance(layers[0], ResidualLayer) or isinstance(module.norm, nn.RMSNorm):
        return None
    if not isinstance(mixer, TorchRecurrence) or (graph.int8 and mixer.num_states == 1):
        return None
    return mixer


def _reversed(graph: Graph, x: str, padding: Padding) -> str:
    """Reverses the tokens of each row of x (B, T, C); its padding stays where it is."""
    lengths = graph.cast(padding.lengths, "int64")
    return graph.add("ReverseSequence", x, lengths, batch_axis=0, time_axis=1)


def _apart(graph: Graph, x: str, parts: int, size: int) -> str:
    """Turns x (B, T, G D) into (G, B, T, D)."""
    return graph.add("Transpose", graph.reshape(x, 0, 0, parts, size), perm=[2, 0, 1, 3])


def _aligned(graph: Graph, states: str, config: LLEConfig, padding: Padding) -> str:
    """Turns states (G, B, T, D), each in the order of reading, into (B, T, W) in the order of the text."""
    joined = graph.reshape(graph.add("Transpose", states, perm=[1, 2, 0, 3]), 0, 0, config.state_size)
    if not config.bidirectional:
        return joined
    ahead, back = graph.split(joined, [config.state_size // 2] * 2)
    return graph.add("Concat", ahead, _reversed(graph, back, padding), axis=-1)


# Several qrnn stacks as one batch


def _layers(module: RecurrentStack) -> list[RecurrentLayer]:
    return list(cast(Iterable[RecurrentLayer], module.layers))


def _is_batched(module: RecurrentStack) -> bool:
    """Whether a stack is one that `_read_together` runs: qrnn layers of one width, without an MLP."""
    return all(
        type(layer.mixer) is QRNN
        and layer.mixer.input_size == layer.mixer.output_size
        and not (isinstance(layer, ResidualLayer) and layer.mlp is not None)
        for layer in _layers(module)
    )


def _read_together(graph: Graph, stacks: list[RecurrentStack], x: str) -> str:
    """Runs each stack over its own x, (G, B, T, D), as `read_together` of backbone/batched_stacks.py does."""
    for layers in zip(*map(_layers, stacks), strict=True):
        residual = [layer for layer in layers if isinstance(layer, ResidualLayer)]
        own = _scaled(graph, x, residual[0].mixer_norm) if residual else x
        y, _ = gated_scan(graph, _gates(graph, layers, own), layers[0].mixer.output_size)
        x = graph.add("Add", x, y) if residual else y
    norms = [module.norm for module in stacks if isinstance(module.norm, nn.RMSNorm)]
    if not norms:
        return x
    weights = np.stack([array_of(norm.weight) for norm in norms])[:, None, None]
    return graph.add("Mul", _scaled(graph, x, norms[0]), graph.constant(weights, f"{graph.name_of(norms[0])}.weights"))


def _gates(graph: Graph, layers: Sequence[RecurrentLayer], x: str) -> str:
    """Pre-activations (G, B, T, 3 D) of the gates for x (G, B, T, D); their matrices take in the norms' weights."""
    before = graph.add("Pad", x, graph.ints(0, 0, 1, 0, 0, 0, -1, 0))  # a negative pad removes
    pairs = graph.add("Concat", before, x, axis=-1)
    linears = [plain_linear(graph, cast(QRNN, layer.mixer).gates) for layer in layers]
    matrices = [array_of(own.weight) for own in linears]
    norms = [array_of(layer.mixer_norm.weight) for layer in layers if isinstance(layer, ResidualLayer)]
    if norms:
        matrices = [own * np.tile(norm, 2) for own, norm in zip(matrices, norms, strict=True)]
    name = graph.name_of(linears[0])
    biases = graph.constant(np.stack([array_of(own.bias) for own in linears])[:, None, None], f"{name}.biases")
    if graph.int8:
        return products(graph, pairs, np.stack(matrices), f"{name}.matrices", biases)
    each = [  # single ones are faster in float32: onnxruntime packs their matrices only once
        graph.add("MatMul", part, graph.constant(np.ascontiguousarray(own.T), f"{name}.matrix.{number}"))
        for number, (part, own) in enumerate(
            zip(graph.split(pairs, [1] * len(linears), axis=0), matrices, strict=True)
        )
    ]
    return graph.add("Add", graph.add("Concat", *each, axis=0), biases)


def _scaled(graph: Graph, x: str, norm: nn.RMSNorm) -> str:
    """Applies an RMS norm to x (..., D), without its weight."""
    ones = graph.constant(np.ones(norm.weight.shape, dtype=np.float32))  # so that onnxruntime fuses the nodes
    return scaled(graph, x, norm.eps, ones)


# Pooling and the output layer


def _pooled(graph: Graph, module: Pooling, states: str, embedded: str, padding: Padding) -> str:
    """Pools states (G, B, T, D), each in the order of reading, and embedded tokens (B, T, M E) to (B, P)."""
    ways = {"last": _last, "mean": _mean, "max": _max, "attention": _attention}
    parts = [ways[way](graph, module, states, padding) for way in module.ways if way in ways]  # (G, B, 1, D) each
    pooled = []
    if parts:
        joined = parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=2)
        width = len(parts) * _stacks(module) * module.width
        pooled.append(graph.reshape(graph.add("Transpose", joined, perm=[1, 2, 0, 3]), 0, width))
    if module.reads_embeddings:
        total = graph.add("ReduceSum", graph.add("Mul", embedded, padding.mask), graph.ints(1), keepdims=0)
        pooled.append(graph.add("Div", total, graph.add("ReduceSum", padding.mask, graph.ints(1), keepdims=0)))
    joined = pooled[0] if len(pooled) == 1 else graph.add("Concat", *pooled, axis=-1)
    return joined if module.projection is None else _projected(graph, module, module.projection, joined)


def _projected(graph: Graph, module: Pooling, linear: nn.Linear, pooled: str) -> str:
    """Projects the channels of each member, (B, Q) to (B, P), and gives each the root mean square 1."""
    scale = graph.constant(np.float32(module.projected**0.5))
    if module.members == 1:
        return graph.add("Mul", normalise(graph, matrix_product(graph, linear, pooled)), scale)
    own = graph.add("Gather", pooled, graph.constant(module.channels().numpy()), axis=1)  # (B, M, Q / M)
    weight = array_of(linear.weight).reshape(module.members, -1, linear.in_features)
    matrices = graph.constant(np.ascontiguousarray(weight.transpose(0, 2, 1)), graph.name_of(linear))
    each = graph.add("MatMul", graph.add("Transpose", own, perm=[1, 0, 2]), matrices)  # (M, B, P / M)
    each = graph.add("Mul", normalise(graph, each), scale)
    return graph.reshape(graph.add("Transpose", each, perm=[1, 0, 2]), 0, module.size)


def _stacks(module: Pooling) -> int:
    return (1 + module.bidirectional) * module.members


def _last(graph: Graph, module: Pooling, states: str, padding: Padding) -> str:
    one = graph.constant(np.int64(1))
    length = graph.squeeze(graph.add("Shape", states, start=2, end=3), 0)
    places = graph.add("Range", one, graph.add("Add", length, one), one)
    lengths = graph.unsqueeze(graph.cast(padding.lengths, "int64"), 1)
    chosen = graph.cast(graph.add("Equal", places, lengths), "float32")  # (B, T)
    return graph.add("ReduceSum", graph.add("Mul", states, graph.unsqueeze(chosen, 2)), graph.ints(2))


def _mean(graph: Graph, module: Pooling, states: str, padding: Padding) -> str:
    total = graph.add("ReduceSum", graph.add("Mul", states, padding.mask), graph.ints(2))
    return graph.add("Div", total, graph.add("ReduceSum", padding.mask, graph.ints(1)))


def _max(graph: Graph, module: Pooling, states: str, padding: Padding) -> str:
    return graph.add("ReduceMax", _hidden(graph, states, padding), graph.ints(2))


def _attention(graph: Graph, module: Pooling, states: str, padding: Padding) -> str:
    assert module.attention is not None
    own = plain_linear(graph, module.attention)
    weight = graph.constant(array_of(own.weight).reshape(_stacks(module), 1, 1, module.width), "pooling.weight")
    said = graph.add("ReduceSum", graph.add("Mul", states, weight), graph.ints(-1), keepdims=0)  # (G, B, T)
    if module.bidirectional:  # a score is of a position in the text, so those of the way back are reversed
        by_text = graph.add("Transpose", said, perm=[1, 2, 0])
        ahead, back = graph.split(by_text, [module.members] * 2)
        by_text = graph.add("Add", ahead, _reversed(graph, back, padding))
    else:
        by_text = graph.add("Transpose", said, perm=[1, 2, 0])
    scores = graph.add("Add", by_text, graph.constant(array_of(own.bias), "pooling.bias"))  # (B, T, M)
    weights = graph.add("Softmax", _hidden(graph, scores, padding), axis=1)
    if module.bidirectional:
        weights = graph.add("Concat", weights, _reversed(graph, weights, padding), axis=-1)
    each = graph.unsqueeze(graph.add("Transpose", weights, perm=[2, 0, 1]), 3)
    return graph.add("ReduceSum", graph.add("Mul", states, each), graph.ints(2))


def _hidden(graph: Graph, x: str, padding: Padding) -> str:
    """Sets x (G, B, T, ...) to the lowest number at padding."""
    real = graph.cast(padding.mask, "bool")
    return graph.add("Where", real, x, graph.constant(LOWEST))


def _classified(graph: Graph, module: nn.Module, items: str, of_tokens: bool) -> str:
    """Applies the output layer to items (B, key_size), of tokens (B, T, key_size)."""
    return output_layer(graph, module, items) if of_tokens else matrix_product(graph, module, items)
