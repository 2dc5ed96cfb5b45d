"""Command of the model card: `lle card`. Heavy imports are deferred until the command runs."""

from pathlib import Path
from typing import Annotated

import typer

from ..common.terminal import say


def card(
    model: Annotated[Path, typer.Argument(help="Folder written by `lle train`.")],
    results: Annotated[
        Path | None,
        typer.Argument(help="Results file of `lle evaluate --results`; without it, the figures of training."),
    ] = None,
    repo_id: Annotated[str | None, typer.Option(help="Future name of the model on the Hub, owner/name.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Name of the data set on the Hub.")] = None,
    language: Annotated[list[str] | None, typer.Option(help="Code of a language, such as en; repeatable.")] = None,
    license: Annotated[str | None, typer.Option(help="Licence of the weights, such as apache-2.0.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Text of the example in the card.")] = None,
) -> None:
    """Writes the model card, README.md, from results, recipe and metrics into the folder of a model.

    What an earlier card of this command states (data set, languages, licence) stays, unless it is given anew.
    """
    from ..evaluation import read_results
    from ..training.model_card import NAMES, stated, write_model_card

    if not model.is_dir():
        raise FileNotFoundError(f"there is no model at {model}: give the folder that `lle train` wrote")
    given = {"dataset": dataset, "languages": language, "license": license}
    path = write_model_card(
        model,
        None if results is None else read_results(results),
        repo_id=repo_id,
        prompt=prompt,
        **stated(model) | {name: value for name, value in given.items() if value},
    )
    kept = "" if path.name == NAMES[0] else f"; {NAMES[0]} is not a card of modeling_lle, and stays as it is"
    say(f"The card is {path}{kept}.")
