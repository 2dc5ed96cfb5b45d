"""The recurrent and hybrid models of transformers that can be a backbone, and what each of them needs.

Notable: each line of the table is tested (tests/models/test_hub_families.py). Some of these models go on with a cache
by several tokens at once wrongly and in silence, so which ones may is a list, and not found out by trying: on weights
that are not trained, the state matters too little to tell.
"""

import inspect
import logging
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Family:
    """How the backbones of a model type are read.

    Attributes:
        cache: The argument of `forward` that takes the cache.
        attends: Whether some layers attend to all tokens so far; they get the whole mask.
        positions: Whether `forward` gets `position_ids`.
        pieces: Whether a cache goes on by several tokens at once; otherwise it goes on token by token.
        masks: Whether a whole text may be padded on the left; otherwise such a text is read token by token.
        divisor, multiplier, cap: Fields of the configuration by which logits are divided, multiplied and softly
            capped; "" for none.
        differentiable: Whether gradients flow through a cache; otherwise none is kept in training.
        is_known: Whether it is in the table.
    """

    cache: str = "past_key_values"
    attends: bool = True
    positions: bool = True
    pieces: bool = True
    masks: bool = True
    divisor: str = ""
    multiplier: str = ""
    cap: str = ""
    differentiable: bool = True
    is_known: bool = True


_ALONE = Family("cache_params", attends=False, positions=False)  # layers of one kind, without attention
FAMILIES: dict[str, Family] = {
    "mamba2": _ALONE,
    "mamba": replace(_ALONE, pieces=False, differentiable=False),
    "falcon_mamba": replace(_ALONE, pieces=False, differentiable=False),
    "xlstm": replace(_ALONE, masks=False, cap="output_logit_soft_cap", differentiable=False),
    "bamba": Family(),
    "falcon_h1": Family(multiplier="lm_head_multiplier"),
    "granitemoehybrid": Family(divisor="logits_scaling"),
    "jamba": Family(pieces=False, differentiable=False),
    "lfm2": Family(),
    "nemotron_h": Family(),
    "olmo_hybrid": Family(),
    "qwen3_5_text": Family(),
    "qwen3_next": Family(),
    "zamba": Family(pieces=False, differentiable=False),
    "zamba2": Family(),
}
_OWN_STATE = "keeps its state in a cache of its own, which transformers does not let others carry"
REFUSED: dict[str, str] = {
    "rwkv": "goes on with a state wrongly in a batch of more than one text, and reads padding as text",
    "recurrent_gemma": "keeps its state in its modules, so that no two texts can be read in turn",
    "minimax": _OWN_STATE,
    "reformer": _OWN_STATE,
    "xlnet": "does not read from left to right",
    "lle": "is an LLE model already: load it with from_pretrained",
}


def check_family(config: PreTrainedConfig, where: str = "") -> None:
    """Raises a ValueError unless a model of this configuration can be a backbone.

    Args:
        config: The configuration of the model.
        where: The folder or repository that it was read from, for the message.
    """
    name, kind = where or "this", config.model_type
    known = ", ".join(sorted(FAMILIES))
    if kind in REFUSED:
        raise ValueError(f"{name} is of the type {kind!r}, which {REFUSED[kind]}; types that work: {known}")
    if getattr(config, "auto_map", None) and kind not in CONFIG_MAPPING:
        raise ValueError(
            f"{name} brings code of its own (trust_remote_code), which is not saved with an LLE model: choose one "
            f"whose type transformers has, such as {known}"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"{name} is quantised, and keys of a bank tell by its weights whose they are: load the checkpoint that it "
            "was quantised from"
        )
    if config.is_encoder_decoder or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"{name} is of the type {kind!r}, which has no causal language model: choose one that goes on with a "
            f"text, such as {known}"
        )


def family_of(config: PreTrainedConfig, backbone: nn.Module) -> Family:
    """The family of a backbone; a type that is not in the table is read token by token, with a warning.

    Raises:
        ValueError: The type cannot be a backbone.
    """
    check_family(config)
    if config.model_type in FAMILIES:
        return FAMILIES[config.model_type]
    takes = inspect.signature(backbone.forward).parameters
    caches = [name for name in ("past_key_values", "cache_params") if name in takes]
    if not caches:
        raise ValueError(
            f"a model of the type {config.model_type!r} takes no cache, so that it cannot go on with a text; types "
            f"that work: {', '.join(sorted(FAMILIES))}"
        )
    logger.warning(
        "the type %s is not among those that are tested (%s): after its beginning, a text is read token by token, "
        "which is slow, and nobody has checked the numbers",
        config.model_type,
        ", ".join(sorted(FAMILIES)),
    )
    return Family(
        caches[0],
        attends="attention_mask" in takes,
        positions="position_ids" in takes,
        pieces=False,
        masks=False,
        differentiable=False,
        is_known=False,
    )


def scale_of(config: PreTrainedConfig, family: Family) -> float:
    """What the last states are multiplied by before the output layer, so that the logits are the model's own."""
    scale: float = getattr(config, family.multiplier) if family.multiplier else 1.0
    return scale / float(getattr(config, family.divisor)) if family.divisor else scale


def cap_of(config: Any) -> float | None:
    """Where the logits are softly capped, by the type of the configuration; None for nowhere."""
    family = FAMILIES.get(config.model_type)
    return None if family is None or not family.cap else getattr(config, family.cap)
