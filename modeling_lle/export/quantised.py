"""Weights in int8, and the nodes that multiply with them; the form of each product was chosen by time and error.

Notable: recurrences and inner products quantise their input at run time, one scale a call (MatMulInteger, and
DynamicQuantizeLSTM, which onnxruntime has for whole layers), with 7 bits for weights: a processor without VNNI adds
pairs of products in 16 bits, which 8 would overflow. The output layer takes blocks of weights and of its input with a
scale each (MatMulNBits): a third of the error in what becomes probabilities. At a width of 512, on one AVX2 core, ms a
row and relative error: an output layer of 10,000 in float32 1.8, as MatMulInteger 0.19 (0.031), in blocks 0.29
(0.010); an LSTM layer in float32 0.37, in int8 0.13 (0.018), with blocks 0.18 (0.011) but then three times as slow on
whole texts; a GRU layer in float32 0.34, in int8 0.11 (0.018).
Shapes: I and O widths of input and output, K blocks of a row.
"""

import numpy as np
from numpy.typing import NDArray

from .graph import MICROSOFT, Graph

MOST = 63  # largest weight in MatMulInteger: two products of it and an input of 8 bits fit into 16 bits
MOST_IN_BLOCK = 127
ZERO = 128  # what 0 is stored as in a block
BLOCK = 128  # weights of a row that share a scale
Floats = NDArray[np.float32]


def by_rows(weight: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Quantises each row of a matrix (..., O, I): int8 values (..., O, I) and scales (..., O)."""
    scales = _scales(weight, MOST)
    return np.rint(weight / scales[..., None]).astype(np.int8), scales


def _scales(weight: Floats, most: int) -> Floats:
    largest = np.abs(weight).max(axis=-1)
    return np.where(largest > 0, largest / most, 1).astype(np.float32)


def product(graph: Graph, x: str, weight: Floats, name: str, bias: str | None = None) -> str:
    """Multiplies x (..., I) with a matrix (O, I) of this name in int8, as (..., O) float32.

    Several matrices (..., O, I) multiply parts of x (..., n, I) each.
    """
    values, scales = by_rows(weight)
    scales = scales if weight.ndim == 2 else scales[..., None, :]
    x_values, x_scale, x_zero = graph.add_several(3, "DynamicQuantizeLinear", x)
    matrix = graph.constant(np.ascontiguousarray(values.swapaxes(-1, -2)), f"{name}.int8")
    counted = graph.cast(graph.add("MatMulInteger", x_values, matrix, x_zero), "float32")
    y = graph.add("Mul", counted, graph.add("Mul", x_scale, graph.constant(scales, f"{name}.scales")))
    return y if bias is None else graph.add("Add", y, bias)


def blocks(graph: Graph, weight: Floats, name: str) -> tuple[str, str]:
    """Stores a matrix (O, I) in blocks: values (O, K, BLOCK) uint8, `ZERO` for 0, and scales (O K,) float32."""
    padded = np.pad(weight, ((0, 0), (0, -weight.shape[1] % BLOCK)))
    cut = padded.reshape(len(weight), -1, BLOCK)
    scales = _scales(cut, MOST_IN_BLOCK)
    values = (np.rint(cut / scales[..., None]) + ZERO).astype(np.uint8)
    return graph.constant(values, f"{name}.blocks"), graph.constant(scales.reshape(-1), f"{name}.scales_of_blocks")


def product_of_blocks(graph: Graph, x: str, weight: Floats, name: str, bias: str | None = None) -> str:
    """Multiplies x (..., I) with a matrix (O, I) of this name in blocks of int8, as (..., O) float32."""
    given = [x, *blocks(graph, weight, name), *(["", "", bias] if bias else [])]
    O, I = weight.shape  # noqa: E741
    options = {"K": I, "N": O, "bits": 8, "block_size": BLOCK, "accuracy_level": 4}
    return graph.add("MatMulNBits", *given, domain=MICROSOFT, **options)


def rows_of_blocks(graph: Graph, ids: str, weight: Floats, name: str) -> str:
    """Looks up rows of a matrix (O, I) that is stored in blocks: ids (B, T) int64 to (B, T, I) float32."""
    values, scales = blocks(graph, weight, name)
    O, I = weight.shape  # noqa: E741
    found = graph.cast(graph.add("Gather", values, ids), "float32")
    scale = graph.add("Gather", graph.reshape(scales, O, -1, 1), ids)
    centred = graph.add("Sub", found, graph.constant(np.float32(ZERO)))
    rows = graph.reshape(graph.add("Mul", centred, scale), 0, 0, -1)
    return rows if I % BLOCK == 0 else graph.add("Slice", rows, graph.ints(0), graph.ints(I), graph.ints(-1))
