"""`write_graphs`: the ONNX graphs of a model, under the names of the Hub."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..models.causal import LLEForCausalLM
from ..models.classification import LLEForSequenceClassification, LLEForTokenClassification
from ..models.pretrained import LLEPreTrainedModel
from ..models.seq2seq import LLEForSeq2SeqLM
from .classifiers import write_classifier
from .errors import ExportError
from .language_models import write_language_model
from .translators import write_decoder, write_encoder

FOLDER = "onnx"
KINDS = {"float32": "", "int8": "_quantized"}  # and what the names of their files end with
# By model: for each graph the beginning of its file's name, and what writes it, given a model, a path and `int8`.
WRITERS: dict[type[LLEPreTrainedModel], dict[str, tuple[str, Callable[[Any, Path, bool], None]]]] = {
    LLEForCausalLM: {"model": ("model", write_language_model)},
    LLEForSequenceClassification: {"model": ("model", write_classifier)},
    LLEForTokenClassification: {"model": ("model", write_classifier)},
    LLEForSeq2SeqLM: {"encoder": ("encoder_model", write_encoder), "decoder": ("decoder_model", write_decoder)},
}
Files = dict[str, dict[str, str]]  # by graph and kind of weights; relative to the exported folder


def write_graphs(model: LLEPreTrainedModel, folder: Path, int8: bool) -> Files:
    """Writes the graphs of a model in float32 and, if wanted, in int8.

    Args:
        model: In evaluation mode and float32.
        folder: The exported folder, which exists.
        int8: Whether to write graphs in int8 too.

    Returns:
        The files that were written, such as {"model": {"float32": "onnx/model.onnx"}}.

    Raises:
        ExportError: The model cannot be exported; the message says why.
    """
    check_exportable(model)
    (folder / FOLDER).mkdir(exist_ok=True)
    files: Files = {}
    for graph, (begin, write) in WRITERS[type(model)].items():
        for kind in list(KINDS)[: 1 + int8]:
            name = f"{FOLDER}/{begin}{KINDS[kind]}.onnx"
            write(model, folder / name, kind == "int8")
            files.setdefault(graph, {})[kind] = name
    return files


def check_exportable(model: LLEPreTrainedModel) -> None:
    """Raises an ExportError if the model is one that graphs cannot express, whatever its layers are."""
    if type(model) not in WRITERS:
        names = ", ".join(own.__name__ for own in WRITERS)
        raise ExportError(f"{type(model).__name__} cannot be exported: these models can be, {names}")
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise ExportError(f"{name} is {dtype}: load the model with dtype=torch.float32")
    if model.config.overlay.scope != "none":
        raise ExportError(
            "the test-time update changes weights, which a graph cannot: set config.history.update.scope to 'none'"
        )
