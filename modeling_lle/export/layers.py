"""The layers of LLE models as nodes of an ONNX graph; `stack` is what heads call.

Notable: lstm and gru are the operators of ONNX, which serve a step and a whole text at the same speed as kernels of
their own would; only the order of the gates differs from torch's. The qrnn is one product and a scan by doubling
(Hillis and Steele 1986), whose loop is not entered for a single step. Padding is at the end of each row.
Shapes: B batch, T time, D width, G gates.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ..backbone.recurrence import QRNN, GatedMLP, RecurrentLayer, RecurrentStack, ResidualLayer, TorchRecurrence
from ..kernels.linear import is_plain
from .errors import ExportError
from .graph import Graph, array_of

# Where torch's gates stand in the order of ONNX: input, output, forget, cell; update, reset, new.
ORDER = {4: (0, 3, 1, 2), 3: (1, 0, 2)}
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
        mask = graph.unsqueeze(graph.add("Cast", attention_mask, to=1), 2)
        total = graph.add("ReduceSum", attention_mask, graph.ints(1), keepdims=0)
        return cls(mask, graph.add("Cast", total, to=6))


# Maps without a state


def plain_linear(graph: Graph, module: nn.Module) -> nn.Linear:
    """Returns a linear module.

    Raises:
        ExportError: It is wrapped, quantised or hooked, so that its weights are not all of its function.
    """
    if not is_plain(module):
        raise ExportError(
            f"{graph.name_of(module)} is a {type(module).__name__} that was wrapped, quantised or hooked: merge what "
            "was added (PEFT: merge_and_unload), or load the model without it"
        )
    return cast(nn.Linear, module)


def embed(graph: Graph, module: nn.Module, ids: str) -> str:
    """Embeds ids (B, T) int64 as (B, T, D) float32."""
    if type(module) is not nn.Embedding:
        raise ExportError(f"{graph.name_of(module)} is a {type(module).__name__}: load the model without it")
    return graph.add("Gather", graph.weight(module.weight), ids)


def linear(graph: Graph, module: nn.Module, x: str) -> str:
    """Applies a linear module to x (B, T, I), as (B, T, O) float32."""
    own = plain_linear(graph, module)
    flat = graph.reshape(x, -1, own.in_features)
    bias = [] if own.bias is None else [graph.weight(own.bias)]
    product = graph.add("Gemm", flat, graph.weight(own.weight), *bias, transB=1)
    lengths = graph.add("Shape", x, start=0, end=2)
    return graph.add("Reshape", product, graph.add("Concat", lengths, graph.ints(own.out_features), axis=0))


def rms_norm(graph: Graph, module: nn.Module, x: str) -> str:
    """Applies an RMS norm to x (..., D), in the form that onnxruntime fuses into one operator."""
    if type(module) is not nn.RMSNorm:
        raise ExportError(f"{graph.name_of(module)} is a {type(module).__name__}: load the model without it")
    square = graph.add("Pow", x, graph.constant(np.float32(2)))
    mean = graph.add("ReduceMean", square, graph.ints(-1))
    root = graph.add("Sqrt", graph.add("Add", mean, graph.constant(np.float32(module.eps))))
    return graph.add("Mul", graph.add("Div", x, root), graph.weight(module.weight))


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
    from_input, from_state = plain_linear(graph, module.from_input), plain_linear(graph, module.from_state)
    name = graph.name_of(module)
    matrices = [
        graph.constant(_in_order(own.weight, module.gates)[None], f"{name}.{kind}.weight")
        for kind, own in (("from_input", from_input), ("from_state", from_state))
    ]
    biases = [_in_order(own.bias, module.gates) for own in (from_input, from_state)]
    bias = graph.constant(np.concatenate(biases)[None], f"{name}.bias")
    lengths = "" if padding is None else padding.lengths
    before = [graph.unsqueeze(part, 0) for part in state]
    given = [graph.add("Transpose", x, perm=[1, 0, 2]), *matrices, bias, lengths, *before]
    options = {"hidden_size": module.output_size, "direction": "reverse" if backwards else "forward"}
    if module.num_states == 2:
        y, *after = graph.add_several(3, "LSTM", *given, **options)
    else:
        y, *after = graph.add_several(2, "GRU", *given, linear_before_reset=1, **options)
    y = graph.add("Transpose", graph.squeeze(y, 1), perm=[1, 0, 2])
    return y, [graph.squeeze(part, 0) for part in after]


def _in_order(weight: Tensor, gates: int) -> NDArray[np.float32]:
    """Returns a matrix or bias (G H, ...) with its gates in the order of ONNX."""
    parts = np.split(array_of(weight), gates)
    return np.concatenate([parts[place] for place in ORDER[gates]])


def qrnn(
    graph: Graph, module: QRNN, x: str, state: Sequence[str], padding: Padding | None, backwards: bool
) -> tuple[str, list[str]]:
    """Runs a qrnn over x (B, T, I); arguments and results as of `lstm_or_gru`."""
    if padding is not None and backwards:
        x = graph.add("Mul", x, padding.mask)  # the step before a row's last token, read from its end, is zero
    if state:
        last = graph.unsqueeze(state[0], 1)
    else:
        step = graph.add("Slice", x, graph.ints(0), graph.ints(1), graph.ints(1))
        last = graph.add("Mul", step, graph.constant(np.float32(0)))
    around = graph.add("Concat", *((x, last) if backwards else (last, x)), axis=1)
    if backwards:
        others = graph.add("Slice", around, graph.ints(1), graph.ints(END), graph.ints(1))
    else:
        others = graph.add("Slice", around, graph.ints(0), graph.ints(-1), graph.ints(1))
    gates = linear(graph, module.gates, graph.add("Concat", others, x, axis=-1))
    mask = padding.mask if padding is not None else None
    y, c = gated_scan(graph, gates, module.output_size, state[1] if state else None, mask, backwards)
    place = graph.constant(np.int64(0 if backwards else -1))
    return y, [graph.add("Gather", around, place, axis=1), graph.add("Gather", c, place, axis=1)]


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
        h and c, (..., T, D).
    """
    z, f, o = graph.split(gates, [size] * 3)
    f = graph.add("Sigmoid", f)
    update = graph.add("Mul", graph.add("Sub", graph.constant(np.float32(1)), f), graph.add("Tanh", z))
    if mask is not None:
        update = graph.add("Mul", update, mask)
    kept, c = _doubled(graph, f, update, backwards)
    if state is not None:
        c = graph.add("Add", c, graph.add("Mul", kept, graph.unsqueeze(state, -2)))
    return graph.add("Mul", graph.add("Sigmoid", o), c), c


