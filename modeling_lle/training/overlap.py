"""Notices texts that a model has seen: those it was trained on, and those that its bank holds.

Notable: a figure measured on such a text says nothing about new text, and parameters fitted on it trust the history
too much. Only a sketch of the training text is kept, in the model's folder (data/seen.py).
"""

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from ..data.seen import KEPT, Sketch, blank_tokens, run_hashes, text_hashes
from ..history.attachment import Attachment

logger = logging.getLogger(__name__)

SKETCH = "seen.safetensors"  # beside the weights
TOLD_FROM = 0.1  # share of a text from which on it is told; new texts of a kind share phrases, headers and licences


class Seen:
    """What a model has seen, to compare texts with.

    Args:
        model_path: Folder, or name on the Hub, of a saved model; without a sketch, its training text is unknown.
        attachment: What it recalls from, if anything.
        tokenizer: The tokenizer of a language model, whose texts are compared by runs of tokens; None for a classifier
            or translator, whose texts are compared as wholes.
    """

    def __init__(
        self, model_path: str | Path, attachment: Attachment | None, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        self.model_path, self.attachment = model_path, attachment
        self._blank = None if tokenizer is None else blank_tokens(tokenizer)

    def tell(self, text: np.ndarray | Iterable[str], where: str) -> dict[str, float]:
        """Logs a warning for each of training text and bank that holds a good part of a text.

        Args:
            text: (T,) token ids of a language model, or texts for a classifier or translator.
            where: Name of the text in messages.

        Returns:
            The share of the text in the training text, `training`, and in the bank, `bank`, as far as known.
        """
        hashes = self._hashes(text)
        shares = {name: sketch.share(hashes) for name, sketch in self._sketches().items()}
        places = {"training": f"the training text of {self.model_path}", "bank": "the bank"}
        told = [f"{share:.0%} of it in {places[name]}" for name, share in shares.items() if share >= TOLD_FROM]
        if told:
            logger.warning(
                "%s is not new to the model (%s): what is measured or fitted on it does not hold for new text; "
                "give text that neither has",
                where,
                ", ".join(told),
            )
        return shares

    def _hashes(self, text: np.ndarray | Iterable[str]) -> np.ndarray:
        if isinstance(text, np.ndarray):
            assert self._blank is not None
            return run_hashes(text, self._blank)
        return text_hashes(text)

    def _sketches(self) -> dict[str, Sketch]:
        """Sketches of the training text and of the bank, those that there are."""
        sketches = {}
        missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        path = cached_file(str(self.model_path), SKETCH, **missing)
        if path is not None:
            sketches["training"] = Sketch.load(Path(path))
        if self.attachment is not None:
            state = self.attachment.snapshot()
            documents = state.documents(state.held(self.attachment.namespaces))
            if self._blank is None:
                hashes = text_hashes(document.columns["text"] for document in documents)
            else:
                tokens = [np.asarray(document.tokens, dtype=np.int64) for document in documents]
                hashes = run_hashes(np.concatenate(tokens) if tokens else np.zeros(0, dtype=np.int64), self._blank)
            sketches["bank"] = Sketch.of(hashes, len(hashes))
        return sketches


def save_sketch(folder: Path, text: np.ndarray | Iterable[str] | None, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes the sketch of a training text into a model's folder, or removes an older one if there is none to write.

    Args:
        folder: The folder of the model.
        text, tokenizer: (T,) token ids and their tokenizer, or whole texts; None: unknown.
    """
    if text is None:
        (folder / SKETCH).unlink(missing_ok=True)
        return
    runs = isinstance(text, np.ndarray)
    hashes = run_hashes(np.asarray(text), blank_tokens(tokenizer), KEPT + 1) if runs else text_hashes(text)
    if len(hashes):
        Sketch.of(hashes).save(folder / SKETCH)
    else:
        (folder / SKETCH).unlink(missing_ok=True)
