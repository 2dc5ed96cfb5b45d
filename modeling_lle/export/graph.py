"""Graph: writes an ONNX graph node by node, with weights by the names that they have in the model.

Notable: the graph is then as small and as fast as it can be, and the same with every version of torch. Bodies of loops
are graphs too, which read values and weights of the graph around them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from ..common.temporary import replacing
from .errors import ExportError

OPSET = 18  # of the standard operators: the oldest one with all that the graphs need
IR_VERSION = 8  # of the file format, of the same age
MICROSOFT = "com.microsoft"  # operators that only onnxruntime has
MOST_BYTES = 2**31 - 2**20  # a protocol buffer holds less than 2 GiB
TYPES = {
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "bool": TensorProto.BOOL,
}

Shape = Sequence[int | str]


class Graph:
    """An ONNX graph that is being written.

    Args:
        model: The model whose weights it holds.
        int8: Whether linear maps and recurrences are written with weights in int8 (layers.py).
        outside: The graph around this one, which is the body of a loop; None for the whole graph.

    Attributes:
        int8: As given.
    """

    def __init__(self, model: nn.Module, int8: bool = False, outside: "Graph | None" = None) -> None:
        self.model, self.int8, self._outside = model, int8, outside
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._count = 0
        self._names: dict[int, str] = {}
        if outside is None:
            for name, module in model.named_modules():
                self._names.setdefault(id(module), name)
            for name, parameter in model.named_parameters():
                self._names.setdefault(id(parameter), name)

    @property
    def _whole(self) -> "Graph":
        return self if self._outside is None else self._outside._whole

    def body(self) -> "Graph":
        """Returns a graph for the body of a loop."""
        return Graph(self.model, self.int8, self)

    def name_of(self, part: nn.Module | Tensor) -> str:
        """Returns the name that a module or a parameter has in the model."""
        return self._whole._names[id(part)]

    def fresh(self, hint: str) -> str:
        """Returns a name that no other value has."""
        self._whole._count += 1
        return f"{hint}_{self._whole._count}"

    def input(self, name: str, dtype: str, shape: Shape | None) -> str:
        """Declares an input and returns its name; a string in `shape` names a length that is free."""
        self._inputs.append(helper.make_tensor_value_info(name, TYPES[dtype], shape))
        return name

    def output(self, value: str, dtype: str, shape: Shape | None, name: str | None = None) -> None:
        """Declares a value as an output; under another name if one is given."""
        if name is not None:
            self._nodes.append(helper.make_node("Identity", [value], [name], name=name))
            value = name
        self._outputs.append(helper.make_tensor_value_info(value, TYPES[dtype], shape))

    def add(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Adds a node with one output and returns the name of that; "" stands for an input that is left out."""
        return self.add_several(1, operator, *inputs, domain=domain, **attributes)[0]

    def add_several(self, outputs: int, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> list[str]:
        """Adds a node with so many outputs and returns their names."""
        name = self.fresh(operator)
        names = [name, *(f"{name}.{place}" for place in range(1, outputs))]
        self._nodes.append(helper.make_node(operator, inputs, names, name=name, domain=domain, **attributes))
        return names

    def constant(self, value: ArrayLike, name: str | None = None) -> str:
        """Returns the name of a constant, which is stored once; without a name, equal small ones are stored once."""
        array = np.asarray(value, order="C")
        if name is None:
            name = f"{array.dtype}_{'x'.join(map(str, array.shape))}_{array.tobytes().hex()}"
        constants = self._whole._constants
        if name not in constants:
            constants[name] = numpy_helper.from_array(array, name)
        return name

    def ints(self, *values: int) -> str:
        """Returns the name of a constant of integers, (n,) int64."""
        return self.constant(np.array(values, dtype=np.int64))

    def weight(self, parameter: Tensor) -> str:
        """Returns the name of a parameter of the model, which is stored once, as it is."""
        return self.constant(array_of(parameter), self.name_of(parameter))

    def cast(self, x: str, dtype: str) -> str:
        """Converts a value to another type."""
        return self.add("Cast", x, to=TYPES[dtype])

    def reshape(self, x: str, *shape: int) -> str:
        """Reshapes a value; -1 is inferred, 0 keeps the length of that axis."""
        return self.add("Reshape", x, self.ints(*shape))

    def squeeze(self, x: str, axis: int) -> str:
        """Removes an axis of the length 1."""
        return self.add("Squeeze", x, self.ints(axis))

    def unsqueeze(self, x: str, axis: int) -> str:
        """Adds an axis of the length 1."""
        return self.add("Unsqueeze", x, self.ints(axis))

    def split(self, x: str, sizes: Sequence[int], axis: int = -1) -> list[str]:
        """Cuts a value into parts of these lengths."""
        return self.add_several(len(sizes), "Split", x, self.ints(*sizes), axis=axis)

    def proto(self) -> onnx.GraphProto:
        """Returns what was written so far."""
        name = "body" if self._outside else type(self.model).__name__
        constants = list(self._constants.values())
        return helper.make_graph(self._nodes, name, self._inputs, self._outputs, constants)

    def save(self, path: Path) -> None:
        """Checks the whole graph and writes it to a file.

        Raises:
            ExportError: It is too large for one file, or no valid graph.
        """
        if sum(len(constant.raw_data) for constant in self._constants.values()) > MOST_BYTES:
            raise ExportError(
                f"the weights of {path.name} are larger than 2 GiB, which one ONNX file cannot hold: export a smaller "
                "model, or serve this one with torch"
            )
        opsets = [helper.make_opsetid("", OPSET)]
        if any(node.domain == MICROSOFT for node in self._nodes):
            opsets.append(helper.make_opsetid(MICROSOFT, 1))
        model = helper.make_model(
            self.proto(), opset_imports=opsets, ir_version=IR_VERSION, producer_name="modeling_lle"
        )
        onnx.checker.check_model(model)
        with replacing(path) as partial:
            partial.write_bytes(model.SerializeToString())


def array_of(parameter: Tensor) -> NDArray[Any]:
    """Returns a parameter as an array of numpy."""
    return parameter.detach().cpu().numpy()
