"""Command `lle generate`: goes on with a text, once or in turns. Heavy imports are deferred until it runs."""

import sys
from typing import Annotated, Any

import typer

from ..tasks import CLASSIFICATION, TRANSLATION
from .options import Bank, Folder, InPrecision, Namespaces, Precision
from .texts import read_text

TOP_P = 0.95
COMMANDS = {CLASSIFICATION.name: "lle classify", TRANSLATION.name: "lle translate"}


def generate(
    model: Folder,
    text: Annotated[
        str | None,
        typer.Argument(metavar="TEXT", help="A text to go on with, a file with it, or - for the standard input."),
    ] = None,
    interactive: Annotated[bool, typer.Option("--interactive", help="Go on in turns, typed at a prompt.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate at most.")] = 100,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="Below 1 for likelier tokens; 0 is --greedy.  [default: 1]")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help=f"Draw from the likeliest tokens of this share.  [default: {TOP_P}]"),
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw from so many of the likeliest tokens.")] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Take the likeliest token each time.")] = False,
    beams: Annotated[int, typer.Option(min=1, help="Search for the likeliest text with so many beams.")] = 1,
    repetition_penalty: Annotated[
        float, typer.Option(min=1.0, help="Above 1, tokens that occurred before are less likely.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Seed of the draw, to repeat it.")] = None,
    bank_path: Bank = None,
    namespace: Namespaces = None,
    no_history: Annotated[bool, typer.Option("--no-history", help="Recall nothing, neither text nor bank.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Show the entries behind each generated token.")] = False,
    top: Annotated[int, typer.Option(min=1, help="Entries to show for each token.")] = 3,
    precision: InPrecision = Precision.auto,
) -> None:
    """Goes on with a text. What it generates makes no entries in its history; what you type does."""
    if no_history and (explain or bank_path is not None or namespace):
        raise ValueError("--no-history recalls nothing: leave it out, or --explain, --bank and --namespace")
    if interactive and beams > 1:
        raise ValueError("--beams search for a whole text: leave them out, or --interactive")
    options = _decoding(greedy, beams, temperature, top_p, top_k)
    options |= {"max_new_tokens": max_new_tokens, "use_history": not no_history}
    options |= {} if repetition_penalty == 1 else {"repetition_penalty": repetition_penalty}
    given = _given(text, interactive)
    loaded, tokenizer = _load(model)
    if not no_history:
        from ..saved import attach_bank

        attach_bank(loaded, tokenizer, model, bank_path, namespace or None)
    from ..common.precision import in_precision
    from .conversation import Conversation, talk

    if seed is not None:
        import torch

        torch.manual_seed(seed)
    with in_precision(loaded, precision.value):
        conversation = Conversation(loaded, tokenizer, options, top if explain else 0)
        conversation.write(given)
        if interactive:
            talk(conversation)
        else:
            conversation.go_on()


def _decoding(
    greedy: bool, beams: int, temperature: float | None, top_p: float | None, top_k: int | None
) -> dict[str, Any]:
    """The options of `generate` for a way of decoding; raises a ValueError where they contradict each other."""
    if temperature == 0:
        greedy, temperature = True, None
    drawing = {"--temperature": temperature, "--top-p": top_p, "--top-k": top_k}
    named = [option for option, value in drawing.items() if value is not None]
    if (greedy or beams > 1) and named:
        other = "--greedy" if greedy else "--beams"
        raise ValueError(f"{', '.join(named)} and {other} contradict each other: leave one out")
    if greedy or beams > 1:
        return {"do_sample": False, "num_beams": beams}
    return {
        "do_sample": True,
        "temperature": 1.0 if temperature is None else temperature,
        "top_p": TOP_P if top_p is None else top_p,
        "top_k": top_k or 0,
    }


def _given(text: str | None, interactive: bool) -> str:
    """The text to go on with, "" for none."""
    if text is None:
        if not interactive:
            raise ValueError("give a TEXT to go on with, a file, - for the standard input, or --interactive")
        return ""
    if text != "-":
        return read_text(text)
    if interactive:
        raise ValueError("--interactive reads what you type from the standard input: give the text in a file")
    return sys.stdin.read()


def _load(model: str) -> tuple[Any, Any]:
    from ..saved import load_language_model, task_in

    task = task_in(model)
    if task.name in COMMANDS:
        raise ValueError(f"{model} holds {task.noun}, which generates no text: use {COMMANDS[task.name]}")
    return load_language_model(model)
