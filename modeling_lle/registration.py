"""Registers LLE with the Auto classes of transformers, and thereby with its pipelines and Trainer.

Notable: an import hook, on purpose: it takes 0.06 CPU seconds, loading the Auto tables takes 3.9. The Auto modules
import classes on first use from tables of names; the names are entered when these modules are loaded, or at once if
they already are.
`AutoConfig.register` and the like need the classes themselves. The classes also become attributes of `transformers`,
where `transformers serve` looks them up. Pipelines are replaced by subclasses with more arguments; other models are
unaffected. The translation pipeline, removed in transformers 5, is restored, for other models too.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

from .tasks import MODEL_TYPE, TASKS, TRANSLATOR_TYPE

AUTO = "transformers.models.auto."
# For each Auto module, its tables of names with LLE classes by model type. A type is listed either as causal or as
# sequence-to-sequence, as programs decide by it.
TABLES = {
    AUTO + "configuration_auto": {
        "CONFIG_MAPPING_NAMES": {MODEL_TYPE: "LLEConfig", TRANSLATOR_TYPE: "LLESeq2SeqConfig"}
    },
    AUTO + "modeling_auto": {
        "MODEL_MAPPING_NAMES": {MODEL_TYPE: "LLEModel", TRANSLATOR_TYPE: "LLESeq2SeqModel"},
        **{task.mapping: {task.model_type: task.model} for task in TASKS},
    },
    AUTO + "tokenization_auto": {
        "TOKENIZER_MAPPING_NAMES": {MODEL_TYPE: "LLETokenizer", TRANSLATOR_TYPE: "LLETokenizer"}
    },
}
CLASSES = sorted({name for tables in TABLES.values() for names in tables.values() for name in names.values()})
AUTO_CLASSES = {
    "AutoModel": ("LLEModel", "LLESeq2SeqModel"),
    **{task.auto_class: (task.model,) for task in TASKS},
}
PIPELINES = "transformers.pipelines"
PROCESSING = "transformers.processing_utils"  # replaces `transformers` by a second module object


def enter_names(module: ModuleType) -> None:
    """Enters the LLE classes into the tables of a module of transformers."""
    if module.__name__ == PIPELINES:
        tasks = module.PIPELINE_REGISTRY.supported_tasks
        tasks.setdefault("translation", {"pt": (module.AutoModelForSeq2SeqLM,), "default": {}, "type": "text"})
        module.REMOVED_TASKS.pop("translation", None)
        for task in TASKS:
            tasks[task.name]["impl"] = task.pipeline
        return
    for table, names in TABLES.get(module.__name__, {}).items():
        getattr(module, table).update(names)
    homes = vars(sys.modules["transformers"])["_class_to_module"]  # where `transformers` imports its attributes from
    homes.update(dict.fromkeys(CLASSES, f"models.{MODEL_TYPE}"))


class _AutoLoader(Loader):
    """Loads a module by its own loader, then enters the names."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        enter_names(module)


class _AutoFinder(MetaPathFinder):
    """Finds each module with tables once, and passes it to `_AutoLoader`."""

    def __init__(self, waiting: set[str]) -> None:
        self.waiting = waiting

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.waiting:
            return None
        self.waiting.remove(fullname)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _AutoLoader(spec.loader)
        return spec


def register(package: ModuleType) -> None:
    """Registers the classes of `package`, its attributes, whether transformers is loaded or not."""
    # The Auto modules import classes from `transformers.models.<type>`.
    for name in (MODEL_TYPE, TRANSLATOR_TYPE):
        sys.modules[f"transformers.models.{name}"] = package
    loaded = {name for name in (*TABLES, PIPELINES, PROCESSING) if name in sys.modules}
    if PIPELINES in loaded:
        enter_names(sys.modules[PIPELINES])
    if loaded.isdisjoint(TABLES):
        sys.meta_path.insert(0, _AutoFinder({*TABLES, PIPELINES, PROCESSING} - loaded))
        return
    sys.meta_path.insert(0, _AutoFinder({PIPELINES, PROCESSING} - loaded))
    import transformers
    from transformers.models.auto import modeling_auto

    enter_names(modeling_auto)
    for name, config in ((MODEL_TYPE, package.LLEConfig), (TRANSLATOR_TYPE, package.LLESeq2SeqConfig)):
        transformers.AutoConfig.register(name, config, exist_ok=True)
        transformers.AutoTokenizer.register(config, tokenizer_class=package.LLETokenizer, exist_ok=True)
    for auto, models in AUTO_CLASSES.items():
        for model in (getattr(package, name) for name in models):
            getattr(transformers, auto).register(model.config_class, model, exist_ok=True)
