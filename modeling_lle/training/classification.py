"""Training a classifier by a recipe, and giving it its labelled examples as the first history."""

import random
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict, Value
from torch import Tensor
from transformers import DataCollatorWithPadding, EvalPrediction, PreTrainedTokenizerBase
from transformers.trainer_pt_utils import LabelSmoother

from ..bank.files import MANIFEST, Folder
from ..bank.manifest import HISTORY_FOLDER
from ..common.precision import in_precision
from ..configuration import LLEConfig
from ..data import check_labelled, load_labelled, split_out_of_scope
from ..data.labelled import check_complete
from ..history.label_calibration import CALIBRATED
from ..history.label_rule import MULTI, SINGLE
from ..models.backbone import LLEModel
from ..models.classification import LLEClassifierOutput, LLEForSequenceClassification
from .adversarial import AdversarialTrainer
from .arguments import ClassificationArguments
from .character_ngrams import FoldNgrams, add_ngrams
from .checkpoints import METRICS, find_checkpoint
from .pretraining import pretrain
from .recipe import DataArguments, Recipe
from .steps import make_config, make_tokenizer, save, train

SOURCE = "training"  # of what the bank of a new classifier holds


def run_classification(recipe: Recipe, rows: dict[str, Any] | None = None, resume: bool = False) -> dict[str, Any]:
    """Trains a classifier of texts, whose bank holds the training examples afterwards; see `run`."""
    arguments: ClassificationArguments = recipe.training
    data = recipe.data
    _check_place(Path(str(arguments.output_dir)), resume)
    examples, validation, strangers = _split(data, rows, arguments.seed)
    tokenizer = make_tokenizer(recipe, examples["text"])
    labels = sorted(set(examples["label"]))
    model = make_classifier(recipe.model, tokenizer, labels)
    encoded, held_out = (encode(rows, tokenizer, labels) for rows in (examples, validation))
    trainer = AdversarialTrainer(
        model.model.embed_tokens,
        arguments.adversarial,
        model.config.classifier.members,
        model=model,
        args=arguments,
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=encoded,
        eval_dataset=held_out,
        processing_class=tokenizer,
        compute_metrics=_accuracy,
        # Label smoothing of the Trainer sees nothing but `logits`, which are those of all members.
        compute_loss_func=MemberLoss(arguments.label_smoothing_factor)
        if model.config.classifier.members > 1
        else None,
    )
    if arguments.character_ngrams:
        embeddings = model.model.embed_tokens
        # Where the embeddings are trained already, they stay as they are.
        scale = 0.0 if "path" in recipe.model else model.config.initializer_range
        add_ngrams(embeddings, tokenizer, arguments.character_ngrams, scale)
        trainer.add_callback(FoldNgrams(embeddings))
    minutes, checkpoint = 0.0, find_checkpoint(trainer, resume)
    if arguments.pretraining_epochs and checkpoint is None:
        texts = encoded.remove_columns("labels")
        minutes = pretrain(model.model, texts, tokenizer, arguments, arguments.pretraining_epochs)
    metrics = train(trainer, checkpoint, minutes)
    size = arguments.per_device_eval_batch_size
    given = [*((recipe.model.get("history") or {}).get("bank") or {}), *(recipe.model.get("classifier") or {})]
    fixed = [name for name in given if name in CALIBRATED]  # what the recipe says is not fitted
    unlabelled = encode(strangers, tokenizer)
    with in_precision(model, arguments.precision):
        model.learn(examples["text"], examples["label"], tokenizer, source=SOURCE)
        metrics |= fit_history(model, tokenizer, held_out, unlabelled, size, arguments.keep_in_scope, fixed)
        if data.held_out:
            model.learn(validation["text"], validation["label"], tokenizer, source=SOURCE)
    if trainer.is_world_process_zero():
        save(recipe, trainer, metrics, model.history_bank)
    return metrics


