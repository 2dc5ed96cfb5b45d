"""The layers of LLE models as nodes of an ONNX graph; `stack` is what heads call.

Notable: lstm and gru are the operators of ONNX, which run a step as fast as single operators would, and whole texts
faster; only the order of the gates differs from torch's. The qrnn is one product and the operator Scan; doubling
(Hillis and Steele 1986) is faster for a single step, but slower on texts. Padding is at the end of each row.
Shapes: B batch, T time, D width, G gates.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from ..backbone.recurrence import QRNN, GatedMLP, RecurrentLayer, RecurrentStack, ResidualLayer, TorchRecurrence
from ..kernels.linear import is_plain
from .errors import ExportError
from .graph import MICROSOFT, Graph, array_of
from .quantised import by_rows, product, rows

# Where torch's gates stand in the order of ONNX: input, output, forget, cell; update, reset, new.
ORDER = {4: (0, 3, 1, 2), 3: (1, 0, 2)}
LOWEST = np.float32(np.finfo(np.float32).min)  # of what is left out of a maximum or a softmax
END = np.iinfo(np.int64).max  # of a slice that goes to the end
After = Callable[[int, str], str]


@dataclass(frozen=True)
class Padding:
    """Where the rows of a batch end.

    Attributes:
        mask: (B, T, 1) float32, 1 at tokens, 0 at padding, which follows them.
        lengths: (B,) int32, tokens of each row.
    """

    mask: str
    lengths: str

    @classmethod
    def of(cls, graph: Graph, attention_mask: str) -> "Padding":
        """Makes it from a mask (B, T) int64 of 0 and 1."""
        mask = graph.unsqueeze(graph.cast(attention_mask, "float32"), 2)
        total = graph.add("ReduceSum", attention_mask, graph.ints(1), keepdims=0)
        return cls(mask, graph.cast(total, "int32"))


# Maps without a state


def plain_linear(graph: Graph, module: nn.Module) -> nn.Linear:
    """Returns a linear module.

    Raises:
        ExportError: It is wrapped, quantised or hooked, so that its weights are not all of its function.
    """
    if not is_plain(module):
        raise ExportError(
            f"{graph.name_of(module)}, of the type {type(module).__name__}, was wrapped, quantised or hooked: merge "
            "what was added (PEFT: merge_and_unload), or load the model without it"
        )
    return cast(nn.Linear, module)


def embed(graph: Graph, module: nn.Module, ids: str) -> str:
    """Embeds ids (B, T) int64 as (B, T, D) float32."""
    if type(module) is not nn.Embedding:
        raise ExportError(f"{graph.name_of(module)} is a {type(module).__name__}: load the model without it")
    if graph.int8:
        return rows(graph, ids, array_of(module.weight), graph.name_of(module.weight))
    return graph.add("Gather", graph.weight(module.weight), ids)


def matrix_product(graph: Graph, module: nn.Module, x: str) -> str:
    """Applies a linear module to rows x (B, I), as (B, O) float32."""
    own = plain_linear(graph, module)
    bias = None if own.bias is None else graph.weight(own.bias)
    if graph.int8:
        return product(graph, x, array_of(own.weight), graph.name_of(own.weight), bias)
    return graph.add("Gemm", x, graph.weight(own.weight), bias or "", transB=1)


def linear(graph: Graph, module: nn.Module, x: str) -> str:
    """Applies a linear module to x (B, T, I), as (B, T, O) float32."""
    own = plain_linear(graph, module)
    if graph.int8:
        return matrix_product(graph, module, x)  # its operator takes any shape
    y = matrix_product(graph, module, graph.reshape(x, -1, own.in_features))
    lengths = graph.add("Shape", x, start=0, end=2)
    return graph.add("Reshape", y, graph.add("Concat", lengths, graph.ints(own.out_features), axis=0))


def output_layer(graph: Graph, module: nn.Module, x: str) -> str:
    """Applies the output layer, as `linear`; its matrix may be the embedding's, and is then stored once."""
    own = plain_linear(graph, module)
    if not graph.int8:
        return linear(graph, own, x)
    bias = None if own.bias is None else graph.weight(own.bias)
    return product(graph, x, array_of(own.weight), graph.name_of(own.weight), bias, shared=True)


def rms_norm(graph: Graph, module: nn.Module, x: str) -> str:
    """Applies an RMS norm to x (..., D), in the form that onnxruntime fuses into one operator."""
    if type(module) is not nn.RMSNorm:
        raise ExportError(f"{graph.name_of(module)} is a {type(module).__name__}: load the model without it")
    return scaled(graph, x, module.eps, graph.weight(module.weight))


