"""A saved LLE classifier with its bank, for the comparison of classifiers."""

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer

from modeling_lle import HistoryBank, LLEForSequenceClassification
from modeling_lle.bank.manifest import HISTORY_FOLDER
from modeling_lle.data.labelled import OUT_OF_SCOPE_LABEL

from .intents import Answers, Examples

BATCH = 64  # texts
TAUGHT = "benchmark"  # source of taught queries


class LLEClassifier:
    """The classifier.

    Args:
        folder: Folder of model, tokenizer and, if saved, bank; unchanged, as a copy of the bank is taught.
        intents: Names of the expected intents.
    """

    def __init__(self, folder: Path, intents: Sequence[str]) -> None:
        self.folder = folder
        self.model: Any = LLEForSequenceClassification.from_pretrained(folder).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        if (folder / HISTORY_FOLDER).is_dir():
            self._copy = tempfile.TemporaryDirectory()  # lives as long as the classifier
            HistoryBank.from_pretrained(folder).save_pretrained(self._copy.name)
            self.model.attach_history(HistoryBank.open(self._copy.name), tokenizer=self.tokenizer)
        wrong = sorted(set(intents).symmetric_difference(set(self.names) - {OUT_OF_SCOPE_LABEL}))
        if wrong:
            raise ValueError(
                f"{folder} knows {len(self.names)} intents, not the {len(intents)} expected ones: see {wrong[0]!r}; "
                "train it on exactly these"
            )

    @property
    def names(self) -> list[str]:
        """Intents known now."""
        return list(self.model.label_names())

    @property
    def bytes(self) -> int:
        """Size of weights, tokenizer and bank."""
        files = itertools.chain(self.folder.glob("model*.safetensors"), self.folder.glob("tokenizer*"))
        bank = self.model.history_bank
        return sum(file.stat().st_size for file in files) + (0 if bank is None else bank.info()["bytes"])

    @property
    def threshold(self) -> float:
        """Least refused score of "none of these"."""
        threshold = float(self.model.config.classifier.out_of_scope.threshold)
        if threshold >= 1:
            raise ValueError(f"{self.folder} has no threshold for out_of_scope: call its fit_out_of_scope() first")
        return threshold

    @property
    def numbers(self) -> dict[str, Any]:
        """Fitted parameters."""
        config, bank = self.model.config, self.model.history_bank
        recall = {"entries": len(bank), "sharpness": config.bank.sharpness, "gate": config.bank.gate} if bank else {}
        threshold = config.classifier.out_of_scope.threshold
        return recall if threshold >= 1 else {**recall, "threshold": threshold}

    @torch.inference_mode()
    def read(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Probabilities of the known intents (Q, L), and out-of-scope scores (Q,)."""
        logits, scores = [], []
        for start in range(0, len(texts), BATCH):
            batch = self.tokenizer(texts[start : start + BATCH], padding=True, return_tensors="pt")
            output = self.model(**batch, output_out_of_scope=True)
            logits.append(output.logits)
            scores.append(output.out_of_scope)
        return torch.cat(logits).softmax(-1), torch.cat(scores)

    def answer(self, texts: list[str]) -> Answers:
        """Labels of Q queries, with scores and probabilities."""
        probabilities, scores = self.read(texts)
        confidences, chosen = probabilities.max(-1)
        return Answers(np.array(self.names)[chosen.numpy()], scores.numpy(), confidences.numpy())

    @torch.inference_mode()
    def predict(self, text: str) -> str:
        """Label of one query, by the plain call of the model."""
        output = self.model(**self.tokenizer(text, return_tensors="pt"))
        return output.label_names[int(output.logits.argmax())]

    def add(self, examples: Examples) -> int:
        """Teaches queries of known or new intents."""
        labels = examples.labels.tolist()
        return self.model.learn(examples.texts, labels, self.tokenizer, new_labels=True, source=TAUGHT)

    def forget(self) -> None:
        """Forgets all taught queries."""
        self.model.forget(source=TAUGHT)
