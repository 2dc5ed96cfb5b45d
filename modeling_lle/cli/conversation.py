"""A text that a model and a user write in turns, at a terminal.

Notable: the cache goes from turn to turn, so that each token is read once; what the user writes makes entries of the
history, and what the model generates makes none. Control characters that a model generates are escaped.
"""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import torch
import typer
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TextStreamer

from ..common.terminal import printable_lines, say
from ..data.text import encode_texts
from ..evaluation.explanations import format_explanations
from ..history.cache import LLECache
from ..models.causal import LLEForCausalLM

HELP = "Type a text, and the model goes on with it; Enter alone goes on. /reset begins anew, /quit or Ctrl-D ends."
RESET, QUIT, SHOW_HELP = "/reset", "/quit", "/help"


class _Printer(TextStreamer):
    """Prints new tokens as soon as they form words, but not the tokens that end a text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: set[int]) -> None:
        super().__init__(tokenizer)
        self.ends = ends

    def put(self, value: Tensor) -> None:
        """As in the base class."""
        if int(value[-1]) not in self.ends:
            super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Prints a part of the text."""
        typer.echo(printable_lines(text), nl=stream_end)


class _Stop:
    """Whether a turn is `asked` to end after the next token."""

    asked = False


class Conversation:
    """A text that grows by turns, and the state of the model that has read it.

    Args:
        model: The language model.
        tokenizer: Its tokenizer.
        options: Those of `generate`.
        top: Entries to show for each generated token; 0 shows none.
    """

    def __init__(
        self, model: LLEForCausalLM, tokenizer: PreTrainedTokenizerBase, options: dict[str, Any], top: int = 0
    ) -> None:
        self.model, self.tokenizer, self.options, self.top = model, tokenizer, options, top
        ends = model.generation_config.eos_token_id
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer needs an eos_token, after which a text begins")
        self.ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        self.has_line_breaks = bool(tokenizer("\n", add_special_tokens=False)["input_ids"])
        self.reset()

    def reset(self) -> None:
        """Begins a new text, as in training after an <eos>."""
        self.tokens: list[int] = [self.tokenizer.eos_token_id]
        self.generated: list[bool] = [False]
        self.cache: LLECache | None = None

    def write(self, text: str) -> None:
        """Adds a text of the user; after a turn of the model it begins on a new line."""
        if self.generated[-1] and self.tokens[-1] not in self.ends and text:
            text = "\n" + text
        # Word tokenizers have no line breaks: there, a line ends with <eos>, as in training.
        lines = [text] if self.has_line_breaks else text.split("\n")
        encoded = encode_texts([f"{line}\n" for line in lines], self.tokenizer)
        new = [token for line in encoded for token in line][:-1]
        self.tokens += new
        self.generated += [False] * len(new)

    def go_on(self, stop: _Stop | None = None) -> None:
        """Generates the next turn, prints it, and then the entries behind it."""
        printer = _Printer(self.tokenizer, self.ends)
        if self.options.get("num_beams", 1) == 1:
            new = self._stream(printer, stop or _Stop())
        else:
            new = self._search()
            shown = [token for token in new if token not in self.ends]
            printer.on_finalized_text(str(self.tokenizer.decode(shown)), stream_end=True)
        self.tokens += new
        self.generated += [True] * len(new)
        if self.top:
            text, own = torch.tensor(self.tokens), torch.tensor([self.generated])
            explanations = self.model.explain(text, self.top, generated=own)[-len(new) :]
            typer.echo(format_explanations(explanations, self.tokenizer))

    def _stream(self, printer: _Printer, stop: _Stop) -> list[int]:
        """Generates the tokens of a turn, and prints each."""
        if self.cache is None:
            recalls = self.options.get("use_history", True)
            self.cache = LLECache.of(self.model.config.history) if recalls else LLECache()
        new: list[int] = []
        for token in self.model.stream(self.tokens, past_key_values=self.cache, **self.options):
            new.append(token)
            printer.put(torch.tensor([token]))
            if stop.asked:
                break
        printer.end()
        return new

    def _search(self) -> list[int]:
        """The tokens of a turn that beams search for."""
        ids = torch.tensor([self.tokens], device=self.model.device)
        output: Any = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=self.cache,
            pad_token_id=self.tokenizer.eos_token_id,
            return_dict_in_generate=True,
            **self.options,
        )
        self.cache = output.past_key_values
        return output.sequences[0, len(self.tokens) :].tolist()


def talk(conversation: Conversation) -> None:
    """Reads turns from the standard input until it ends; Ctrl-C ends the generation of a turn."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  edits and recalls lines of `input`
    say(HELP, err=True)
    first = conversation.tokens[:]
    while True:
        try:
            text = input("> ")
        except EOFError:
            say("")
            return
        except KeyboardInterrupt:
            say("\n(/quit or Ctrl-D ends)", err=True)
            continue
        command = text.strip()
        if command == QUIT:
            return
        if command == SHOW_HELP:
            say(HELP, err=True)
        elif command == RESET:
            conversation.reset()
            conversation.tokens, conversation.generated = first[:], [False] * len(first)
        else:
            conversation.write(text)
            with _interruptible() as stop:
                conversation.go_on(stop)


@contextlib.contextmanager
def _interruptible() -> Iterator[_Stop]:
    """Yields what ends a generation at Ctrl-C; a second one raises KeyboardInterrupt."""
    stop = _Stop()

    def interrupt(number: int, frame: Any) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
