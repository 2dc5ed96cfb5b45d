"""Language models of transformers at the size of LLE: GPT-2, LFM2, Mamba2, RWKV and xLSTM, and torch's own LSTM.

The number of layers of each family is fixed; its width is the one whose number of parameters is nearest to LLE's, and
at most 5 % from it. Embeddings are tied in all. Nobody has dropout: the models see a text about once.

Notable: RWKV, Mamba2 and xLSTM run on transformers' own reference code, which is what a CPU gets; their fused kernels
need CUDA. A `Subject` gives all models the same two calls. Shapes: B batch, T time, V vocabulary.
"""

import bisect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

from modeling_lle import LLECache, LLEConfig, LLEForCausalLM

from .plain_lstm import PlainLSTM

TOLERANCE = 0.05  # share by which the number of parameters may differ from LLE's
WINDOW = 2000  # entries of LLE's stream
LLE, PLAIN = "LLE", "nn.LSTM"
WIDTHS = range(16, 1025, 8)
LENGTH = 256  # tokens of a window in training; learned positions beyond it do not count as parameters


@dataclass(frozen=True)
class Family:
    """How a family of transformers is made.

    Attributes:
        make: Untrained model by vocabulary, width and maximum length.
        step: Factor of the widths that the family allows.
        cache: Name of the state in its calls and outputs.
    """

    make: Callable[[int, int, int], Any]
    step: int
    cache: str


def _gpt2(vocabulary: int, width: int, length: int) -> Any:
    values: dict[str, Any] = {"vocab_size": vocabulary, "n_embd": width, "n_layer": 4, "n_head": 8}
    values |= {"n_positions": length, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**values, **_NO_TOKENS))  # with torch's SDPA


def _mamba2(vocabulary: int, width: int, length: int) -> Any:
    config = transformers.Mamba2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=6,
        num_heads=2 * width // 32,
        head_dim=32,
        state_size=64,
        n_groups=1,
        chunk_size=64,
        initializer_range=0.02,
        tie_word_embeddings=True,
        **_NO_TOKENS,
        pad_token_id=None,
    )
    return transformers.Mamba2ForCausalLM(config)


def _lfm2(vocabulary: int, width: int, length: int) -> Any:
    kinds = ["conv", "conv", "full_attention", "conv", "conv", "full_attention"]
    config = transformers.Lfm2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=11 * width // 4,
        block_auto_adjust_ff_dim=False,
        num_hidden_layers=len(kinds),
        layer_types=kinds,
        num_attention_heads=width // 16,
        num_key_value_heads=width // 16,
        max_position_embeddings=length,
        tie_word_embeddings=True,
        **_NO_TOKENS,
        pad_token_id=None,
    )
    return transformers.Lfm2ForCausalLM(config)


def _rwkv(vocabulary: int, width: int, length: int) -> Any:
    config = transformers.RwkvConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=4,
        context_length=length,
        tie_word_embeddings=True,
        **_NO_TOKENS,
    )
    return transformers.RwkvForCausalLM(config)


def _xlstm(vocabulary: int, width: int, length: int) -> Any:
    config = transformers.xLSTMConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=3,
        num_heads=4,
        chunk_size=64,
        mode="train",
        autocast_kernel_dtype="float32",
        **_NO_TOKENS,
    )
    model = transformers.xLSTMForCausalLM(config)
    model.lm_head.weight = model.backbone.embeddings.weight  # transformers does not tie this one
    return model


_NO_TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}
FAMILIES = {
    "GPT-2": Family(_gpt2, 16, "past_key_values"),
    "LFM2": Family(_lfm2, 16, "past_key_values"),
    "Mamba2": Family(_mamba2, 16, "cache_params"),
    "RWKV": Family(_rwkv, 8, "state"),
    "xLSTM": Family(_xlstm, 128, "cache_params"),
}
NAMES = (LLE, PLAIN, "GPT-2", "Mamba2", "RWKV", "xLSTM")  # those that LLE is compared with


