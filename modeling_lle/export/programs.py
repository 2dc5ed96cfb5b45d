"""`write_programs`: a model as programs of torch.export, for programs that run torch without this package's models.

Notable: a single step consists of torch's own operators. Whole texts of an lstm or a gru, and all of a qrnn, call
operators that this package registers, so these programs need `import modeling_lle.models` where they run.
Shapes: B batch, T time, E sources, S tokens of a source.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, export, load, save

from ..backbone.recurrence import RecurrentStack
from ..common.modes import evaluating
from ..models.causal import LLEForCausalLM
from ..models.pretrained import LLEPreTrainedModel
from ..models.seq2seq import LLEForSeq2SeqLM
from .errors import ExportError
from .graphs import check_exportable

FOLDER = "programs"
TOLERANCE = 1e-4  # largest difference from the model
Tensors = tuple[Tensor, ...]


class _Texts(nn.Module):
    """Logits of whole texts, without history."""

    def __init__(self, model: LLEPreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.options = {"use_cache": False} if isinstance(model, LLEForCausalLM) else {}

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids, attention_mask, use_history=False, **self.options).logits


class _Step(nn.Module):
    """A step of a language model: logits, keys and the new state."""

    def __init__(self, model: LLEForCausalLM) -> None:
        super().__init__()
        self.embeddings, self.stack, self.lm_head = model.model.embed_tokens, model.model.stack, model.lm_head

    def forward(self, input_ids: Tensor, state: Tensors) -> tuple[Tensor, Tensor, Tensors]:
        states, new = self.stack(self.embeddings(input_ids), state)
        return self.lm_head(states), nn.functional.normalize(states, dim=-1), new


class _Encoder(nn.Module):
    """The encoder of a translator: its states, and keys and values of each layer of the decoder."""

    def __init__(self, model: LLEForSeq2SeqLM) -> None:
        super().__init__()
        self.model = model.model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensors, Tensors]:
        source = self.model.read(input_ids, attention_mask)
        assert source.last_hidden_state is not None
        return source.last_hidden_state, source.attention_keys or (), source.attention_values or ()


class _DecoderStep(nn.Module):
    """A step of the decoder of a translator: logits, keys and the new state."""

    def __init__(self, model: LLEForSeq2SeqLM) -> None:
        super().__init__()
        self.embeddings, self.stack = model.model.decoder.embed_tokens, model.model.decoder.stack
        self.attentions, self.lm_head = model.model.attentions, model.lm_head

    def forward(
        self,
        input_ids: Tensor,
        encoder_attention_mask: Tensor,
        attention_keys: Tensors,
        attention_values: Tensors,
        state: Tensors,
    ) -> tuple[Tensor, Tensor, Tensors]:
        mask = encoder_attention_mask.bool()

        def attend(place: int, x: Tensor) -> Tensor:
            return x + self.attentions[place](x, attention_keys[place], attention_values[place], mask)[0]

        states, new = self.stack(self.embeddings(input_ids), state, after=attend)
        return self.lm_head(states), nn.functional.normalize(states, dim=-1), new


@dataclass(frozen=True)
class _Program:
    """What becomes a program, and inputs of it in two sizes: to export with, and to compare with."""

    name: str
    module: nn.Module
    inputs: tuple[Any, ...]
    others: tuple[Any, ...]


def write_programs(model: LLEPreTrainedModel, folder: Path) -> dict[str, str]:
    """Writes the programs of a model, each of which is compared with it.

    Args:
        model: In evaluation mode and float32.
        folder: The exported folder, which exists.

    Returns:
        The files, relative to `folder`. For a language model `model`: (input_ids, attention_mask) to logits, and
        `step`: (input_ids (B, 1), state) to (logits, keys, new state). For a classifier `model`. For a translator
        `encoder`: (input_ids, attention_mask) to (states, attention keys, attention values), and `decoder_step`:
        (input_ids (B, 1), encoder_attention_mask, attention keys, attention values, state) to (logits, keys, new
        state). States, attention keys and values are tuples of tensors, as in the graphs.

    Raises:
        ExportError: The model cannot be exported, or a program differs from it; the message says why.
    """
    check_exportable(model)
    (folder / FOLDER).mkdir(exist_ok=True)
    files = {}
    with torch.no_grad(), evaluating(model):
        for program in _programs(model):
            files[program.name] = f"{FOLDER}/{program.name}.pt2"
            _write(program, folder / files[program.name])
    return files


def _write(program: _Program, path: Path) -> None:
    module = program.module.eval()
    try:
        save(export(module, program.inputs, dynamic_shapes=_free(program.inputs)), path)
    except torch._dynamo.exc.UserError as error:
        raise ExportError(f"torch.export cannot trace {path.name}: {error}") from error
    try:
        torch.testing.assert_close(
            load(path).module()(*program.others), module(*program.others), atol=TOLERANCE, rtol=TOLERANCE
        )
    except AssertionError as error:
        raise ExportError(f"{path.name} is not the model, please report this: {error}") from error


def _free(inputs: Any) -> Any:
    """All axes of integers, which are tokens and masks, but of a length of 1; the first and third ones of the rest."""
    if not isinstance(inputs, Tensor):
        return tuple(map(_free, inputs))
    if inputs.is_floating_point():
        return {axis: Dim.AUTO for axis in (0, 2) if axis < inputs.dim()}
    return {axis: Dim.AUTO for axis, length in enumerate(inputs.shape) if length > 1}


def _programs(model: LLEPreTrainedModel) -> list[_Program]:
    if isinstance(model, LLEForCausalLM):
        step = _Program("step", _Step(model), *(_steps(model, model.model.stack, rows) for rows in (2, 3)))
        return [_Program("model", _Texts(model), *_texts(model)), step]
    if isinstance(model, LLEForSeq2SeqLM):
        encoder = _Encoder(model)
        encoded = [(mask, *encoder(ids, mask)[1:]) for ids, mask in _texts(model)]
        given = [
            (tokens, *source, state)
            for source in encoded
            for tokens, state in [_steps(model, model.model.decoder.stack, len(source[0]))]
        ]
        return [_Program("encoder", encoder, *_texts(model)), _Program("decoder_step", _DecoderStep(model), *given)]
    return [_Program("model", _Texts(model), *_texts(model))]


def _texts(model: LLEPreTrainedModel) -> list[tuple[Tensor, Tensor]]:
    """Two batches of tokens and masks (B, T), without padding: what the states are there is undefined."""
    shapes = (2, 5), (3, 7)
    return [(ids, torch.ones_like(ids)) for ids in (_ids(model, *shape) for shape in shapes)]


def _steps(model: LLEPreTrainedModel, stack: nn.Module, rows: int) -> tuple[Tensor, Tensors]:
    """Tokens (B, 1) and the state after some text."""
    before = nn.functional.one_hot(_ids(model, rows, 3), model.config.hidden_size).float()
    return _ids(model, rows, 1), cast(RecurrentStack, stack)(before)[1]


def _ids(model: LLEPreTrainedModel, rows: int, length: int) -> Tensor:
    own = torch.arange(rows * length, device=model.device).reshape(rows, length)
    return own % min(model.config.vocab_size, model.config.hidden_size)
