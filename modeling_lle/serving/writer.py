"""Writer: the text of tokens as they are generated, up to a stop string.

Notable: text that may still change, half a character or the beginning of a stop string, is held back until it is sure.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_HALF = "\ufffd"  # what a part of a character is decoded to
_CONTEXT = 6  # tokens of the prompt with which the first new ones are decoded


class Writer:
    """Turns tokens into text.

    Args:
        tokenizer: The tokenizer.
        prompt: The tokens before.
        stops: Strings that end the text, and are no part of it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], stops: Sequence[str] = ()) -> None:
        self.tokenizer, self.stops = tokenizer, stops
        self.stopped = False
        self._tokens = list(prompt[-_CONTEXT:])
        self._start, self._end = 0, len(self._tokens)  # of the tokens with which the next ones are decoded
        self._held = ""

    def take(self, token: int) -> None:
        """Takes a token."""
        self._tokens.append(token)

    def sure(self) -> str:
        """Returns the text that is sure, and was not returned before."""
        return self._release(self._decoded(final=False), final=False)

    def finish(self) -> str:
        """Returns what was held back."""
        return "" if self.stopped else self._release(self._decoded(final=True), final=True)

    def _decoded(self, final: bool) -> str:
        """The text of the tokens that have not been decoded yet."""
        if self._end == len(self._tokens):
            return ""
        before, whole = (
            str(self.tokenizer.decode(self._tokens[self._start : stop], skip_special_tokens=True))
            for stop in (self._end, None)
        )
        if len(whole) <= len(before) or (whole.endswith(_HALF) and not final):
            return ""
        self._start, self._end = self._end, len(self._tokens)
        return whole[len(before) :]

    def _release(self, text: str, final: bool) -> str:
        self._held += text
        places = [place for stop in self.stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.stopped = True
            sure, self._held = self._held[: min(places)], ""
            return sure
        keep = 0 if final else max((_overlap(self._held, stop) for stop in self.stops), default=0)
        sure = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return sure


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of a text with which a stop string begins."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-size:])), 0)


def pieces(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> list[str]:
    """The text of each token, so that they join to that of all where the tokenizer allows it."""
    found: list[str] = []
    for place, token in enumerate(tokens):
        alone = str(tokenizer.decode([token]))
        if place:
            first = str(tokenizer.decode([tokens[place - 1]]))
            both = str(tokenizer.decode([tokens[place - 1], token]))
            alone = both[len(first) :] if both.startswith(first) else alone
        found.append(alone)
    return found