def _doubled(graph: Graph, factors: str, terms: str, backwards: bool) -> tuple[str, str]:
    """Returns all a_t = f_t a_{t-1} and c_t = f_t c_{t-1} + x_t, (..., T, D), from a = 1 and c = 0 on.

    In turn, each position joins what the position 1, 2, 4, ... steps before it has gathered.
    """
    length = graph.length(terms, -2)
    body = graph.body()
    body.input(body.fresh("turn"), "int64", [])
    body.input(body.fresh("again"), "bool", [])
    shift = body.input(body.fresh("shift"), "int64", [1])
    f, x = (body.input(body.fresh(hint), "float32", None) for hint in ("factors", "terms"))
    axis, zero = body.ints(-2), body.ints(0)
    if backwards:
        before = [body.add("Slice", part, shift, body.ints(END), axis) for part in (f, x)]
        pads = body.add("Concat", zero, shift, axis=0)
    else:
        stop = body.add("Neg", shift)
        before = [body.add("Slice", part, zero, stop, axis) for part in (f, x)]
        pads = body.add("Concat", shift, zero, axis=0)
    neutral = (body.constant(np.float32(1)), body.constant(np.float32(0)))
    f_before, x_before = (body.add("Pad", part, pads, own, axis) for part, own in zip(before, neutral, strict=True))
    x_new = body.add("Add", x, body.add("Mul", f, x_before))
    f_new = body.add("Mul", f, f_before)
    shift_new = body.add("Add", shift, shift)
    body.output(body.squeeze(body.add("Less", shift_new, length), 0), "bool", [])
    body.output(shift_new, "int64", [1])
    body.output(f_new, "float32", None)
    body.output(x_new, "float32", None)
    first = graph.ints(1)
    several = graph.squeeze(graph.add("Less", first, length), 0)
    _, kept, c = graph.add_several(3, "Loop", "", several, first, factors, terms, body=body.proto())
    return kept, c


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
