"""Numba kernel of the product of a matrix with a few vectors, which reads the matrix once; imported on first use.

Notable: such a product takes as long as its matrix takes to be read. MKL and oneDNN reach half of that on an AMD
processor, and less than a third with two to eight vectors. Weights in bfloat16 are widened as they are read, so they
take half of the time. The fallback is torch's (kernels/linear.py). Shapes: R rows, I input width, O output width.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.checks import expect, sizes
from .numba_tools import as_array, jit_sums, load, run


@jit_sums()
def _products(weight: Any, bias: Any, y: Any, x: Any) -> None:
    for o in range(len(weight)):
        row, own = weight[o], y[o]
        for r in range(len(x)):
            values, total = x[r], np.float32(0.0)
            for i in range(len(values)):
                total += load(row[i]) * values[i]
            own[r] = total + load(bias[o])


def products(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes x W^T + b, summed in float32, as (R, O) in the dtype of `x`.

    Args:
        x: (R, I), float32 or bfloat16.
        weight: (O, I), float32 or bfloat16.
        bias: (O,), float32 or bfloat16; None for none.
    """
    (R, I), (O, _) = sizes(x, "x (R, I)", 2), sizes(weight, "weight (O, I)", 2)  # noqa: E741
    expect(x, "x (R, I)", (R, I), torch.float32, torch.bfloat16)
    expect(weight, "weight (O, I)", (O, I), torch.float32, torch.bfloat16)
    bias = torch.zeros(O) if bias is None else bias
    expect(bias, "bias (O,)", (O,), torch.float32, torch.bfloat16)
    y, shared = torch.empty(O, R), (as_array(x.float().contiguous()),)
    run(lambda *parts, shared=shared: _products(*parts, *shared), weight.contiguous(), bias.contiguous(), y)
    return (y.view(1, O) if R == 1 else y.t().contiguous()).to(x.dtype)
