"""Which texts without labels to label next: active learning by what the bank covers.

With u_j how uncertain the mixture is of text j, and s_ij the cosine of the keys of two texts, the chosen texts S are
those that cover the uncertain texts best, beside the examples of the bank:

    F(S) = sum over j of u_j max(c_j, max over i in S of s_ij),    c_j = the largest cosine of j and an example

So a text counts for more where it and others like it are uncertain and unlike what was taught, and for nothing more
where a similar one is chosen already; an outlier covers itself alone. F is submodular, so choosing greedily reaches at
least 1 - 1/e of the best F (Nemhauser et al. 1978); bounds on what a text adds save most of the work (Minoux 1978).
Shapes: Q texts, D width.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..bank.protocol import Bank
from ..common.batches import batches
from ..common.modes import evaluating
from ..common.terminal import progress as progress_bar
from ..history.attachment import Attachment
from ..history.label_prediction import LabelPrediction
from ..history.label_rule import SINGLE
from ..models.classification import LLEForSequenceClassification
from .text_classification import LLETextClassificationPipeline

UNLIKE, UNCERTAIN, TYPICAL = "unlike all examples", "uncertain", "like many others"
MOST = 8192  # texts to choose from and to cover, as the cosines of all pairs are in memory; of more, as many are drawn
BLOCK = 256  # texts of which is computed at once what they add
CLOSE = 0.5  # share of the probability of the best label from which on the second one is named

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Suggestion:
    """A text to label.

    Attributes:
        row: Its place among the texts, counted from 0.
        text: The text.
        label: The most probable label.
        probability: Its probability.
        second: The second label.
        uncertainty: From 0 to 1: one less the difference of the probabilities of the two.
        reason: Why it is chosen: "unlike all examples", "uncertain", or "like many others" of which that holds less.
        similarity: Cosine of its key and that of the nearest example of the bank; None without one.
        nearest: The text of this example.
        nearest_label: The label of this example.
    """

    row: int
    text: str
    label: str
    probability: float
    second: str
    uncertainty: float
    reason: str
    similarity: float | None = None
    nearest: str | None = None
    nearest_label: str | None = None


def suggest(
    classifier: LLETextClassificationPipeline,
    texts: Sequence[str],
    number: int = 20,
    *,
    history: Attachment | Bank | None = None,
    batch_size: int = 256,
    progress: bool = False,
) -> list[Suggestion]:
    """Suggests which texts to label and teach next, the most useful one first.

    Texts that are blank, that occurred before, or that the bank has as examples are left out, with a warning.

    Example:
        >>> classifier = teach(texts, labels)
        >>> chosen = suggest(classifier, unlabelled, 20)
        >>> classifier.model.learn([one.text for one in chosen], [ask(one) for one in chosen], new_labels=True)

    Args:
        classifier: The pipeline of an LLE classifier of one label a text, such as `teach` makes.
        texts: Texts without labels.
        number: How many to suggest.
        history: The bank, as an Attachment or alone; None: the one that is attached. Without a bank no text is like an
            example, and uncertainty and diversity alone choose.
        batch_size: Most texts of a batch; fewer where they are long.
        progress: Whether to show a progress bar on a terminal.

    Returns:
        At most `number` suggestions, fewer where there are fewer texts.

    Raises:
        TypeError: The model is no LLE classifier of texts.
        ValueError: The model has several labels a text or is a regression, or `number` is not positive.
    """
    model = classifier.model
    if not isinstance(model, LLEForSequenceClassification):
        raise TypeError(f"suggestions need an LLE classifier of texts; this is a {type(model).__name__}")
    if model.kind != SINGLE:
        raise ValueError(f"only single-label classifiers can suggest texts; the problem_type is {model.kind!r}")
    if number < 1:
        raise ValueError(f"the number of suggestions should be positive, got {number}")
    attachment = model.recalled_from(history, True)
    if attachment is None:
        logger.warning("no bank is attached: texts are chosen by uncertainty and diversity alone")
    rows = _usable(texts, attachment)
    if not rows:
        return []
    read = _read(classifier, [texts[row] for row in rows], attachment, batch_size, progress)
    chosen = choose_texts(read.keys, read.uncertainty, read.similarity.clamp(min=0), number)
    background = model.config.classifier.background
    return [read.suggestion(place, rows[place], texts[rows[place]], attachment, background) for place in chosen]


def choose_texts(keys: Tensor, uncertainty: Tensor, covered: Tensor, number: int) -> list[int]:
    """Chooses texts greedily by the formula above, without randomness.

    Args:
        keys: (Q, D) float32, normalised.
        uncertainty: (Q,) float32, not negative.
        covered: (Q,) float32, c_j, the cosine of the nearest example of the bank; 0: not covered.
        number: How many to choose.

    Returns:
        Indices of the chosen texts, `number` or Q of them, in the order of choice.
    """
    cosines, best = keys @ keys.T, covered

    def gain(rows: Tensor) -> Tensor:
        return (cosines[rows] - best).clamp_(min=0) @ uncertainty

    bounds = torch.cat([gain(rows) for rows in torch.arange(len(keys)).split(BLOCK)])
    chosen: list[int] = []
    while len(chosen) < min(number, len(keys)):
        exact = torch.zeros(len(keys), dtype=torch.bool)
        first = int(bounds.argmax())
        while not exact[first]:  # what a text adds never grows, so old values are bounds of it
            rows = bounds.masked_fill(exact, -torch.inf).topk(min(BLOCK, len(keys))).indices
            bounds[rows] = torch.where(bounds[rows] == -torch.inf, -torch.inf, gain(rows))
            exact[rows] = True
            first = int(bounds.argmax())
        chosen.append(first)
        bounds[first] = -torch.inf
        best = torch.maximum(best, cosines[first])
    return chosen


def _usable(texts: Sequence[str], attachment: Attachment | None) -> list[int]:
    """Indices of the texts to choose from."""
    documents = () if attachment is None else attachment.snapshot().documents(attachment.namespaces)
    taught = {document.columns["text"] for document in documents}
    rows: dict[str, int] = {}
    blank = known = 0
    for row, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            blank += 1
        elif text in taught:
            known += 1
        else:
            rows.setdefault(text, row)
    repeated = len(texts) - blank - known - len(rows)
    left_out = {"are blank": blank, "are in the bank": known, "occur before": repeated}
    for why, count in left_out.items():
        if count:
            logger.warning("%d of the %d texts %s, and are left out", count, len(texts), why)
    usable = list(rows.values())
    if len(usable) > MOST:
        logger.warning("%d of %d texts are drawn at random to choose from", MOST, len(usable))
        drawn = torch.randperm(len(usable), generator=torch.Generator().manual_seed(0))[:MOST].sort().values
        return [usable[place] for place in drawn.tolist()]
    return usable


@dataclass(frozen=True)
class _Read:
    """What a classifier says of Q texts.

    Attributes:
        keys: (Q, D) float32.
        best: (Q, 2) int64, the two most probable labels.
        probabilities: (Q, 2) float32, theirs.
        similarity: (Q,) float32, cosine of the nearest example; 0 without one.
        nearest: (Q,) int64, its id; -1 without one.
        labels: Names of the labels.
    """

    keys: Tensor
    best: Tensor
    probabilities: Tensor
    similarity: Tensor
    nearest: Tensor
    labels: tuple[str, ...]

    @property
    def uncertainty(self) -> Tensor:
        """(Q,) float32."""
        return 1 - (self.probabilities[:, 0] - self.probabilities[:, 1])

    def suggestion(
        self, place: int, row: int, text: str, attachment: Attachment | None, background: float
    ) -> Suggestion:
        """The suggestion of the text at `place`."""
        first, second = self.probabilities[place].tolist()
        similarity, example = float(self.similarity[place]), int(self.nearest[place])
        reason = UNCERTAIN if second >= CLOSE * first else TYPICAL
        known: dict[str, Any] = {}
        if attachment is not None and example >= 0:
            (entry,) = attachment.snapshot().describe([example])
            known = {"nearest": entry.columns["text"], "nearest_label": entry.columns["label"]}
            known["similarity"] = similarity
            reason = UNLIKE if similarity < background else reason
        return Suggestion(
            row=row,
            text=text,
            label=self.labels[int(self.best[place, 0])],
            probability=first,
            second=self.labels[int(self.best[place, 1])],
            uncertainty=float(self.uncertainty[place]),
            reason=reason,
            **known,
        )


@torch.no_grad()
def _read(
    classifier: LLETextClassificationPipeline,
    texts: Sequence[str],
    attachment: Attachment | None,
    batch_size: int,
    progress: bool,
) -> _Read:
    """Reads texts once."""
    model: Any = classifier.model
    tokenizer: Any = classifier.tokenizer
    labels = model.space_of(attachment).names
    keys = torch.empty(len(texts), model.key_size)
    best, probabilities = torch.zeros(len(texts), 2, dtype=torch.long), torch.zeros(len(texts), 2)
    similarity, nearest = torch.zeros(len(texts)), torch.full((len(texts),), -1)
    encoded = tokenizer(list(texts), return_attention_mask=False)["input_ids"]
    with evaluating(model), progress_bar(len(texts), "Reading", "texts", progress) as bar:
        for rows in batches([len(ids) for ids in encoded], batch_size):
            batch = tokenizer.pad({"input_ids": [encoded[row] for row in rows]}, return_tensors="pt")
            items = model.pooled(batch["input_ids"], batch["attention_mask"])
            prediction: LabelPrediction = model.predict(items, attachment)
            top = prediction.logits().float().softmax(-1).topk(2)
            keys[rows] = nn.functional.normalize(items.float(), dim=-1).cpu()
            probabilities[rows], best[rows] = top.values.cpu(), top.indices.cpu()
            if prediction.found is not None:
                similarity[rows], nearest[rows] = (
                    prediction.found.similarity[:, 0].cpu(),
                    prediction.found.ids[:, 0].cpu(),
                )
            bar.update(len(rows))
    return _Read(keys, best, probabilities, similarity, nearest, labels)
