"""Accuracy of a classifier with and without history on held-out texts, as `lle calibrate` reports it.

Notable: labels that the base was trained on and labels that only examples taught are counted apart. The base never
predicts the latter, so one figure for both would hide what the history adds, or make it seem to hurt.
"""

from typing import TYPE_CHECKING

import numpy as np

from ..common.terminal import counted
from .held_out import Measured, Outcome

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from ..models.classification import LLEForSequenceClassification

GROUPS = {"trained": "labels of the training", "taught": "labels of examples only", "all": "all"}


def measure_labelled(
    model: "LLEForSequenceClassification", tokenizer: "PreTrainedTokenizerBase", labelled: "Dataset", size: int
) -> Measured:
    """Measures a classifier on texts with labels that model or bank know.

    The values have for each of `GROUPS` with texts their number, `texts`, and the accuracies `base` and `history`,
    such as "taught_history"; and `nats` of the correct label with history.
    """
    from ..evaluation import evaluate_classifier

    found = evaluate_classifier(model, tokenizer, labelled, size)
    references = np.array(found.references, dtype=object)
    trained = np.isin(references, found.labels[: found.trained])
    values: dict[str, float] = {}
    for name, own in {"trained": trained, "taught": ~trained, "all": np.ones_like(trained)}.items():
        if own.any():
            values[f"{name}_texts"] = int(own.sum())
            for side, predicted in found.predictions.items():
                right = references == np.array(predicted, dtype=object)
                values[f"{name}_{side}"] = float(right[own].mean())
    nats = float(np.mean(found.nats["history"]))
    return Measured(nats, values["all_history"], {**values, "nats": nats})


def accuracy_lines(outcome: Outcome) -> list[str]:
    """Table of the accuracies."""
    before, after = outcome.before.values, outcome.after.values
    lines = [
        f"Accuracy on {outcome.measured_on} ({outcome.fitted_on} fitted on):",
        f"{'':26}{'texts':>8}{'no history':>13}{'before':>10}{'after':>10}",
    ]
    for name, noun in GROUPS.items():
        if f"{name}_texts" in before and (name != "all" or {"trained_texts", "taught_texts"} <= set(before)):
            cells = (before[f"{name}_base"], before[f"{name}_history"], after[f"{name}_history"])
            lines.append(
                f"{noun:26}{before[f'{name}_texts']:>8,.0f}{cells[0]:>13.1%}{cells[1]:>10.1%}{cells[2]:>10.1%}"
            )
    return lines


def refusal_lines(
    model: "LLEForSequenceClassification",
    tokenizer: "PreTrainedTokenizerBase",
    inside: "Dataset",
    outside: "Dataset",
    before: float,
) -> list[str]:
    """One line on what is refused as "none of these" at the new threshold, and one on the threshold."""
    from datasets import concatenate_datasets

    from ..evaluation import evaluate_classifier

    strange = outside["label"][0]
    found = evaluate_classifier(model, tokenizer, concatenate_datasets([inside, outside]), out_of_scope=strange)
    references = np.array(found.references, dtype=object)
    refused = ~found.accepted
    old, is_strange = "none" if before >= 1 else f"{before:.2f}", references == strange
    return [
        f'"None of these": threshold {old} before, {found.threshold:.2f} after. Refused are '
        f"{refused[is_strange].mean():.0%} of {counted(len(outside), 'text')} out of scope, and "
        f"{refused[~is_strange].mean():.0%} of {counted(len(inside), 'text')} with a label."
    ]