def _check_place(folder: Path, resume: bool) -> None:
    """Raises a FileExistsError if a bank is there, unless it is that of a run which was killed before its end."""
    bank = Folder(folder / HISTORY_FOLDER)
    if not bank.path.exists():
        return
    if (bank.path / MANIFEST).exists():
        sources = {(added.namespace, added.source) for added in bank.read_manifest().added}
        if resume and not (folder / METRICS).exists() and sources == {("default", SOURCE)}:
            return
        raise FileExistsError(
            f"there is a bank at {bank.path} already: choose another training.output_dir, or remove it"
        )
    bank.check_free()


def _split(data: DataArguments, rows: dict[str, Any] | None, seed: int) -> tuple[Dataset, Dataset, Dataset]:
    """What to train on, what to validate on, and texts out of scope; raises a ValueError where one is of no use."""
    examples, _ = split_out_of_scope(_load(data, "train", rows), data.out_of_scope or "")
    if not len(examples):
        raise ValueError(f"the training split has no text in scope: each has the label {data.out_of_scope!r}")
    wrong = set(check_labelled(examples, where="the training split", refuse=False))
    if len(wrong) == len(examples):
        raise ValueError(
            f"nothing to train on: all {len(wrong)} rows of the training split are bad examples, see above"
        )
    examples = examples.select([row for row in range(len(examples)) if row not in wrong])
    labels = set(examples["label"])
    if len(labels) == 1:
        raise ValueError(
            f"{labels.pop()!r} is the only label of the {len(examples)} training texts: a classifier needs two"
        )
    if data.held_out > 0:
        examples, validation = hold_out(examples, data.held_out, seed)
        if not len(validation):
            raise ValueError(
                f"none of the {len(labels)} labels has two training texts, so that none can be held out: give more, "
                "or a split to validate on with data.held_out=0 and data.validation"
            )
        return examples, validation, validation.select([])
    validation, strangers = split_out_of_scope(_load(data, "validation", rows), data.out_of_scope or "")
    if not len(validation):
        raise ValueError(f"the validation split has no text in scope: each has the label {data.out_of_scope!r}")
    check_complete(validation["text"][:], validation["label"][:], "the validation split")
    unknown = sorted(set(validation["label"]) - labels)
    if unknown:
        raise ValueError(f"the validation split has labels that no training text has: {', '.join(unknown[:10])}")
    return examples, validation, strangers


def fit_history(
    model: LLEForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    inside: Dataset,
    outside: Dataset,
    size: int,
    keep: float,
    fixed: Collection[str] = (),
) -> dict[str, Any]:
    """Fits the numbers of the bank on held-out texts, and "none of these" if some have none of the labels.

    Args:
        model: The classifier, with a bank.
        tokenizer: Its tokenizer.
        inside: Texts with one of its labels, as `encode` makes them.
        outside: Texts with none of them; may be empty.
        size: Texts of a batch.
        keep: As in `fit_out_of_scope`.
        fixed: As in `calibrate`.

    Returns:
        `calibration` and, of texts out of scope, `out_of_scope`: what `calibrate` and `fit_out_of_scope` return.
    """
    found: dict[str, Any] = {"calibration": model.calibrate(batches(inside, tokenizer, size), fixed=fixed)}
    if len(outside):
        right, wrong = (batches(rows, tokenizer, size) for rows in (inside, outside))
        found["out_of_scope"] = model.fit_out_of_scope(right, wrong, keep)
    return found


