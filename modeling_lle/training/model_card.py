"""Model card from a template, the saved configuration, recipe.yaml, metrics.json and results files.

Notable: every figure and name comes from a file or an argument; where one is unknown, the card says so. A card carries
`MARK`, and only cards with it are replaced: a README.md that a person has written stays.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoConfig

from ..common.temporary import replacing
from ..tasks import CLASSIFICATION, LANGUAGE, TRANSLATION, Task, task_of
from .checkpoints import METRICS

RECIPE = "recipe.yaml"
TEMPLATE = Path(__file__).with_name("model_card.md")
MARK = "<!-- Written by modeling_lle, which replaces this file. To keep your own words, remove this line. -->"
NAMES = ("README.md", "MODEL_CARD.md")  # the second if the first is by a person
TAGS = ["lle", "recurrent", "cpu"]
_PROMPTS = {
    LANGUAGE.name: "The",
    CLASSIFICATION.name: "A text to classify",
    TRANSLATION.name: "A sentence to translate",
}
# Figures of metrics.json that a card shows, with what each is.
_TRAINED = {
    "parameters": "parameters",
    "train_minutes": "minutes of training",
    "train_steps": "steps of training",
    "train_loss": "loss in training",
    "eval_loss": "loss on the validation data, without history",
    "eval_perplexity": "perplexity per token of the validation data, without history",
    "eval_word_perplexity": "perplexity per word of the validation data, without history",
    "eval_accuracy": "accuracy on the validation data, without history",
}
_CALIBRATED = {
    "base_nats": "loss on validation predictions, without history",
    "before_nats": "the same with history, before its parameters were fitted on these predictions",
    "after_nats": "the same with history, after they were fitted",
}


def write_model_card(
    folder: str | Path,
    results: Mapping[str, Any] | None = None,
    *,
    repo_id: str | None = None,
    dataset: str | None = None,
    dataset_name: str | None = None,
    languages: Sequence[str] | None = None,
    license: str | None = None,
    recipe: str | None = None,
    prompt: str | None = None,
    template: str | Path = TEMPLATE,
) -> Path:
    """Writes README.md, the model card, into the folder of a saved model.

    Args:
        folder: Folder written by `lle train` or `save_pretrained`.
        results: Content of a results file: `metrics`, and optionally `command`, `commit` and `environment`. None: the
            card shows only the figures of metrics.json in the folder, which are of the validation data.
        repo_id: Future name of the model on the Hub, "owner/name"; None: the examples show the name of the folder.
        dataset: Name on the Hub of the data set that was trained on and measured; None: unknown.
        dataset_name: Common name of the data set; None: `dataset`.
        languages: ISO codes of the languages; None: for translators those of recipe.yaml, else unknown.
        license: Hub identifier of the licence of the weights; None: not stated.
        recipe: YAML text of the training recipe; None: recipe.yaml of the folder, if it has one.
        prompt: Text that the example completes, classifies or translates; None: a placeholder.
        template: Jinja template of the card.

    Returns:
        Path of the card: README.md, or MODEL_CARD.md if a README.md without `MARK` exists. `push_to_hub` keeps a card
        that exists on the Hub, so publish it with `ModelCard.load(path).push_to_hub(repo_id)`, or with the whole
        folder by `HfApi().upload_folder(...)`.

    Raises:
        FileExistsError: Both files exist without `MARK`.
        ValueError: `results` hold no metrics, or recipe.yaml or metrics.json cannot be read.
    """
    if results is not None and not results.get("metrics"):
        raise ValueError("the results hold no metrics: give the content of a file that `lle evaluate` wrote")
    folder = Path(folder)
    path = _place(folder)
    config = AutoConfig.from_pretrained(folder)
    task = task_of((config.architectures or [config.model_type])[0], str(folder))
    if recipe is None and (folder / RECIPE).is_file():
        recipe = (folder / RECIPE).read_text(encoding="utf-8")
    languages = languages or _languages(recipe, folder)
    results = results or {}
    measured = {name: value for name, value in results.get("metrics", {}).items() if isinstance(value, int | float)}
    trained = {name: value for name, value in _trained(folder, task).items() if name not in measured}
    name = repo_id.rsplit("/", maxsplit=1)[-1] if repo_id else folder.resolve().name
    dataset_name = dataset_name or dataset
    data = ModelCardData(
        model_name=name,
        license=license,
        library_name="transformers",
        pipeline_tag=task.name,
        tags=[*TAGS, *task.tags],
        language=list(languages) or None,
        datasets=[dataset] if dataset else None,
        **_indexed(task, measured, dataset, dataset_name),
    )
    card = ModelCard.from_template(
        data,
        template_path=str(template),
        mark=MARK,
        config=config,
        task=task.name,
        model_name=name,
        repo_id=repo_id,
        model=_literal(repo_id or name),
        dataset_name=dataset_name,
        languages=", ".join(languages),
        license=license,
        recipe=recipe and recipe.strip(),
        prompt=_literal(prompt or _PROMPTS.get(task.name, "The")),
        rows=[(metric, _figure(value)) for metric, value in measured.items()],
        trained=[(_TRAINED.get(metric) or _CALIBRATED[metric], _figure(value)) for metric, value in trained.items()],
        **{key: results.get(key) for key in ("command", "commit", "environment")},
    )
    with replacing(path) as partial:
        card.save(partial)
    return path


def stated(folder: str | Path) -> dict[str, Any]:
    """What the card in a folder states of `dataset`, `languages` and `license`, for `write_model_card`.

    Returns:
        The arguments that are stated; empty without a card, or if it is by a person.
    """
    path = Path(folder) / NAMES[0]
    if not _is_ours(path):
        return {}
    data = ModelCard.load(path).data
    languages = [data.language] if isinstance(data.language, str) else data.language
    known = {"dataset": (data.datasets or [None])[0], "languages": languages, "license": data.license}
    return {name: value for name, value in known.items() if value}


def _place(folder: Path) -> Path:
    """The file to write."""
    for path in (folder / name for name in NAMES):
        if not path.exists() or _is_ours(path):
            return path
    raise FileExistsError(
        f"{' and '.join(NAMES)} in {folder} are not cards of modeling_lle, so neither is replaced: rename one of them"
    )


def _is_ours(path: Path) -> bool:
    return path.is_file() and MARK in path.read_text(encoding="utf-8", errors="replace")


def _languages(recipe: str | None, folder: Path) -> list[str]:
    """Codes of the languages of a translator's recipe."""
    try:
        values = yaml.safe_load(recipe or "") or {}
        languages = [values["data"].get(f"{side}_language") for side in ("source", "target") if "data" in values]
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        raise ValueError(f"the recipe of {folder} cannot be read: {error}") from error
    return [language for language in languages if language]


