"""Classifiers that can be taught and untaught without training: of texts, and of each token of a text.

Notable: with a bank of labelled examples attached, `logits` are those of the mixture, so stock pipelines, metrics and
losses work unchanged; labels that only the bank knows join the trained ones for as long as it has examples of them,
and `label_names` of the output names them all. The configuration never changes.
The output layer is one for all members of an ensemble, and gives the mean of what each says. Each learns as if the
others had been dropped, so that a step of any optimizer changes it as it would change it alone.
Shapes: B batch, T time, M members, C trained labels, L labels, K neighbours, n texts or tokens.
"""

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from ..backbone.pooling import Pooling, apart
from ..backbone.recurrence import variational_dropout
from ..bank.found import Found
from ..bank.protocol import Bank
from ..common.modes import evaluating
from ..common.packages import raise_missing
from ..configuration import LLEConfig
from ..configuration_fields import MAX_FITTED
from ..history.attachment import Attachment
from ..history.explanation import Explanation, explain_labels
from ..history.label_calibration import Answered, fit_labels, fit_scope, scope_scores
from ..history.label_prediction import LabelPrediction
from ..history.label_rule import MULTI, SINGLE, label_loss
from ..history.loss import IGNORED, check_targets
from ..history.prediction import HistoryOutput
from .arguments import TO_BACKBONE, check_arguments
from .backbone import LLEModel, refuse_empty_rows, refuse_export, segment_mask
from .teaching import TeachableModel
from .wrapping import begin_anew, wrap

# What a classifier has beside pretrained embeddings, if nothing else is said.
BESIDE_EMBEDDINGS: dict[str, Any] = {
    "hidden_size": 192,
    "num_hidden_layers": 1,
    "stack": "plain",
    "bidirectional": True,
    "classifier": {"pooling": ["max", "embeddings"]},
}
FITTED = 1024  # neighbours that calibration looks at, so that those of a few labels are among them


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
        history: With `output_history`, which examples moved the prediction: `base_share` (B,) or (B, T), and
            `bank_shares`, `bank_outcomes` and `bank_ids`, (B, K) or (B, T, K).
        label_names: The names of the L labels of `logits`: the trained ones, and those that only the bank knows.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    member_logits: Tensor | None = None
    out_of_scope: Tensor | None = None
    mass: Tensor | None = None
    scope_features: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    history: HistoryOutput | None = None
    label_names: tuple[str, ...] | None = None


