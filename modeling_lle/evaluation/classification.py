"""Evaluation of classifiers of texts: base and bank side by side, and rejection of out-of-scope texts.

Notable: base and history see the same batches; out-of-scope texts count for rejection only, unless the model has a
label for them. Shapes: Q texts, L labels.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..bank.protocol import Bank
from ..common.batches import batches
from ..common.modes import evaluating
from ..common.precision import in_precision
from ..common.terminal import counted
from ..common.terminal import progress as progress_bar
from ..data.labelled import OUT_OF_SCOPE_LABEL, check_complete, check_known, load_labelled
from ..data.sources import Split, describe
from ..history.attachment import Attachment
from ..history.label_rule import SINGLE
from ..models.classification import LLEForSequenceClassification
from ..saved import attach_bank, load_classifier
from ..training.overlap import Seen
from .metrics import ClassificationMetric, OutOfScopeMetric
from .results import describe_files, this_command, train_minutes, write_results

BATCH_SIZE = 32
BASE, HISTORY = "base", "history"


@dataclass
class ClassifierEvaluation:
    """Measurements of one pass, per text in order.

    Attributes:
        references: (Q,) names of the correct labels.
        predictions: For "base", and with a bank for "history", (Q,) names of the predicted labels.
        probabilities: For each side (Q,) float64, probability of the predicted label.
        nats: For each side (Q,) float64, negative log probability of the correct label; NaN for labels unknown to
            the side.
        scores: (Q,) float64, scores of "none of these".
        labels: L labels, trained ones first, then those known to the bank only.
        trained: Number of trained labels.
        threshold: Least score of refused texts; 1 refuses none.
        out_of_scope: Label of out-of-scope texts.
        entries: Examples in the bank; 0 without one.
        seconds: Duration of the pass over both sides.
    """

    references: list[str]
    predictions: dict[str, list[str]]
    probabilities: dict[str, np.ndarray]
    nats: dict[str, np.ndarray]
    scores: np.ndarray
    labels: tuple[str, ...]
    trained: int
    threshold: float
    out_of_scope: str
    entries: int
    seconds: float

    @property
    def last(self) -> str:
        """The most complete side: "history", or "base" without a bank."""
        return HISTORY if HISTORY in self.predictions else BASE

    @property
    def accepted(self) -> np.ndarray:
        """(Q,) bool, whether a text is accepted at the threshold."""
        return (self.scores < self.threshold) | (self.threshold >= 1)

    @property
    def decisions(self) -> list[str]:
        """(Q,) predictions of the last side, `out_of_scope` for refused texts."""
        pairs = zip(self.predictions[self.last], self.accepted, strict=True)
        return [name if taken else self.out_of_scope for name, taken in pairs]

    def metrics(self) -> dict[str, float]:
        """Flat metrics.

        `accuracy`, `macro_f1`, `ece` and `loss` (nats) cover in-scope texts, ignoring rejection; the prefix `base_` is
        for the base alone, where `base_loss` covers trained labels only. With labels known to the bank only:
        `taught_classes_accuracy`, and `old_classes_drop`, the accuracy that the others lost to them. With out-of-scope
        texts: `out_of_scope_recall`, `out_of_scope_precision` and `in_scope_accuracy` at the threshold. Then sizes
        and speed.
        """
        known = [row for row, name in enumerate(self.references) if name in self.labels]
        references = [self.references[row] for row in known]
        values: dict[str, float] = {}
        for side, prefix in ((BASE, "base_"), (self.last, "")):
            metric = ClassificationMetric(keep_in_memory=True)
            measured = metric.compute(
                predictions=[self.predictions[side][row] for row in known],
                references=references,
                probabilities=self.probabilities[side][known],
            )
            values |= {prefix + name: value for name, value in measured.items()}
            nats = self.nats[side][known]
            if not np.isnan(nats).all():
                values[f"{prefix}loss"] = float(np.nanmean(nats))
        values |= self._new_classes()
        if len(known) < len(self.references) or self.out_of_scope in references:
            values |= OutOfScopeMetric(keep_in_memory=True).compute(
                predictions=self.predictions[self.last],
                references=self.references,
                accepted=self.accepted.tolist(),
                out_of_scope=self.out_of_scope,
            )
        return values | {
            "texts": len(self.references),
            "out_of_scope_texts": self.references.count(self.out_of_scope),
            "labels": len(self.labels),
            "entries": self.entries,
            "threshold": self.threshold,
            "seconds": self.seconds,
            "texts_per_second": len(self.references) / self.seconds,
        }

    def _new_classes(self) -> dict[str, float]:
        references, new = np.array(self.references, dtype=object), self.labels[self.trained :]
        right = {side: references == np.array(names, dtype=object) for side, names in self.predictions.items()}
        is_new, is_old = np.isin(references, new), np.isin(references, self.labels[: self.trained])
        if not is_new.any():
            return {}
        values = {"taught_classes_accuracy": float(right[HISTORY][is_new].mean())}
        if is_old.any():
            values["old_classes_drop"] = float(right[BASE][is_old].mean() - right[HISTORY][is_old].mean())
        return values

    def breakdown(self) -> list[dict[str, Any]]:
        """A row for each label of the texts: `label`, `texts`, and the `recall` of each side before rejection."""
        references = np.array(self.references, dtype=object)
        right = {side: references == np.array(names, dtype=object) for side, names in self.predictions.items()}
        rows = []
        for label in self.labels:
            own = references == label
            if own.any():
                recall = {f"{side}_recall": float(values[own].mean()) for side, values in right.items()}
                rows.append({"label": label, "texts": int(own.sum()), **recall})
        return rows


@torch.no_grad()
def evaluate_classifier(
    model: LLEForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    labelled: Dataset,
    batch_size: int = BATCH_SIZE,
    *,
    out_of_scope: str = OUT_OF_SCOPE_LABEL,
    where: str = "the data set",
    history: Attachment | Bank | None = None,
    progress: bool = False,
) -> ClassifierEvaluation:
    """Classifies texts with and without a bank, and measures both.

    Args:
        model: Single-label classifier of texts.
        tokenizer: Its tokenizer.
        labelled: Columns `text` and `label`, as made by `load_labelled`.
        batch_size: Maximum texts per batch; fewer if they are long.
        out_of_scope: Label of out-of-scope texts.
        where: Name of the texts in messages.
        history: Bank, as in `forward`.
        progress: Whether to show a progress bar on a terminal.

    Raises:
        ValueError: The model is multi-label or a regression, a text is blank, a label is missing or unknown, or all
            texts are out of scope.
    """
    if model.kind != SINGLE:
        raise ValueError(f"only single-label classifiers are evaluated; the problem_type is {model.kind!r}")
    attachment, trained = model.recalled_from(history, True), model.trained_labels
    labels = model.space_of(attachment).names
    texts, references = labelled["text"][:], labelled["label"][:]
    check_complete(texts, references, where)
    check_known(references, labels, out_of_scope)
    sides = {BASE: False} if attachment is None else {BASE: False, HISTORY: True}
    numbers = {label: number for number, label in enumerate(labels)}
    right = np.array([numbers.get(name, -1) for name in references])
    predicted = {side: np.zeros(len(texts), dtype=np.int64) for side in sides}
    probabilities = {side: np.zeros(len(texts)) for side in sides}
    nats = {side: np.full(len(texts), np.nan) for side in sides}
    scores = np.zeros(len(texts))
    begin = time.perf_counter()
    with evaluating(model), progress_bar(len(texts), "Evaluating", "texts", progress) as bar:
        encoded = tokenizer(texts, return_attention_mask=False)["input_ids"]
        for rows in batches([len(ids) for ids in encoded], batch_size):
            batch = tokenizer.pad({"input_ids": [encoded[row] for row in rows]}, return_tensors="pt").to(model.device)
            for side, with_history in sides.items():
                output = model(**batch, use_history=with_history, history=attachment, output_out_of_scope=True)
                log_probs = output.logits.double().log_softmax(-1).cpu().numpy()
                if not np.isfinite(log_probs).any(axis=1).all():
                    raise FloatingPointError("the logits are not finite: the weights hold NaN or infinite values")
                predicted[side][rows] = log_probs.argmax(1)
                probabilities[side][rows] = np.exp(log_probs.max(1))
                knows = right[rows] < log_probs.shape[1]
                own = np.take_along_axis(log_probs, np.where(knows, right[rows], 0)[:, None], axis=1)[:, 0]
                nats[side][rows] = np.where(knows & (right[rows] >= 0), -own, np.nan)
            scores[rows] = output.out_of_scope.double().cpu().numpy()  # of the last side
            bar.update(len(rows))
    return ClassifierEvaluation(
        references=references,
        predictions={side: [labels[number] for number in found] for side, found in predicted.items()},
        probabilities=probabilities,
        nats=nats,
        scores=scores,
        labels=labels,
        trained=len(trained),
        threshold=float(model.config.classifier.out_of_scope.threshold),
        out_of_scope=out_of_scope,
        entries=0 if attachment is None else len(attachment.snapshot()),
        seconds=time.perf_counter() - begin,
    )


def evaluate_classifier_folder(
    model_path: str | Path,
    source: Any,
    *,
    name: str | None = None,
    split: Split = ("test", "validation"),
    text_column: str | None = None,
    label_column: str | None = None,
    out_of_scope: str | None = None,
    bank: str | Path | None = None,
    namespaces: Sequence[str] | None = None,
    batch_size: int = BATCH_SIZE,
    precision: str = "auto",
    output: str | Path | None = None,
    command: str | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluates a saved classifier on labelled texts, as `lle evaluate` does.

    Args:
        model_path: Folder, or name on the Hub, of a model and its tokenizer.
        source, name, split, text_column, label_column, out_of_scope: Texts, as in `load_labelled`.
        bank: Bank to recall from; None: the bank saved with the model, if any.
        namespaces: Namespaces to recall from; None: all.
        batch_size: As in `evaluate_classifier`.
        precision: "auto", "float32" or "bfloat16", as in `resolve_precision`.
        output: Folder for evaluation.json and confusion.png; None: write nothing.
        command: Command recorded in the JSON; None: the current one.
        progress: As in `evaluate_classifier`.

    Returns:
        Content of evaluation.json: `metrics`, with `parameters` and, if known, `train_minutes`; and `rows`, the
        breakdown. And `read`, a line on what was read.
    """
    if output is not None:
        from .confusion import draw_confusion  # first: a missing extra fails early
        from .pictures import save_figure
    model, tokenizer = load_classifier(model_path)
    cast(torch.nn.Module, model).to("cuda" if torch.cuda.is_available() else "cpu")
    attach_bank(model, tokenizer, model_path, bank, namespaces)
    labelled = load_labelled(
        source,
        name=name,
        split=split,
        text_column=text_column,
        label_column=label_column,
        out_of_scope=out_of_scope,
    )
    if model.kind == SINGLE:
        ClassificationMetric(keep_in_memory=True)  # a missing extra fails before the texts are read
    Seen(model_path, model.history).tell(labelled["text"][:], describe(source))
    with in_precision(model, precision):
        evaluation = evaluate_classifier(
            model,
            tokenizer,
            labelled,
            batch_size,
            out_of_scope=out_of_scope or OUT_OF_SCOPE_LABEL,
            where=describe(source),
            progress=progress,
        )
    size = {"parameters": model.num_parameters(), **train_minutes(model_path)}
    results: dict[str, Any] = {"metrics": {**size, **evaluation.metrics()}, "rows": evaluation.breakdown()}
    if output is not None:
        output = Path(output)
        results = write_results(output / "evaluation.json", command or this_command(), **results)
        names = list(dict.fromkeys([*evaluation.labels, *evaluation.references, *evaluation.decisions]))
        save_figure(draw_confusion(evaluation.references, evaluation.decisions, names), output / "confusion.png")
    return {**results, "read": f"{counted(len(labelled), 'text')} of {describe_files(labelled, source)}."}


