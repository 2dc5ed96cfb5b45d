"""Options that several commands share: names of precisions, and options of other tasks."""

from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from modeling_lle.cli.options import Precision, refuse_other_options
from modeling_lle.common.precision import PRECISIONS

OWN = {"translation": ("beams", "batch_size"), "text-classification": ("batch_size",)}


def run(*arguments: str) -> dict[str, Any]:
    """The options of a classifier that a command with options of translators too returns."""
    app = typer.Typer()
    found: dict[str, Any] = {}

    @app.command()
    def command(
        context: typer.Context,
        beams: Annotated[int, typer.Option()] = 5,
        batch_size: Annotated[int, typer.Option()] = 32,
    ) -> None:
        found.update(refuse_other_options(context, OWN, "text-classification", "the classifier in runs"))

    CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    return found


def test_the_command_line_knows_every_precision() -> None:
    assert {precision.value for precision in Precision} == set(PRECISIONS)


def test_a_task_gets_its_own_options() -> None:
    assert run() == {"batch_size": 32}
    assert run("--batch-size", "4") == {"batch_size": 4}


def test_an_option_of_another_task_is_named() -> None:
    with pytest.raises(ValueError, match="--beams is not for the classifier in runs: leave it out"):
        run("--beams", "5")
