from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from modeling_lle.export.check import check_graphs, open_graph
from modeling_lle.export.graphs import write_graphs
from tests.factories.classifiers import make_classifier

IDS = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 1, 1, 1]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
ENSEMBLE = {"classifier": {"members": 2, "pooling": ["mean", "max"]}}
ALL_WAYS = {"pooling": ["last", "max", "embeddings"]}


def randomised(model: Any) -> Any:
    """The model with random parameters, also those that begin as ones or zeros."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.7 * torch.randn_like(parameter))
    return model


def written(model: Any, folder: Path, int8: bool = False) -> Any:
    """The graph of a classifier, which was compared with it."""
    graphs = write_graphs(model, folder, int8)
    assert check_graphs(model, folder, graphs) < 1e-4
    return open_graph(folder / graphs["model"]["int8" if int8 else "float32"])


@pytest.mark.parametrize(
    "values",
    [
        {"recurrence": "qrnn", **ENSEMBLE},
        {"recurrence": "qrnn", "stack": "plain", **ENSEMBLE, "bidirectional": False},
        {"recurrence": "qrnn", "classifier": {"pooling": ["last", "attention"]}},
        {"recurrence": "qrnn", "intermediate_size": 10, "classifier": {"members": 3, "pooling": ["attention", "max"]}},
        {"recurrence": "lstm", "stack": "plain", "classifier": {"members": 2, "pooling": ["last"]}},
        {"recurrence": "gru", "bidirectional": False, "classifier": {"pooling": ["last", "mean"]}},
        {"stack": "plain", "embedding_size": 10, "classifier": {"members": 2, "pooling": ["embeddings", "max"]}},
        {"classifier": {"pooling": ["last", "max"], "projection": 6}},
        {"stack": "plain", "embedding_size": 10, "classifier": {**ALL_WAYS, "members": 2, "projection": 6}},
        {"recurrence": "lstm", "stack": "plain", "num_hidden_layers": 1, "classifier": {"pooling": ["mean", "max"]}},
        {"recurrence": "gru", "stack": "plain", "num_hidden_layers": 1, "classifier": {"pooling": ["mean"]}},
        {"recurrence": "qrnn", "of_tokens": True, "classifier": {"members": 2}},
        {"recurrence": "lstm", "of_tokens": True},
    ],
)
def test_a_graph_says_what_the_classifier_says(values: dict[str, Any], tmp_path: Path) -> None:
    model = randomised(make_classifier(**{"num_hidden_layers": 2, **values}))
    graph = written(model, tmp_path)
    logits, keys = graph.run(["logits", "keys"], {"input_ids": IDS.numpy(), "attention_mask": MASK.numpy()})
    with torch.no_grad():
        right = model(IDS, MASK).logits, model.encode(IDS, MASK)
    for got, want in zip((logits, keys), right, strict=True):
        real = MASK.bool().numpy() if got.ndim == 3 else slice(None)
        np.testing.assert_allclose(got[real], want.numpy()[real], atol=1e-4)


def test_the_graph_has_the_inputs_and_the_first_output_that_servers_expect(tmp_path: Path) -> None:
    graph = written(make_classifier(recurrence="qrnn"), tmp_path)
    assert [(given.name, given.type, given.shape) for given in graph.get_inputs()] == [
        (name, "tensor(int64)", ["batch_size", "sequence_length"]) for name in ("input_ids", "attention_mask")
    ]
    assert graph.get_outputs()[0].name == "logits"
    assert graph.get_outputs()[0].shape == ["batch_size", 3]
    assert (tmp_path / "onnx" / "model.onnx").is_file()


@pytest.mark.parametrize("values", [{"problem_type": "multi_label_classification"}, {"labels": 1}])
def test_several_labels_a_text_and_regression_are_exported(values: dict[str, Any], tmp_path: Path) -> None:
    written(make_classifier(**values), tmp_path)
