"""The model card: what the Hub shows and indexes, from a template and measured results.

Notable: nothing in it is typed by hand; the numbers come from a results file, the sizes from the saved configuration.
"""

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
        folder: What `save_pretrained` wrote.
        results: The content of a results file: `metrics`, and optionally `command`, `commit` and `environment`.
        repo_id: The name that the model will have on the Hub, "owner/name".
        dataset: The name of the data set on the Hub.
        dataset_name: The name that people call it; None: `dataset`.
        languages: ISO codes of the languages of the text.
        license: The licence of the weights, by the Hub's identifier.
        recipe: The YAML text that the model was trained with.
        prompt: The text that the example completes, classifies or translates.
        template: A Jinja template, for a card of another form.

    Returns:
        The path of the card. `push_to_hub` leaves a card that is on the Hub already as it is, so publish it with
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
    """`metrics`, the Hub's types of the metrics, and `eval_results`, the values of those that have a type."""
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