class MemberLoss:
    """The mean of the members' losses, with the labels smoothed; in evaluation the loss of what they say together.

    Args:
        smoothing: Share of the target that all labels get alike (Szegedy et al. 2016, arXiv:1512.00567, section 7).
    """

    def __init__(self, smoothing: float) -> None:
        self.smoother = LabelSmoother(smoothing)

    def __call__(
        self, outputs: LLEClassifierOutput, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """A scalar, for the `outputs` of a batch with its labels (B,) int64."""
        each = [outputs.logits] if outputs.member_logits is None else outputs.member_logits
        losses = [self.smoother({"logits": own}, labels, num_items_in_batch=num_items_in_batch) for own in each]
        return torch.stack(losses).mean()


def hold_out(examples: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Examples without a share of each label, and that share.

    Of a label with two examples or more, one at least is in either part.
    """
    if not 0 < share < 1:
        raise ValueError(f"data.held_out is {share}: it is a share between 0 and 1, or 0 where there is another split")
    rows: dict[str, list[int]] = defaultdict(list)
    for row, label in enumerate(examples["label"]):
        rows[label].append(row)
    chosen: set[int] = set()
    draw = random.Random(seed)
    for label in sorted(rows):
        if len(rows[label]) > 1:
            count = min(max(1, round(share * len(rows[label]))), len(rows[label]) - 1)
            chosen.update(draw.sample(rows[label], count))
    kept = [row for row in range(len(examples)) if row not in chosen]
    return examples.select(kept), examples.select(sorted(chosen))


def make_classifier(
    values: dict[str, Any], tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]
) -> LLEForSequenceClassification:
    """A new classifier with the configuration `values`, or one that begins at the model at its `path`.

    A language model there reads in one direction. Where the classifier reads in both, its stack for the other one
    begins with the same weights.
    """
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: number for number, name in enumerate(labels)}}
    config, path = make_config(values, tokenizer, **names, problem_type=SINGLE)
    if path is None:
        return LLEForSequenceClassification(config)
    begin = LLEConfig.from_pretrained(path)
    members, there = config.classifier.members, begin.classifier.members
    if there != members:
        raise ValueError(
            f"model.classifier.members is {members}, but the model at {path} has {there}: "
            "leave model.classifier.members out"
        )
    if begin.bidirectional or not config.bidirectional:
        return LLEForSequenceClassification.from_pretrained(path, config=config)
    model, trained = LLEForSequenceClassification(config), LLEModel.from_pretrained(path)
    model.model.embed_tokens.load_state_dict(trained.embed_tokens.state_dict())
    for stack in (model.model.stack, model.model.backward_stack):
        assert stack is not None
        stack.load_state_dict(trained.stack.state_dict())
    return model


def encode(rows: Dataset, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str] | None = None) -> Dataset:
    """Texts as the columns `input_ids` and `attention_mask`, not padded, and `labels` by their place in `labels`."""
    numbers = {name: number for number, name in enumerate(labels or ())}

    def columns(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        encoded = dict(tokenizer(batch["text"]))
        return encoded | ({} if labels is None else {"labels": [numbers[label] for label in batch["label"]]})

    return rows.map(columns, batched=True, remove_columns=rows.column_names, keep_in_memory=True, desc="Tokenizing")


def batches(encoded: Dataset, tokenizer: PreTrainedTokenizerBase, size: int) -> Iterator[dict[str, Tensor]]:
    """Padded batches of at most `size` texts, as a classifier's `calibrate` and `fit_out_of_scope` take them."""
    for start in range(0, len(encoded), size):
        yield dict(tokenizer.pad(encoded[start : start + size], return_tensors="pt"))


def _accuracy(predicted: EvalPrediction) -> dict[str, float]:
    logits = predicted.predictions
    assert not isinstance(logits, tuple)
    return {"accuracy": float((logits.argmax(-1) == predicted.label_ids).mean())}


def _load(data: DataArguments, split: str, rows: dict[str, Any] | None) -> Dataset:
    if rows is None and not data.source:
        raise ValueError("the recipe names no texts: set data.source to a data set on the Hub or a local path")
    loaded = load_labelled(
        data.source if rows is None else DatasetDict(rows),
        name=data.name,
        split=getattr(data, split) if rows is None else split,
        text_column=None if data.text_column == "text" else data.text_column,
        label_column=data.label_column,
        out_of_scope=data.out_of_scope,
    )
    if loaded.features["label"] != Value("string"):
        raise ValueError(
            f"the labels of the split {split!r} are lists, such as {loaded[0]['label']!r:.80}: a recipe trains "
            "classifiers of one label a text; for several, train an LLEForSequenceClassification with the "
            f"problem_type {MULTI!r} by transformers' Trainer"
        )
    return loaded
