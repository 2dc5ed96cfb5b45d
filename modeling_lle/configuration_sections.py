"""Sections of the configuration: backbone, classifier, translator, and the parts of history."""

import dataclasses
from typing import Any, Final, Literal

from huggingface_hub.dataclasses import strict

from .configuration_fields import (
    MAX_FITTED,
    MAX_LAYERS,
    MAX_WIDTH,
    MAX_WINDOW,
    as_section,
    four_numbers,
    numbers_or_none,
    poolings,
    probability,
    section,
    within,
)
from .tasks import TASKS


@strict
@dataclasses.dataclass
class BackboneConfig:
    """Size and regularisation of the recurrent layers.

    Args:
        hidden_size: Width of the states that are keys and queries, and of the embeddings, D.
        embedding_size: Width of the embeddings if it is another one, E, as of pretrained ones; None: `hidden_size`. It
            needs the plain stack, whose first layer reads any width; for classifiers.
        intermediate_size: Width of the inner layers of the plain stack, of the MLP in the residual stack. None: for
            the plain stack `hidden_size`, for the residual stack no MLP.
        num_hidden_layers: Number of recurrent layers; of a translator, of its decoder.
        recurrence: "lstm" (Hochreiter and Schmidhuber 1997), "gru" (Cho et al. 2014), or "qrnn": a causal convolution
            of width 2 and a gated linear recurrence (Bradbury et al. 2017), parallel over time but for the scan.
        stack: "residual" (each layer reads its normalised input and is added to it) or "plain" (each layer reads the
            one below; ahead for an LSTM over words, behind over subwords: model_cards/results/recurrences.json).
        bidirectional: Whether a second stack reads the text backwards; for classifiers, not for language models. The
            states of both lie side by side, so they are twice as wide as `hidden_size`.
        token_dropout: Probability that the embedding of a token is dropped.
        embedding_dropout: Probability that a word type is dropped from the whole batch (Gal and Ghahramani 2016).
        input_dropout: Variational dropout of the embedded tokens: one mask a row, for all time steps.
        hidden_dropout: Variational dropout between layers.
        output_dropout: Variational dropout of the states before the output layer, of a classifier's pooled state.
        weight_dropout: Probability that a recurrent weight is dropped for a whole segment (Merity et al. 2018).
        activation_penalty: Weight of the mean square of the output states in the training loss (AWD-LSTM's AR).
        smoothness_penalty: Weight of the mean square of their change from step to step (AWD-LSTM's TAR).
        initializer_range: Embeddings are drawn from a uniform distribution in [-initializer_range, initializer_range].
        norm_eps: Epsilon of the normalisations of the residual stack.
    """

    hidden_size: int = within(512, 1, MAX_WIDTH)
    embedding_size: int | None = within(None, 1, MAX_WIDTH)
    intermediate_size: int | None = within(None, 1, 4 * MAX_WIDTH)
    num_hidden_layers: int = within(2, 1, MAX_LAYERS)
    recurrence: Literal["lstm", "gru", "qrnn"] = "lstm"
    stack: Literal["plain", "residual"] = "residual"
    bidirectional: bool = False
    token_dropout: float | int = probability()
    embedding_dropout: float | int = probability()
    input_dropout: float | int = probability()
    hidden_dropout: float | int = probability()
    output_dropout: float | int = probability()
    weight_dropout: float | int = probability()
    activation_penalty: float | int = within(0.0, 0.0, MAX_FITTED)
    smoothness_penalty: float | int = within(0.0, 0.0, MAX_FITTED)
    initializer_range: float | int = within(0.1, 0.0, 1000.0)
    norm_eps: float | int = within(1e-6, 0.0, 1.0)


@strict
@dataclasses.dataclass
class OutOfScopeConfig:
    """Rejection of texts that have none of the labels: a score of each text, and the threshold that rejects it.

    Args:
        weights: Bias, and weights of the bank's mass, of the base's entropy and of its largest log probability, in the
            logit of the score.
        threshold: Lowest score, a probability, of a rejected text; 1 rejects none.
    """

    weights: list[float | int] = four_numbers(lambda: [0.0, 0.0, 0.0, 0.0])  # noqa: RUF009
    threshold: float | int = within(1.0, 0.0, 1.0)


