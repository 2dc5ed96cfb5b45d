import json
from pathlib import Path

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from transformers import AutoConfig

from modeling_lle.export import export
from tests.factories.classifiers import make_classifier
from tests.factories.texts import WORD_TOKENIZER


def test_the_configuration_of_an_exported_classifier_has_what_servers_read(tmp_path: Path) -> None:
    folder = export(make_classifier(eos_token_id=None), WORD_TOKENIZER, tmp_path / "exported")
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert values["architectures"] == ["LLEForSequenceClassification"]
    assert values["id2label"] == {"0": "label-0", "1": "label-1", "2": "label-2"}
    assert values["label2id"] == {"label-0": 0, "label-1": 1, "label-2": 2}
    assert all(isinstance(values[name], int) for name in ("hidden_size", "num_hidden_layers", "pad_token_id"))
    assert values["max_position_embeddings"] >= 512
    assert "eos_token_id" not in values  # text-embeddings-inference takes a number or nothing
    assert json.loads((folder / "tokenizer_config.json").read_text())["padding_side"] == "right"
    assert AutoConfig.from_pretrained(folder).hidden_size == 6