def format_classification(metrics: dict[str, float]) -> str:
    """Metrics of a `ClassifierEvaluation` as a table for the terminal."""
    with_bank = bool(metrics["entries"])
    prefixes = {"base": "base_", "history": ""} if with_bank else {"base": ""}
    lines = [f"{'':20}" + "".join(f"{name:>12}" for name in prefixes)]
    names = {"accuracy": "accuracy", "macro F1": "macro_f1", "calibration error": "ece", "loss": "loss"}
    for label, key in names.items():
        cells = [metrics.get(prefix + key) for prefix in prefixes.values()]
        lines.append(f"{label:20}" + "".join(f"{'-' if cell is None else f'{cell:.4f}':>12}" for cell in cells))
    lines.append("")
    if "taught_classes_accuracy" in metrics:
        drop = metrics.get("old_classes_drop")
        others = "" if drop is None else f"; that of the others fell by {drop:.2%}"
        lines.append(f"Labels that only the bank knows: accuracy {metrics['taught_classes_accuracy']:.2%}{others}.")
    if "out_of_scope_recall" in metrics:
        lines.append(
            f"None of these: {metrics['out_of_scope_recall']:.2%} of "
            f"{counted(metrics['out_of_scope_texts'], 'text')} out of scope are refused, "
            f"{metrics['out_of_scope_precision']:.2%} of refused texts are out of scope, and "
            f"{metrics['in_scope_accuracy']:.2%} of the others are accepted and correct."
            + (
                " The model has no threshold yet: `lle calibrate` with texts out of scope fits one."
                if metrics["threshold"] >= 1
                else ""
            )
        )
    examples = f", a bank of {counted(metrics['entries'], 'example')}" if with_bank else ""
    lines.append(
        f"{counted(metrics['texts'], 'text')}, {counted(metrics['labels'], 'label')}{examples}: "
        f"{metrics['seconds']:.1f} s, {metrics['texts_per_second']:,.0f} texts/s."
    )
    return "\n".join(lines)