@strict
@dataclasses.dataclass
class ClassifierConfig:
    """Fields of classifiers, of texts and of tokens.

    Args:
        members: Backbones side by side, each as wide as `hidden_size`, that are trained as an ensemble, M. A
            classifier's logits are the mean of its members'.
        pooling: How the states of a text become one, each way's result beside the others': the "last" state (of the
            backward stack the first), the "mean" or the largest value ("max") of each channel, or a mean weighted by
            learned "attention"; "embeddings" is the mean of the embedded tokens, beside what is made of the states.
        projection: Width that a linear map gives to what is pooled, for each member, whose result is normalised; 0:
            there is no map. A classifier that learns from a sentence encoder (training/distillation.py) needs the
            width of its embeddings.
        background: Cosine similarity above which one example of an untrained label outweighs the base, if there are
            no other examples (history/label_rule.py).
        margin: How much nearer, as a cosine similarity, a text must be to examples of untrained labels than to those
            of trained ones: the larger, the less accuracy is lost on trained labels. It is not calibrated.
        out_of_scope: Rejection of texts that have none of the labels, see `OutOfScopeConfig`.
    """

    members: int = within(1, 1, 64)
    pooling: list[Literal["last", "mean", "max", "attention", "embeddings"]] = poolings()  # noqa: RUF009
    projection: int = within(0, 0, MAX_WIDTH)
    background: float | int = within(0.8, -1.0, 1.0)
    margin: float | int = within(0.0, 0.0, 1.0)
    out_of_scope: "OutOfScopeConfig" = section(OutOfScopeConfig)  # noqa: RUF009

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "out_of_scope":
            value = as_section(OutOfScopeConfig, value, "classifier.out_of_scope")
        super().__setattr__(name, value)


@strict
@dataclasses.dataclass
class TranslatorConfig:
    """Fields of translators.

    Args:
        num_encoder_layers: Number of recurrent layers that read the source, in each direction.
        num_attention_heads: Heads of each decoder layer's attention to the source, which divide the width.
        share_embeddings: Whether source and target share one embedding matrix; needs `tie_word_embeddings`.
        sentences: Sentence pairs of the memory that a sentence recalls from, those with the most similar sources
            (entries/pairs.py); all of their entries are candidates, whatever `history.bank.neighbours` says.
        neighbours: Entries of all pairs that each position recalls beside them, those nearest to its state
            (history/candidates.py); 0 for none.
        confidence: Bias and weights of the confidence in a translation (pipelines/confidence.py); none until fitted.
    """

    num_encoder_layers: int = within(1, 1, MAX_LAYERS)
    num_attention_heads: int = within(4, 1, MAX_WIDTH)
    share_embeddings: bool = True
    sentences: int = within(4, 1, 1024)
    neighbours: int = within(0, 0, 4096)
    confidence: list[float | int] = numbers_or_none(5)  # noqa: RUF009


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
        generated: Whether what the model generates makes entries too: it recalls its own output then, and repeats it;
            weaker entries of it do so as well (model_cards/results/generation.json).
    """

    window: int = within(2000, 0, MAX_WINDOW)
    sharpness: float | int = within(14.0, 0.0, MAX_FITTED)
    recency: float | int = within(0.3, 0.0, MAX_FITTED)
    gate: list[float | int] = four_numbers(lambda: [-1.5, 0.3, 0.3, 0.3])  # noqa: RUF009
    generated: bool = False


@strict
@dataclasses.dataclass
class MatchesConfig:
    """Exact matches: earlier places of the text that is being read, where the last tokens are those of now.

    Args:
        window: The largest age of a match, in tokens; 0 switches the matches off.
        longest: Tokens of a match that are counted.
        neighbours: Matches that are recalled at each position, the newest of the longest ones.
        sharpness, recency, gate: As for the stream; in place of the cosine stands the length as a share of `longest`.
        agreement: Exponent by which a match counts for more, the larger the share of the matches that agree with it.
        success: Exponent by which all of them count for more, the more often the last ones were right.

    What the model generates counts as context, but is recalled only if `stream.generated` asks for it.
    """

    window: int = within(0, 0, MAX_WINDOW)
    longest: int = within(16, 1, 1024)
    neighbours: int = within(32, 1, 4096)
    sharpness: float | int = within(16.0, 0.0, MAX_FITTED)
    recency: float | int = within(0.3, 0.0, MAX_FITTED)
    agreement: float | int = within(4.0, -MAX_FITTED, MAX_FITTED)
    success: float | int = within(2.0, -MAX_FITTED, MAX_FITTED)
    gate: list[float | int] = four_numbers(lambda: [0.0, 0.5, 0.0, 0.0])  # noqa: RUF009


@strict
@dataclasses.dataclass
class BankConfig:
    """The bank: entries of past sequences, while one is attached.

    Args:
        neighbours: Entries that are recalled at each position, the nearest ones.
        sharpness, gate: As for the stream.
        skip_above: The bank is not asked where the base gives some token at least this probability; 1 asks always.
        search: "exact", or for banks that are large "balanced" or "fast", which find nearly all of the same entries.
        match, continuation, length: Of translators only: exponents by which an entry counts for more, the more its
            pair is like the sentence, if the translation goes on as the pair does, and the longer it has done so
            (history/candidates.py). 0 until they are fitted.
    """

    neighbours: int = within(64, 1, 4096)
    sharpness: float | int = within(14.0, 0.0, MAX_FITTED)
    gate: list[float | int] = four_numbers(lambda: [-1.5, 0.3, 0.3, 0.3])  # noqa: RUF009
    skip_above: float | int = within(1.0, 0.0, 1.0)
    search: Literal["exact", "balanced", "fast"] = "balanced"
    match: float | int = within(0.0, -MAX_FITTED, MAX_FITTED)
    continuation: float | int = within(0.0, -MAX_FITTED, MAX_FITTED)
    length: float | int = within(0.0, -MAX_FITTED, MAX_FITTED)


@strict
@dataclasses.dataclass
class BankMatchesConfig:
    """Exact matches in the bank: its entries after the same tokens as the last ones of the text that is being read.

    Args:
        longest: Tokens of a match that are counted; 0 switches these matches off.
        neighbours: Outcomes that are recalled at each position, those after the most tokens alike first.
        sharpness, gate: As for the stream; in place of the cosine stands the length as a share of `longest`.
    """

    longest: int = within(0, 0, 1024)
    neighbours: int = within(256, 1, 4096)
    sharpness: float | int = within(5.0, 0.0, MAX_FITTED)
    gate: list[float | int] = four_numbers(lambda: [3.0, 1.0, 0.0, 0.0])  # noqa: RUF009


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
        generated: Whether steps are taken on what the model generates itself too.
    """

    scope: Literal["none", "head", "low-rank", "all"] = "none"
    every: int | None = within(None, 1, 4096)
    rate: float | int | None = within(None, 0.0, 1000.0)
    decay: float | int = within(1e-3, 0.0, 1.0)
    momentum: float | int = within(0.0, 0.0, 0.999)
    preconditioning: float | int = within(0.5, 0.0, 1.0)
    rank: int = within(128, 1, MAX_WIDTH)
    generated: bool = False


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

    window: int = within(0, 0, MAX_WINDOW)
    other_rows: bool = True
    warm_up: float | int = within(0.0, 0.0, 1.0)
    sharpness: float | int = within(14.0, 0.0, MAX_FITTED)
    gate: list[float | int] = four_numbers(lambda: [-1.5, 0.3, 0.3, 0.3])  # noqa: RUF009


