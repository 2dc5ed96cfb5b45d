"""Weights in int8, and the nodes that multiply with them.

Notable: inputs are quantised at run time to 8 bits, one scale a call, and rows of weights to 7 (MatMulInteger, and
DynamicQuantizeLSTM, which onnxruntime has for whole layers). A processor without VNNI adds pairs of products in 16
bits, which two numbers of 8 bits overflow, so 7 bits are nearer to the model than 8. Products of blocks with a scale
each (MatMulNBits) are no nearer, and slower on whole texts. A GRU, which has no such operator, is a Scan.
Shapes: I and O widths of input and output.
"""

import numpy as np
from numpy.typing import NDArray

from .graph import Graph

MOST = 63  # largest weight: two products of it and an input of 8 bits fit into 16 bits
Floats = NDArray[np.float32]


def by_rows(weight: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Quantises each row of a matrix (..., O, I): int8 values (..., O, I) and scales (..., O)."""
    largest = np.abs(weight).max(axis=-1)
    scales = np.where(largest > 0, largest / MOST, 1).astype(np.float32)
    return np.rint(weight / scales[..., None]).astype(np.int8), scales


def product(graph: Graph, x: str, weight: Floats, name: str, bias: str | None = None, shared: bool = False) -> str:
    """Multiplies x (..., I) with a matrix (O, I) of this name in int8, as (..., O) float32.

    A `shared` matrix is stored as it is, for `rows` as well; onnxruntime transposes it when it loads the graph.
    """
    values, scale, zero = graph.add_several(3, "DynamicQuantizeLinear", x)
    y = _multiplied(graph, values, scale, zero, weight, name, shared)
    return y if bias is None else graph.add("Add", y, bias)


def products(graph: Graph, x: str, weights: Floats, name: str, biases: str) -> str:
    """Multiplies each part of x (n, ..., I) with its matrix of (n, O, I), in int8, as (n, ..., O) float32.

    They are quantised together, and multiplied one by one, since onnxruntime packs single matrices when it loads them.
    """
    values, scale, zero = graph.add_several(3, "DynamicQuantizeLinear", x)
    parts = graph.split(values, [1] * len(weights), axis=0)
    each = [
        _multiplied(graph, part, scale, zero, weight, f"{name}.{number}")
        for number, (part, weight) in enumerate(zip(parts, weights, strict=True))
    ]
    return graph.add("Add", graph.add("Concat", *each, axis=0), biases)


def _multiplied(
    graph: Graph, values: str, scale: str, zero: str, weight: Floats, name: str, shared: bool = False
) -> str:
    """The product of quantised values with a matrix (O, I), as float32."""
    rounded, scales = by_rows(weight)
    if shared:
        matrix = graph.add("Transpose", graph.constant(rounded, f"{name}.int8"), perm=[1, 0])
    else:
        matrix = graph.constant(np.ascontiguousarray(rounded.T), f"{name}.int8")
    counted = graph.cast(graph.add("MatMulInteger", values, matrix, zero), "float32")
    return graph.add("Mul", counted, graph.add("Mul", scale, graph.constant(scales, f"{name}.scales")))


def rows(graph: Graph, ids: str, weight: Floats, name: str) -> str:
    """Looks up rows of a matrix (O, I) of this name in int8: ids (B, T) int64 to (B, T, I) float32."""
    values, scales = by_rows(weight)
    found = graph.cast(graph.add("Gather", graph.constant(values, f"{name}.int8"), ids), "float32")
    scale = graph.add("Gather", graph.constant(scales, f"{name}.scales"), ids)
    return graph.add("Mul", found, graph.unsqueeze(scale, -1))
