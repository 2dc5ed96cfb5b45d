"""The recurrent layers and their stack: `(x, state, mask) -> (y, state)`, with a state that only they look into.

Notable: lstm and gru are torch's, run by oneDNN and cuDNN; qrnn is one matrix product over all time steps and a fused
scan. Their matrices are `nn.Linear` modules, which PEFT and quantisation find; while these are plain, their weights
are read directly. A state is a flat tuple of tensors, batch first. Padding may be anywhere: each row's valid steps are
moved to the front, run with their lengths and moved back, so a padded batch gives the results of its rows alone.
Regularisation follows AWD-LSTM (Merity et al. 2018): variational dropout, and dropout of recurrent weights.
Shapes: B batch, T time, D width, M members.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from ..common.precision import has_fast_bfloat16, recurrence_dtype
from ..configuration import LLEConfig
from ..kernels.available import takes_numba
from ..kernels.linear import FEW_NARROW, apply_linear, is_plain, linear
from ..kernels.lstm import lstm
from ..kernels.scan import gated_scan
from .cells import State, Weights, keep, recur, recur_by_steps

After = Callable[[int, Tensor], Tensor]
Seen = list[Tensor] | None  # collects the outputs of the layers; None: not wanted
FROZEN = 100.0  # pre-activation of a forget gate that is exactly 1 in every dtype
GATES = {"lstm": 4, "gru": 3, "qrnn": 3}
LONGEST_MEMORY = 128.0  # memory of the slowest channel of a new qrnn, in time steps
# Names of weights while torch.nn.LSTM and GRU held them, and today's.
RENAMED = {
    "mixer.cell.weight_ih_l0": "mixer.from_input.weight",
    "mixer.cell.weight_hh_l0": "mixer.from_state.weight",
    "mixer.cell.bias_ih_l0": "mixer.from_input.bias",
    "mixer.cell.bias_hh_l0": "mixer.from_state.bias",
    "mixer.weight": "mixer.gates.weight",
    "mixer.bias": "mixer.gates.bias",
}


def current_name(name: str) -> str:
    """Returns today's name of a weight that an older version may have saved."""
    return _rename(name, RENAMED)


def first_name(name: str) -> str:
    """Returns the name of a weight in the first version, which the fingerprints of banks use."""
    return _rename(name, {new: old for old, new in RENAMED.items()})


def _rename(name: str, names: dict[str, str]) -> str:
    for given, due in names.items():
        if f".{name}".endswith(f".{given}"):
            return name.removesuffix(given) + due
    return name


def variational_dropout(x: Tensor, probability: float, training: bool) -> Tensor:
    """Drops channels of `x` (B, T, D), the same at all time steps of a row (Gal and Ghahramani 2016)."""
    if not training or probability == 0:
        return x
    return x * F.dropout(x.new_ones(x.shape[0], 1, x.shape[2]), probability)


