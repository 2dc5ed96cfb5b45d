"""LLEConfig: the size of the backbone, how it is regularised, and the history that it learns from.

Notable: every field is typed and validated whenever it is set, every number finite and within bounds; a key that a
person misspells is an error that proposes the nearest one, while what transformers saved is loaded whole; `history`
holds the handful of numbers that `calibrate` fits. The same class serves Python, YAML and the Hub.
"""

import copy
import dataclasses
import difflib
import json
import logging
import os
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal

import transformers
from huggingface_hub.dataclasses import strict, validated_field
from transformers import PreTrainedConfig

from .common.temporary import replacing

logger = logging.getLogger(__name__)

CONFIG_VERSION = 1  # to be raised with every field that is more than a default, as an older package keeps it unread

# Beyond what anybody trains, below what fills a machine's memory before it fails.
MAX_TYPES, MAX_WIDTH, MAX_LAYERS, MAX_WINDOW, MAX_LABELS = 1 << 24, 1 << 16, 1 << 10, 10_000_000, 1_000_000
MAX_FITTED = 1e6  # magnitude of the numbers that are fitted, in nats; exponentials of what they make stay in float32

# What transformers itself writes into a config.json, or passes on to a config, beyond the declared fields.
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


def check_keys(given: Iterable[str], known: Iterable[str], where: str, silent: Iterable[str] = ()) -> None:
    """Raises a ValueError that names every key of `given` that is not in `known`, with the nearest known one.

    Keys in `silent` are right as well, but are neither proposed nor listed.
    """
    known = sorted(known)
    hints = [_hint(key, known, 0.5) for key in given if key not in known and key not in silent]
    if hints:
        raise ValueError(f"unknown key in {where}: {', '.join(hints)}. Known keys: {', '.join(known)}.")


