"""Keyword arguments that transformers gives to `forward`: what is known, what is refused, and packed documents.

Notable: nothing is swallowed in silence. What has no meaning for a recurrent model is accepted only where it changes
nothing, and documents that lie side by side in a row are read apart, or refused.
Shapes: B batch, T time, N documents, L tokens of the longest one.
"""

import difflib
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .pretrained import LLEPreTrainedModel

PACKED = ("position_ids", "seq_idx", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
TO_BACKBONE = ("output_hidden_states", *PACKED)  # what a head may leave to its backbone
# Of transformers' own decorators, trainer and `generate`, which hands on its tokenizer: they change no prediction.
HARMLESS = ("return_dict", "cache_position", "skip_logits", "debug_io", "debug_io_dir", "prune_layers", "tokenizer")


def check_arguments(model: LLEPreTrainedModel, options: dict[str, Any], *used: str) -> None:
    """Refuses keyword arguments that would have no effect.

    Args:
        model: The model whose `forward` got them.
        options: Those that are no parameters of it; None says nothing.
        used: Names that it uses.

    Raises:
        TypeError: A name is unknown.
        ValueError: It is known to transformers, but the model cannot do it.
    """
    kind = type(model).__name__
    for name, value in options.items():
        if value is None or name in used or name in HARMLESS:
            continue
        if name in ("output_attentions", "output_router_logits", "output_hidden_states", "use_cache"):
            if value:
                raise ValueError(f"{kind} cannot do {name}={value}: leave it out")
        elif name == "is_causal":
            if bool(value) == bool(model.config.bidirectional):
                raise ValueError(f"is_causal={value} is not what config.bidirectional says: leave it out")
        elif name == "token_type_ids":
            if not torch.compiler.is_compiling() and bool(torch.as_tensor(value).any()):
                raise ValueError(f"{kind} has no token types: leave token_type_ids out, or give zeros")
        elif name in PACKED:
            raise ValueError(f"{kind} does not read packed documents: leave {name} out, and give a row to each")
        else:
            known = [own for own in inspect.signature(model.forward).parameters if own not in ("self", "kwargs")]
            near = difflib.get_close_matches(name, [*known, *used], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(known)}"
            raise TypeError(f"{kind}.forward() got an unexpected keyword argument {name!r}: {hint}")


@dataclass
class Packing:
    """Documents that lie one after another in the rows of a batch, as rows of a padded batch of their own.

    Attributes:
        places: (N, L) int64, where each position of each document lies in the batch (B * T,).
        mask: (N, L) bool, False at padding.
        followed: (N, L) bool, True at the last real position of a document that another one follows in its row.
        back: (B, T) int64, where each position of the batch lies in (N * L,).
    """

    places: Tensor
    mask: Tensor
    followed: Tensor
    back: Tensor

    @classmethod
    def take(cls, options: dict[str, Any], rows: int, length: int, mask: Tensor | None) -> "Packing | None":
        """Takes what transformers says of packed documents out of the keyword arguments; None: there are none.

        Args:
            options: The keyword arguments, which lose those of `PACKED`.
            rows, length: B and T.
            mask: (B, T) bool, False at padding; None for none.

        Raises:
            ValueError: They contradict each other or the batch.
        """
        given = {name: options.pop(name, None) for name in PACKED}
        starts: dict[str, Tensor] = {}
        for name in ("position_ids", "seq_idx"):
            if given[name] is not None:
                numbers = torch.as_tensor(given[name])
                if tuple(numbers.shape) not in ((rows, length), (1, length)):
                    raise ValueError(f"{name} are {tuple(numbers.shape)} for a batch of {(rows, length)}")
                starts[name] = _starts(name, numbers.expand(rows, length), mask)
        for name in ("cu_seq_lens_q", "cu_seq_lens_k"):
            if given[name] is not None:
                starts[name] = _borders(name, torch.as_tensor(given[name]), rows, length)
        if not starts:
            return None
        (first, found), *others = starts.items()
        for name, other in others:
            if not torch.equal(other.to(found.device), found):
                raise ValueError(f"{name} and {first} do not begin their documents at the same positions")
        return cls._of(found, mask) if bool(found.any()) else None

    @classmethod
    def _of(cls, starts: Tensor, mask: Tensor | None) -> "Packing":
        """From where documents begin, (B, T) bool; each row begins one."""
        starts = starts.clone()
        starts[:, 0] = True
        begin = starts.flatten().nonzero()[:, 0].tolist()
        place = torch.arange(starts.numel(), device=starts.device)
        documents = place.tensor_split(begin[1:])
        places = pad_sequence(list(documents), batch_first=True)
        real = pad_sequence([torch.ones_like(part, dtype=torch.bool) for part in documents], batch_first=True)
        back = torch.empty_like(place)
        back[places[real]] = real.flatten().nonzero()[:, 0]
        ends_row = places.amax(1) % starts.shape[1] == starts.shape[1] - 1
        if mask is not None:
            real = real & mask.flatten()[places]
        last = real & (real.flip(1).cumsum(1).flip(1) == 1)
        return cls(places, real, last & ~ends_row[:, None], back.view(starts.shape))

    def split(self, tensor: Tensor) -> Tensor:
        """A tensor (B, T, ...) as (N, L, ...); at padding it holds anything."""
        return tensor.flatten(0, 1)[self.places.to(tensor.device)]

    def join(self, value: Any) -> Any:
        """A tensor (N, L, ...) as (B, T, ...), or each of those in a tuple or an output of a model; None stays."""
        if isinstance(value, Tensor):
            return value.flatten(0, 1)[self.back.to(value.device)]
        if isinstance(value, tuple):
            return tuple(self.join(part) for part in value)
        return None if value is None else type(value)(**{name: self.join(part) for name, part in value.items()})


def _starts(name: str, numbers: Tensor, mask: Tensor | None) -> Tensor:
    """Where a document begins that is not the first of its row, (B, T) bool, by its numbers (B, T)."""
    place = torch.arange(numbers.shape[1], device=numbers.device).expand(numbers.shape)
    real = torch.ones_like(place, dtype=torch.bool) if mask is None else mask.to(numbers.device)
    latest = torch.where(real, place, -1).cummax(1).values
    previous = torch.nn.functional.pad(latest[:, :-1], (1, 0), value=-1)  # the last real position before each one
    step = numbers - numbers.gather(1, previous.clamp(min=0))
    known = real & (previous >= 0)
    if name == "seq_idx":
        return known & (step != 0)
    if bool((known & (step > 1) & (previous == place - 1)).any()):
        raise ValueError("position_ids neither go on by one nor begin anew: a recurrent model leaves no position out")
    return known & (step <= 0)


def _borders(name: str, borders: Tensor, rows: int, length: int) -> Tensor:
    """The same by the borders (n + 1,) of the documents of a single row."""
    right = borders.dim() == 1 and len(borders) > 1 and rows == 1
    if not (right and int(borders[0]) == 0 and int(borders[-1]) == length and bool((borders.diff() >= 0).all())):
        raise ValueError(
            f"{name} must grow from 0 to the {length} tokens of a single row; the batch has {rows} rows, they are "
            f"{borders.tolist()}"
        )
    starts = torch.zeros(1, length, dtype=torch.bool, device=borders.device)
    inner = borders[(borders > 0) & (borders < length)]
    starts[0, inner.long()] = True
    return starts


def tokens_for_update(input_ids: Tensor | None, options: dict[str, Any]) -> Tensor:
    """The tokens; raises a ValueError for what forward does not do while the test-time update changes the weights."""
    if input_ids is None or options.get("output_hidden_states"):
        raise ValueError(
            "the test-time update reads tokens and returns no hidden states: give input_ids, and no "
            "output_hidden_states; or switch it off with use_history=False or history.update.scope='none'"
        )
    return input_ids