def make_lle(vocabulary: int, width: int, window: int = 0, **changes: Any) -> LLEForCausalLM:
    """Untrained LLE of two residual LSTM layers, with a stream of `window` entries."""
    sizes = {"vocab_size": vocabulary, "hidden_size": width, "num_hidden_layers": 2}
    values = {"recurrence": "lstm", "stack": "residual", "history": {"stream": {"window": window}}, **changes}
    dropouts = dict.fromkeys(("input_dropout", "hidden_dropout", "output_dropout"), 0.0)
    return LLEForCausalLM(LLEConfig(**sizes, **dropouts, **values))


def count(model: nn.Module) -> int:
    """Number of parameters; tied ones count once."""
    return sum(weight.numel() for weight in model.parameters())


def matched_width(name: str, vocabulary: int, parameters: int) -> int:
    """Width with the number of parameters that is nearest to `parameters`.

    Raises:
        ValueError: None is within 5 % of it.
    """
    family = FAMILIES.get(name)
    widths = [width for width in WIDTHS if family is None or width % family.step == 0]

    def size(width: int) -> int:
        with torch.device("meta"):
            made = PlainLSTM(vocabulary, width) if family is None else family.make(vocabulary, width, LENGTH)
        return count(made)

    place = bisect.bisect_left(widths, parameters, key=size)
    width = min(widths[max(0, place - 1) : place + 1], key=lambda width: abs(size(width) - parameters))
    if abs(size(width) / parameters - 1) > TOLERANCE:
        raise ValueError(f"no {name} has about {parameters:,} parameters: the nearest has {size(width):,}")
    return width


def make_model(name: str, vocabulary: int, width: int, length: int = LENGTH, seed: int = 0, window: int = 0) -> Any:
    """Untrained model of one of `NAMES` with the parameters of an LLE of `width`.

    Args:
        name: Of the family.
        vocabulary: V.
        width: Of LLE.
        length: Longest text, for learned positions.
        seed: Of the weights.
        window: Of LLE's stream.
    """
    torch.manual_seed(seed)
    if name == LLE:
        return make_lle(vocabulary, width, window)
    with torch.device("meta"):
        parameters = count(make_lle(vocabulary, width))
    own = matched_width(name, vocabulary, parameters)
    return PlainLSTM(vocabulary, own) if name == PLAIN else FAMILIES[name].make(vocabulary, own, length)


class Subject:
    """A model in the comparison, trained and asked in the same way as the others.

    Args:
        name: One of `NAMES`.
        model: Result of `make_model`.

    Attributes:
        carries: Whether the state goes on from one segment to the next; transformers' models cannot train so, and
            read each window by itself.
    """

    def __init__(self, name: str, model: Any) -> None:
        self.name, self.model = name, model
        self.carries = name in (LLE, PLAIN)
        self._cache = LLECache()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def begin(self) -> None:
        """Forgets the text read."""
        self._cache = LLECache()
        if self.name == PLAIN:
            self.model.state = None

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy, nats, of `targets` (B, T) after `ids` (B, T) int64."""
        ids, targets = ids.to(self.device), targets.to(self.device)
        if self.name == LLE:
            cache = self._cache.detach()
            return self.model(ids, shift_labels=targets, past_key_values=cache, use_cache=True).loss
        if self.name == PLAIN:
            return self.model(ids, targets)
        logits = self.model(ids, use_cache=False).logits
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def nats(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Nats (B, T) of each of `targets` (B, T), without history."""
        ids, targets = ids.to(self.device), targets.to(self.device)
        if self.name == LLE:
            scored = self.model.score(ids, targets, past_key_values=self._cache, use_history=False)
            return -scored.log_probs
        logits = self.model.logits(ids) if self.name == PLAIN else self.model(ids, use_cache=False).logits
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(ids.shape)
