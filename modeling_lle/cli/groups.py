"""Groups of commands that say what an interrupted command keeps, and what options are called now."""

from typing import Any

import typer
from typer.core import TyperGroup

from ..common.terminal import say

RENAMED = {"--as": "--source", "--source-name": "--source", "--memory": "--bank"}
_UNCHANGED = "the model is unchanged"
_NO_FILE = "no file was written"
_PARTS = "what was added stays; repeat the command to go on"
KEPT = {
    "train": "checkpoints stay; repeat the command with --resume to go on",
    "calibrate": _UNCHANGED,
    "statistics": _UNCHANGED,
    "evaluate": _NO_FILE,
    "explain": _NO_FILE,
    "classify": _NO_FILE,
    "suggest": _NO_FILE,
    "translate": _NO_FILE,
    "learn": "the bank is unchanged",
    "forget": "the bank is unchanged",
    "memory": "a new memory is not made; an existing one keeps the parts of 65,536 pairs that were added; repeat the "
    "command to go on",
    "bank build": _PARTS,
    "bank add": "what was added stays; repeat the command with --resume to go on",
    "bank forget": "the bank is as before, or as after",
    "bank compact": "the bank is whole; repeat the command to free the rest",
    "bank export": _NO_FILE,
    "bank import": "remove the folder of the bank before you repeat the command",
}


class Commands(TyperGroup):
    """A group of commands, which may have groups within."""

    def invoke(self, ctx: Any) -> Any:
        """As in the base class; an interrupted command prints one line and exits with 130."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            group = "" if ctx.parent is None else f"{ctx.info_name} "
            kept = KEPT.get(f"{group}{ctx.invoked_subcommand}")
            say(f"lle: interrupted{f'; {kept}' if kept else ''}.", err=True)
            raise typer.Exit(130) from None
        except Exception as error:  # of click, or of the copy that newer typer has
            new = RENAMED.get(getattr(error, "option_name", None) or "")
            if new is None:
                raise
            raise ValueError(f"there is no {error.option_name}: use {new}") from None  # type: ignore[attr-defined]
