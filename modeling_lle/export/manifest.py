"""export.json: what the runner needs to know of an exported model beside its graphs."""

import dataclasses
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from .. import __version__
from ..bank.files import sha256
from ..bank.fingerprint import fingerprint
from ..history.label_rule import kind_of, names_of
from ..models.pretrained import LLEPreTrainedModel
from ..tasks import LANGUAGE, TRANSLATION, Task
from .errors import ExportError

FORMAT = 1
FILE = "export.json"
SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "max_new_tokens")
SEARCH = ("num_beams", "length_penalty", "early_stopping", "no_repeat_ngram_size", "max_new_tokens")
# What `generate` takes where neither the call nor the model sets it.
USUAL = {
    **{"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0},
    **{"num_beams": 1, "length_penalty": 1.0, "early_stopping": False, "no_repeat_ngram_size": 0},
}
# What a generation configuration may hold that changes no token.
WITHOUT_EFFECT = (
    *("use_cache", "return_dict_in_generate", "output_attentions", "output_hidden_states", "output_scores"),
    *("output_logits", "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("transformers_version", "_from_model_config"),
)
PACKAGES = ("torch", "transformers", "onnx", "onnxruntime")


def describe(model: LLEPreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task) -> dict[str, Any]:
    """The values of export.json that the model gives.

    Raises:
        ExportError: The generation configuration asks for what the runner cannot do.
    """
    config: Any = model.config
    names = [name for name in ("stream", "matches", "bank") if f"history.{name}" in task.sections]
    history = {name: dataclasses.asdict(getattr(config, name)) for name in names}
    for name in {"stream", "matches"} & history.keys() if not config.use_history else ():
        history[name]["window"] = 0
    if task == TRANSLATION:
        history["bank"] |= {name: getattr(config.translator, name) for name in ("sentences", "neighbours")}
    return {
        "format": FORMAT,
        "task": task.name,
        "vocab_size": config.vocab_size,
        "width": model.key_size,
        "tokens": _tokens(model, tokenizer),
        "generation": _generation(model, task),
        "history": history,
        "classifier": _classifier(model, task),
        "fingerprint": fingerprint(model),
        "versions": {"modeling_lle": __version__} | {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _tokens(model: LLEPreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Ids of the first and the padding token, None where there is none, and those that end a text."""
    own = getattr(model, "generation_config", None)
    end = getattr(own, "eos_token_id", None)
    return {
        "bos": model.config.bos_token_id,
        "pad": tokenizer.pad_token_id if model.config.pad_token_id is None else model.config.pad_token_id,
        "eos": [] if end is None else list(end) if isinstance(end, list) else [end],
    }


def _generation(model: LLEPreTrainedModel, task: Task) -> dict[str, Any]:
    """The defaults of generation; {} for a classifier."""
    own = getattr(model, "generation_config", None)
    if task not in (LANGUAGE, TRANSLATION) or own is None:
        return {}
    known = SAMPLING if task == LANGUAGE else SEARCH
    given = {name: value for name, value in own.to_diff_dict().items() if value is not None}
    unknown = [
        name
        for name, value in given.items()
        if name not in known and name not in WITHOUT_EFFECT and USUAL.get(name) != value
    ]
    if unknown:
        raise ExportError(
            f"run.py has no {', '.join(unknown)}, which the generation configuration sets: set "
            f"model.generation_config.{unknown[0]} = None, or generation_config.json in the model's folder likewise"
        )
    return {name: given.get(name, USUAL.get(name)) for name in known}


def _classifier(model: LLEPreTrainedModel, task: Task) -> dict[str, Any] | None:
    """Labels and numbers of a classifier; None for other models."""
    if "classifier" not in task.sections:
        return None
    config: Any = model.config
    own, labels = config.classifier, names_of(config.id2label)
    return {
        "labels": labels,
        "kind": config.problem_type or kind_of(len(labels)),
        "background": own.background,
        "margin": own.margin,
        "out_of_scope": dataclasses.asdict(own.out_of_scope),
    }


def write_manifest(folder: Path, values: dict[str, Any], unchecked: str | None = None) -> None:
    """Writes export.json with size and SHA-256 of every file in the folder.

    Args:
        folder: The exported folder, with all other files.
        values: What is written beside `files`.
        unchecked: A folder in it whose files change later, so that they are left out.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and (unchecked is None or not name.startswith(f"{unchecked}/")):
            files[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    text = json.dumps({**values, "files": files}, indent=1, ensure_ascii=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")