def scaled(graph: Graph, x: str, eps: float | None, weight: str) -> str:
    """Divides x (..., D) by its root mean square and multiplies it with a weight (D,)."""
    square = graph.add("Pow", x, graph.constant(np.float32(2)))
    mean = graph.add("ReduceMean", square, graph.ints(-1))
    root = graph.add("Sqrt", graph.add("Add", mean, graph.constant(np.float32(eps))))
    return graph.add("Mul", graph.add("Div", x, root), weight)


def gated_mlp(graph: Graph, module: GatedMLP, x: str) -> str:
    """Applies a `GatedMLP` to x (B, T, D)."""
    both = linear(graph, module.gate_up, x)
    size = plain_linear(graph, module.gate_up).out_features // 2
    gate, up = graph.split(both, [size, size])
    inner = graph.add("Mul", graph.add("Mul", gate, graph.add("Sigmoid", gate)), up)
    return linear(graph, module.down, inner)


def normalise(graph: Graph, x: str) -> str:
    """Scales x (..., D) to the length 1: keys and queries."""
    return graph.add("LpNormalization", x, axis=-1, p=2)


def last_positions(graph: Graph, x: str, count: str) -> str:
    """Returns the last `count` positions of x (B, T, D), all if it is 0; count is a scalar int64."""
    start = graph.reshape(graph.add("Neg", count), 1)
    return graph.add("Slice", x, start, graph.ints(END), graph.ints(1))


# Recurrences


def lstm_or_gru(
    graph: Graph, module: TorchRecurrence, x: str, state: Sequence[str], padding: Padding | None, backwards: bool
) -> tuple[str, list[str]]:
    """Runs a recurrence of torch over x (B, T, I): y (B, T, H) and the new state, (B, H) each.

    Args:
        graph: The graph.
        module: The recurrence.
        x: Its input.
        state: Before the first step, (B, H) each; empty for zeros.
        padding: Where the rows end; None: there is no padding.
        backwards: Whether to read each row from its end.
    """
    if graph.int8 and module.num_states == 1:
        return _gru_in_int8(graph, module, x, state, padding, backwards)
    y, after = _operator(graph, [module], "reverse" if backwards else "forward", x, state, padding)
    y = graph.add("Transpose", graph.squeeze(y, 1), perm=[1, 0, 2])
    return y, [graph.squeeze(part, 0) for part in after]


def both_ways(graph: Graph, ahead: TorchRecurrence, back: TorchRecurrence, x: str, padding: Padding) -> str:
    """Runs one recurrence over x (B, T, I) and another from the ends of its rows, as one operator: (2, B, T, H)."""
    y, _ = _operator(graph, [ahead, back], "bidirectional", x, (), padding)
    return graph.add("Transpose", y, perm=[1, 2, 0, 3])


def _operator(
    graph: Graph,
    modules: Sequence[TorchRecurrence],
    direction: str,
    x: str,
    state: Sequence[str],
    padding: Padding | None,
) -> tuple[str, list[str]]:
    """Runs recurrences of torch, one for each of G directions, over x (B, T, I).

    Returns:
        y (T, G, B, H), 0 at padding, and the new state, (G, B, H) each.
    """
    linears = [[plain_linear(graph, own) for own in (module.from_input, module.from_state)] for module in modules]
    name = graph.name_of(modules[0])
    kind, gates = modules[0].num_states, modules[0].gates
    names = [f"{name}.{own}.weight" for own in ("from_input", "from_state")]
    matrices = [np.stack([_in_order(own.weight, gates) for own in part]) for part in zip(*linears, strict=True)]
    biases = [np.concatenate([_in_order(own.bias, gates) for own in part]) for part in linears]
    bias = graph.constant(np.stack(biases), f"{name}.bias")
    lengths = "" if padding is None else padding.lengths
    before = [graph.unsqueeze(part, 0) for part in state]
    by_time = graph.add("Transpose", x, perm=[1, 0, 2])
    options: dict[str, Any] = {"hidden_size": modules[0].output_size, "direction": direction}
    if graph.int8:
        values, scales = zip(*map(by_rows, matrices), strict=True)
        stored = [
            graph.constant(np.ascontiguousarray(own.transpose(0, 2, 1)), f"{key}.int8")
            for own, key in zip(values, names, strict=True)
        ]
        factors = [graph.constant(own, f"{key}.scales") for own, key in zip(scales, names, strict=True)]
        zero = graph.constant(np.zeros(scales[0].shape, np.int8))
        given = [by_time, *stored, bias, lengths, *(before or ["", ""]), "", factors[0], zero, factors[1], zero]
        y, *after = graph.add_several(3, "DynamicQuantizeLSTM", *given, domain=MICROSOFT, **options)
        return y, after
    stored = [graph.constant(own, key) for own, key in zip(matrices, names, strict=True)]
    given = [by_time, *stored, bias, lengths, *before]
    if kind == 1:
        y, *after = graph.add_several(2, "GRU", *given, linear_before_reset=1, **options)
    else:
        y, *after = graph.add_several(3, "LSTM", *given, **options)
    return y, after


