"""Classifiers that can be taught and untaught without training: of texts, and of each token of a text.

Notable: with a bank of labelled examples attached, `logits` are those of the mixture, so stock pipelines, metrics and
losses work unchanged; labels that only the bank knows join the configuration's for as long as it has examples of them.
The output layer is one for all members of an ensemble, and gives the mean of what each says. Each learns as if the
others had been dropped, so that a step of any optimizer changes it as it would change it alone.
Shapes: B batch, T time, M members, C trained labels, L labels, K neighbours, n texts or tokens.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from ..backbone.pooling import Pooling, apart
from ..backbone.recurrence import variational_dropout
from ..bank.found import Found
from ..bank.protocol import Snapshot
from ..common.precision import outside_autocast
from ..configuration import LLEConfig
from ..configuration_fields import MAX_FITTED
from ..history.label_rule import (
    MULTI,
    SINGLE,
    Answered,
    LabelHistory,
    fit_labels,
    label_loss,
    logits_of,
    mix,
    scope_features,
)
from ..history.loss import IGNORED, check_targets
from .arguments import TO_BACKBONE, check_arguments
from .backbone import LLEModel, refuse_empty_rows, refuse_export, segment_mask
from .teaching import TeachableModel

FITTED = 1024  # neighbours that calibration looks at, so that those of a few labels are among them
RIDGE = 0.1  # of the regression that tells what is out of scope: held-out texts of that side are few


@dataclass
class LLEClassifierOutput(ModelOutput):
    """Output of the classifiers.

    Attributes:
        loss: Scalar float32, when labels were given.
        logits: (B, L), of tokens (B, T, L): with history such that softmax, or sigmoid where a text may have several
            labels, gives the probabilities of the mixture; in regression the values.
        member_logits: (M, B, C), of tokens (M, B, T, C): in training mode, where there are several members, what each
            of them says; `loss` is the mean of theirs.
        out_of_scope, mass: (B,) or (B, T) float32, when asked for: the score of "none of these", and the mass of what
            the bank recalls, -inf where it recalls nothing.
        scope_features: (B, 4) or (B, T, 4) float32, when asked for: what the score is made of.
        hidden_states: With `output_hidden_states`, the states of every layer.
        history: With `output_history`, which examples moved the prediction.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    member_logits: Tensor | None = None
    out_of_scope: Tensor | None = None
    mass: Tensor | None = None
    scope_features: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    history: LabelHistory | None = None


