"""Command `lle train`: by a recipe, or on files without one. Heavy imports are deferred until the command runs."""

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..common.terminal import counted, say
from ..tasks import CLASSIFICATION, LANGUAGE, TRANSLATION
from .options import Language

if TYPE_CHECKING:
    from ..training import Plan, Recipe

NEXT = {
    LANGUAGE.name: (
        ("lle evaluate {folder} FILES", "what it reaches on other texts"),
        ("lle explain {folder} FILE", "which entries moved each prediction"),
        ('lle generate {folder} "TEXT"', "continues a text"),
        ("lle bank build {folder} FILES {folder}/bank", "a bank of texts to recall from"),
    ),
    CLASSIFICATION.name: (
        ("lle evaluate {folder} FILES", "what it reaches on other texts"),
        ('lle classify {folder} "TEXT"', "labels a text, or a file of them"),
        ('lle learn {folder} "TEXT" --label LABEL', "teaches an example, also of a new label"),
    ),
    TRANSLATION.name: (
        ("lle evaluate {folder} FILES", "what it reaches on other pairs"),
        ('lle translate {folder} "TEXT"', "translates a text, a file or a catalogue"),
        ("lle memory {folder} FILES", "adds pairs to recall from"),
    ),
}


class TaskName(str, Enum):
    """Tasks that can be trained."""

    text_generation = LANGUAGE.name
    text_classification = CLASSIFICATION.name
    translation = TRANSLATION.name


def train(
    recipe: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE]", help="YAML file; with --data instead further files."),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", help="Files, folders or globs to train on, without a recipe.")
    ] = None,
    task: Annotated[TaskName | None, typer.Option(help="With --data; by default what the files suggest.")] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="With --data: time that the training may take.")] = 10.0,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the model; by default that of the recipe, or runs/NAME.")
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="With --data: column of the text in tables.")] = None,
    label_column: Annotated[str | None, typer.Option(help="With --data: column of the label.")] = None,
    source_language: Language = None,
    target_language: Language = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value, overrides the recipe; repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the newest complete checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Train over a model that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all metrics as JSON.")] = False,
) -> None:
    """Trains a model on your files, or by a recipe, fits its history, and saves it with all that belongs to it."""
    _quiet()
    columns = {"text_column": text_column, "label_column": label_column}
    languages = {"source_language": source_language, "target_language": target_language}
    files = [*(data or []), *(recipe or [])] if data else []
    tell = _stderr if as_json else say
    plan, where = None, None
    if files:
        given = {"task": task and task.value, "minutes": minutes, **columns, **languages}
        loaded, plan = _planned(files, output, set_ or [], resume, overwrite, given, tell)
    else:
        where = _recipe_in(recipe or [], output, resume)
        loaded = _loaded(where, set_ or [], output)
        _check_place(_folder(loaded), resume, overwrite)
    metrics = _run(loaded, resume, tell)
    if loaded.training.process_index > 0:
        return
    figures = _finish(loaded, plan)
    if as_json:
        say(json.dumps({**metrics, **({"test": figures} if figures else {})}, indent=2))
    else:
        _report(loaded, metrics, figures)


