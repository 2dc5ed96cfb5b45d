"""A trained LLE classifier with what was saved with it, as the comparison of classifiers uses it."""

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
TAUGHT = "benchmark"  # source of what is taught


class LLEClassifier:
    """The classifier.

    Args:
        folder: Model and tokenizer, and the bank if it was saved with them. Nothing in it is changed: the bank that is
            taught is a copy.
        intents: Names of the intents that it should know.
    """

    def __init__(self, folder: Path, intents: Sequence[str]) -> None:
        self.folder = folder
        self.model: Any = LLEForSequenceClassification.from_pretrained(folder).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        if (folder / HISTORY_FOLDER).is_dir():
            self._copy = tempfile.TemporaryDirectory()  # lasts as long as the classifier
            HistoryBank.from_pretrained(folder).save_pretrained(self._copy.name)
            self.model.attach_history(HistoryBank.open(self._copy.name), tokenizer=self.tokenizer)
        wrong = sorted(set(intents).symmetric_difference(set(self.names) - {OUT_OF_SCOPE_LABEL}))
        if wrong:
            raise ValueError(
                f"{folder} knows {len(self.names)} intents, which are not the {len(intents)} that it should know: see "
                f"{wrong[0]!r}; train it on exactly these"
            )

    @property
    def names(self) -> list[str]:
        """The intents that it knows now."""
        return list(self.model.label_names())

    @property
    def bytes(self) -> int:
        """The files of the weights and of the tokenizer, and the bank."""
        files = itertools.chain(self.folder.glob("model*.safetensors"), self.folder.glob("tokenizer*"))
        bank = self.model.history_bank
        return sum(file.stat().st_size for file in files) + (0 if bank is None else bank.info()["bytes"])

    @property
    def threshold(self) -> float:
        """The least score of "none of these" that is refused."""
        threshold = float(self.model.config.classifier.out_of_scope.threshold)
        if threshold >= 1:
            raise ValueError(f"{self.folder} knows no threshold for out_of_scope: call its fit_out_of_scope() first")
        return threshold

    @property
    def numbers(self) -> dict[str, Any]:
        """Those that were fitted for it."""
        config, bank = self.model.config, self.model.history_bank
        recall = {"entries": len(bank), "sharpness": config.bank.sharpness, "gate": config.bank.gate} if bank else {}
        threshold = config.classifier.out_of_scope.threshold
        return recall if threshold >= 1 else {**recall, "threshold": threshold}

    @torch.inference_mode()
    def read(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """The probabilities of N texts for the intents that it knows, (N, L), and their out-of-scope scores (N,)."""
        logits, scores = [], []
        for start in range(0, len(texts), BATCH):
            batch = self.tokenizer(texts[start : start + BATCH], padding=True, return_tensors="pt")
            output = self.model(**batch, output_out_of_scope=True)
            logits.append(output.logits)
            scores.append(output.out_of_scope)
        return torch.cat(logits).softmax(-1), torch.cat(scores)

    def answer(self, texts: list[str]) -> Answers:
        """Labels of N queries, with their scores and probabilities."""
        probabilities, scores = self.read(texts)
        confidences, chosen = probabilities.max(-1)
        return Answers(np.array(self.names)[chosen.numpy()], scores.numpy(), confidences.numpy())

    @torch.inference_mode()
    def predict(self, text: str) -> str:
        """The label of one query, as most people would ask for it."""
        output = self.model(**self.tokenizer(text, return_tensors="pt"))
        return output.label_names[int(output.logits.argmax())]

    def add(self, examples: Examples) -> int:
        """Teaches queries, of intents that it knows or of others."""
        labels = examples.labels.tolist()
        return self.model.learn(examples.texts, labels, self.tokenizer, new_labels=True, source=TAUGHT)

    def forget(self) -> None:
        """Takes back what was taught."""
        self.model.forget(source=TAUGHT)
