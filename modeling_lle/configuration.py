"""LLEConfig: sizes, regularisation, and the history that a model learns from, in sections.

Notable: every field is typed and validated whenever it is set, every number finite and within bounds; a misspelt key
is an error that proposes the nearest one, while keys that transformers saved are kept; the fields of the backbone can
also be given, read and set without their section. The same class serves Python, YAML and the Hub.
"""

import dataclasses
import json
import logging
import operator
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import transformers
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .common.temporary import replacing
from .configuration_fields import (
    MAX_LABELS,
    MAX_TYPES,
    as_section,
    check_keys,
    check_moved,
    hint,
    section,
    token_ids,
    within,
)
from .configuration_hub import take_sizes, wrapped_config
from .configuration_sections import (
    OPTIONAL,
    READ_BY,
    SECTIONS,
    BackboneConfig,
    BankConfig,
    BankMatchesConfig,
    ClassifierConfig,
    HistoryConfig,
    MatchesConfig,
    StreamConfig,
    TrainingConfig,
    TranslatorConfig,
    UpdateConfig,
)
from .configuration_version_1 import converted

logger = logging.getLogger(__name__)

CONFIG_VERSION = 2  # to be raised with every field that is more than a default, as an older package keeps it unread

# Keys that transformers itself writes into a config.json, or passes on to a config, beyond the declared fields.
_TRANSFORMERS_KEYS = {
    "_attn_implementation",
    "_name_or_path",
    "attn_implementation",
    "auto_map",
    "custom_pipelines",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "torch_dtype",
    "transformers_weights",
}


_T = TypeVar("_T")


