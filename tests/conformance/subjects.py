"""What the conformance tests are run on: every head with its recurrences and histories, tiny and with random weights.

A new head, backbone or history joins by a line in `SUBJECTS`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from modeling_lle import HistoryBank
from modeling_lle.history.loss import IGNORED
from tests.factories.classifiers import make_classifier, make_taught_classifier
from tests.factories.hub_models import make_wrapped_model
from tests.factories.language_models import make_language_model
from tests.factories.texts import make_ids, make_texts, make_word_tokenizer
from tests.factories.translators import make_taught_word_translator, make_word_translator

PAD = 1
TEXTS = [make_ids(1, length, seed)[0].clamp(min=2) for seed, length in enumerate((9, 4, 7))]
TARGETS = [make_ids(1, length, seed + 9)[0].clamp(min=2) for seed, length in enumerate((3, 6, 5))]
Side = Literal["left", "right", "split"]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A head, and the kind of its inputs.

    Attributes:
        name: For the names of the tests.
        make: Makes the model, in evaluation mode, with the same weights each time.
        kind: What its labels belong to: "next tokens", "texts", "tokens" or "translations".
    """

    name: str
    make: Callable[[], Any]
    kind: str

    def batch(self, rows: Sequence[int], side: Side = "right") -> dict[str, Tensor]:
        """The texts of these numbers as forward takes them, with labels; padding on one side, or "split" on both."""
        texts = [TEXTS[row] for row in rows]
        ids, mask = _pad(texts, PAD, side), _pad([torch.ones_like(text) for text in texts], 0, side)
        if self.kind == "translations":
            labels = _pad([TARGETS[row] for row in rows], IGNORED, "right")
        elif self.kind == "texts":
            labels = torch.tensor([row % 3 for row in rows])
        else:
            own = texts if self.kind == "next tokens" else [text % 3 for text in texts]
            labels = _pad(own, IGNORED, side)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def unlabelled(self, model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch without its labels; a translator reads the target instead."""
        own = {name: value for name, value in batch.items() if name != "labels"}
        if self.kind == "translations":
            own["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(batch["labels"])
            own["decoder_attention_mask"] = (batch["labels"] != IGNORED).long()
        return own

    def items(self, labels: Tensor) -> int:
        """How many predictions the loss of labels is the mean of."""
        counted = int((labels != IGNORED).sum())
        return counted - len(labels) if self.kind == "next tokens" else counted

    def real(self, batch: dict[str, Tensor], values: Tensor) -> list[Tensor]:
        """What belongs to each text of a batch, without padding, of values (B, ...) or of one for each position."""
        if self.kind == "texts" and values.dim() == 2:
            return list(values)
        real = batch["labels"] != IGNORED if self.kind == "translations" else batch["attention_mask"].bool()
        return [own[mask] for own, mask in zip(values, real, strict=True)]


def _pad(rows: list[Tensor], value: int, side: Side) -> Tensor:
    longest = max(len(row) for row in rows) + (2 if side == "split" else 0)
    before = [{"left": longest - len(row), "right": 0, "split": 1}[side] for row in rows]
    padded = [
        nn.functional.pad(row, (own, longest - own - len(row)), value=value)
        for row, own in zip(rows, before, strict=True)
    ]
    return torch.stack(padded)


def _with_bank(**values: Any) -> Any:
    model = make_language_model(**values)
    bank = HistoryBank.build(model, make_word_tokenizer(), make_texts(6, 8))
    model.attach_history(bank)
    return model


def _taught(**values: Any) -> Any:
    return make_taught_classifier(**values)[0]


SUBJECTS = [
    *(
        Subject(f"language-{name}-{stack}", lambda n=name, s=stack: make_language_model(0, n, s), "next tokens")
        for name in ("lstm", "gru", "qrnn")
        for stack in ("plain", "residual")
    ),
    Subject("language-stream", lambda: make_language_model(7, "lstm"), "next tokens"),
    Subject("language-stream-bank", lambda: _with_bank(recurrence="qrnn"), "next tokens"),
    Subject("language-mamba2", make_wrapped_model, "next tokens"),
    Subject("classifier", make_classifier, "texts"),
    Subject("classifier-bank", _taught, "texts"),
    Subject("classifier-one-way", lambda: make_classifier(bidirectional=False, recurrence="gru"), "texts"),
    Subject("classifier-members", lambda: _taught(classifier={"members": 2}, recurrence="qrnn"), "texts"),
    Subject("tokens", lambda: make_classifier(of_tokens=True), "tokens"),
    Subject("translator", make_word_translator, "translations"),
    Subject("translator-memory", lambda: make_taught_word_translator(recurrence="qrnn"), "translations"),
]