def weight_dropout(weight: Tensor, probability: float, training: bool) -> Tensor:
    """Drops entries of a weight matrix and scales the others up (Merity et al. 2018, after Wan et al. 2013).

    On a CPU, torch's dropout draws a number per entry, which takes longer than the matrix product. Here 64 random bits
    make four draws, which rounds the probability to a multiple of 1 / 65536.
    """
    if not training or probability == 0 or weight.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(weight, probability, training)
    dropped = round(probability * 65536)
    bits = torch.empty((weight.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    draws = bits.view(torch.int16)[: weight.numel()].view_as(weight)
    return weight * (draws >= dropped - 32768) * (65536 / (65536 - dropped))


def dropped(
    module: nn.Module, size: tuple[int, int], probability: float, training: bool
) -> Callable[[Tensor], Tensor]:
    """Returns the map of a linear module after one `weight_dropout` of its own matrix, which has this size.

    In a wrapped module the parameters of the wrapper are not dropped.
    """
    if not training or probability == 0:
        return module
    for name, weight in module.named_parameters():
        if weight.shape == size:
            changed = {name: weight_dropout(weight, probability, training)}
            return lambda x: functional_call(module, changed, (x,))
    raise ValueError(
        f"weight_dropout cannot reach the matrix of a {type(module).__name__}: load the model with weight_dropout=0"
    )


def state_dtype(module: nn.Module, x: Tensor) -> torch.dtype:
    """Returns the dtype of a state that a linear module maps, for inputs like `x`."""
    weight = getattr(module, "weight", None)
    return weight.dtype if isinstance(weight, Tensor) and weight.is_floating_point() else x.dtype


def gates_of_input(recurrence: str, input_size: int, output_size: int) -> nn.Linear:
    """Returns the map of the input to the gates, marked with the recurrence for `init_recurrent_weights`."""
    linear = nn.Linear(input_size, GATES[recurrence] * output_size)
    linear.gates_of = recurrence  # type: ignore[assignment]
    return linear


class TorchRecurrence(nn.Module):
    """One layer of torch.nn.LSTM or torch.nn.GRU. State: h, and for the lstm c, each (B, output_size).

    Args:
        kind: "lstm" or "gru".
        input_size: Width of the input.
        output_size: Width of the output.
        weight_dropout: Probability that an entry of the recurrent matrix is dropped, for a whole forward pass.
    """

    def __init__(self, kind: str, input_size: int, output_size: int, weight_dropout: float) -> None:
        super().__init__()
        self.gates, self.num_states = GATES[kind], 2 if kind == "lstm" else 1
        self.output_size, self.weight_dropout = output_size, weight_dropout
        self.from_input = gates_of_input(kind, input_size, output_size)
        self.from_state = nn.Linear(output_size, self.gates * output_size)

    def initial_state(self, x: Tensor) -> State:
        """The state before the first step, for an input like `x` (B, T, input_size)."""
        zeros = x.new_zeros(x.shape[0], self.output_size, dtype=state_dtype(self.from_state, x))
        return (zeros,) * self.num_states

    def forward(self, x: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        """Runs over x (B, T, input_size), of each row only `lengths` (B,) int64 steps. Returns y and the new state."""
        if not is_plain(self.from_input, self.from_state):
            size = (self.gates * self.output_size, self.output_size)
            from_state = dropped(self.from_state, size, self.weight_dropout, self.training)
            return recur_by_steps(self.from_input(x), state, from_state, lengths)
        if x.shape[1] == 1 and torch.compiler.is_exporting():  # one step exports as plain operations
            return recur_by_steps(self.from_input(x), state, self.from_state, lengths)
        return self._run(x, state, self.weights, lengths)

    @property
    def weights(self) -> Weights:
        """The weights of plain modules, in training after a draw of `weight_dropout`."""
        from_input, from_state = self.from_input, self.from_state
        matrix = weight_dropout(from_state.weight, self.weight_dropout, self.training)
        return from_input.weight, matrix, from_input.bias, from_state.bias

    def _run(self, x: Tensor, state: State, weights: Weights, lengths: Tensor | None) -> tuple[Tensor, State]:
        if lengths is None and self._is_fast_step(x):
            from_input, from_state, input_bias, state_bias = weights
            given = x, state[0], from_input, from_state, input_bias + state_bias
            x, h, from_input, from_state, bias = (part.bfloat16() for part in given)
            y, h, c = lstm(x, h, state[1].float(), from_input, from_state, bias)
            return y, keep(None, (h, c), state)
        return recur(x, state, weights, lengths)

    def _is_fast_step(self, x: Tensor) -> bool:
        """Whether this is a training step that kernels/lstm.py runs faster than torch: in bfloat16, on a CPU."""
        if not (self.training and torch.is_grad_enabled() and self.num_states == 2):
            return False
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if x.device.type != "cpu" or dtype != torch.bfloat16 or torch.compiler.is_compiling():
            return False
        return has_fast_bfloat16(x.device) and takes_numba(x)


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
        with torch.random.fork_rng(devices=[]):  # nn.Linear's initial values are replaced later
            self.gates = gates_of_input("qrnn", 2 * input_size, output_size)  # of a step and the one before it

    def initial_state(self, x: Tensor) -> State:
        """The state before the first step, for an input like `x` (B, T, input_size)."""
        narrow = state_dtype(self.gates, x)
        wide = torch.promote_types(narrow, torch.float32)
        last = x.new_zeros(x.shape[0], self.input_size, dtype=narrow)
        return last, x.new_zeros(x.shape[0], self.output_size, dtype=wide)

    def forward(self, x: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        """Runs over x (B, T, input_size), of each row only `lengths` (B,) int64 steps. Returns y and the new state."""
        last, c = state
        padded = torch.cat([last[:, None].to(x.dtype), x], dim=1)
        pairs = torch.cat([padded[:, :-1], x], dim=-1)
        if is_plain(self.gates):
            weight = weight_dropout(self.gates.weight, self.weight_dropout, self.training)
            gates = linear(pairs, weight, self.gates.bias)
        else:
            size = (3 * self.output_size, 2 * self.input_size)
            gates = dropped(self.gates, size, self.weight_dropout, self.training)(pairs)
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

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in [name for name in state_dict if name.startswith(f"{prefix}mixer.")]:
            state_dict[current_name(name)] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @staticmethod
    def _sizes(config: LLEConfig, index: int) -> tuple[int, int]:
        D, inner = config.hidden_size, config.intermediate_size or config.hidden_size
        first, last = config.embedding_width, config.num_hidden_layers - 1
        return first if index == 0 else inner, D if index == last else inner

    def forward(self, x: Tensor, lengths: Tensor | None, *state: Tensor) -> tuple[Tensor, ...]:
        """Returns y, followed by the new state; flat, because reentrant checkpoints see no tensors in tuples."""
        x = variational_dropout(x, self.hidden_dropout, self.training and self.drops_input)
        y, new = self._mix(x, state, lengths)
        return y, *new

    def _mix(self, x: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        """Runs the mixer; in float32 between two casts where a CPU lacks fast 16-bit recurrences."""
        dtype = recurrence_dtype(x)
        if dtype is None:
            return self.mixer(x, state, lengths)
        weights = {}
        if not self._reads_narrow(x):
            weights = {name: weight.to(dtype) for name, weight in self.mixer.named_parameters()}
        narrow = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        with torch.autocast("cpu", enabled=False):
            wide = x.to(dtype), tuple(part.to(dtype) for part in state), lengths
            y, new = torch.func.functional_call(self.mixer, weights, wide)
        return y.to(narrow), tuple(part.to(old.dtype) for part, old in zip(new, state, strict=True))

    def _reads_narrow(self, x: Tensor) -> bool:
        """Whether the mixer reads its bfloat16 weights as they are, for x (B, T, D): in a step of a few rows."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or self.training or x.dtype != torch.bfloat16:
            return False
        return x.shape[1] == 1 and x.shape[0] <= FEW_NARROW and is_plain(*self.mixer.children())


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
        gate, up = apply_linear(self.gate_up, x).chunk(2, dim=-1)
        return apply_linear(self.down, F.silu(gate) * up)


class _Stack(nn.Module):
    """Base of stacks: reduces padded segments to their valid steps, which `_run` of the subclass reads."""

    def forward(
        self,
        x: Tensor,
        state: State | None = None,
        mask: Tensor | None = None,
        final: bool = True,
        after: After | None = None,
        seen: Seen = None,
    ) -> tuple[Tensor, State]:
        """Runs the layers over a segment.

        Args:
            x: (B, T, D) floating, of members (B, T, M D).
            state: The state returned for the preceding segment; None for zeros.
            mask: (B, T) bool, False at padding, anywhere; None if all steps are valid.
            final: Whether the state is needed. If not, the returned state is undefined for padded rows.
            after: Maps the number of a layer and its output (B, T, D) to the input of the next layer; must treat time
                steps independently, since they may be permuted. Not for members.
            seen: A list to which the output of each layer is added, like x; the last one is y.

        Returns:
            y like x, finite but undefined at padding, and the state after each row's last valid step.
        """
        if mask is None or (not torch.compiler.is_compiling() and bool(mask.all())):
            return self._run(x, state, None, after, seen)
        lengths = mask.sum(dim=1) if final else None
        if padding_is_last(mask):
            return self._run(x, state, lengths, after, seen)
        order = mask.int().argsort(dim=1, descending=True, stable=True)
        back = order.argsort(dim=1)
        own: Seen = None if seen is None else []
        y, state = self._run(_take(x, order), state, lengths, after, own)
        if seen is not None and own is not None:
            seen += [_take(states, back) for states in own]
        return _take(y, back), state

    def _run(
        self, x: Tensor, state: State | None, lengths: Tensor | None, after: After | None, seen: Seen
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
        if residual and config.embedding_width != config.hidden_size:
            raise ValueError(
                f"the residual stack adds to its input: embedding_size is {config.embedding_size} and hidden_size "
                f'{config.hidden_size}; make them equal, or choose stack="plain"'
            )
        layer = ResidualLayer if residual else RecurrentLayer
        self.layers = nn.ModuleList(layer(config, index) for index in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps) if residual else nn.Identity()

    def _run(
        self, x: Tensor, state: State | None, lengths: Tensor | None, after: After | None, seen: Seen
    ) -> tuple[Tensor, State]:
        new: list[Tensor] = []
        for index, layer in enumerate(cast(Iterable[RecurrentLayer], self.layers)):
            old = layer.mixer.initial_state(x) if state is None else state[len(new) :][: layer.mixer.num_states]
            x, *own = layer(x, lengths, *old)
            new += own
            x = x if after is None else after(index, x)
            if index == len(self.layers) - 1:
                x = self.norm(x)
            if seen is not None:
                seen.append(x)
        return x, tuple(new)


class Members(_Stack):
    """Independent stacks side by side, each of which reads and writes its own slice of the channels.

    Args:
        config: The configuration; `classifier.members` says how many.
    """

    def __init__(self, config: LLEConfig) -> None:
        super().__init__()
        self.members = nn.ModuleList(RecurrentStack(config) for _ in range(config.classifier.members))

    def _run(
        self, x: Tensor, state: State | None, lengths: Tensor | None, after: After | None, seen: Seen
    ) -> tuple[Tensor, State]:
        assert after is None
        outputs: list[Tensor] = []
        new: list[Tensor] = []
        layers: list[list[Tensor]] = []  # of each member
        size = 0 if state is None else len(state) // len(self.members)
        for member, own in zip(
            cast(Iterable[RecurrentStack], self.members), x.chunk(len(self.members), -1), strict=True
        ):
            layers.append([])
            before = None if state is None else state[len(new) :][:size]
            y, states = member._run(own, before, lengths, None, None if seen is None else layers[-1])
            outputs.append(y)
            new += states
        if seen is not None:
            seen += [torch.cat(parts, dim=-1) for parts in zip(*layers, strict=True)]
        return torch.cat(outputs, dim=-1), tuple(new)


def make_stack(config: LLEConfig) -> RecurrentStack | Members:
    """Makes the stack of one direction of a backbone, or those of its members."""
    return RecurrentStack(config) if config.classifier.members == 1 else Members(config)


def padding_is_last(mask: Tensor) -> bool:
    """Whether all padding (False) of a mask (B, T) bool comes after the valid steps of its row.

    Always False under a compiler, which cannot know.
    """
    return not torch.compiler.is_compiling() and not bool((mask[:, 1:] & ~mask[:, :-1]).any())


def _take(x: Tensor, order: Tensor) -> Tensor:
    """Returns the steps of x (B, T, D) in the order (B, T) of each row."""
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[2]))


def init_recurrent_weights(module: nn.Module) -> None:
    """Initialises the parameters that `module` itself holds, except those that were loaded.

    Matrices are uniform in +-1 / sqrt(fan-in), where the fan-in of both matrices of an lstm or gru is the width of its
    state. Biases favour long memory: the forget bias of an lstm is 1 (Jozefowicz et al. 2015), and the channels of a
    qrnn start with log-spaced memory lengths of 2 to `LONGEST_MEMORY` steps (chrono initialisation, Tallec and
    Ollivier 2018).
    """
    if isinstance(module, nn.Linear):
        gates = module.__dict__.get("gates_of")
        fan_in = module.out_features // GATES[gates] if gates in ("lstm", "gru") else module.in_features
        init.uniform_(module.weight, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
        if module.bias is not None:
            init.zeros_(module.bias)
        if gates == "lstm":
            bias = torch.zeros(4, fan_in)  # input, forget, cell, output
            bias[1] = 1
            init.copy_(module.bias, bias.flatten())
        elif gates == "qrnn":
            bias = torch.zeros(3, module.out_features // 3)
            steps = torch.logspace(1, math.log2(LONGEST_MEMORY), bias.shape[1], base=2.0)
            bias[1] = torch.log(steps - 1)  # sigmoid(log(n - 1)) = 1 - 1/n
            init.copy_(module.bias, bias.flatten())
    elif isinstance(module, nn.RMSNorm):
        init.ones_(module.weight)