def _in_order(weight: Tensor, gates: int) -> NDArray[np.float32]:
    """Returns a matrix or bias (G H, ...) with its gates in the order of ONNX."""
    parts = np.split(array_of(weight), gates)
    return np.concatenate([parts[place] for place in ORDER[gates]])


def _gru_in_int8(
    graph: Graph, module: TorchRecurrence, x: str, state: Sequence[str], padding: Padding | None, backwards: bool
) -> tuple[str, list[str]]:
    """Runs a GRU, for which onnxruntime has no operator in int8; arguments and results as of `lstm_or_gru`."""
    name, size = graph.name_of(module), module.output_size
    linears = [plain_linear(graph, own) for own in (module.from_input, module.from_state)]
    matrices = [_in_order(own.weight, module.gates) for own in linears]
    biases = [_in_order(own.bias, module.gates) for own in linears]
    of_input = product(graph, x, matrices[0], f"{name}.from_input.weight", graph.constant(biases[0]))
    body = graph.body()
    h, products = body.input(body.fresh("h"), "float32", None), body.input(body.fresh("products"), "float32", None)
    of_state = product(body, h, matrices[1], f"{name}.from_state.weight", body.constant(biases[1]))
    (open_x, new_x), (open_h, new_h) = (body.split(part, [2 * size, size]) for part in (products, of_state))
    update, reset = body.split(body.add("Sigmoid", body.add("Add", open_x, open_h)), [size, size])
    new = body.add("Tanh", body.add("Add", new_x, body.add("Mul", reset, new_h)))
    after = body.add("Add", new, body.add("Mul", update, body.add("Sub", h, new)))
    scanned = [of_input]
    if padding is not None and backwards:  # so that the state is zero where the text begins, read from its end
        after = body.add("Mul", after, body.input(body.fresh("mask"), "float32", None))
        scanned.append(padding.mask)
    before = state[0] if state else zeros(graph, x, size)
    last, y = scan(graph, body, [before], [after], scanned, after, backwards)
    return y, [last]


def qrnn(
    graph: Graph, module: QRNN, x: str, state: Sequence[str], padding: Padding | None, backwards: bool
) -> tuple[str, list[str]]:
    """Runs a qrnn over x (B, T, I); arguments and results as of `lstm_or_gru`."""
    if padding is not None and backwards:
        x = graph.add("Mul", x, padding.mask)  # the step before a row's last token, read from its end, is zero
    last = graph.unsqueeze(state[0] if state else zeros(graph, x, module.input_size), 1)
    around = graph.add("Concat", *((x, last) if backwards else (last, x)), axis=1)
    if backwards:
        others = graph.add("Slice", around, graph.ints(1), graph.ints(END), graph.ints(1))
    else:
        others = graph.add("Slice", around, graph.ints(0), graph.ints(-1), graph.ints(1))
    gates = linear(graph, module.gates, graph.add("Concat", others, x, axis=-1))
    mask = padding.mask if padding is not None else None
    y, c = gated_scan(graph, gates, module.output_size, state[1] if state else None, mask, backwards)
    place = graph.constant(np.int64(0 if backwards else -1))
    return y, [graph.add("Gather", around, place, axis=1), c]


def gated_scan(
    graph: Graph,
    gates: str,
    size: int,
    state: str | None = None,
    mask: str | None = None,
    backwards: bool = False,
) -> tuple[str, str]:
    """Computes c_t = f_t c_{t-1} + (1 - f_t) z_t and h_t = o_t c_t over the last axis but one (kernels/scan.py).

    Args:
        graph: The graph.
        gates: (..., T, 3 D) float32, pre-activations of z, f and o.
        size: D.
        state: c before the first step, (..., D); None for zeros.
        mask: (..., T, 1) float32, 0 at padding, where c is 0 if it lies before the text, else undefined; or None.
        backwards: Whether to run from the end.

    Returns:
        h (..., T, D), and c after the last step (..., D), undefined with padding.
    """
    z, f, o = graph.split(gates, [size] * 3)
    f = graph.add("Sigmoid", f)
    terms = graph.add("Mul", graph.add("Sub", graph.constant(np.float32(1)), f), graph.add("Tanh", z))
    if mask is not None:
        terms = graph.add("Mul", terms, mask)
    before = zeros(graph, gates, size) if state is None else state
    body = graph.body()
    c, factor, term = (body.input(body.fresh(hint), "float32", None) for hint in ("c", "factor", "term"))
    after = body.add("Add", body.add("Mul", factor, c), term)
    last, each = scan(graph, body, [before], [after], [f, terms], after, backwards)
    return graph.add("Mul", graph.add("Sigmoid", o), each), last


