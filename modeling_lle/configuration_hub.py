"""The configuration of a backbone of transformers within that of an LLE model."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig

from .configuration_sections import BackboneConfig

_COPIED = ("hidden_size", "num_hidden_layers")  # from the wrapped configuration into the section `backbone`
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


class Wrapping(Protocol):
    """A configuration, as far as it takes values from the one that it wraps."""

    vocab_size: int
    tie_word_embeddings: bool
    backbone: BackboneConfig

    @property
    def wrapped(self) -> PreTrainedConfig | None:
        """The configuration of the backbone."""
        ...


def wrapped_config(value: Any) -> PreTrainedConfig | None:
    """The configuration of a backbone, given as itself, as a mapping with its `model_type`, or None.

    Raises:
        ValueError: The mapping names no type, or one that transformers does not have.
        TypeError: It is neither.
    """
    if value is None or isinstance(value, PreTrainedConfig):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(
            f"backbone_config should be a configuration or a mapping with its model_type, got {value!r}; a backbone "
            "of the Hub is loaded with LLEForCausalLM.from_backbone(name)"
        )
    values = dict(value)
    kind = values.pop("model_type", None)
    if kind is None:
        raise ValueError('backbone_config has no model_type: name one, as in {"model_type": "mamba2"}')
    if kind not in CONFIG_MAPPING:
        raise ValueError(
            f"backbone_config has the model_type {kind!r}, which transformers {transformers.__version__} does not "
            "know: upgrade it with `pip install -U transformers`, or correct the name"
        )
    return CONFIG_MAPPING[kind](**values)


def take_sizes(config: Wrapping) -> None:
    """Copies sizes, special tokens and tying from the wrapped configuration, if there is one.

    Raises:
        ValueError: The configuration says something else than the wrapped one, or what no wrapped backbone reads.
    """
    wrapped: Any = config.wrapped
    if wrapped is None:
        return
    default, kind = BackboneConfig(), wrapped.model_type
    for field in dataclasses.fields(BackboneConfig):
        given, usual = getattr(config.backbone, field.name), getattr(default, field.name)
        if field.name in _COPIED:
            due = getattr(wrapped, field.name)
            if given not in (usual, due):
                raise ValueError(f"{field.name} is {given}, but that of backbone_config is {due}: leave it out")
            setattr(config.backbone, field.name, due)
        elif given != usual:
            raise ValueError(
                f"{field.name}={given!r} is for backbones of LLE's own, and backbone_config is of the type {kind!r}: "
                "leave it out, or set the corresponding field of backbone_config"
            )
    usual_size = next(f.default for f in dataclasses.fields(type(config)) if f.name == "vocab_size")  # type: ignore[arg-type]
    if config.vocab_size not in (usual_size, wrapped.vocab_size):
        raise ValueError(
            f"vocab_size is {config.vocab_size}, but that of backbone_config is {wrapped.vocab_size}: leave it out"
        )
    config.vocab_size, config.tie_word_embeddings = wrapped.vocab_size, bool(wrapped.tie_word_embeddings)
    for name in _TOKENS:
        if getattr(config, name) is None:
            setattr(config, name, getattr(wrapped, name, None))