def _quiet() -> None:
    """Leaves one progress bar: that of the training."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()


def _stderr(line: str) -> None:
    say(line, err=True)


def _folder(recipe: "Recipe") -> Path:
    return Path(str(recipe.training.output_dir))


def _recipe_in(given: Sequence[str], output: Path | None, resume: bool) -> Path:
    """The recipe that was given, or that of the run to resume."""
    if not given and output is not None and resume:
        return output / "recipe.yaml"
    if not given:
        raise ValueError("nothing to train on: give --data FILES, or a recipe such as configs/lm/smoke.yaml")
    if len(given) > 1:
        raise ValueError(f"one recipe at a time, not {', '.join(given)}: for files of your own, give --data FILES")
    path = Path(given[0])
    if path.is_dir() or (path.is_file() and path.suffix.lower() not in (".yaml", ".yml")):
        raise ValueError(f"{path} is no recipe, a YAML file: to train on it, give --data {path}")
    return path


def _loaded(path: Path, settings: list[str], output: Path | None) -> "Recipe":
    from ..training import load_recipe

    place = [] if output is None else [f"training.output_dir={json.dumps(str(output))}"]
    return load_recipe(path, [*settings, *place])


def _check_place(folder: Path, resume: bool, overwrite: bool) -> None:
    """Asks before a model or an unfinished run is written over, or raises a FileExistsError."""
    from ..training.checkpoints import holds_run, newest_checkpoint

    checkpoint = newest_checkpoint(folder)
    if resume:
        if checkpoint is not None:
            return
        if not holds_run(folder):
            say(f"There is no checkpoint in {folder} to resume from: training begins anew.", err=True)
            return
    if overwrite or not holds_run(folder):
        return
    unfinished = checkpoint is not None and not (folder / "metrics.json").exists()
    what = f"an unfinished training ({checkpoint.name})" if checkpoint and unfinished else "a trained model"
    going_on = "continue it with --resume, " if unfinished else ""
    none = ", and no checkpoint to resume from" if resume else ""
    if sys.stdin.isatty() and sys.stdout.isatty():
        hint = " (--resume continues it)" if unfinished else ""
        if typer.confirm(f"{folder} holds {what}{none}{hint}. Train over it?"):
            return
        raise typer.Abort
    raise FileExistsError(
        f"{folder} holds {what}{none}: {going_on}choose another folder with --output, or train over it with "
        "--overwrite"
    )


def _planned(
    files: list[str],
    output: Path | None,
    settings: list[str],
    resume: bool,
    overwrite: bool,
    given: dict[str, Any],
    tell: Callable[[str], None],
) -> "tuple[Recipe, Plan | None]":
    """The recipe for files: planned, or that of the run to resume; it is in the output folder from now on."""
    from ..training import plan
    from ..training.checkpoints import newest_checkpoint
    from ..training.planning import default_output
    from ..training.steps import write_recipe

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("--data plans for one process: for several, train by the recipe.yaml that it writes")
    folder = output or default_output(files)
    _check_place(folder, resume, overwrite)
    written = folder / "recipe.yaml"
    if resume and newest_checkpoint(folder) is not None and written.is_file():
        tell(f"The training in {folder} goes on by its recipe, {written}; {newest_checkpoint(folder)} is the newest.")
        return _loaded(written, settings, folder), None
    logging.getLogger("modeling_lle.data.sources").setLevel(logging.ERROR)  # what is left out is said by the plan
    made = plan(files, output=folder, **given, say=tell)
    for line in _estimate(made):
        tell(line)
    folder.mkdir(parents=True, exist_ok=True)
    write_recipe(made.recipe)
    return _loaded(written, settings, folder), made


def _estimate(plan: "Plan") -> list[str]:
    """What a plan expects, in a few lines."""
    recipe = plan.recipe
    lines = []
    if plan.guess is not None:
        others = " or ".join(task.value for task in TaskName if task.value != recipe.task)
        columns = ", or name others with --text-column and --label-column" if plan.guess.text_column else ""
        lines.append(f"task: {recipe.task}, as {plan.guess.why}; for another, give --task {others}{columns}")
    held = [f"{recipe.data.held_out:.1%} to fit on" if recipe.data.held_out else ""]
    held += [f"{recipe.data.held_out_test:.1%} for the final figure" if recipe.data.held_out_test else ""]
    kept = " and ".join(part for part in held if part)
    lines.append(
        f"data: {counted(plan.documents, plan.unit.removesuffix('s'))}{f'; held out: {kept}' if kept else ''}"
    )
    if plan.read < 1:
        lines.append(f"{plan.read:.1%} of the text is read, drawn by seed: what fits the time (--minutes)")
    size = f", {plan.parameters:,} parameters" if plan.parameters else ""
    model = recipe.model
    tokens = f"{plan.tokens:,} tokens, " if plan.tokens else ""
    lines.append(
        f"model: width {model['hidden_size']}, {model['num_hidden_layers']} "
        f"layer{'' if model['num_hidden_layers'] == 1 else 's'}{size}, "
        f"a vocabulary of at most {recipe.tokenizer.vocab_size:,}"
    )
    lines.append(
        f"training: {tokens}{_times(plan.epochs)}, about {plan.steps:,} steps of {plan.seconds_of_a_step:.2g} s: "
        f"{_minutes(plan.minutes)}, and some for fitting and measuring"
    )
    lines.append(f"output: {recipe.training.output_dir}")
    return lines


def _times(epochs: float) -> str:
    return "read once" if epochs == 1 else f"read {epochs:.3g} times"


def _minutes(minutes: float) -> str:
    return f"{minutes:.1f} minutes" if minutes >= 1 else f"{60 * minutes:.0f} seconds"


def _run(recipe: "Recipe", resume: bool, tell: Callable[[str], None]) -> dict[str, Any]:
    """Trains; says what is kept if it is stopped."""
    from ..training import leave_group, run
    from ..training.checkpoints import newest_checkpoint, remove_run

    folder = _folder(recipe)
    if not (resume and newest_checkpoint(folder) is not None) and recipe.training.process_index == 0:
        remove_run(folder)
    try:
        metrics = run(recipe, resume=resume)
    except (KeyboardInterrupt, SystemExit) as stopped:
        if recipe.training.process_index == 0:
            _stderr(_kept(folder))
        raise SystemExit(130 if isinstance(stopped, KeyboardInterrupt) else stopped.code) from None
    leave_group()
    return metrics


def _kept(folder: Path) -> str:
    """What remains of a training that was stopped."""
    from ..training.checkpoints import newest_checkpoint

    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        return f"Stopped before the first checkpoint: nothing of the training is kept in {folder}."
    return f"Stopped. {checkpoint} is kept: lle train {folder / 'recipe.yaml'} --resume goes on from it."


def _finish(recipe: "Recipe", plan: "Plan | None") -> dict[str, float]:
    """Measures on what was held out, and writes the model card."""
    from ..evaluation.held_out import measure_held_out
    from ..training.model_card import write_model_card

    figures = measure_held_out(recipe, None if plan is None else plan.tests)
    try:
        write_model_card(_folder(recipe))
    except FileExistsError as error:  # README.md and MODEL_CARD.md are both somebody's own
        _stderr(f"No model card was written: {error}.")
    return figures


def _report(recipe: "Recipe", metrics: dict[str, Any], figures: dict[str, float]) -> None:
    """A few readable lines; metrics.json has the rest."""
    folder = _folder(recipe)
    minutes = metrics.get("train_minutes")
    taken = "" if minutes is None else f" in {_minutes(minutes)}"
    say(f"{metrics['parameters']:,} parameters trained{taken}, {metrics['train_steps']:,} steps.")
    say(_REPORTS[recipe.task](metrics, figures))
    say(f"The model is in {folder}, its recipe in {folder / 'recipe.yaml'}, all figures in {folder / 'metrics.json'}.")
    say("\nWhat to do next")
    for command, what in NEXT[recipe.task]:
        say(f"  {command.format(folder=folder)}    {what}")


def _unseen(figures: dict[str, float], unit: str) -> str:
    return f"On {counted(figures['documents'], unit)} that were neither trained on nor fitted on: "


def _language(metrics: dict[str, Any], figures: dict[str, float]) -> str:
    if figures:
        alone, both = figures["base_ppl"], figures["history_ppl"]
        return f"{_unseen(figures, 'document')}perplexity {alone:,.1f} alone, {both:,.1f} with history."
    alone = metrics["eval_perplexity"]
    return f"On the validation text: perplexity {alone:,.1f} alone; the history is fitted on it."


def _classifier(metrics: dict[str, Any], figures: dict[str, float]) -> str:
    if figures:
        return f"{_unseen(figures, 'text')}accuracy {figures['accuracy']:.1%}."
    return f"On the validation texts, on which the rule is fitted: accuracy {metrics['eval_accuracy']:.1%}."


def _translator(metrics: dict[str, Any], figures: dict[str, float]) -> str:
    if figures:
        return f"{_unseen(figures, 'pair')}BLEU {figures['bleu']:.1f}, chrF {figures['chrf']:.1f}."
    return f"On the validation pairs: a loss of {metrics['eval_loss']:.2f} nats a token."


_REPORTS: dict[str, Callable[[dict[str, Any], dict[str, float]], str]] = {
    LANGUAGE.name: _language,
    CLASSIFICATION.name: _classifier,
    TRANSLATION.name: _translator,
}
