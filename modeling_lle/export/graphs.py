"""`write_graphs`: the ONNX graphs of a model, under the names of the Hub."""

from pathlib import Path

import torch

from ..models.causal import LLEForCausalLM
from ..models.pretrained import LLEPreTrainedModel
from .errors import ExportError
from .language_models import write_language_model

FOLDER = "onnx"
Files = dict[str, dict[str, str]]  # by graph and kind of weights, relative to the exported folder


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
    kinds = {"float32": ""} | ({"int8": "_quantized"} if int8 else {})
    files: Files = {"model": {}}
    for kind, suffix in kinds.items():
        name = f"{FOLDER}/model{suffix}.onnx"
        if not isinstance(model, LLEForCausalLM):
            raise ExportError(f"a {type(model).__name__} cannot be exported")
        write_language_model(model, folder / name, kind == "int8")
        files["model"][kind] = name
    return files


def check_exportable(model: LLEPreTrainedModel) -> None:
    """Raises an ExportError if the model is one that graphs cannot express, whatever its layers are."""
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise ExportError(f"{name} is {dtype}: load the model with dtype=torch.float32")
    if model.config.overlay.scope != "none":
        raise ExportError(
            "the test-time update changes weights, which a graph cannot: set config.history.update.scope to 'none'"
        )
