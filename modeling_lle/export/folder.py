"""`export`: writes a model as a folder that runs without torch, with its graphs, its bank and run.py.

Notable: the folder appears when everything in it is written and compared with the model, or not at all.
"""

import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..bank.protocol import Bank
from ..common.modes import evaluating
from ..common.temporary import TemporaryFolder
from ..history.attachment import Attachment
from ..models.pretrained import LLEPreTrainedModel
from ..tasks import CLASSIFICATION, LANGUAGE, TOKEN_CLASSIFICATION, Task, task_of
from .bank_files import write_bank
from .errors import ExportError
from .manifest import describe, write_manifest
from .serving import describe_for_servers
from .source import runner_source

PARTIAL = ".lle-exporting-"  # prefix of the folder in which an export is written
BANK = "bank"
EXAMPLES = {
    "text-generation": 'generate "Once upon a time"',
    "text-classification": 'classify "A text"',
    "token-classification": 'classify "A text"',
    "translation": 'translate "A text"',
}
_README = """# An LLE model, exported

`run.py` runs it without torch; the file says what it can do.

```bash
pip install onnxruntime numpy tokenizers
python run.py {example}
```

The graphs are in `onnx/`{bank}. `export.json` has the numbers of the history and the checksums of the files.
"""


def export(
    model: LLEPreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | os.PathLike[str],
    *,
    int8: bool = False,
    bank: Attachment | Bank | None = None,
    programs: bool = False,
) -> Path:
    """Writes a model as a folder that run.py in it runs with onnxruntime, numpy and tokenizers.

    Args:
        model: A language model, classifier or translator in float32.
        tokenizer: Its tokenizer.
        folder: The folder to write, which must not exist.
        int8: Whether to write graphs with matrices in int8 too.
        bank: The bank to export, as an Attachment or alone; None: none, whatever is attached. The folder then holds
            the texts that it was made of.
        programs: Whether to write the programs of `torch.export` too.

    Returns:
        The folder.

    Raises:
        FileExistsError: The folder exists.
        ExportError: The model or an option cannot be exported, or a graph differs from the model.
        BankError: Another model made the keys of the bank.
        ImportError: onnx or onnxruntime is not installed.
    """
    target, task = Path(folder), task_of(type(model).__name__)
    if target.exists() or target.is_symlink():
        raise FileExistsError(f"{target} exists: export into a folder that does not, or remove it first")
    if model.config.wrapped is not None:
        raise ExportError(
            f"the backbone is a model of transformers of the type {model.config.wrapped.model_type!r}, and only those "
            "of LLE's own have graphs: serve the saved folder with transformers instead"
        )
    _check_tokenizer(model, tokenizer)
    attachment = Attachment.of(bank)
    if attachment is not None:
        if not model.config.use_history:
            raise ExportError("the model does not use a bank: set config.use_history to True, or export none")
        if task == LANGUAGE and model.config.bank_matches.longest:
            raise ExportError(
                "run.py finds no exact matches in a bank: set config.history.bank_matches.longest to 0 and "
                "calibrate, or export no bank"
            )
        model.check_history(attachment.bank)
        attachment = Attachment(attachment.bank, attachment.namespaces, tokenizer)
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryFolder(PARTIAL, target.parent) as scratch, evaluating(model):
        made = scratch / "model"
        made.mkdir()
        _write(model, tokenizer, task, made, int8, attachment, programs)
        os.rename(made, target)
    return target


def _write(
    model: LLEPreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    folder: Path,
    int8: bool,
    attachment: Attachment | None,
    programs: bool,
) -> None:
    values = describe(model, tokenizer, task)  # first, as it takes no time to refuse something
    values["graphs"], values["largest_difference"] = _write_graphs(model, folder, int8)
    if programs:
        from .programs import write_programs  # here, as it imports a great deal of torch

        values["programs"] = write_programs(model, folder)
    _write_configuration(model, tokenizer, folder)
    entries = 0 if attachment is None else write_bank(attachment, task, folder / BANK)
    said = f", what is recalled in `{BANK}/`, which holds the texts that it was made of" if entries else ""
    (folder / "README.md").write_text(_README.format(example=EXAMPLES[task.name], bank=said), encoding="utf-8")
    (folder / "run.py").write_text(runner_source(task.name), encoding="utf-8")
    # The examples of a classifier change when run.py is taught.
    write_manifest(folder, values | {"entries": entries}, unchecked=BANK if values["classifier"] else None)


def _write_graphs(model: LLEPreTrainedModel, folder: Path, int8: bool) -> tuple[dict[str, dict[str, str]], float]:
    """The files of the graphs, and their largest difference from the model."""
    try:
        from .check import check_graphs  # here, as they need the extra "export"
        from .graphs import write_graphs
    except ModuleNotFoundError as error:
        if error.name not in ("onnx", "onnxruntime"):
            raise
        raise ImportError(f'export needs {error.name}: pip install "modeling_lle[export]"') from error
    graphs = write_graphs(model, folder, int8)
    return graphs, check_graphs(model, folder, graphs)


def _write_configuration(model: LLEPreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes config.json, generation_config.json and the tokenizer, none of which needs code of this package."""
    values = model.config.to_dict() | {"architectures": [type(model).__name__]}
    values.pop("auto_map", None)
    type(model.config).from_dict(values).save_pretrained(folder)
    if task_of(type(model).__name__) in (CLASSIFICATION, TOKEN_CLASSIFICATION):
        describe_for_servers(folder / "config.json", model.config)
    own = getattr(model, "generation_config", None)
    if model.can_generate() and own is not None:
        own.save_pretrained(folder)
    backend: Any = tokenizer
    PreTrainedTokenizerFast(
        tokenizer_object=backend.backend_tokenizer,
        padding_side="right",  # what the graphs expect, and most programs do
        model_input_names=["input_ids", "attention_mask"],
        **tokenizer.special_tokens_map,
    ).save_pretrained(folder)


def _check_tokenizer(model: LLEPreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ExportError(f"run.py needs a fast tokenizer, which a {type(tokenizer).__name__} is not: load one")
    if len(tokenizer) > model.config.vocab_size:
        raise ExportError(
            f"the tokenizer has {len(tokenizer)} tokens, and the model knows {model.config.vocab_size}: give the "
            "tokenizer that the model was trained with"
        )
