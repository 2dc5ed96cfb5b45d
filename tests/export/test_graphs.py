"""Graphs give what the model gives, for every recurrence and stack, in steps and in segments, and in int8 nearly."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from modeling_lle.export.check import check_graphs, open_graph
from modeling_lle.export.errors import ExportError
from modeling_lle.export.graphs import write_graphs
from tests.factories.adapters import wrap_in_adapters
from tests.factories.language_models import make_language_model
from tests.factories.translators import make_subword_translator

RECURRENCES = ["lstm", "gru", "qrnn"]
every_layer = pytest.mark.parametrize("stack", ["plain", "residual"])
every_recurrence = pytest.mark.parametrize("recurrence", RECURRENCES)


@every_recurrence
@every_layer
def test_a_language_model_gives_the_same_in_onnxruntime(recurrence: str, stack: str, tmp_path: Path) -> None:
    model = make_language_model(7, recurrence, stack, intermediate_size=9, tie_word_embeddings=stack == "residual")
    files = write_graphs(model, tmp_path, int8=True)
    assert files == {"model": {"float32": "onnx/model.onnx", "int8": "onnx/model_quantized.onnx"}}
    assert check_graphs(model, tmp_path, files) < 1e-4


@every_recurrence
@every_layer
def test_a_translator_gives_the_same_in_onnxruntime(recurrence: str, stack: str, tmp_path: Path) -> None:
    inner = 9 if stack == "residual" else None
    model = make_subword_translator(recurrence, stack, intermediate_size=inner)
    files = write_graphs(model, tmp_path, int8=True)
    assert files["encoder"]["float32"] == "onnx/encoder_model.onnx"
    assert files["decoder"]["int8"] == "onnx/decoder_model_quantized.onnx"
    assert check_graphs(model, tmp_path, files) < 1e-4


def steps(session: Any, ids: np.ndarray, kept: int, lengths: list[int]) -> list[np.ndarray]:
    """The logits of tokens that are read in segments of these lengths."""
    state = {i.name: np.zeros((len(ids), i.shape[1]), np.float32) for i in session.get_inputs() if "state" in i.name}
    names, outputs, begin = [output.name for output in session.get_outputs()], [], 0
    for length in lengths:
        given = {"input_ids": ids[:, begin : begin + length], "num_logits_to_keep": np.array(kept), **state}
        found = dict(zip(names, session.run(names, given), strict=True))
        state = {name: found[f"new_{name}"] for name in state}
        outputs.append(found["logits"])
        begin += length
    return outputs


@every_recurrence
def test_a_text_in_steps_gives_what_it_gives_as_a_whole(recurrence: str, tmp_path: Path) -> None:
    session = open_graph(
        tmp_path / write_graphs(make_language_model(0, recurrence), tmp_path, False)["model"]["float32"]
    )
    ids = np.arange(8).reshape(2, 4)
    (whole,) = steps(session, ids, 0, [4])
    np.testing.assert_allclose(np.concatenate(steps(session, ids, 1, [1, 1, 1, 1]), axis=1), whole, atol=1e-5)
    np.testing.assert_allclose(np.concatenate(steps(session, ids, 2, [2, 2]), axis=1), whole, atol=1e-5)


def test_one_encoded_sentence_serves_all_its_beams(tmp_path: Path) -> None:
    model = make_subword_translator()
    files = write_graphs(model, tmp_path, int8=False)
    encoder, decoder = (open_graph(tmp_path / files[name]["float32"]) for name in ("encoder", "decoder"))
    ids, mask = np.array([[3, 4, 5]]), np.array([[1, 1, 0]])
    names = [output.name for output in encoder.get_outputs()][1:]
    source = dict(zip(names, encoder.run(names, {"input_ids": ids, "attention_mask": mask}), strict=True))
    states = {i.name: np.zeros((2, i.shape[1]), np.float32) for i in decoder.get_inputs() if "state" in i.name}
    given = {"input_ids": np.array([[1], [2]]), "num_logits_to_keep": np.array(0), **states}
    (shared,) = decoder.run(["logits"], {**given, **source, "encoder_attention_mask": mask})
    repeated = {name: part.repeat(2, axis=0) for name, part in {**source, "encoder_attention_mask": mask}.items()}
    np.testing.assert_allclose(shared, decoder.run(["logits"], {**given, **repeated})[0], atol=1e-6)


def test_a_matrix_that_two_layers_share_is_stored_once(tmp_path: Path) -> None:
    sizes = {}
    for tied in (True, False):
        model = make_language_model(0, vocab_size=300, hidden_size=32, tie_word_embeddings=tied)
        files = write_graphs(model, tmp_path, int8=True)["model"]
        sizes[tied] = [(tmp_path / files[kind]).stat().st_size for kind in ("float32", "int8")]
    assert sizes[False][0] - sizes[True][0] > 300 * 32 * 4 - 500
    assert sizes[False][1] - sizes[True][1] > 300 * 32 - 500


def test_int8_weights_take_a_quarter_of_the_memory(tmp_path: Path) -> None:
    model = make_language_model(0, hidden_size=128, vocab_size=1000)
    files = write_graphs(model, tmp_path, int8=True)["model"]
    float32, int8 = ((tmp_path / files[kind]).stat().st_size for kind in ("float32", "int8"))
    assert int8 < 0.3 * float32


def test_what_a_graph_cannot_express_is_refused_by_name(tmp_path: Path) -> None:
    adapted = make_language_model(0)
    wrap_in_adapters(adapted, ["lm_head"])
    updating = make_language_model(0, history={"update": {"scope": "head"}})
    for model, wrong in (
        (adapted, "lm_head, of the type Adapter, was wrapped, quantised or hooked: merge"),
        (make_language_model(0).to(torch.bfloat16), "is bfloat16: load the model with dtype=torch.float32"),
        (updating, "set config.history.update.scope to 'none'"),
        (make_language_model(0).model, "LLEModel cannot be exported"),
    ):
        with pytest.raises(ExportError, match=wrong):
            write_graphs(model, tmp_path, int8=False)


def test_a_graph_that_differs_is_refused_by_name(tmp_path: Path) -> None:
    model = make_language_model(0)
    files = write_graphs(model, tmp_path, int8=False)
    with torch.no_grad():
        model.lm_head.bias[3] += 0.1
    with pytest.raises(ExportError, match=r"model.onnx is not the model: its output logits has .* by up to 0.1"):
        check_graphs(model, tmp_path, files)


def test_a_graph_that_onnxruntime_cannot_load_is_refused_by_name(tmp_path: Path) -> None:
    model = make_language_model(0)
    files = write_graphs(model, tmp_path, int8=False)
    path = tmp_path / files["model"]["float32"]
    graph = onnx.load(path)
    graph.opset_import[0].version = 999
    onnx.save(graph, path)
    with pytest.raises(ExportError, match=r"onnxruntime .* cannot load model.onnx: install onnxruntime 1.23 or newer"):
        check_graphs(model, tmp_path, files)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ExportError, match=r"cannot load model.onnx"):
        check_graphs(model, tmp_path, files)