@strict
@dataclasses.dataclass
class HistoryConfig:
    """Sources that the model learns from after training, and how it uses them: a section each."""

    stream: "StreamConfig" = section(StreamConfig)  # noqa: RUF009
    matches: "MatchesConfig" = section(MatchesConfig)  # noqa: RUF009
    bank: "BankConfig" = section(BankConfig)  # noqa: RUF009
    bank_matches: "BankMatchesConfig" = section(BankMatchesConfig)  # noqa: RUF009
    update: "UpdateConfig" = section(UpdateConfig)  # noqa: RUF009
    training: "TrainingConfig" = section(TrainingConfig)  # noqa: RUF009

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OF_HISTORY:
            value = as_section(_OF_HISTORY[name], value, f"history.{name}")
        super().__setattr__(name, value)


_OF_HISTORY: Final[dict[str, type]] = {
    "stream": StreamConfig,
    "matches": MatchesConfig,
    "bank": BankConfig,
    "bank_matches": BankMatchesConfig,
    "update": UpdateConfig,
    "training": TrainingConfig,
}
SECTIONS: Final[dict[str, type]] = {
    "backbone": BackboneConfig,
    "classifier": ClassifierConfig,
    "translator": TranslatorConfig,
    "history": HistoryConfig,
}
# Sections that some models do not read.
OPTIONAL: Final[dict[str, type]] = {
    "classifier": ClassifierConfig,
    "translator": TranslatorConfig,
    **{f"history.{name}": cls for name, cls in _OF_HISTORY.items()},
}
# The optional sections that each model reads; the bare backbones take any.
READ_BY: Final[dict[str, tuple[str, ...]]] = {task.model: task.sections for task in TASKS}
