"""The recurrent layers and their stack: `(x, state, mask) -> (y, state)`, and nobody else knows what a state holds.

Notable: lstm and gru are torch.nn's, so oneDNN and cuDNN do the work; qrnn is one matrix product over all time steps
and a fused scan. A state is a flat tuple of tensors with the batch in dim 0. Padding may lie anywhere: each row's
valid steps are moved to its front, run with their lengths, and moved back, so a padded batch gives what its rows give
alone. Regularisation follows AWD-LSTM (Merity et al. 2018): variational dropout, and dropped recurrent weights.
Shapes: B batch, T time, D width, M members.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_lle import LLEConfig
from .lstm_lle import lstm
from .precision_lle import has_fast_bfloat16, recurrence_dtype
from .scan_lle import gated_scan, installed

State = tuple[Tensor, ...]
After = Callable[[int, Tensor], Tensor]
FROZEN = 100.0  # the pre-activation of a forget gate that is exactly 1 in every dtype
LONGEST_MEMORY = 128.0  # time steps that the slowest channel of a new qrnn remembers


def variational_dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """Drops channels of `x` (B, T, D), the same ones at all time steps of a row (Gal and Ghahramani 2016)."""
    if not training or probability == 0:
        return x
    return x * F.dropout(x.new_ones(x.shape[0], 1, x.shape[2]), probability)


def weight_dropout(weight: Tensor, probability: float, training: bool) -> Tensor:
    """Drops entries of a weight matrix and scales the others up (Merity et al. 2018, after Wan et al. 2013).

    On a CPU, torch's dropout draws a number per entry, which takes longer than the matrix product; here 64 random bits
    make four draws, so that the probability is a multiple of 1 / 65536.
    """
    if not training or probability == 0 or weight.device.type != "cpu":
        return F.dropout(weight, probability, training)
    dropped = round(probability * 65536)
    bits = torch.empty((weight.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    draws = bits.view(torch.int16)[: weight.numel()].view_as(weight)
    return weight * (draws >= dropped - 32768) * (65536 / (65536 - dropped))


class TorchRecurrence(nn.Module):
    """One layer of torch.nn.LSTM or torch.nn.GRU. State: h, and c of the lstm, each (B, output_size).

    Args:
        kind: "lstm" or "gru".
        input_size: Width of the input.
        output_size: Width of the output.
        weight_dropout: Probability that an entry of the recurrent matrix is dropped, for a whole forward pass.
    """

    def __init__(self, kind: str, input_size: int, output_size: int, weight_dropout: float) -> None:
        super().__init__()
        self.cell = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](input_size, output_size, batch_first=True)
        self.num_states = 2 if kind == "lstm" else 1
        self.weight_dropout = weight_dropout

    def initial_state(self, x: Tensor) -> State:
        """The state before the first step, for an input like `x` (B, T, input_size)."""
        zeros = x.new_zeros(x.shape[0], self.cell.hidden_size, dtype=self.cell.weight_hh_l0.dtype)
        return (zeros,) * self.num_states

    def forward(self, x: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        """Runs over x (B, T, input_size), of each row only `lengths` (B,) int64 steps. Returns y and the new state."""
        hidden = tuple(part[None] for part in state)
        if lengths is None:
            y, hidden = self._run(x, hidden)
        else:
            packed = pack_padded_sequence(x, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
            packed, hidden = self._run(packed, hidden)
            y, _ = pad_packed_sequence(packed, batch_first=True, total_length=x.shape[1])
        new = tuple(part[0].to(old.dtype) for part, old in zip(hidden, state, strict=True))
        if lengths is not None:
            new = tuple(torch.where(lengths[:, None] > 0, part, old) for part, old in zip(new, state, strict=True))
        return y, new

    def _run(self, x: Any, state: State) -> tuple[Any, State]:
        cell = self.cell
        weight_hh = weight_dropout(cell.weight_hh_l0, self.weight_dropout, self.training)
        if self._is_fast_step(x):
            bias = cell.bias_ih_l0 + cell.bias_hh_l0
            x, h, *weights = (part.bfloat16() for part in (x, state[0][0], cell.weight_ih_l0, weight_hh, bias))
            y, h, c = lstm(x, h, state[1][0].float(), *weights)
            return y, (h[None], c[None])
        inputs = x, (state if self.num_states > 1 else state[0])
        y, after = torch.func.functional_call(cell, {"weight_hh_l0": weight_hh}, inputs)
        return y, (after if self.num_states > 1 else (after,))

    def _is_fast_step(self, x: Any) -> bool:
        """Whether this is a training step that lstm_lle.py runs faster than torch.nn.LSTM: in bfloat16, on a CPU."""
        if not (
            self.training and torch.is_grad_enabled() and isinstance(self.cell, nn.LSTM) and isinstance(x, Tensor)
        ):
            return False
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if x.device.type != "cpu" or dtype != torch.bfloat16 or torch.compiler.is_compiling():
            return False
        return has_fast_bfloat16(x.device) and installed("numba")


class QRNN(nn.Module):
    """A causal convolution of width 2 and the gated linear recurrence (Bradbury et al. 2017).

    State: the last input (B, input_size), and c (B, output_size) in float32 or wider.

    Args:
        input_size: Width of the input.
        output_size: Width of the output.
        weight_dropout: Probability that an entry of the gates' matrix is dropped, for a whole forward pass.
    """

    num_states = 2

    def __init__(self, input_size: int, output_size: int, weight_dropout: float) -> None:
        super().__init__()
        self.input_size, self.output_size, self.weight_dropout = input_size, output_size, weight_dropout
        self.weight = nn.Parameter(torch.empty(3 * output_size, 2 * input_size))
        self.bias = nn.Parameter(torch.empty(3 * output_size))

    def initial_state(self, x: Tensor) -> State:
        """The state before the first step, for an input like `x` (B, T, input_size)."""
        narrow, wide = self.weight.dtype, torch.promote_types(self.weight.dtype, torch.float32)
        last = x.new_zeros(x.shape[0], self.input_size, dtype=narrow)
        return last, x.new_zeros(x.shape[0], self.output_size, dtype=wide)

    def forward(self, x: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        """Runs over x (B, T, input_size), of each row only `lengths` (B,) int64 steps. Returns y and the new state."""
        last, c = state
        padded = torch.cat([last[:, None].to(x.dtype), x], dim=1)
        weight = weight_dropout(self.weight, self.weight_dropout, self.training)
        gates = F.linear(torch.cat([padded[:, :-1], x], dim=-1), weight, self.bias)
        if lengths is None:
            last = padded[:, -1]
        else:
            padding = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
            forget = torch.arange(gates.shape[-1], device=x.device) // self.output_size == 1
            gates = gates.masked_fill(padding[..., None] & forget, FROZEN)
            last = padded[torch.arange(x.shape[0], device=x.device), lengths]
        y, c = gated_scan(gates, c)
        return y, (last.to(state[0].dtype), c)


class RecurrentLayer(GradientCheckpointingLayer):
    """A layer of the plain stack: variational dropout (not of the first layer's input), then the recurrence.

    Args:
        config: The configuration.
        index: Position in the stack, from 0.
    """

    def __init__(self, config: LLEConfig, index: int) -> None:
        super().__init__()
        input_size, output_size = self._sizes(config, index)
        self.hidden_dropout = config.hidden_dropout
        self.drops_input = index > 0
        self.mixer: TorchRecurrence | QRNN
        if config.recurrence == "qrnn":
            self.mixer = QRNN(input_size, output_size, config.weight_dropout)
        else:
            self.mixer = TorchRecurrence(config.recurrence, input_size, output_size, config.weight_dropout)

    @staticmethod
    def _sizes(config: LLEConfig, index: int) -> tuple[int, int]:
        D, inner = config.hidden_size, config.intermediate_size or config.hidden_size
        return D if index == 0 else inner, D if index == config.num_hidden_layers - 1 else inner

    def forward(self, x: Tensor, lengths: Tensor | None, *state: Tensor) -> tuple[Tensor, ...]:
        """Returns y, followed by the new state; flat, because reentrant checkpoints see no tensors in tuples."""
        x = variational_dropout(x, self.hidden_dropout, self.training and self.drops_input)
        y, new = self._mix(x, state, lengths)
        return y, *new

    def _mix(self, x: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        """Runs the mixer; in 16 bits, where a CPU cannot or only slowly, in float32 between two casts."""
        dtype = recurrence_dtype(x)
        if dtype is None:
            return self.mixer(x, state, lengths)
        weights = {name: weight.to(dtype) for name, weight in self.mixer.named_parameters()}
        narrow = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        with torch.autocast("cpu", enabled=False):
            wide = x.to(dtype), tuple(part.to(dtype) for part in state), lengths
            y, new = torch.func.functional_call(self.mixer, weights, wide)
        return y.to(narrow), tuple(part.to(old.dtype) for part, old in zip(new, state, strict=True))


class ResidualLayer(RecurrentLayer):
    """A layer of the residual stack: x + drop(mixer(norm(x))), then x + drop(mlp(norm(x))) if there is an MLP."""

    def __init__(self, config: LLEConfig, index: int) -> None:
        super().__init__(config, index)
        self.mixer_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp: GatedMLP | None = None
        if config.intermediate_size is not None:
            self.mlp_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
            self.mlp = GatedMLP(config.hidden_size, config.intermediate_size)

    @staticmethod
    def _sizes(config: LLEConfig, index: int) -> tuple[int, int]:
        return config.hidden_size, config.hidden_size

    def forward(self, x: Tensor, lengths: Tensor | None, *state: Tensor) -> tuple[Tensor, ...]:
        """Returns y, followed by the new state."""
        y, new = self._mix(self.mixer_norm(x), state, lengths)
        x = x + variational_dropout(y, self.hidden_dropout, self.training)
        if self.mlp is not None:
            x = x + variational_dropout(self.mlp(self.mlp_norm(x)), self.hidden_dropout, self.training)
        return x, *new


class GatedMLP(nn.Module):
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x)), gate and up in one matrix."""

    def __init__(self, size: int, inner_size: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(size, 2 * inner_size, bias=False)
        self.down = nn.Linear(inner_size, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, T, size) to (B, T, size)."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class _Stack(nn.Module):
    """What reads segments of padded rows, as their valid steps alone: `_run` does."""

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        mask: Tensor | None = None,
        final: bool = True,
        after: After | None = None,
    ) -> tuple[Tensor, State]:
        """Runs the layers over a segment.

        Args:
            x: (B, T, D) floating, of members (B, T, M D).
            state: What the call for the preceding segment returned; None for zeros.
            mask: (B, T) bool, False for padding, wherever it lies; None if all steps are valid.
            final: Whether the state is needed. If not, steps may run on over padding, which is several times as fast
                on a CPU for an lstm or gru, and what is returned in its place has no meaning in a padded row.
            after: What becomes of the output (B, T, D) of each layer, by its number, before the next one reads it; of
                each time step alone, since the steps may come in another order. Not for members.

        Returns:
            y like x, finite but without meaning at padding, and the state after each row's last valid step.
        """
        if mask is None or bool(mask.all()):
            return self._run(x, state, None, after)
        lengths = mask.sum(dim=1) if final else None
        if padding_is_last(mask):
            return self._run(x, state, lengths, after)
        order = mask.int().argsort(dim=1, descending=True, stable=True)
        y, state = self._run(_take(x, order), state, lengths, after)
        return _take(y, order.argsort(dim=1)), state

    def _run(
        self, x: Tensor, state: State | None, lengths: Tensor | None, after: After | None
    ) -> tuple[Tensor, State]:
        """Runs over x, of each row only `lengths` (B,) int64 steps; None: all."""
        raise NotImplementedError


class RecurrentStack(_Stack):
    """The recurrent layers of the backbone.

    Args:
        config: The configuration: recurrence, stack, sizes and dropout.
    """

    def __init__(self, config: LLEConfig) -> None:
        super().__init__()
        residual = config.stack == "residual"
        layer = ResidualLayer if residual else RecurrentLayer
        self.layers = nn.ModuleList(layer(config, index) for index in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps) if residual else nn.Identity()

    def _run(
        self, x: Tensor, state: State | None, lengths: Tensor | None, after: After | None
    ) -> tuple[Tensor, State]:
        new: list[Tensor] = []
        for index, layer in enumerate(cast(Iterable[RecurrentLayer], self.layers)):
            old = layer.mixer.initial_state(x) if state is None else state[len(new) :][: layer.mixer.num_states]
            x, *own = layer(x, lengths, *old)
            new += own
            x = x if after is None else after(index, x)
        return self.norm(x), tuple(new)


class Members(_Stack):
    """Stacks side by side that have nothing in common: each reads and writes its own slice of the channels.

    Args:
        config: The configuration; `members` says how many.
    """

    def __init__(self, config: LLEConfig) -> None:
        super().__init__()
        self.members = nn.ModuleList(RecurrentStack(config) for _ in range(config.members))

    def _run(
        self, x: Tensor, state: State | None, lengths: Tensor | None, after: After | None
    ) -> tuple[Tensor, State]:
        assert after is None
        outputs: list[Tensor] = []
        new: list[Tensor] = []
        size = 0 if state is None else len(state) // len(self.members)
        for member, own in zip(
            cast(Iterable[RecurrentStack], self.members), x.chunk(len(self.members), -1), strict=True
        ):
            y, states = member._run(own, None if state is None else state[len(new) :][:size], lengths, None)
            outputs.append(y)
            new += states
        return torch.cat(outputs, dim=-1), tuple(new)


def make_stack(config: LLEConfig) -> RecurrentStack | Members:
    """The stack of one direction of a backbone, or those of its members."""
    return RecurrentStack(config) if config.members == 1 else Members(config)


def padding_is_last(mask: Tensor) -> bool:
    """Whether in every row of a mask (B, T) bool, False for padding, all padding comes after the valid steps."""
    return not bool((mask[:, 1:] & ~mask[:, :-1]).any())


def _take(x: Tensor, order: Tensor) -> Tensor:
    """The steps of x (B, T, D) in the order (B, T) of each row."""
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[2]))