class _OfBackbone(Generic[_T]):
    """A field of the section `backbone`, read and set on the configuration itself, as transformers programs do."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, config: "LLEConfig", owner: type | None = None) -> _T:
        if config is None:  # asked of the class
            raise AttributeError(f"{self.name} is a field of configurations, not of their class")
        return getattr(config.backbone, self.name)

    def __set__(self, config: "LLEConfig", value: _T) -> None:
        setattr(config.backbone, self.name, value)


def _fits_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


@strict
class LLEConfig(PreTrainedConfig):
    """Configuration of every LLE model.

    Args:
        vocab_size: Number of token types, V.
        backbone: Sizes and regularisation, see `BackboneConfig`. Its fields may also be given by themselves, as
            `hidden_size=64`, which overrules the section, and are read and set as `config.hidden_size`.
        classifier: Fields of classifiers, see `ClassifierConfig`.
        translator: Fields of translators, see `TranslatorConfig`.
        history: The sources, see `HistoryConfig`.
        backbone_config: The configuration of a model of transformers that is the backbone, or a mapping with its
            `model_type`, in place of `backbone`: sizes, special tokens and tying are copied from it, and what the
            section `backbone` says beside that is an error. None: the backbone is one of LLE's own.
        tie_word_embeddings: Whether the output layer shares the embedding's matrix.
        use_history: Whether a model in evaluation mode uses its history; `forward(use_history=...)` overrules it.
        config_version: Version of this format; a newer one than the installed package knows is refused, version 1 is
            converted by `from_dict` and `from_pretrained`.

    Example:
        >>> LLEConfig(hidden_size=64, history={"stream": {"window": 500}}).history.stream.window
        500
        >>> LLEConfig(hiden_size=64)
        Traceback (most recent call last):
            ...
        ValueError: unknown key in LLEConfig: 'hiden_size' (did you mean 'hidden_size'?). Known keys: ...
        >>> LLEConfig(members=2)
        Traceback (most recent call last):
            ...
        ValueError: members belongs into the section classifier: LLEConfig(classifier={'members': 2})
    """

    model_type: ClassVar[str] = "lle"
    sub_configs: ClassVar[dict[str, type]] = {"backbone_config": PreTrainedConfig}
    # What the Trainer keeps from `compute_metrics`, which is to see the logits alone.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "past_key_values",
        "member_logits",
        "out_of_scope",
        "mass",
        "scope_features",
        "history",
        "label_names",
    ]

    config_version: int = within(
        CONFIG_VERSION, 1, 1 << 63
    )  # the first one, so that it is checked before what a newer one may change
    vocab_size: int = within(10000, 1, MAX_TYPES)
    backbone: "BackboneConfig" = section(BackboneConfig)
    classifier: "ClassifierConfig" = section(ClassifierConfig)
    translator: "TranslatorConfig" = section(TranslatorConfig)
    history: "HistoryConfig" = section(HistoryConfig)
    backbone_config: "PreTrainedConfig | dict[str, Any] | None" = None
    tie_word_embeddings: bool = True
    bos_token_id: int | None = token_ids()
    eos_token_id: int | list[int] | None = token_ids()
    pad_token_id: int | None = token_ids()
    use_cache: bool = True
    use_history: bool = True

    # Without annotations, so that they are no fields of this dataclass.
    hidden_size = _OfBackbone[int]()
    embedding_size = _OfBackbone[int | None]()
    intermediate_size = _OfBackbone[int | None]()
    num_hidden_layers = _OfBackbone[int]()
    recurrence = _OfBackbone[str]()
    stack = _OfBackbone[str]()
    bidirectional = _OfBackbone[bool]()
    token_dropout = _OfBackbone[float]()
    embedding_dropout = _OfBackbone[float]()
    input_dropout = _OfBackbone[float]()
    hidden_dropout = _OfBackbone[float]()
    output_dropout = _OfBackbone[float]()
    weight_dropout = _OfBackbone[float]()
    activation_penalty = _OfBackbone[float]()
    smoothness_penalty = _OfBackbone[float]()
    initializer_range = _OfBackbone[float]()
    norm_eps = _OfBackbone[float]()

    if TYPE_CHECKING:  # of sections also mappings, and the backbone's fields

        def __init__(self, **values: Any) -> None: ...

    def __post_init__(self, **kwargs: Any) -> None:
        check_moved(kwargs)
        known = _known_keys(type(self))
        for name in _BACKBONE_FIELDS & kwargs.keys():
            setattr(self, name, kwargs.pop(name))
        if self.transformers_version is None:
            check_keys(kwargs, known, type(self).__name__, silent=_TRANSFORMERS_KEYS)
        self._check_further_attributes(kwargs, known)
        take_sizes(self)
        super().__post_init__(**kwargs)

    def _check_further_attributes(self, names: Iterable[str], known: set[str]) -> None:
        """Warns of saved attributes that are nearly a field, and refuses those that the class has for another use."""
        for name in names:
            own = getattr(type(self), name, None)
            if isinstance(own, property) and own.fset is None:
                raise ValueError(f"a configuration cannot hold {name!r}: sections belong into history")
            told = repr(name) if name in _TRANSFORMERS_KEYS else hint(name, known, 0.85)
            if told != repr(name):
                logger.warning("the saved configuration holds %s, which is kept, but means nothing", told)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers: from a saved dictionary, which may hold further attributes, and `kwargs` that change it.

        A dictionary of version 1 is converted; that of a translator gives an `LLESeq2SeqConfig`.

        Raises:
            ValueError: A value is wrong, or one of `kwargs` that nobody takes is nearly the name of a field.
        """
        if cls is LLEConfig and config_dict.get("is_encoder_decoder"):
            return LLESeq2SeqConfig.from_dict(_as_translator(config_dict), **kwargs)
        wanted = kwargs.pop("return_unused_kwargs", False)
        version = config_dict.get("transformers_version") or transformers.__version__
        saved = {**converted(config_dict), "transformers_version": version}
        config, unused = super().from_dict(saved, return_unused_kwargs=True, **kwargs)
        if wanted:
            return config, unused
        check_moved(unused)
        known = {field.name for field in dataclasses.fields(cls)} | _BACKBONE_FIELDS
        hints = [hint(name, known, 0.85) for name in unused if f"{name}_id" not in known]  # a tokenizer has pad_token
        wrong = [told for told in hints if "did you mean" in told]
        if wrong:
            raise ValueError(f"unknown key for {cls.__name__}: {', '.join(wrong)}")
        return config

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> Any:
        """As in transformers; the file may hold further attributes."""
        return cls.from_dict(cls._dict_from_json_file(json_file))

    def to_json_file(self, json_file_path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """As in transformers, but what JSON cannot hold is named, and leaves the file as it was."""
        try:
            text = self.to_json_string(use_diff=use_diff)
        except TypeError as error:
            wrong = [name for name, value in self.to_dict().items() if not _fits_json(value)]
            raise ValueError(f"the configuration cannot be saved: JSON cannot hold {', '.join(wrong)}") from error
        with replacing(json_file_path) as partial:
            partial.write_text(text, encoding="utf-8")

    def __setattr__(self, key: str, value: Any) -> None:
        if key == "num_labels" and isinstance(value, int | float) and not 0 <= value <= MAX_LABELS:
            raise ValueError(f"num_labels must be between 0 and {MAX_LABELS:,}, got {value!r}")
        if key == "config_version" and value < CONFIG_VERSION:
            raise ValueError(
                f"these are values of version {value}: read them with LLEConfig.from_dict, which converts"
            )
        if key == "config_version" and value > CONFIG_VERSION:
            raise ValueError(
                f"this configuration has version {value}, the installed modeling_lle reads up to {CONFIG_VERSION}: "
                "upgrade with `pip install -U modeling_lle`"
            )
        check_moved({key: value})
        if key == "backbone_config":
            value = wrapped_config(value)
        super().__setattr__(key, as_section(SECTIONS[key], value, key) if key in SECTIONS else value)

    @property
    def stream(self) -> StreamConfig:
        """The numbers of the stream: `history.stream`."""
        return self.history.stream

    @property
    def matches(self) -> MatchesConfig:
        """The numbers of the exact matches: `history.matches`."""
        return self.history.matches

    @property
    def bank(self) -> BankConfig:
        """The numbers of the bank: `history.bank`."""
        return self.history.bank

    @property
    def bank_matches(self) -> BankMatchesConfig:
        """The numbers of the exact matches in the bank: `history.bank_matches`."""
        return self.history.bank_matches

    @property
    def overlay(self) -> UpdateConfig:
        """The numbers of the overlay: `history.update`, a name that transformers has taken on a configuration."""
        return self.history.update

    @property
    def wrapped(self) -> PreTrainedConfig | None:
        """The configuration of the model of transformers that is the backbone; None for a backbone of LLE's own."""
        return self.backbone_config  # type: ignore[return-value]  # a mapping is converted when it is set

    @property
    def state_size(self) -> int:
        """Width of the backbone's states, S."""
        backbone = self.backbone
        return backbone.hidden_size * self.classifier.members * (2 if backbone.bidirectional else 1)

    @property
    def embedding_width(self) -> int:
        """Width of the embeddings of a member, E."""
        return self.backbone.embedding_size or self.backbone.hidden_size

    @property
    def training(self) -> TrainingConfig:
        """How to train with history: `history.training`."""
        return self.history.training

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain values: what config.json holds."""
        output = super().to_dict()
        return output | {name: dataclasses.asdict(getattr(self, name)) for name in SECTIONS}

    def check_sections(self, architecture: str) -> None:
        """Checks that the optional sections which a model does not read have their default values.

        Sections of a configuration that another architecture saved are set to their defaults instead, with a
        warning, so that a classifier can begin at the backbone of a language model.

        Args:
            architecture: A key of `READ_BY`.

        Raises:
            ValueError: A section that the model does not read has other values.
        """
        if self.embedding_width != self.hidden_size and "classifier" not in READ_BY[architecture]:
            raise ValueError(
                f"embedding_size is {self.embedding_size} and hidden_size {self.hidden_size}: {architecture} reads "
                "embeddings as wide as its states; leave embedding_size out"
            )
        found: dict[str, dict[str, Any]] = {}
        for path, cls in OPTIONAL.items():
            if path not in READ_BY[architecture]:
                values, default = dataclasses.asdict(operator.attrgetter(path)(self)), dataclasses.asdict(cls())
                changed = {name: value for name, value in values.items() if value != default[name]}
                found |= {path: changed} if changed else {}
        members = found.get("classifier", {}).get("members")  # decides the shape of the weights
        if found and (members is not None or not self.architectures or architecture in self.architectures):
            told = [f"{path}.{name}={value!r}" for path, values in found.items() for name, value in values.items()]
            readers = [name for name, paths in READ_BY.items() if found.keys() & set(paths)]
            raise ValueError(
                f"{architecture} does not read {', '.join(told)}: leave this out of the configuration, "
                f"it is for {', '.join(readers)}"
            )
        for path in found:
            logger.warning(
                "%s does not read the section %s, saved by %s: ignored",
                architecture,
                path,
                ", ".join(self.architectures or []),
            )
            owner, _, name = path.rpartition(".")
            setattr(getattr(self, owner) if owner else self, name, None)


_BACKBONE_FIELDS = {field.name for field in dataclasses.fields(BackboneConfig)}


def _known_keys(cls: type[LLEConfig]) -> set[str]:
    """The keyword arguments of a configuration beyond those of transformers."""
    own = {field.name for field in dataclasses.fields(cls)} - {f.name for f in dataclasses.fields(PreTrainedConfig)}
    return own | _BACKBONE_FIELDS


def _as_translator(config_dict: dict[str, Any]) -> dict[str, Any]:
    """The dictionary of a translator under the model type that it has now; version 0.1.0 saved "lle"."""
    if config_dict.get("model_type") == LLEConfig.model_type and config_dict.get("is_encoder_decoder"):
        return {**config_dict, "model_type": LLESeq2SeqConfig.model_type}
    return config_dict


@strict
class LLESeq2SeqConfig(LLEConfig):
    """Configuration of translators: that of the other models under a model type of its own.

    Programs look up by the model type whether a model goes on with a text or makes another text of it.
    """

    model_type: ClassVar[str] = "lle_seq2seq"
    keys_to_ignore_at_inference: ClassVar[list[str]] = [  # so that a Trainer's predictions are the logits alone
        "past_key_values",
        "decoder_hidden_states",
        "cross_attentions",
        "encoder_last_hidden_state",
        "encoder_hidden_states",
        "history",
    ]

    is_encoder_decoder: bool = True

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in transformers; the model type that translators once had is replaced."""
        config_dict, kwargs = super().get_config_dict(*args, **kwargs)
        return _as_translator(config_dict), kwargs

    @classmethod
    def of(cls, config: LLEConfig) -> "LLESeq2SeqConfig":
        """The configuration of a translator: `config` itself if it is one, otherwise one with its values."""
        if config.model_type == cls.model_type:  # no isinstance: remote code has classes of its own
            return config  # type: ignore[return-value]
        own = cls(**{**_fields(config), "is_encoder_decoder": True})
        vars(own).update({name: value for name, value in vars(config).items() if name not in vars(own)})
        return own

    def part(self, **values: Any) -> LLEConfig:
        """The configuration of the encoder or of the decoder, which differs by `values`."""
        return LLEConfig(**{**_fields(self), "is_encoder_decoder": False, **values})


def _fields(config: LLEConfig) -> dict[str, Any]:
    """The declared fields of a configuration, as plain values."""
    names = {field.name for field in dataclasses.fields(config)}
    return {name: value for name, value in config.to_dict().items() if name in names}
