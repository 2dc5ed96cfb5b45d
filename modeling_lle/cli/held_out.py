"""Calibration that is measured on texts which were not fitted on, for `lle calibrate` and `lle memory --calibrate`.

Notable: the last fifth of a text or of pairs is held out, of labelled texts a fifth of each label. Parameters that are
no better there than the old ones, or that went off to huge values, are not kept.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.terminal import counted

if TYPE_CHECKING:
    from ..models.pretrained import LLEPreTrainedModel

HELD_OUT = 0.2  # share of the texts
LEAST = 10  # tokens or pairs of which a part can be held out
FAR = 1000.0  # magnitude of a parameter that runs off: similarities are at most 1, and the features of a gate few nats
SEED = 0  # of the draw of labelled texts
_ALL = 1 << 40  # predictions to measure on
_WIDTH = 26  # columns of the terminal for the values of a parameter


@dataclass(frozen=True)
class Measured:
    """Measurements of texts that were not fitted on.

    Attributes:
        loss: Nats of a prediction with history.
        right: Share of correct predictions, for classifiers; else 0.
        values: What is reported, by name.
    """

    loss: float
    right: float
    values: dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """Result of a calibration.

    Attributes:
        fitted_on, measured_on: What was read, for messages, such as "120 texts".
        parameters: For each parameter its value before and as fitted.
        before, after: Measurements with the parameters as they were and as fitted.
        refused: Why the old parameters are kept; None: the fitted ones are.
        found: Further results, for JSON.
    """

    fitted_on: str
    measured_on: str
    parameters: dict[str, tuple[Any, Any]]
    before: Measured
    after: Measured
    refused: str | None
    found: dict[str, Any]

    def as_values(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "fitted_on": self.fitted_on,
            "measured_on": self.measured_on,
            "parameters": {name: {"before": old, "after": new} for name, (old, new) in self.parameters.items()},
            "held_out": {"before": self.before.values, "after": self.after.values},
            "kept_old_values": self.refused is not None,
            "reason": self.refused,
            **self.found,
        }

    def lines(self) -> list[str]:
        """Table of the parameters, and what became of them."""
        shown = [(name, *map(_shown, pair)) for name, pair in self.parameters.items()]
        lines = [f"{name:24}{old:>{_WIDTH}}{new:>{_WIDTH}}" for name, old, new in [("", "before", "after"), *shown]]
        if self.refused is not None:
            lines += ["", f"Kept the old values: {self.refused}."]
        return lines


def _shown(value: Any) -> str:
    return " ".join(f"{number:.3g}" for number in (value if isinstance(value, list) else [value]))


def parameters(model: "LLEPreTrainedModel") -> dict[str, Any]:
    """Parameters of the history of a model that a calibration may change, by name."""
    config: Any = model.config
    sections: dict[str, Any] = {"bank": config.bank} if model.history_bank is not None else {}
    if sections and model.outcome == "token" and hasattr(config, "bank_matches") and config.bank_matches.longest:
        sections["bank_matches"] = config.bank_matches
    if model.outcome == "token" and hasattr(config, "stream"):
        sections = {"stream": config.stream, "matches": config.matches} | sections
    found = {
        f"{section}.{name}": getattr(numbers, name)
        for section, numbers in sections.items()
        for name in ("window", "sharpness", "recency", "agreement", "success", "gate")
        if hasattr(numbers, name)
    }
    return {**found, "classifier.background": config.classifier.background} if model.outcome == "label" else found


def _taking_part(values: dict[str, Any]) -> set[str]:
    """The names of the parameters of sources that are on."""
    off = {name.split(".")[0] for name, value in values.items() if name.endswith(".window") and not value}
    return {name for name in values if name.split(".")[0] not in off}


def restore(model: "LLEPreTrainedModel", values: dict[str, Any]) -> None:
    """Gives a model the values of `parameters`."""
    for place, value in values.items():
        section, name = place.split(".")
        setattr(getattr(model.config, section), name, value)


def hold_out_tokens(ids: np.ndarray, end: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a text in two, at the end of a row if there is one near.

    Args:
        ids: (T,) integers, the tokens after a start token.
        end: Token at the end of rows.
        limit: Tokens to fit on, at most; a fourth of it are held out at most.

    Returns:
        The text to fit on, and the one to measure on, each with a start token; each token is a target once.

    Raises:
        ValueError: The text is too short, or the limit too small.
    """
    if min(len(ids) - 1, limit) < LEAST:
        raise ValueError(
            f"{counted(len(ids) - 1, 'token')}, of which {limit:,} may be fitted on, are too few to hold out a part: "
            f"give at least {LEAST}"
        )
    border = min(limit, int((len(ids) - 1) * (1 - HELD_OUT)))
    ends = np.flatnonzero(ids[1 : border + 1] == end) + 1
    if len(ends) and 2 * ends[-1] >= border:
        border = int(ends[-1])
    return ids[: border + 1], ids[border : border + 1 + max(1, limit // 4)]


def measure_tokens(model: "LLEPreTrainedModel", batches: Iterable[dict[str, Any]]) -> Measured:
    """Nats of held-out text with and without history, by a descent of no steps, which changes nothing."""
    values = parameters(model)
    own: Any = model  # each head has a calibrate
    found = own.calibrate(batches, steps=0, max_predictions=_ALL)
    restore(model, values)
    base, history = found["base_nats"], found["before_nats"]
    return Measured(
        history,
        0.0,
        {
            "base_nats": base,
            "nats": history,
            "base_perplexity": math.exp(min(base, 700.0)),
            "perplexity": math.exp(min(history, 700.0)),
        },
    )


def perplexity_line(before: Measured, after: Measured, of: str) -> str:
    """One line on the perplexity of texts that were not fitted on."""
    base, old, new = (
        f"{measured.values[f'{name}perplexity']:,.2f} ({measured.values[f'{name}nats']:.3f} nats)"
        for measured, name in ((before, "base_"), (before, ""), (after, ""))
    )
    return f"Perplexity of {of}: {base} without history, {old} with it before, {new} after."


def fit_and_measure(
    model: "LLEPreTrainedModel",
    fit: Callable[[], Any],
    measure: Callable[[], Measured],
    fitted_on: str,
    measured_on: str,
    slack: float = 0.0,
) -> Outcome:
    """Fits parameters, and keeps the old ones unless the new ones are better on other texts.

    Args:
        model: Model; it has the parameters that are kept afterwards.
        fit: Fits and stores them.
        measure: Measures the model on texts that are not fitted on.
        fitted_on, measured_on: As in `Outcome`.
        slack: Nats that the loss may rise by where the share of correct predictions does not fall.
    """
    old, before = parameters(model), measure()
    fit()
    new, after = parameters(model), measure()
    fitted = [name for name in new if name in _taking_part(new) and not name.endswith(".window")]
    far = [name for name in fitted if np.abs(np.array(new[name])).max() >= FAR and new[name] != old[name]]
    refused = None
    if far:
        refused = f"{' and '.join(far)} went off beyond {FAR:,.0f}, as where a text is in the bank itself"
    elif after.right < before.right or (after.right == before.right and after.loss > before.loss + slack):
        refused = f"the fitted ones are no better on {measured_on} that were not fitted on"
    if refused is not None:
        restore(model, old)
    shown = {
        name: (old[name], new[name])
        for name in new
        if name in fitted or (name.endswith(".window") and new[name] != old[name])
    }
    return Outcome(fitted_on, measured_on, shown, before, after, refused, {})
