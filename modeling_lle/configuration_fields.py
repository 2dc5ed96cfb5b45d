"""Fields of the configuration: bounds of every number, sections inside of a section, unknown keys."""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from huggingface_hub.dataclasses import validated_field

# Beyond what anybody trains, below what fills a machine's memory before it fails.
MAX_TYPES, MAX_WIDTH, MAX_LAYERS, MAX_WINDOW, MAX_LABELS = 1 << 24, 1 << 16, 1 << 10, 10_000_000, 1_000_000
MAX_FITTED = 1e6  # magnitude of fitted parameters, in nats; exponentials of what they make stay in float32

# Fields that version 1 had elsewhere, and the section that they belong into now.
MOVED = {
    "members": "classifier",
    "pooling": "classifier",
    "history.bank.background": "classifier",
    "history.bank.margin": "classifier",
    "history.out_of_scope": "classifier",
    "num_encoder_layers": "translator",
    "num_attention_heads": "translator",
    "share_embeddings": "translator",
    "history.bank.sentences": "translator",
}


def check_keys(given: Iterable[str], known: Iterable[str], where: str, silent: Iterable[str] = ()) -> None:
    """Raises a ValueError that names every key of `given` that is not in `known`, with the nearest known one.

    Keys in `silent` are right as well, but are neither proposed nor listed.
    """
    known = sorted(known)
    hints = [hint(key, known, 0.5) for key in given if key not in known and key not in silent]
    if hints:
        raise ValueError(f"unknown key in {where}: {', '.join(hints)}. Known keys: {', '.join(known)}.")


def check_moved(values: Mapping[str, Any], where: str = "") -> None:
    """Raises a ValueError that names the new section of the first key that version 1 had in the section `where`."""
    for key, value in values.items():
        section = MOVED.get(f"{where}.{key}" if where else key)
        if section is not None:
            raise ValueError(f"{key} belongs into the section {section}: LLEConfig({section}={{{key!r}: {value!r}}})")


def hint(key: str, known: Iterable[str], least: float) -> str:
    """The key, and the known one that it resembles most, if their similarity (0 to 1) is at least `least`."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=least)
    return f"{key!r}" + (f" (did you mean {near[0]!r}?)" if near else "")


def _check_bounds(value: Any, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"must be between {low:,} and {high:,}, got {value!r}")


def within(default: Any, low: float, high: float) -> Any:
    """A dataclass field for a number (or None, where the annotation allows it) in [low, high], which are finite."""

    def check(value: Any) -> None:
        if value is not None:
            _check_bounds(value, low, high)

    return validated_field(check, default=default)


def token_ids() -> Any:
    """A dataclass field for the id of a token, or several of them, or None; transformers warns of -1."""

    def check(value: Any) -> None:
        for token in value if isinstance(value, list) else [] if value is None else [value]:
            _check_bounds(token, -1, MAX_TYPES)

    return validated_field(check, default=None)


def probability(default: float = 0.0) -> Any:
    """A dataclass field for a dropout probability."""
    return within(default, 0.0, 0.95)


def four_numbers(default: Callable[[], list[float]]) -> Any:
    """A dataclass field for the bias and the three weights of a logit."""

    def check(value: Any) -> None:
        if len(value) != 4:
            raise ValueError(f"must hold four numbers: bias, mass, entropy, max log p; got {value!r}")
        for number in value:
            _check_bounds(number, -MAX_FITTED, MAX_FITTED)

    return validated_field(check, default_factory=default)


def numbers_or_none(count: int) -> Any:
    """A dataclass field for a list of `count` numbers, or an empty one."""

    def check(value: Any) -> None:
        if len(value) not in (0, count):
            raise ValueError(f"must hold {count} numbers, or none; got {value!r}")
        for number in value:
            _check_bounds(number, -MAX_FITTED, MAX_FITTED)

    return validated_field(check, default_factory=list)


def poolings() -> Any:
    """A dataclass field for a list of ways of pooling."""

    def check(value: Any) -> None:
        if not value or len(set(value)) < len(value):
            raise ValueError(f"must name at least one way, and each once; got {value!r}")

    return validated_field(check, default_factory=lambda: ["mean", "max"])


def section(cls: type) -> Any:
    """A dataclass field for a section: a `cls`, a mapping of its fields, or None for the defaults.

    The owner converts with `as_section`. Its annotation is quoted: `@strict` leaves quoted types alone, and type
    checkers see the section that the owner makes of a mapping.
    """

    def check(value: Any) -> None:
        if not (value is None or isinstance(value, cls | Mapping)):
            raise TypeError(f"should be a section, a mapping of {cls.__name__}'s fields, got {value!r}")

    return validated_field(check, default=None)


def as_section(cls: type, values: Any, where: str) -> Any:
    """`values` (a `cls`, a mapping or None) as a `cls`, its keys checked."""
    if isinstance(values, cls):
        return values
    values = values or {}
    check_moved(values, where)
    check_keys(values, [field.name for field in dataclasses.fields(cls)], where)
    return cls(**values)
