"""Statistics of training text, by which the test-time update scales its gradients; a file beside the weights.

Shapes: D width, V vocabulary, n predictions.
"""

import logging
from collections.abc import Iterable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..common.precision import outside_autocast
from ..configuration_sections import UpdateConfig
from ..kernels.linear import apply_linear
from .cache import LLECache
from .loss import IGNORED, check_targets
from .updatable import Updatable, check_updatable, pull_back, summed_gradients

logger = logging.getLogger(__name__)

STATISTICS = "update_statistics.safetensors"  # the file beside the weights that holds the root mean squares
FLOOR = 1e-3  # of the root mean square of a residual, a probability; of states and errors, this share of their mean
WEIGHT_FLOOR = 1.0  # of that of a weight's gradient, as a share of the mean: most rows of an embedding are rare words

_REMEDY = "collect them once with `lle statistics MODEL TRAINING_TEXT`, or model.collect_update_statistics"


@torch.no_grad()
def collect_statistics(model: Updatable, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """What the rule of an update needs to know of training text, once for a model.

    Args:
        model: An `LLEForCausalLM` in evaluation mode.
        batches: Consecutive segments of training text, as `LLEForCausalLM.calibrate` takes them, of one row each.

    Returns:
        Root mean squares over the tokens: "residual" (V,), of probabilities minus what came; "state" (D,); "error"
        (D,), of the slope of the nats in the states; and "directions" (D, D), principal directions of the states,
        scaled to unit mean square, the largest first. For the scope "all" also those of the gradient of each segment's
        summed nats in each weight, by the names of the weights.
    """
    head, everything = model.lm_head, model.config.overlay.scope == "all"
    check_updatable(model, model.config.overlay)
    V, D = model.config.vocab_size, model.config.hidden_size
    sums = {"residual": torch.zeros(V), "state": torch.zeros(D, D), "error": torch.zeros(D)}
    weights = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}
    squares = {name: torch.zeros_like(weight) for name, weight in weights.items()} if everything else {}
    cache, count, segments = LLECache(), 0, 0
    for batch in batches:
        ids, targets = batch["input_ids"].to(model.device), batch["shift_labels"].to(model.device)
        targets = check_targets(targets, ids.shape, V, "shift_labels")
        before = cache.state
        states = model.model(ids, past_key_values=cache, use_cache=False).last_hidden_state[0]
        residual = apply_linear(head, states).float().softmax(-1)
        used = targets[0] != IGNORED
        residual, states = residual[used], states[used]
        residual[torch.arange(len(residual)), targets[0, used]] -= 1
        for name, moment in _moments(head, states, residual).items():
            sums[name] += moment.cpu()
        count, segments = count + len(residual), segments + 1
        if everything:
            own = LLECache()
            own.state = before
            _, gradients = summed_gradients(model, weights, ids[0], targets[0], own)
            for name, gradient in gradients.items():
                squares[name] += gradient.square()
    if not count:
        raise ValueError("the statistics of an update need training text; the batches hold none")
    values, vectors = torch.linalg.eigh(sums["state"].double() / count)
    directions = (vectors / values.clamp(min=1e-12).sqrt()).flip(1).float()
    return {
        "residual": (sums["residual"] / count).sqrt(),
        "state": (sums["state"].diagonal() / count).sqrt(),
        "error": (sums["error"] / count).sqrt(),
        "directions": directions.contiguous(),
        **{name: (square / segments).sqrt() for name, square in squares.items()},
    }


def read_statistics(path: str | None) -> tuple[dict[str, Tensor] | None, str | None]:
    """The statistics in a file, and what is wrong with it, which is an error only where they are used."""
    if path is None:
        return None, None
    try:
        return load_file(path), None
    except (SafetensorError, OSError) as error:
        logger.warning("%s is truncated or corrupted (%s): the test-time update cannot be used", path, error)
        return None, f"{path} is truncated or corrupted ({error})"


def _check_statistics(model: Updatable, name: str, tensor: Tensor) -> None:
    """Raises a ValueError unless this can be a statistic of the model: of its shape, finite, and no root negative."""
    V, S = model.config.vocab_size, model.config.hidden_size
    due: tuple[int, ...] = {"residual": (V,), "state": (S,), "error": (S,), "directions": (S, S)}.get(
        name
    ) or model.get_parameter(name).shape
    if tensor.shape != due:
        fault = f"the shape {tuple(tensor.shape)}, not {tuple(due)}"
    elif not tensor.dtype.is_floating_point or not bool(tensor.isfinite().all()):
        fault = "values that are not finite numbers"
    elif name != "directions" and bool((tensor < 0).any()):
        fault = "negative values"
    else:
        return
    raise ValueError(f"the update's statistics of {name!r} ({STATISTICS}) have {fault}: {_REMEDY}")


@outside_autocast
def _moments(head: nn.Module, states: Tensor, residual: Tensor) -> dict[str, Tensor]:
    """What states (n, D) and residuals (n, V) float32 add to the sums of the statistics."""
    wide = states.to(torch.promote_types(states.dtype, torch.float32))
    return {
        "residual": residual.square().sum(0),
        "state": (wide.T @ wide).float(),
        "error": pull_back(head, states, residual).square().sum(0),
    }


def preconditioners(model: Updatable, numbers: UpdateConfig) -> dict[str, Tensor]:
    """What each gradient is multiplied by, from the model's statistics."""
    statistics: dict[str, Tensor] | None = model.update_statistics
    needed = {"head": ["residual", "state"], "low-rank": ["residual", "error", "directions"]}.get(
        numbers.scope, [name for name, _ in model.named_parameters()]
    )
    missing = [name for name in needed if statistics is None or name not in statistics]
    if missing:
        fault = getattr(model, "update_statistics_fault", None) or f"the model has no statistics of {missing[0]!r}"
        raise ValueError(f"history.update.scope is {numbers.scope!r}, but {fault}: {_REMEDY}")
    assert statistics is not None
    for name in needed:
        _check_statistics(model, name, statistics[name])
    scales = {}
    for name in needed:
        rms = statistics[name].to(model.device, torch.promote_types(model.dtype, torch.float32))
        if name == "directions":
            scales[name] = rms[:, : numbers.rank]
        else:
            share = WEIGHT_FLOOR if numbers.scope == "all" else FLOOR
            floor = FLOOR if name == "residual" else share * float(rms.mean())
            scales[name] = (rms + floor) ** -numbers.preconditioning
    return scales
