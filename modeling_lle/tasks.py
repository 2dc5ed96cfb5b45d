"""Tasks: one table that says which model, Auto class, sections, pipeline and metrics belong to a task.

Notable: whether a saved model is a language model, a classifier or a translator is decided here only. Other modules
have dictionaries by the name of a task (training, calibration, evaluation), none of which looks at a class again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

MODEL_TYPE, TRANSLATOR_TYPE = "lle", "lle_seq2seq"


@dataclass(frozen=True)
class Task:
    """A task and what belongs to it.

    Attributes:
        name: As transformers calls it.
        noun: What its models are called in messages.
        model: Class of its models.
        auto_class: The Auto class of transformers that loads them.
        mapping: The table in which this Auto class looks up classes by model type.
        sections: Sections of the configuration that its models read beside `backbone`.
        pipeline: Class of its pipeline.
        model_type: In config.json.
        metrics: For the model card: the Hub's types of the metrics, by their names in results files.
        tags: For the model card.
        has_commands: Whether the command line works on its models.
        commands: Names of the commands for its models only.
    """

    name: str
    noun: str
    model: str
    auto_class: str
    mapping: str
    sections: tuple[str, ...]
    pipeline: str
    model_type: str = MODEL_TYPE
    metrics: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    has_commands: bool = True
    commands: tuple[str, ...] = ()


LANGUAGE = Task(
    name="text-generation",
    noun="a language model",
    model="LLEForCausalLM",
    auto_class="AutoModelForCausalLM",
    mapping="MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    sections=(
        *("history.stream", "history.matches", "history.bank", "history.bank_matches"),
        *("history.update", "history.training"),
    ),
    pipeline="modeling_lle.pipelines.text_generation.LLETextGenerationPipeline",
    tags=("neural-cache",),
    commands=("generate", "explain", "bank"),
)
CLASSIFICATION = Task(
    name="text-classification",
    noun="a classifier of texts",
    model="LLEForSequenceClassification",
    auto_class="AutoModelForSequenceClassification",
    mapping="MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    sections=("classifier", "history.bank"),
    pipeline="modeling_lle.pipelines.text_classification.LLETextClassificationPipeline",
    metrics={"accuracy": "accuracy", "macro_f1": "f1"},
    commands=("classify", "suggest", "learn", "forget"),
)
TOKEN_CLASSIFICATION = Task(
    name="token-classification",
    noun="a classifier of tokens",
    model="LLEForTokenClassification",
    auto_class="AutoModelForTokenClassification",
    mapping="MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    sections=("classifier", "history.bank"),
    pipeline="modeling_lle.pipelines.token_classification.LLETokenClassificationPipeline",
    has_commands=False,
)
TRANSLATION = Task(
    name="translation",
    noun="a translator",
    model="LLEForSeq2SeqLM",
    auto_class="AutoModelForSeq2SeqLM",
    mapping="MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    sections=("translator", "history.bank"),
    pipeline="modeling_lle.pipelines.translation.LLETranslationPipeline",
    model_type=TRANSLATOR_TYPE,
    metrics={"bleu": "bleu", "chrf": "chrf", "ter": "ter"},
    commands=("translate", "memory"),
)
TASKS = (LANGUAGE, CLASSIFICATION, TOKEN_CLASSIFICATION, TRANSLATION)


def task_of(architecture: str, where: str = "") -> Task:
    """The task of a class of models.

    Args:
        architecture: Name of the class, as in `architectures` of config.json.
        where: The folder or repository that it was read from, for the message.

    Raises:
        ValueError: It is no class of LLE models with a head.
    """
    for task in TASKS:
        if task.model == architecture:
            return task
    known = ", ".join(task.model for task in TASKS)
    raise ValueError(f"{where or 'this'} holds a model of the class {architecture}, not one of {known}")