class _Classifier(TeachableModel):
    """What the classifiers share: the output layer, and the bank beside it."""

    architecture: ClassVar[str]  # which sections of the configuration it reads

    def __init__(self, config: LLEConfig) -> None:
        super().__init__(config)
        self.model = LLEModel(config)
        config.check_sections(self.architecture)
        self.pooling = self._make_pooling()
        self.classifier = nn.Linear(self.key_size, len(self.trained_labels))
        self.post_init()

    @classmethod
    def from_backbone(cls, name: str | os.PathLike[str], **options: Any) -> Any:
        """A classifier around a pretrained recurrent or hybrid language model of transformers; nothing is copied.

        Its output layer is new: train it, or teach it examples of its labels (`learn`).

        Args:
            name: The folder of the model or its name on the Hub. Its tokenizer is kept, and saved with the classifier.
            options: `num_labels`, `id2label`, `label2id`, `problem_type`, `classifier` and `history` as in
                `LLEConfig`; others as in `from_pretrained`.

        Raises:
            ValueError: The model cannot be a backbone (docs/backbones.md).
        """
        model, _ = wrap(cls, name, options)
        begin_anew(model, model.classifier, model.pooling)
        return model

    @classmethod
    def from_embeddings(
        cls,
        name: str | os.PathLike[str],
        *,
        lowercase: bool = False,
        texts: Iterable[str] | None = None,
        **options: Any,
    ) -> Any:
        """A classifier that begins with pretrained embeddings of token types; everything else in it is new.

        Their tokenizer becomes that of the classifier: `backbone_tokenizer`, which is saved with it.

        Args:
            name: "wordllama" (`pip install modeling_lle[embeddings]`), or the folder or the name on the Hub of a
                model2vec model or of any model of transformers, whose input embeddings are taken.
            lowercase: Whether the tokenizer is to read capital letters as small ones.
            texts: Keeps only the types that occur in them, and what spells anything else; None: all types.
            options: Fields of `LLEConfig`, such as `id2label`; those that are not given are as in
                `BESIDE_EMBEDDINGS`, where the mean of the embeddings stands beside the states of one LSTM layer.

        Raises:
            ImportError: wordllama is not installed.
            ValueError: There are no such embeddings, or the options do not fit them.
        """
        try:  # an absolute import: what only begins a model is not saved with it
            from modeling_lle.embeddings.sources import load_embeddings
        except ModuleNotFoundError as error:
            raise_missing(error)
        embeddings = load_embeddings(name, lowercase, texts)
        model = cls(LLEConfig(**{**BESIDE_EMBEDDINGS, **options, **embeddings.sizes(options)})).eval()
        embeddings.put_into(model)
        model.backbone_tokenizer = embeddings.tokenizer
        return model

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
        history: Attachment | Bank | None = None,
        output_history: bool = False,
        output_out_of_scope: bool = False,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> LLEClassifierOutput:
        """Predicts the labels, and measures the loss if labels are given.

        Args:
            input_ids: (B, T) int64; or give `inputs_embeds`.
            attention_mask: (B, T) of 0 and 1, 0 at padding, wherever it lies.
            inputs_embeds: (B, T, M D) floating, D the width of a member.
            labels: The right labels, by their numbers in `label_names(history)`: (B,) int64, of tokens (B, T) int64
                with -100 where nothing counts; (B, L) of 0 and 1 where a text may have several, which floating ones
                make the `problem_type` if the configuration has none; (B,) floating in regression.
            use_history: Whether a bank takes part; None: as the config says, but never in training mode.
            history: The bank to recall from, as an Attachment or alone; None: the one that `attach_history` set.
            output_history: Whether to return which examples moved the prediction.
            output_out_of_scope: Whether to return the score of "none of these" (`fit_out_of_scope`) and the mass.
            num_items_in_batch: What the summed loss is divided by, the number of labels that are not -100 in all parts
                of a batch; None: that of these labels.
            kwargs: `output_hidden_states` and other options of transformers.
        """
        check_arguments(self, kwargs, *TO_BACKBONE)
        if attention_mask is not None:
            refuse_empty_rows(attention_mask)
        if labels is not None:
            self._settle_kind(labels, history)
        attachment = self.recalled_from(history, use_history)
        wanted = kwargs.pop("output_hidden_states", None)
        outputs = self._encode(attention_mask, wanted, input_ids=input_ids, inputs_embeds=inputs_embeds, **kwargs)
        assert outputs.last_hidden_state is not None
        mask = segment_mask(attention_mask, outputs.last_hidden_state.shape[1])
        items = self._items(outputs, mask)
        dropped = self._drop(items)
        real = mask if self.pooling is None else None
        prediction = self._prediction(items, self._say(dropped), real, attachment)
        logits, members = prediction.logits(), None
        if self.training and self.config.classifier.members > 1:
            members = self.classifier(self._apart(dropped))
        scope, features = prediction.scope() if output_out_of_scope else (None, None)
        return LLEClassifierOutput(  # all at once: what is set later would come after the others, in tuples as well
            loss=None if labels is None else self._loss(logits, members, labels, num_items_in_batch),
            logits=logits,
            member_logits=members,
            out_of_scope=scope,
            mass=prediction.mass() if output_out_of_scope else None,
            scope_features=features,
            hidden_states=outputs.hidden_states if self._wants_states(wanted) else None,
            history=prediction.history() if output_history and prediction.found is not None else None,
            label_names=prediction.space.names,
        )

    def _settle_kind(self, labels: Tensor, history: Attachment | Bank | None) -> None:
        """Sets the `problem_type` where it is not given and the labels (B, C) are floating, as transformers does."""
        if self.config.problem_type is not None or self.pooling is None or len(self.trained_labels) == 1:
            return
        if isinstance(labels, Tensor) and labels.is_floating_point() and labels.dim() == 2:
            if Attachment.of(history, self.history) is not None:
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

    def _encode(self, attention_mask: Tensor | None, wanted: Any = None, **given: Any) -> BaseModelOutputWithPast:
        """Reads whole texts; `hidden_states` has the embedded tokens where the pooling needs them."""
        if wanted is None:
            wanted = bool(self.config.output_hidden_states)
        if self.pooling is not None and self.pooling.reads_embeddings and wanted is not True:
            own = [] if wanted is False else [wanted] if isinstance(wanted, int) else wanted
            wanted = [0, *own]
        return self.model(attention_mask=attention_mask, use_cache=False, output_hidden_states=wanted, **given)

    def _wants_states(self, wanted: Any) -> bool:
        """Whether hidden states are asked for, by an argument or by the configuration."""
        return bool(self.config.output_hidden_states if wanted is None else wanted is not False)

    def _items(self, outputs: BaseModelOutputWithPast, mask: Tensor | None) -> Tensor:
        """What is classified: (B, key_size), or (B, T, key_size), floating."""
        states, every = outputs.last_hidden_state, outputs.hidden_states
        assert states is not None
        if self.pooling is None:
            return states
        return self.pooling(states, mask, None if every is None else every[0])

    def _apart(self, items: Tensor) -> Tensor:
        """Copies what is classified for each member, (M, ..., key_size), without the channels of the others."""
        if self.pooling is not None:
            return self.pooling.apart(items)
        return apart(items, self.config.classifier.members, self.config.hidden_size)

    def _say(self, items: Tensor) -> Tensor:
        """The logits (..., C) of items (..., key_size): the mean of those of the members."""
        return self.classifier(
            items if self.config.classifier.members == 1 else items / self.config.classifier.members
        )

    def _drop(self, items: Tensor) -> Tensor:
        if items.dim() == 3:
            return variational_dropout(items, self.config.output_dropout, self.training)
        return nn.functional.dropout(items, self.config.output_dropout, self.training)

    def _prediction(
        self,
        items: Tensor,
        logits: Tensor,
        real: Tensor | None,
        attachment: Attachment | None,
        neighbours: int | None = None,
    ) -> LabelPrediction:
        """The prediction from items (..., key_size) and the logits (..., C) of the output layer.

        Args:
            items, logits: As above.
            real: (...) bool, which items recall; None: all.
            attachment: The bank to recall from, pinned; None: no bank.
            neighbours: How many examples to look at, if it is not as many as the config says; also without labels.
        """
        space, found = self.space_of(attachment), None
        if attachment is not None and (space.recalls or neighbours is not None):
            chosen = items.flatten(0, -2) if real is None else items[real]
            found = self._recall(chosen, attachment, neighbours or self.config.bank.neighbours)
        return LabelPrediction(logits, self.kind, space, self.config.bank, self.config.classifier, found, real)

    def _recall(self, items: Tensor, attachment: Attachment, neighbours: int) -> Found:
        """The nearest examples of items (n, key_size), which are normalised for it."""
        refuse_export("what a bank recalls", "export with use_history=False")
        queries = nn.functional.normalize(items.detach().float(), dim=-1)
        found = attachment.search(queries, neighbours, self.config.bank.search)
        return Found(*(getattr(found, name).to(items.device) for name in ("similarity", "ids", "outcomes", "counts")))

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The keys of texts (B, T): normalised states, (B, key_size) or of tokens (B, T, key_size), float32."""
        return nn.functional.normalize(self.pooled(input_ids, attention_mask).float(), dim=-1)

    def pooled(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """What the output layer reads of texts (B, T): (B, key_size), or of tokens (B, T, key_size), floating."""
        return self._read(input_ids, attention_mask)[0]

    def predict(self, items: Tensor, history: Attachment | Bank | None = None) -> LabelPrediction:
        """The prediction from what `pooled` made of texts, (B, key_size); `history` as in `forward`."""
        return self._prediction(items, self._say(items), None, self.recalled_from(history, True))

    def explain(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        targets: Tensor | None = None,
        top: int = 5,
        history: Attachment | Bank | None = None,
    ) -> list[Explanation]:
        """Which examples moved the prediction of a label, and by exactly how much.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T) of 0 and 1, 0 at padding.
            targets: The labels to explain, by their numbers in `label_names(history)`: (B,) int64, of tokens (B, T)
                int64 with -100 where nothing is asked; None: the most probable ones.
            top: Examples to name for each label.
            history: As in `forward`.

        Returns:
            An `Explanation` for each text, whose position is its row; in a classifier of tokens for each token that is
            no padding, row by row, whose position is its column. Its probabilities are values in regression.
        """
        attachment = self.recalled_from(history, True)
        with torch.no_grad(), evaluating(self):
            items, mask = self._read(input_ids, attention_mask)
            if targets is not None:
                targets = check_targets(
                    targets.to(self.device), items.shape[:-1], len(self.space_of(attachment).names)
                )
            real = torch.ones(items.shape[:-1], dtype=torch.bool, device=items.device)
            real = real if mask is None or self.pooling is not None else mask
            real = real if targets is None else real & (targets != IGNORED)
            prediction = self._prediction(items, self._say(items), real, attachment)
            targets = prediction.targets() if targets is None else targets
            places = real.nonzero()[:, -1].tolist()
            return explain_labels(prediction.explained(targets[real], places), attachment, top, self.pooling is None)

    def _read(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What is classified (..., key_size), and the mask (B, T) bool of the segment."""
        ids = input_ids.to(self.device)
        own = None if attention_mask is None else attention_mask.to(self.device)
        mask = segment_mask(own, ids.shape[1])
        return self._items(self._encode(own, False, input_ids=ids), mask), mask

    @torch.no_grad()
    def _answer(self, batches: Iterable[dict[str, Tensor]], attachment: Attachment) -> Answered:
        """What base and bank say of the items of batches that have a label."""
        neighbours = max(self.config.bank.neighbours, min(FITTED, len(attachment.snapshot())))
        names, parts = self.space_of(attachment).names, []
        with evaluating(self):
            for batch in batches:
                items, _ = self._read(batch["input_ids"], batch.get("attention_mask"))
                labels, real = batch["labels"].to(self.device), None
                if self.kind == SINGLE:
                    labels = check_targets(labels, items.shape[:-1], len(names))
                    real = labels != IGNORED
                    labels = labels[real]
                parts.append(self._prediction(items, self._say(items), real, attachment, neighbours).evidence(labels))
        return Answered.join(parts)

    def calibrate(
        self,
        batches: Iterable[dict[str, Tensor]],
        *,
        fixed: Collection[str] = (),
        max_predictions: int | None = None,
        steps: int = 40,
        seed: int = 0,
        history: Attachment | Bank | None = None,
    ) -> dict[str, float]:
        """Fits the parameters of the bank on held-out texts, by gradient descent, and stores them in the config.

        Args:
            batches: `input_ids`, `attention_mask` and `labels`, as forward takes them, of texts that are neither in
                the training set nor in the bank.
            fixed: Parameters that stay as they are: "sharpness", "background" or "gate", or as in "bank.gate".
            max_predictions: Texts, or tokens, that are fitted on, drawn at random; None: all.
            steps: Steps of the quasi-Newton descent.
            seed: Seed of the draw.
            history: As in `forward`.

        Returns:
            `predictions`, their number, and the mean nats of a label on them (squares of errors in regression):
            `base_nats` without history, of the labels that the base knows, `before_nats` and `after_nats` with the
            parameters as they were and as they are now; see `fit_labels`.
        """
        attachment = self.recalled_from(history, True)
        if attachment is None:
            raise ValueError("nothing to calibrate: no bank is attached; teach some examples with learn() first")
        answered = self._answer(batches, attachment).sample(max_predictions, seed)
        space, numbers = self.space_of(attachment), (self.config.bank, self.config.classifier)
        return fit_labels(answered, space, *numbers, self.kind, steps, fixed)

    @torch.no_grad()
    def fit_out_of_scope(
        self,
        in_scope: Iterable[dict[str, Tensor]],
        out_of_scope: Iterable[dict[str, Tensor]],
        keep: float = 0.99,
        steps: int = 50,
        history: Attachment | Bank | None = None,
    ) -> dict[str, float]:
        """Fits the score of "none of these" and its threshold on held-out texts, and stores them in the config.

        Args:
            in_scope: Batches of texts that have one of the labels, as forward takes them, with `labels`.
            out_of_scope: Batches of texts that have none of them.
            keep: Share of the rightly labelled texts in scope that must not be refused.
            steps: Steps of the quasi-Newton descent of the logistic regression.
            history: As in `forward`.

        Returns:
            On these texts, at the threshold: `out_of_scope_recall` and `in_scope_accuracy`, in which a text that is
            refused counts as wrong.
        """
        if self.kind != SINGLE:
            raise ValueError(f"a score of 'none of these' needs one label a text; the problem_type is {self.kind!r}")
        if not 0 < keep <= 1:
            raise ValueError(f"keep is a share above 0, got {keep}")
        with evaluating(self):
            attachment = self.recalled_from(history, None)
            inside, right = self._scope_features(in_scope, attachment, labelled=True)
            outside, _ = self._scope_features(out_of_scope, attachment, labelled=False)
        weights = fit_scope(inside[right], outside, steps)
        scores = scope_scores(torch.cat([inside, outside]), weights)
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

    def _scope_features(
        self, batches: Iterable[dict[str, Tensor]], attachment: Attachment | None, labelled: bool
    ) -> tuple[Tensor, Tensor]:
        """`scope_features` (n, 4) of texts, and whether each got its right label (n,) bool."""
        parts, right = [], []
        for batch in batches:
            batch = {name: value.to(self.device) for name, value in batch.items()}
            labels = batch.pop("labels", None)
            output = self(**batch, output_out_of_scope=True, history=attachment)
            parts.append(output.scope_features)
            if labels is not None:
                right.append(output.logits.argmax(-1) == labels)
        if not parts:
            raise ValueError(f"there is no text {'in' if labelled else 'out of'} scope to fit on")
        return torch.cat(parts), torch.cat(right) if labelled else torch.zeros(0)


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
        assert self.pooling is not None
        return self.pooling.size

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