def _trained(folder: Path, task: Task) -> dict[str, float]:
    """Figures of metrics.json that a card shows, in order."""
    path = folder / METRICS
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        calibration = found.get("calibration", {})
        values = {name: found[name] for name in _TRAINED if name in found}
        return values | {name: calibration[name] for name in _CALIBRATED if name in calibration}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold the metrics of a training: {error}") from error


def _figure(value: float) -> str:
    """A figure of the tables; a small one keeps three digits that are not zero."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.3g}"


def _literal(text: str) -> str:
    """A text as a literal of Python."""
    return json.dumps(text, ensure_ascii=False)


def _indexed(
    task: Task, metrics: Mapping[str, float], dataset: str | None, dataset_name: str | None
) -> dict[str, Any]:
    """`metrics`, types of the metrics on the Hub, and with a data set `eval_results`, values of the typed metrics."""
    types = task.metrics or {name: "perplexity" for name in metrics if name.endswith("ppl")}
    if not metrics:
        return {}
    if dataset is None or dataset_name is None:
        return {"metrics": list(dict.fromkeys(types.values()))}
    results = [
        EvalResult(
            task_type=task.name,
            dataset_type=dataset,
            dataset_name=dataset_name,
            metric_type=types[name],
            metric_name=name,
            metric_value=round(value, 3),
        )
        for name, value in metrics.items()
        if name in types
    ]
    return {"metrics": list(dict.fromkeys(types.values())), "eval_results": results}
