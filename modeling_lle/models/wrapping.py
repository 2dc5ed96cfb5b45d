"""LLE around a pretrained model of transformers: its base model and its output layer are taken over as they are.

Notable: nothing is copied. The LLE model is made without memory, and gets the modules of the loaded model; its
tokenizer is kept, and saved with it.
"""

import logging
import os
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights

from ..backbone.hub_families import check_family, family_of, scale_of
from ..configuration import LLEConfig
from .pretrained import LLEPreTrainedModel

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=LLEPreTrainedModel)
# Options that are fields of the configuration.
_OF_CONFIG = (
    "history",
    "use_history",
    "use_cache",
    "classifier",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
)
_OF_FILES = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
_PROBE = 8  # tokens that a model of an unknown type is tried on


def wrap(cls: type[Model], name: str | os.PathLike[str], options: dict[str, Any]) -> tuple[Model, PreTrainedModel]:
    """An LLE model without an output layer of its own around a pretrained model, and that model.

    Args:
        cls: The class of the LLE model.
        name: As in `from_pretrained`.
        options: Of `from_pretrained`, and fields of `LLEConfig`.

    Raises:
        ValueError: The model cannot be a backbone.
    """
    if options.get("trust_remote_code") or options.get("quantization_config"):
        raise ValueError(
            "a backbone is of a type that transformers has, with weights that are not quantised: leave "
            "trust_remote_code and quantization_config out"
        )
    fields = {field: options.pop(field) for field in _OF_CONFIG if field in options}
    files = {option: value for option, value in options.items() if option in _OF_FILES}
    check_family(_config_of(name, files), str(name))
    causal: PreTrainedModel = AutoModelForCausalLM.from_pretrained(name, **options)
    backbone, wrapped = cast(Any, causal.base_model), causal.config
    tokenizer = _tokenizer_of(name, files, wrapped)
    _check_layout(causal)
    head: Any = causal.get_output_embeddings()
    wrapped.tie_word_embeddings = head.weight is backbone.get_input_embeddings().weight
    config = LLEConfig(backbone_config=wrapped, **fields)
    config.dtype, config.name_or_path = causal.dtype, str(name)
    with torch.device("meta"), no_init_weights():
        model = cls(config)
    model.base_model.backbone = backbone
    model.config.backbone_config = backbone.config
    model.backbone_tokenizer = tokenizer
    if causal.can_generate():
        model.generation_config = causal.generation_config
    return cast(Model, model.eval()), causal


def take_output_layer(head: nn.Module, causal: PreTrainedModel) -> None:
    """Gives an output layer that has no memory yet the weight of that of a loaded model; a missing bias is zero."""
    given: Any = causal.get_output_embeddings()
    with torch.no_grad():
        bias = given.bias
        zeros = torch.zeros(len(given.weight), dtype=given.weight.dtype, device=given.weight.device)
        head.weight = given.weight
        head.bias = nn.Parameter(zeros) if bias is None else bias


def begin_anew(model: LLEPreTrainedModel, *modules: nn.Module | None) -> None:
    """Gives modules of a model that have no memory yet random weights, as those of a new model."""
    for module in modules:
        if module is not None:
            module.to_empty(device=model.device).to(model.dtype)
            module.apply(model._init_weights)


def _config_of(name: str | os.PathLike[str], files: dict[str, Any]) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(name, **files)
    except ValueError as error:
        raise ValueError(
            f"{name} is of a type that the installed transformers does not have, or needs code of its own "
            f"(trust_remote_code), which is not saved with an LLE model: {error}"
        ) from error


def _tokenizer_of(
    name: str | os.PathLike[str], files: dict[str, Any], config: PreTrainedConfig
) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside a model; None, with a warning, if there is none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **files)
    except (OSError, ValueError, KeyError) as error:
        logger.warning(
            "no tokenizer was found beside %s (%s): save one with the LLE model", name, str(error).partition("\n")[0]
        )
        return None
    size = cast(Any, config).vocab_size
    if len(tokenizer) > size:
        raise ValueError(
            f"the tokenizer of {name} has {len(tokenizer)} tokens, the model {size}: they do not belong together; "
            "resize the model's embeddings first, or repair the folder"
        )
    return tokenizer


@torch.no_grad()
def _check_layout(causal: PreTrainedModel) -> None:
    """Raises a ValueError unless LLE computes of a loaded model what it computes itself.

    A type of the table is taken as tested; another one is tried on a few tokens.
    """
    backbone, head, kind = causal.base_model, causal.get_output_embeddings(), causal.config.model_type
    with torch.device("meta"), no_init_weights():
        due = type(AutoModel.from_config(causal.config))
    if backbone is causal or type(backbone) is not due or type(head) is not nn.Linear:
        raise ValueError(
            f"a model of the type {kind!r} does not consist of the backbone that AutoModel makes and a linear output "
            "layer, so that it cannot be taken apart"
        )
    family = family_of(causal.config, backbone)
    if family.is_known:
        return
    mode = causal.training
    causal.eval()
    tokens = torch.arange(_PROBE, device=causal.device)[None] % cast(Any, causal.config).vocab_size
    states, logits = backbone(tokens).last_hidden_state, causal(tokens).logits
    other = tokens.clone()
    other[:, -1] = 0
    changed = backbone(other).last_hidden_state
    causal.train(mode)
    if not _same(changed[:, :-1], states[:, :-1]):
        raise ValueError(f"a model of the type {kind!r} sees the tokens that come after: it is no causal model")
    if not _same(head(states * scale_of(causal.config, family)), logits):
        raise ValueError(
            f"the logits of a model of the type {kind!r} are not its output layer applied to its last states: LLE "
            "does not know how it makes them"
        )


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(torch.allclose(one.float(), other.float(), rtol=1e-2, atol=1e-2 * float(other.float().abs().max())))
