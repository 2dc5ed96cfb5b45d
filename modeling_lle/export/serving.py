"""What servers of classifiers look for in config.json, beside the configuration itself.

Notable: text-embeddings-inference and transformers.js run `onnx/model.onnx` and `onnx/model_quantized.onnx`, of which
they read the output `logits`; the labels, and sizes that the former refuses to do without, are in config.json.
"""

import json
from pathlib import Path

from ..configuration import LLEConfig

LONGEST = 8192  # tokens of a text that a server may send; a recurrent model itself has no limit


def describe_for_servers(file: Path, config: LLEConfig) -> None:
    """Adds to a saved config.json of a classifier what servers read at its top level.

    Args:
        file: config.json, which is replaced.
        config: The configuration that it holds.
    """
    values, labels = json.loads(file.read_text(encoding="utf-8")), config.id2label or {}
    values |= {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "max_position_embeddings": LONGEST,
        "id2label": {str(number): name for number, name in labels.items()},
        "label2id": {name: number for number, name in labels.items()},
    }
    for name in ("pad_token_id", "eos_token_id", "bos_token_id"):  # a null is not read as a missing number
        if values.get(name) is None:
            values.pop(name, None)
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