class _Classifier(TeachableModel):
    """What the classifiers share: the output layer, and the bank beside it."""

    architecture: ClassVar[str]  # which sections of the configuration it reads

    def __init__(self, config: LLEConfig) -> None:
        super().__init__(config)
        config.check_sections(self.architecture)
        self.model = LLEModel(config)
        self.pooling = self._make_pooling()
        self.classifier = nn.Linear(self.key_size, len(self.trained_labels))
        self.post_init()

    def _make_pooling(self) -> Pooling | None:
        return None

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_history: bool | None = None,
        output_history: bool = False,
        output_out_of_scope: bool = False,
        num_items_in_batch: Tensor | int | None = None,
        bank_state: Snapshot | None = None,
        **kwargs: Any,
    ) -> LLEClassifierOutput:
        """Predicts the labels, and measures the loss if labels are given.

        Args:
            input_ids: (B, T) int64; or give `inputs_embeds`.
            attention_mask: (B, T) of 0 and 1, 0 at padding, wherever it lies.
            inputs_embeds: (B, T, M D) floating, D the width of a member.
            labels: The right labels, by their numbers in `config.id2label`: (B,) int64, of tokens (B, T) int64 with
                -100 where nothing counts; (B, L) of 0 and 1 where a text may have several, which floating ones make
                the `problem_type` if the configuration has none; (B,) floating in regression.
            use_history: Whether the attached bank takes part; None: as the config says, but never in training mode.
            output_history: Whether to return which examples moved the prediction.
            output_out_of_scope: Whether to return the score of "none of these" (`fit_out_of_scope`) and the mass.
            num_items_in_batch: What the summed loss is divided by, the number of labels that are not -100 in all parts
                of a batch; None: that of these labels.
            bank_state: The state of the attached bank that takes part, `model.history_bank.snapshot()`, for a thread
                beside others that teach: `space_of(bank_state).names` are the labels of the logits. None: the newest.
            kwargs: `output_hidden_states` and other options of transformers.
        """
        check_arguments(self, kwargs, *TO_BACKBONE)
        if attention_mask is not None:
            refuse_empty_rows(attention_mask)
        if labels is not None:
            self._settle_kind(labels)
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, use_cache=False, **kwargs
        )
        states = outputs.last_hidden_state
        mask = segment_mask(attention_mask, states.shape[1])
        items = self._items(states, mask)
        dropped = self._drop(items)
        logits = self._say(dropped)
        members = history = out_of_scope = features = None
        if self.training and self.config.classifier.members > 1:
            members = self.classifier(apart(dropped, self.config.classifier.members, self.config.hidden_size))
        if use_history is None:
            use_history = self.config.use_history and not self.training
        bank = self.history_bank if use_history else None
        state = bank_state if bank is None or bank_state is not None else bank.snapshot()
        mass = logits.new_full(logits.shape[:-1], -torch.inf, dtype=torch.float32)
        scope = logits
        if bank is not None and state is not None and self.space_of(state).recalls:
            real = None if self.pooling is not None or mask is None else mask
            wanted = output_out_of_scope, output_history
            logits, scope, mass, history = self._mix(items, logits, real, state, *wanted)
        if output_out_of_scope:
            features = scope_features(scope, mass, self.kind, self.config.bank.sharpness)
            out_of_scope = _scope_scores(features, features.new_tensor(self.config.classifier.out_of_scope.weights))
        return LLEClassifierOutput(  # all at once: what is set later would come after the others, in tuples as well
            loss=None if labels is None else self._loss(logits, members, labels, num_items_in_batch),
            logits=logits,
            member_logits=members,
            out_of_scope=out_of_scope,
            mass=mass if output_out_of_scope else None,
            scope_features=features,
            hidden_states=outputs.hidden_states,
            history=history,
        )

    def _settle_kind(self, labels: Tensor) -> None:
        """Sets the `problem_type` where it is not given and the labels (B, C) are floating, as transformers does."""
        if self.config.problem_type is not None or self.pooling is None or len(self.trained_labels) == 1:
            return
        if isinstance(labels, Tensor) and labels.is_floating_point() and labels.dim() == 2:
            if self.history_bank is not None:
                raise ValueError(
                    "floating labels (B, C) mean that a text may have several, but in the attached bank it has one: "
                    f"set config.problem_type={MULTI!r} before teaching, or give labels (B,) of int64"
                )
            self.config.problem_type = MULTI

    def _loss(self, logits: Tensor, members: Tensor | None, labels: Tensor, number: Tensor | int | None) -> Tensor:
        """The loss of the logits (..., L), or the mean of those of the members (M, ..., C)."""
        if members is None:
            return label_loss(logits, labels, self.kind, number)
        return torch.stack([label_loss(own, labels, self.kind, number) for own in members]).mean()

    def _items(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """What is classified: (B, key_size), or (B, T, key_size), floating."""
        return states if self.pooling is None else self.pooling(states, mask)

    def _say(self, items: Tensor) -> Tensor:
        """The logits (..., C) of items (..., key_size): the mean of those of the members."""
        return self.classifier(
            items if self.config.classifier.members == 1 else items / self.config.classifier.members
        )

    def _drop(self, items: Tensor) -> Tensor:
        if items.dim() == 3:
            return variational_dropout(items, self.config.output_dropout, self.training)
        return nn.functional.dropout(items, self.config.output_dropout, self.training)

    def _mix(
        self,
        items: Tensor,
        logits: Tensor,
        mask: Tensor | None,
        state: Snapshot,
        with_scope: bool,
        with_history: bool,
    ) -> tuple[Tensor, Tensor, Tensor, LabelHistory | None]:
        """Logits, those of the scope, mass and history, the second and the last if they are asked for, by a state.

        Items where `mask` (B, T) is False get nothing of the bank.
        """
        space = self.space_of(state)
        shape = logits.shape[:-1]

        def chosen(values: Tensor) -> Tensor:
            return values.flatten(0, -2) if mask is None else values[mask]

        def placed(values: Tensor, elsewhere: Tensor | float) -> Tensor:
            if mask is None:
                return values.unflatten(0, shape)
            whole = torch.as_tensor(elsewhere).to(values).expand(*shape, *values.shape[1:]).clone()
            whole[mask] = values
            return whole

        found = self.search(chosen(items), state=state)
        mixture, recalled_mass = mix(chosen(logits), found, space, self.kind, self.config.bank, self.config.classifier)
        new_labels = mixture.labels.shape[-1] - logits.shape[-1]
        plain = nn.functional.pad(logits.float(), (0, new_labels), value=-torch.inf)
        mixed = scope = placed(logits_of(mixture.labels, self.kind), plain)
        if with_scope:
            scope = placed(logits_of(mixture.scope, self.kind), plain)
        mass = placed(recalled_mass, -torch.inf)
        if not with_history:
            return mixed, scope, mass, None
        return (
            mixed,
            scope,
            mass,
            LabelHistory(
                base_share=placed(mixture.base_share, 1.0),
                shares=placed(mixture.shares, 0.0),
                ids=placed(found.ids, -1),
                outcomes=placed(found.outcomes, 0),
            ),
        )

    def search(self, items: Tensor, neighbours: int | None = None, state: Snapshot | None = None) -> Found:
        """The nearest examples of items (n, key_size), which are normalised for it; as many as the config says."""
        if state is None:
            assert self.history_bank is not None
            state = self.history_bank.snapshot()
        self.check_history()
        refuse_export("what a bank recalls", "export with use_history=False")
        queries = nn.functional.normalize(items.detach().float(), dim=-1)
        numbers = self.config.bank
        most = numbers.neighbours if neighbours is None else neighbours
        found = state.search(queries, most, state.held(self.history_namespaces), numbers.search)
        return Found(*(getattr(found, name).to(items.device) for name in ("similarity", "ids", "outcomes", "counts")))

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The keys of texts (B, T): normalised states, (B, key_size) or of tokens (B, T, key_size), float32."""
        states = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        items = self._items(states, segment_mask(attention_mask, states.shape[1]))
        return nn.functional.normalize(items.float(), dim=-1)

    # Fitting on held-out texts

    @torch.no_grad()
    def _answer(self, batches: Iterable[dict[str, Tensor]], state: Snapshot) -> Answered:
        """What base and bank say of the items of batches that have a label."""
        neighbours = max(self.config.bank.neighbours, min(FITTED, len(state)))
        parts: list[tuple[Tensor, Tensor, Found]] = []
        training = self.training
        self.eval()
        try:
            for batch in batches:
                batch = {name: value.to(self.device) for name, value in batch.items()}
                labels = batch["labels"]
                mask = segment_mask(batch.get("attention_mask"), batch["input_ids"].shape[1])
                states = self.model(
                    input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask"), use_cache=False
                ).last_hidden_state
                items = self._items(states, mask)
                if self.kind == SINGLE:
                    labels = check_targets(labels, items.shape[:-1], len(self.space_of(state).names))
                    items, labels = items[labels != IGNORED], labels[labels != IGNORED]
                parts.append((self._say(items).float(), labels, self.search(items, neighbours, state)))
        finally:
            self.train(training)
        if not parts:
            raise ValueError("there is nothing to fit on: the batches hold no text")
        found = [part[2] for part in parts]
        joined = (torch.cat([getattr(f, n) for f in found]) for n in ("similarity", "ids", "outcomes", "counts"))
        return Answered(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]), Found(*joined))

    def calibrate(
        self, batches: Iterable[dict[str, Tensor]], steps: int = 40, fixed: Collection[str] = ()
    ) -> dict[str, float]:
        """Fits the numbers of the bank on held-out texts, by gradient descent, and stores them in the config.

        Args:
            batches: `input_ids`, `attention_mask` and `labels`, as forward takes them, of texts that are neither in
                the training set nor in the bank.
            steps: Steps of the quasi-Newton descent.
            fixed: Numbers that stay as they are, of "sharpness", "background" and "gate".

        Returns:
            The number of `texts`, and the losses `base_nats`, `before_nats` and `after_nats`; see `fit_labels`.
        """
        if self.history_bank is None:
            raise ValueError("nothing to calibrate: no bank is attached; teach some examples with learn() first")
        state = self.history_bank.snapshot()
        answered, space = self._answer(batches, state), self.space_of(state)
        return fit_labels(answered, space, self.config.bank, self.config.classifier, self.kind, steps, fixed)

    @torch.no_grad()
    def fit_out_of_scope(
        self,
        in_scope: Iterable[dict[str, Tensor]],
        out_of_scope: Iterable[dict[str, Tensor]],
        keep: float = 0.99,
        steps: int = 50,
    ) -> dict[str, float]:
        """Fits the score of "none of these" and its threshold on held-out texts, and stores them in the config.

        Args:
            in_scope: Batches of texts that have one of the labels, as forward takes them, with `labels`.
            out_of_scope: Batches of texts that have none of them.
            keep: Share of the rightly labelled texts in scope that must not be refused.
            steps: Steps of the quasi-Newton descent of the logistic regression.

        Returns:
            On these texts, at the threshold: `out_of_scope_recall` and `in_scope_accuracy`, in which a text that is
            refused counts as wrong.
        """
        if self.kind != SINGLE:
            raise ValueError(f"a score of 'none of these' needs one label a text; the problem_type is {self.kind!r}")
        if not 0 < keep <= 1:
            raise ValueError(f"keep is a share above 0, got {keep}")
        inside, right = self._scope_features(in_scope, labelled=True)
        outside, _ = self._scope_features(out_of_scope, labelled=False)
        weights = _logistic(inside[right], outside, steps)
        scores = _scope_scores(torch.cat([inside, outside]), weights)
        kept = scores[: len(inside)][right].sort().values
        threshold = float(kept[max(0, int(keep * len(kept) + 0.5) - 1)]) if len(kept) else 0.5
        numbers = self.config.classifier.out_of_scope
        numbers.weights = weights.clamp(-MAX_FITTED, MAX_FITTED).tolist()
        numbers.threshold = min(1.0, threshold + 1e-6)
        accepted = scores < numbers.threshold
        return {
            "out_of_scope_recall": float((~accepted[len(inside) :]).float().mean()),
            "in_scope_accuracy": float((accepted[: len(inside)] & right).float().mean()),
        }

    def _scope_features(self, batches: Iterable[dict[str, Tensor]], labelled: bool) -> tuple[Tensor, Tensor]:
        """`scope_features` (n, 4) of texts, and whether each got its right label (n,) bool."""
        parts, right = [], []
        training = self.training
        self.eval()
        try:
            for batch in batches:
                batch = {name: value.to(self.device) for name, value in batch.items()}
                labels = batch.pop("labels", None)
                output = self(**batch, output_out_of_scope=True)
                parts.append(output.scope_features)
                if labels is not None:
                    right.append(output.logits.argmax(-1) == labels)
        finally:
            self.train(training)
        if not parts:
            raise ValueError(f"there is no text {'in' if labelled else 'out of'} scope to fit on")
        return torch.cat(parts), torch.cat(right) if labelled else torch.zeros(0)


@outside_autocast
def _scope_scores(features: Tensor, weights: Tensor) -> Tensor:
    """The scores (...) of "none of these" of features (..., 4)."""
    return (features @ weights).sigmoid()


@outside_autocast
def _logistic(inside: Tensor, outside: Tensor, steps: int) -> Tensor:
    """The weights (4,) of a logistic regression that tells features (m, 4) from others (n, 4), both counted alike."""
    features = torch.cat([inside, outside])
    target = torch.cat([inside.new_zeros(len(inside)), outside.new_ones(len(outside))])
    weight = torch.where(target > 0, 0.5 / max(1, len(outside)), 0.5 / max(1, len(inside)))
    mean, deviation = features[:, 1:].mean(0), features[:, 1:].std(0).clamp(min=1e-3)
    scaled = torch.cat([features[:, :1], (features[:, 1:] - mean) / deviation], dim=1)
    with torch.enable_grad():
        values = torch.zeros(4, device=features.device, requires_grad=True)
        optimizer = torch.optim.LBFGS([values], max_iter=steps, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            losses = nn.functional.binary_cross_entropy_with_logits(scaled @ values, target, reduction="none")
            loss = (losses * weight).sum() + RIDGE * values.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    values = values.detach()
    slopes = values[1:] / deviation
    return torch.cat([(values[0] - slopes @ mean)[None], slopes])


class LLEForSequenceClassification(_Classifier):
    """A classifier of texts: of one label each, of several, or regression, as `problem_type` says.

    Args:
        config: The configuration; `id2label` names the labels, `pooling` makes one state of a text.
    """

    auto_class = "AutoModelForSequenceClassification"
    architecture = "LLEForSequenceClassification"

    def _make_pooling(self) -> Pooling:
        return Pooling(self.config)

    @property
    def key_size(self) -> int:
        """Width of keys and queries."""
        return self.config.state_size * len(self.config.classifier.pooling)

    def key_weights(self) -> list[tuple[str, Tensor]]:
        """Names and values of the weights that keys depend on, and the ways of pooling."""
        assert self.pooling is not None
        ways = [(f"pooling: {' '.join(self.pooling.ways)}", torch.zeros(0))]
        pooling = [(f"pooling.{name}", value) for name, value in sorted(self.pooling.state_dict().items())]
        return [*super().key_weights(), *pooling, *ways]


class LLEForTokenClassification(_Classifier):
    """A classifier of each token of a text.

    Args:
        config: The configuration; `id2label` names the labels.
    """

    auto_class = "AutoModelForTokenClassification"
    architecture = "LLEForTokenClassification"