def init_recurrent_weights(module: nn.Module) -> None:
    """Initialises the parameters that `module` itself holds, but for those that were loaded.

    Matrices are uniform in +-1 / sqrt(fan-in). A gate that keeps what it has makes long gradients: the forget bias of
    an lstm is 1 (Jozefowicz et al. 2015), and a qrnn's channels start with log-spaced memory lengths of 2 to
    `LONGEST_MEMORY` steps (chrono initialisation, Tallec and Ollivier 2018).
    """
    if isinstance(module, nn.LSTM | nn.GRU):
        bound = 1 / math.sqrt(module.hidden_size)
        for name, parameter in module.named_parameters():
            if name.startswith("weight"):
                init.uniform_(parameter, -bound, bound)
            else:
                init.zeros_(parameter)
        if isinstance(module, nn.LSTM):
            bias = torch.zeros(4, module.hidden_size)  # input, forget, cell, output
            bias[1] = 1
            init.copy_(cast(Tensor, module.bias_ih_l0), bias.flatten())
    elif isinstance(module, QRNN):
        bound = 1 / math.sqrt(module.weight.shape[1])
        init.uniform_(module.weight, -bound, bound)
        steps = torch.logspace(1, math.log2(LONGEST_MEMORY), module.output_size, base=2.0)
        bias = torch.zeros(3, module.output_size)
        bias[1] = torch.log(steps - 1)  # sigmoid(log(n - 1)) = 1 - 1/n
        init.copy_(module.bias, bias.flatten())
    elif isinstance(module, nn.Linear):
        bound = 1 / math.sqrt(module.in_features)
        init.uniform_(module.weight, -bound, bound)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, nn.RMSNorm):
        init.ones_(module.weight)
