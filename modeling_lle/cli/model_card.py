"""Model card for the Hub, from a template, results files and the saved configuration; nothing is typed by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import AutoConfig

from ..common.temporary import replacing
from ..tasks import Task, task_of

TEMPLATE = Path(__file__).with_name("model_card.md")  # a link to model_cards/template.md, a copy once installed
TAGS = ["lle", "recurrent", "cpu"]


def write_model_card(
    folder: str | Path,
    results: Mapping[str, Any],
    *,
    repo_id: str,
    dataset: str,
    dataset_name: str | None = None,
    languages: Sequence[str] = ("en",),
    license: str = "apache-2.0",
    recipe: str | None = None,
    prompt: str = "The",
    template: str | Path = TEMPLATE,
) -> Path:
    """Writes README.md, the model card, into the folder of a saved model.

    Args:
        folder: Folder written by `save_pretrained`.
        results: Content of a results file: `metrics`, and optionally `command`, `commit` and `environment`.
        repo_id: Future name of the model on the Hub, "owner/name".
        dataset: Name of the data set on the Hub.
        dataset_name: Common name of the data set; None: `dataset`.
        languages: ISO codes of the languages.
        license: Hub identifier of the licence of the weights.
        recipe: YAML text of the training recipe.
        prompt: Text that the example completes, classifies or translates.
        template: Jinja template of the card.

    Returns:
        Path of the card. `push_to_hub` keeps a card that exists on the Hub, so publish it with
        `ModelCard.load(path).push_to_hub(repo_id)`, or with the whole folder by `HfApi().upload_folder(...)`.
    """
    if not results.get("metrics"):
        raise ValueError("the results hold no metrics: give the content of a file that `lle evaluate` wrote")
    config = AutoConfig.from_pretrained(folder)
    task = task_of((config.architectures or [config.model_type])[0], str(folder))
    metrics = {name: value for name, value in results["metrics"].items() if isinstance(value, int | float)}
    name, dataset_name = repo_id.rsplit("/", maxsplit=1)[-1], dataset_name or dataset
    data = ModelCardData(
        model_name=name,
        license=license,
        library_name="transformers",
        pipeline_tag=task.name,
        tags=[*TAGS, *task.tags],
        language=list(languages),
        datasets=[dataset],
        **_measured(task, metrics, dataset, dataset_name),
    )
    card = ModelCard.from_template(
        data,
        template_path=str(template),
        config=config,
        task=task.name,
        model_name=name,
        repo_id=repo_id,
        dataset_name=dataset_name,
        languages=", ".join(languages),
        license=license,
        recipe=recipe and recipe.strip(),
        prompt=prompt,
        rows=[
            (metric, f"{value:,}" if isinstance(value, int) else f"{value:,.3f}") for metric, value in metrics.items()
        ],
        **{key: results.get(key) for key in ("command", "commit", "environment")},
    )
    path = Path(folder) / "README.md"
    with replacing(path) as partial:
        card.save(partial)
    return path


def _measured(task: Task, metrics: Mapping[str, float], dataset: str, dataset_name: str) -> dict[str, Any]:
    """`metrics`, types of the metrics on the Hub, and `eval_results`, values of the typed metrics."""
    types = task.metrics or {name: "perplexity" for name in metrics if name.endswith("ppl")}
    results = [
        EvalResult(
            task_type=task.name,
            dataset_type=dataset,
            dataset_name=dataset_name,
            dataset_split="test",
            metric_type=types[name],
            metric_name=name,
            metric_value=round(value, 3),
        )
        for name, value in metrics.items()
        if name in types
    ]
    return {"metrics": list(dict.fromkeys(types.values())), "eval_results": results}