def scan(
    graph: Graph,
    body: Graph,
    before: Sequence[str],
    after: Sequence[str],
    inputs: Sequence[str],
    y: str,
    backwards: bool,
) -> list[str]:
    """Runs a body over the last axis but one of inputs (..., T, D).

    Args:
        graph: The graph.
        body: One step; its inputs are the parts of the state (..., D), then a step of each of `inputs`.
        before: The state before the first step.
        after: The names of the state after a step, in the body.
        inputs: What is run over.
        y: The name of the output of a step (..., D), in the body.
        backwards: Whether to run from the end.

    Returns:
        The state after the last step, and the outputs (..., T, D).
    """
    for part in after:
        body.output(part, "float32", None)
    body.output(y, "float32", None, body.fresh("each"))
    options: dict[str, Any] = {
        "num_scan_inputs": len(inputs),
        "scan_input_axes": [-2] * len(inputs),
        "scan_output_axes": [-2],
        "scan_input_directions": [int(backwards)] * len(inputs),
        "scan_output_directions": [int(backwards)],
    }
    return graph.add_several(len(before) + 1, "Scan", *before, *inputs, body=body.proto(), **options)


def zeros(graph: Graph, like: str, size: int) -> str:
    """Returns zeros (..., size) float32 for a value (..., T, D)."""
    rows = graph.add("Shape", like, start=0, end=-2)
    shape = graph.add("Concat", rows, graph.ints(size), axis=0)
    return graph.add("ConstantOfShape", shape, value=numpy_helper.from_array(np.zeros(1, np.float32)))


# Stacks


def layer(
    graph: Graph, module: RecurrentLayer, x: str, state: Sequence[str], padding: Padding | None, backwards: bool
) -> tuple[str, list[str]]:
    """Runs a layer of a plain or a residual stack; arguments and results as of `lstm_or_gru`."""
    mixer = module.mixer
    residual = isinstance(module, ResidualLayer)
    own = rms_norm(graph, module.mixer_norm, x) if isinstance(module, ResidualLayer) else x
    run = qrnn if isinstance(mixer, QRNN) else lstm_or_gru
    y, new = run(graph, mixer, own, state, padding, backwards)  # type: ignore[arg-type]
    if not residual:
        return y, new
    x = graph.add("Add", x, y)
    if isinstance(module, ResidualLayer) and module.mlp is not None:
        x = graph.add("Add", x, gated_mlp(graph, module.mlp, rms_norm(graph, module.mlp_norm, x)))
    return x, new


def stack(
    graph: Graph,
    module: RecurrentStack,
    x: str,
    state: Sequence[str] = (),
    padding: Padding | None = None,
    backwards: bool = False,
    after: After | None = None,
) -> tuple[str, list[str]]:
    """Runs a stack over x (B, T, D).

    Args:
        graph: The graph.
        module: The stack.
        x: Its input.
        state: The state before the first step as a flat list, (B, width) each; empty for zeros.
        padding: Where the rows end; None: there is no padding.
        backwards: Whether to read each row from its end; the outputs stay at the positions of their inputs.
        after: Maps the number of a layer and its output to the input of the next one, as `after` of `RecurrentStack`.

    Returns:
        y (B, T, D), undefined at padding, and the new state like the old one, undefined with padding.
    """
    new: list[str] = []
    for index, own in enumerate(cast(Iterable[RecurrentLayer], module.layers)):
        before = state[len(new) :][: own.mixer.num_states]
        x, after_layer = layer(graph, own, x, before, padding, backwards)
        new += after_layer
        x = x if after is None else after(index, x)
    return (rms_norm(graph, module.norm, x) if isinstance(module.norm, nn.RMSNorm) else x), new


def state_sizes(module: RecurrentStack) -> list[int]:
    """Returns the widths of the tensors of a stack's state, in their order."""
    sizes: list[int] = []
    for own in cast(Iterable[RecurrentLayer], module.layers):
        mixer = own.mixer
        both = (mixer.input_size, mixer.output_size) if isinstance(mixer, QRNN) else None
        sizes += both or [mixer.output_size] * mixer.num_states
    return sizes