def _hint(key: str, known: Iterable[str], least: float) -> str:
    """The key, and the known one that it resembles at least so much."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=least)
    return f"{key!r}" + (f" (did you mean {near[0]!r}?)" if near else "")


def _check_bounds(value: Any, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"must be between {low:,} and {high:,}, got {value!r}")


def _within(default: Any, low: float, high: float) -> Any:
    """A dataclass field for a number (or None, where the annotation allows it) in [low, high], which are finite."""

    def check(value: Any) -> None:
        if value is not None:
            _check_bounds(value, low, high)

    return validated_field(check, default=default)


def _tokens() -> Any:
    """A dataclass field for the id of a token, or several of them, or None; transformers warns of -1."""

    def check(value: Any) -> None:
        for token in value if isinstance(value, list) else [] if value is None else [value]:
            _check_bounds(token, -1, MAX_TYPES)

    return validated_field(check, default=None)


def _probability(default: float = 0.0) -> Any:
    """A dataclass field for the probability of dropping something."""
    return _within(default, 0.0, 0.95)


def _four_numbers(default: Callable[[], list[float]]) -> Any:
    def check(value: Any) -> None:
        if len(value) != 4:
            raise ValueError(f"must hold four numbers: bias, mass, entropy, max log p; got {value!r}")
        for number in value:
            _check_bounds(number, -MAX_FITTED, MAX_FITTED)

    return validated_field(check, default_factory=default)


def _poolings() -> Any:
    def check(value: Any) -> None:
        if not value or len(set(value)) < len(value):
            raise ValueError(f"must name at least one way, and each once; got {value!r}")

    return validated_field(check, default_factory=lambda: ["mean", "max"])


@strict
@dataclasses.dataclass
class StreamConfig:
    """The stream: the entries of the text that is being read.

    Args:
        window: Entries kept, the newest ones; 0 switches the stream off.
        sharpness: Factor of the cosine similarity in the kernel, in nats.
        recency: Exponent of the decay with the age of an entry: its weight is multiplied by `age ** -recency`.
        gate: Bias, and weights of the mass, of the base's entropy and of its largest log probability, in the logit
            of the share that the stream has in the mixture (the base's logit is 0).
    """

    window: int = _within(2000, 0, MAX_WINDOW)
    sharpness: float | int = _within(14.0, 0.0, MAX_FITTED)
    recency: float | int = _within(0.3, 0.0, MAX_FITTED)
    gate: list[float | int] = _four_numbers(lambda: [-1.5, 0.3, 0.3, 0.3])  # noqa: RUF009


@strict
@dataclasses.dataclass
class BankConfig:
    """The bank: entries of past sequences, while one is attached.

    Args:
        neighbours: Entries that are recalled at each position, the nearest ones.
        sharpness, gate: As for the stream.
        background: Of classifiers: the cosine similarity from which on a single example of a label which the base was
            not trained on outweighs the base, if there are no other examples (history/label_rule.py).
        margin: Of classifiers: by how much nearer, as a cosine similarity, a text must be to examples of such labels
            than to those of the others: the larger, the less is lost of what was known. It is not calibrated.
        sentences: Of translators: sentence pairs of the memory that a sentence recalls from, by the most similar
            source (entries/pairs.py); all of their entries are candidates, whatever `neighbours` says.
        skip_above: The bank is not asked where the base gives some token at least this probability; 1 asks always.
        search: "exact", or for banks that are large "balanced" or "fast", which find nearly all of the same entries.
    """

    neighbours: int = _within(64, 1, 4096)
    sharpness: float | int = _within(14.0, 0.0, MAX_FITTED)
    gate: list[float | int] = _four_numbers(lambda: [-1.5, 0.3, 0.3, 0.3])  # noqa: RUF009
    background: float | int = _within(0.8, -1.0, 1.0)
    margin: float | int = _within(0.0, 0.0, 1.0)
    sentences: int = _within(4, 1, 1024)
    skip_above: float | int = _within(1.0, 0.0, 1.0)
    search: Literal["exact", "balanced", "fast"] = "balanced"


@strict
@dataclasses.dataclass
class UpdateConfig:
    """The test-time update: gradient steps on the text that is being read (history/overlay.py has the rule).

    Args:
        scope: What they change: "none", the "head" (output matrix and bias), a "low-rank" map of the states, or "all".
        every: Tokens of a row that a step is taken on; None: as many as suit the scope.
        rate: Length of the step; None: one that suits the scope.
        decay: Share of the changes that each token takes back.
        momentum: Share of the previous step that goes into the next one.
        preconditioning: Exponent of the root mean square that gradients are divided by.
        rank: Rank of the map, for the scope "low-rank".
    """

    scope: Literal["none", "head", "low-rank", "all"] = "none"
    every: int | None = _within(None, 1, 4096)
    rate: float | int | None = _within(None, 0.0, 1000.0)
    decay: float | int = _within(1e-3, 0.0, 1.0)
    momentum: float | int = _within(0.0, 0.0, 0.999)
    preconditioning: float | int = _within(0.5, 0.0, 1.0)
    rank: int = _within(128, 1, MAX_WIDTH)


@strict
@dataclasses.dataclass
class TrainingConfig:
    """Training with history: the rule is part of the training loss (as in TRIME, Zhong et al. 2022, arXiv:2205.12674).

    The numbers of the stream, and those of the other rows, are learned along with the weights.

    Args:
        window: Entries of its own row that a position recalls in a training step; 0 trains without history.
        other_rows: Whether it also recalls what the other rows of the batch read in this step; on several processes
            only the rows of its own.
        warm_up: Share of the training steps, at the beginning, that are taken without history.
        sharpness, gate: The numbers of the other rows, which are recalled as a bank is: their entries have no age.
    """

    window: int = _within(0, 0, MAX_WINDOW)
    other_rows: bool = True
    warm_up: float | int = _within(0.0, 0.0, 1.0)
    sharpness: float | int = _within(14.0, 0.0, MAX_FITTED)
    gate: list[float | int] = _four_numbers(lambda: [-1.5, 0.3, 0.3, 0.3])  # noqa: RUF009


@strict
@dataclasses.dataclass
class OutOfScopeConfig:
    """When a classifier says "none of these": it scores each text, and refuses one that reaches the threshold.

    Args:
        weights: Bias, and weights of the bank's mass, of the base's entropy and of its largest log probability, in the
            logit of the score.
        threshold: The least score, a probability, of a text that is refused; 1 refuses none.
    """

    weights: list[float | int] = _four_numbers(lambda: [0.0, 0.0, 0.0, 0.0])  # noqa: RUF009
    threshold: float | int = _within(1.0, 0.0, 1.0)


@strict
@dataclasses.dataclass
class HistoryConfig:
    """What the model learns from after training, and how it uses it: a section for each of it."""

    stream: StreamConfig | dict | None = None
    bank: BankConfig | dict | None = None
    update: UpdateConfig | dict | None = None
    training: TrainingConfig | dict | None = None
    out_of_scope: OutOfScopeConfig | dict | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        sections = {
            "stream": StreamConfig,
            "bank": BankConfig,
            "update": UpdateConfig,
            "training": TrainingConfig,
            "out_of_scope": OutOfScopeConfig,
        }
        super().__setattr__(name, _section(sections[name], value, f"history.{name}") if name in sections else value)


def _section(cls: type, values: Any, where: str) -> Any:
    """`values` (a `cls`, a mapping or None) as a `cls`, its keys checked."""
    if isinstance(values, cls):
        return values
    values = values or {}
    check_keys(values, [field.name for field in dataclasses.fields(cls)], where)
    return cls(**values)


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
        hidden_size: Width of the embeddings and of the states that are keys and queries, D.
        intermediate_size: Width of the inner layers of the plain stack, of the MLP in the residual stack. None: for
            the plain stack `hidden_size`, for the residual stack no MLP.
        num_hidden_layers: Number of recurrent layers.
        recurrence: "lstm" (Hochreiter and Schmidhuber 1997), "gru" (Cho et al. 2014), or "qrnn": a causal convolution
            of width 2 and a gated linear recurrence (Bradbury et al. 2017), parallel over time but for the scan.
        stack: "residual" (each layer reads its normalised input and is added to it) or "plain" (each layer reads the
            one below; ahead for an LSTM over words, behind over subwords: model_cards/results/recurrences.json).
        bidirectional: Whether a second stack reads the text backwards; for classifiers, not for language models. The
            states of both lie side by side, so they are twice as wide as `hidden_size`.
        members: Backbones side by side, each as wide as `hidden_size`, that are trained as an ensemble, M; for
            classifiers, not for language models. A classifier's logits are the mean of its members'.
        pooling: How a classifier makes one state of a text, each way's result beside the others': the "last" state (of
            the backward stack the first), the "mean" or the largest value ("max") of each channel, or a mean weighted
            by learned "attention".
        num_encoder_layers: Of translators: number of recurrent layers that read the source, in each direction.
        num_attention_heads: Of translators: heads of each decoder layer's attention to the source, which divide the
            width.
        share_embeddings: Of translators: whether source and target share one embedding matrix; needs
            `tie_word_embeddings`.
        token_dropout: Probability that the embedding of a token is dropped.
        embedding_dropout: Probability that a word type is dropped from the whole batch (Gal and Ghahramani 2016).
        input_dropout: Variational dropout of the embedded tokens: one mask a row, for all time steps.
        hidden_dropout: Variational dropout between layers.
        output_dropout: Variational dropout of the states before the output layer, of a text's one state before a
            classifier's.
        weight_dropout: Probability that a recurrent weight is dropped for a whole segment (Merity et al. 2018).
        activation_penalty: Weight of the mean square of the output states in the training loss (AWD-LSTM's AR).
        smoothness_penalty: Weight of the mean square of their change from step to step (AWD-LSTM's TAR).
        initializer_range: Embeddings are drawn from a uniform distribution in [-initializer_range, initializer_range].
        norm_eps: Epsilon of the normalisations of the residual stack.
        tie_word_embeddings: Whether the output layer shares the embedding's matrix.
        use_history: Whether a model in evaluation mode uses its history; `forward(use_history=...)` overrules it.
        history: The sources, see `HistoryConfig`.
        config_version: Version of this format; a newer one than the installed package knows is refused.

    Example:
        >>> LLEConfig(hidden_size=64, history={"stream": {"window": 500}}).history.stream.window
        500
        >>> LLEConfig(hiden_size=64)
        Traceback (most recent call last):
            ...
        ValueError: unknown key in LLEConfig: 'hiden_size' (did you mean 'hidden_size'?). Known keys: ...
    """

    model_type: ClassVar[str] = "lle"
    # What the Trainer keeps from `compute_metrics`, which is to see the logits alone.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "past_key_values",
        "member_logits",
        "out_of_scope",
        "mass",
        "scope_features",
        "history",
    ]

    config_version: int = _within(
        CONFIG_VERSION, 1, 1 << 63
    )  # the first one, so that it is checked before what a newer one may change
    vocab_size: int = _within(10000, 1, MAX_TYPES)
    hidden_size: int = _within(512, 1, MAX_WIDTH)
    intermediate_size: int | None = _within(None, 1, 4 * MAX_WIDTH)
    num_hidden_layers: int = _within(2, 1, MAX_LAYERS)
    recurrence: Literal["lstm", "gru", "qrnn"] = "lstm"
    stack: Literal["plain", "residual"] = "residual"
    bidirectional: bool = False
    members: int = _within(1, 1, 64)
    pooling: list[Literal["last", "mean", "max", "attention"]] = _poolings()
    num_encoder_layers: int = _within(1, 1, MAX_LAYERS)
    num_attention_heads: int = _within(4, 1, MAX_WIDTH)
    share_embeddings: bool = True
    token_dropout: float | int = _probability()
    embedding_dropout: float | int = _probability()
    input_dropout: float | int = _probability()
    hidden_dropout: float | int = _probability()
    output_dropout: float | int = _probability()
    weight_dropout: float | int = _probability()
    activation_penalty: float | int = _within(0.0, 0.0, MAX_FITTED)
    smoothness_penalty: float | int = _within(0.0, 0.0, MAX_FITTED)
    initializer_range: float | int = _within(0.1, 0.0, 1000.0)
    norm_eps: float | int = _within(1e-6, 0.0, 1.0)
    tie_word_embeddings: bool = True
    bos_token_id: int | None = _tokens()
    eos_token_id: int | list[int] | None = _tokens()
    pad_token_id: int | None = _tokens()
    use_cache: bool = True
    use_history: bool = True
    history: HistoryConfig | dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
        known = {field.name for field in dataclasses.fields(self)} - inherited
        if self.transformers_version is None:
            check_keys(kwargs, known, type(self).__name__, silent=_TRANSFORMERS_KEYS)
        self._check_further_attributes(kwargs, known)
        super().__post_init__(**kwargs)

    def _check_further_attributes(self, names: Iterable[str], known: set[str]) -> None:
        """Warns of saved attributes that are nearly a field, and refuses those that the class has for another use."""
        for name in names:
            own = getattr(type(self), name, None)
            if isinstance(own, property) and own.fset is None:
                raise ValueError(f"a configuration cannot hold {name!r}: sections belong into history")
            hint = repr(name) if name in _TRANSFORMERS_KEYS else _hint(name, known, 0.85)
            if hint != repr(name):
                logger.warning("the saved configuration holds %s, which is kept, but means nothing", hint)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers: from what was saved, which may hold further attributes, and `kwargs` that change it.

        The dictionary of a translator gives an `LLESeq2SeqConfig`.

        Raises:
            ValueError: A value is wrong, or one of `kwargs` that nobody takes is nearly the name of a field.
        """
        if cls is LLEConfig and config_dict.get("is_encoder_decoder"):
            return LLESeq2SeqConfig.from_dict(_as_translator(config_dict), **kwargs)
        wanted = kwargs.pop("return_unused_kwargs", False)
        version = config_dict.get("transformers_version") or transformers.__version__
        saved = {**config_dict, "transformers_version": version}
        config, unused = super().from_dict(saved, return_unused_kwargs=True, **kwargs)
        if wanted:
            return config, unused
        known = {field.name for field in dataclasses.fields(cls)}
        hints = [_hint(name, known, 0.85) for name in unused if f"{name}_id" not in known]  # a tokenizer has pad_token
        wrong = [hint for hint in hints if "did you mean" in hint]
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
        if key == "config_version" and value > CONFIG_VERSION:
            raise ValueError(
                f"this configuration has version {value}, the installed modeling_lle reads up to {CONFIG_VERSION}: "
                "upgrade with `pip install -U modeling_lle`"
            )
        super().__setattr__(key, _section(HistoryConfig, value, "history") if key == "history" else value)

    @property
    def stream(self) -> StreamConfig:
        """The numbers of the stream: `history.stream`."""
        assert isinstance(self.history, HistoryConfig)
        assert isinstance(self.history.stream, StreamConfig)
        return self.history.stream

    @property
    def bank(self) -> BankConfig:
        """The numbers of the bank: `history.bank`."""
        assert isinstance(self.history, HistoryConfig)
        assert isinstance(self.history.bank, BankConfig)
        return self.history.bank

    @property
    def overlay(self) -> UpdateConfig:
        """The numbers of the overlay: `history.update`, a name that transformers has taken on a configuration."""
        assert isinstance(self.history, HistoryConfig)
        assert isinstance(self.history.update, UpdateConfig)
        return self.history.update

    @property
    def out_of_scope(self) -> OutOfScopeConfig:
        """When a classifier says "none of these": `history.out_of_scope`."""
        assert isinstance(self.history, HistoryConfig)
        assert isinstance(self.history.out_of_scope, OutOfScopeConfig)
        return self.history.out_of_scope

    @property
    def state_size(self) -> int:
        """Width of the backbone's states, S."""
        return self.hidden_size * self.members * (2 if self.bidirectional else 1)

    @property
    def training(self) -> TrainingConfig:
        """How to train with history: `history.training`."""
        assert isinstance(self.history, HistoryConfig)
        assert isinstance(self.history.training, TrainingConfig)
        return self.history.training

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain values: what config.json holds."""
        output = super().to_dict()
        if dataclasses.is_dataclass(self.history):
            output["history"] = dataclasses.asdict(copy.deepcopy(self.history))
        return output


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
