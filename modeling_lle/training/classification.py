"""Training of a classifier by a recipe; its training examples become its first bank."""

import copy
import dataclasses
import functools
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset, DatasetDict, Value, concatenate_datasets
from torch import Tensor
from transformers import DataCollatorWithPadding, EvalPrediction, PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer_pt_utils import LabelSmoother

from ..bank.files import MANIFEST, Folder
from ..bank.manifest import HISTORY_FOLDER
from ..common.precision import in_precision
from ..configuration import LLEConfig
from ..data import check_labelled, load_labelled, load_texts, split_out_of_scope
from ..data.labelled import check_complete
from ..embeddings.sources import StaticEmbeddings, load_embeddings
from ..history.label_calibration import CALIBRATED
from ..history.label_rule import MULTI, SINGLE
from ..models.backbone import LLEModel
from ..models.classification import LLEClassifierOutput, LLEForSequenceClassification
from .arguments import ClassificationArguments
from .character_ngrams import FoldNgrams, add_ngrams
from .checkpoints import METRICS, find_checkpoint, newest_checkpoint
from .classifier_trainer import ClassifierTrainer, Lessons
from .distillation import SentenceEncoder, Taught, distil
from .held_out import at_most, check_shares, hold_out_labelled
from .output_layer import FitOutputLayer, fit_scale, scale_output_layer
from .pretraining import pretrain
from .recipe import DataArguments, Recipe
from .steps import make_config, make_tokenizer, save, train
from .used_types import TrainUsedTypes

SOURCE = "training"  # of the entries in the bank of a new classifier


def run_classification(recipe: Recipe, rows: dict[str, Any] | None = None, resume: bool = False) -> dict[str, Any]:
    """Trains a classifier of texts, and builds its bank from the training examples; see `run`."""
    _check_place(Path(str(recipe.training.output_dir)), resume)
    splits = labelled_splits(recipe, rows)
    trainer, metrics = train_classifier(recipe, splits, resume)
    if trainer.is_world_process_zero():
        model: Any = trainer.model
        save(recipe, trainer, metrics, model.history_bank, read=splits["train"]["text"])
    return metrics


def train_classifier(
    recipe: Recipe, splits: dict[str, Dataset], resume: bool = False
) -> tuple[Trainer, dict[str, Any]]:
    """Trains a classifier of texts, teaches it its examples, and fits its rule; saves nothing.

    Args:
        recipe: Recipe.
        splits: Result of `labelled_splits`.
        resume: As in `run`.

    Returns:
        The trainer, with the model and its tokenizer, and the metrics.
    """
    arguments: ClassificationArguments = recipe.training
    if arguments.refit and not recipe.data.held_out:
        raise ValueError("training.refit trains on what data.held_out held out: set it to a share, such as 0.2")
    examples, validation = splits["train"], splits["validation"]
    labels = sorted(set(examples["label"]))
    both = concatenate_datasets([examples, validation]) if arguments.refit else examples
    embeddings = begin_embeddings(recipe, both["text"])
    tokenizer = make_tokenizer(recipe, examples["text"]) if embeddings is None else embeddings.tokenizer
    model = make_classifier(recipe.model, tokenizer, labels, embeddings)
    encoded, held_out = (encode(rows, tokenizer, labels) for rows in (examples, validation))
    unlabelled = _unlabelled(both["text"], splits.get("unlabelled"))
    begin = time.perf_counter()
    teacher = _ask_teacher(model, unlabelled["text"], arguments)
    if teacher is not None and not (resume and newest_checkpoint(str(arguments.output_dir))):
        _distil(model, teacher, encode(unlabelled, tokenizer), tokenizer, arguments)
    minutes = (time.perf_counter() - begin) / 60
    begun = copy.deepcopy(model) if arguments.refit else None
    trainer = make_trainer(recipe, model, tokenizer, encoded, held_out, _lessons(teacher, examples, arguments))
    checkpoint = find_checkpoint(trainer, resume)
    if arguments.pretraining_epochs and checkpoint is None:
        texts = encode(unlabelled, tokenizer)
        minutes += pretrain(model.model, texts, tokenizer, arguments, arguments.pretraining_epochs)
    metrics = train(trainer, checkpoint, minutes)
    size = arguments.per_device_eval_batch_size
    scale = fit_scale(model, batches(held_out, tokenizer, size)) if arguments.output_penalty else 1.0
    scale_output_layer(model, scale)
    given = [*((recipe.model.get("history") or {}).get("bank") or {}), *(recipe.model.get("classifier") or {})]
    fixed = [name for name in given if name in CALIBRATED]  # values of the recipe are not fitted
    outside = encode(splits["out_of_scope"], tokenizer)
    with in_precision(model, arguments.precision):
        model.learn(examples["text"], examples["label"], tokenizer, source=SOURCE, places=examples)
        metrics |= fit_history(model, tokenizer, held_out, outside, size, arguments.keep_in_scope, fixed)
    if begun is not None:
        again = begun
        again.config.classifier, again.config.history = model.config.classifier, model.config.history
        encoded = encode(both, tokenizer, labels)
        trainer = make_trainer(recipe, again, tokenizer, encoded, held_out, _lessons(teacher, both, arguments))
        begin = time.perf_counter()
        if arguments.pretraining_epochs:
            texts = encode(unlabelled, tokenizer)
            pretrain(again.model, texts, tokenizer, arguments, arguments.pretraining_epochs)
        trainer.train()
        scale_output_layer(again, scale)
        metrics["train_minutes"] += (time.perf_counter() - begin) / 60
        model = again
    with in_precision(model, arguments.precision):
        if arguments.refit:
            model.learn(examples["text"], examples["label"], tokenizer, source=SOURCE, places=examples)
        if recipe.data.held_out:
            model.learn(validation["text"], validation["label"], tokenizer, source=SOURCE, places=validation)
    return trainer, metrics


def _unlabelled(texts: Sequence[str], more: Dataset | None) -> Dataset:
    """Texts without labels, each once: those of the examples, and more."""
    return Dataset.from_dict({"text": list(dict.fromkeys([*texts, *([] if more is None else more["text"])]))})


def _ask_teacher(
    model: LLEForSequenceClassification, texts: list[str], arguments: ClassificationArguments
) -> Taught | None:
    """What the teacher of the recipe says of texts, for a classifier of its width; None: it has none."""
    if arguments.teacher is None:
        return None
    encoder = SentenceEncoder(arguments.teacher)
    encoder.check(model)
    return Taught(texts, encoder.encode(texts))


def _distil(
    model: LLEForSequenceClassification,
    taught: Taught,
    texts: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    arguments: ClassificationArguments,
) -> None:
    """Lets a classifier learn what a teacher says of texts, as made by `encode`."""
    used = TrainUsedTypes(model.model, [texts], cast(int, tokenizer.pad_token_id))
    distil(model, texts, taught.embeddings, tokenizer, arguments, arguments.distillation_epochs, [used])


def _lessons(taught: Taught | None, texts: Dataset, arguments: ClassificationArguments) -> Lessons | None:
    """What a teacher says of training texts, if they are to stay near to it."""
    if taught is None or not arguments.distillation_weight:
        return None
    return Lessons(taught.of(texts["text"]), arguments.distillation_weight)


def make_trainer(
    recipe: Recipe,
    model: LLEForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Dataset,
    held_out: Dataset,
    lessons: Lessons | None = None,
) -> Trainer:
    """Trainer of a classifier by a recipe, on texts encoded by `encode`; gives its embeddings n-grams if wanted."""
    arguments: ClassificationArguments = recipe.training
    members = model.config.classifier.members
    begins_trained = "path" in recipe.model or "embeddings" in recipe.model
    callbacks: list[TrainerCallback] = []
    if "embeddings" in recipe.model and not (arguments.character_ngrams or arguments.pretraining_epochs):
        padding: Any = tokenizer.pad_token_id
        callbacks.append(TrainUsedTypes(model.model, (encoded, held_out), padding))
    if arguments.output_penalty:
        texts = functools.partial(batches, encoded, tokenizer, arguments.per_device_eval_batch_size)
        callbacks.append(FitOutputLayer(model, texts, arguments.output_penalty))
    if lessons is not None:
        encoded = encoded.add_column("rows", list(range(len(encoded))))
    trainer = ClassifierTrainer(
        arguments.embeddings_training,
        model.model.embed_tokens,
        lessons,
        arguments.adversarial,
        members,
        model=model,
        args=arguments if lessons is None else dataclasses.replace(arguments, remove_unused_columns=False),
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=encoded,
        eval_dataset=held_out,
        processing_class=tokenizer,
        callbacks=callbacks,
        compute_metrics=_accuracy,
        # The label smoothing of the Trainer sees only `logits`, which join all members.
        compute_loss_func=MemberLoss(arguments.label_smoothing_factor) if members > 1 else None,
    )
    if arguments.character_ngrams:
        embeddings = model.model.embed_tokens
        # Trained embeddings get no n-grams.
        scale = 0.0 if begins_trained else model.config.initializer_range
        add_ngrams(embeddings, tokenizer, arguments.character_ngrams, scale)
        trainer.add_callback(FoldNgrams(embeddings))
    return trainer


def _check_place(folder: Path, resume: bool) -> None:
    """Raises a FileExistsError if a bank exists, except that of an unfinished run."""
    bank = Folder(folder / HISTORY_FOLDER)
    if not bank.path.exists():
        return
    if (bank.path / MANIFEST).exists():
        sources = {(added.namespace, added.source) for added in bank.read_manifest().added}
        if resume and not (folder / METRICS).exists() and sources == {("default", SOURCE)}:
            return
        raise FileExistsError(f"a bank exists at {bank.path}: choose another training.output_dir, or remove it")
    bank.check_free()


def labelled_splits(recipe: Recipe, rows: dict[str, Any] | None = None) -> dict[str, Dataset]:
    """Labelled texts of a recipe, or rows in memory, by split.

    Returns:
        "train", "validation" and "out_of_scope" texts, the last for "none of these", "test" with
        `data.held_out_test`, and "unlabelled" with `data.unlabelled` or such rows.

    Raises:
        ValueError: A split is unusable.
    """
    data, seed = recipe.data, recipe.training.seed
    more = _load_unlabelled(data, rows)
    examples, _ = split_out_of_scope(_load(data, "train", rows), data.out_of_scope or "")
    if not len(examples):
        raise ValueError(f"the training split has no in-scope text: all have the label {data.out_of_scope!r}")
    wrong = set(check_labelled(examples, where="the training split", refuse=False))
    if len(wrong) == len(examples):
        raise ValueError(
            f"nothing to train on: all {len(wrong)} rows of the training split are bad examples, see above"
        )
    examples = examples.select([row for row in range(len(examples)) if row not in wrong])
    examples = at_most(examples, data.max_rows, seed)
    labels = set(examples["label"])
    if len(labels) == 1:
        raise ValueError(
            f"{labels.pop()!r} is the only label of the {len(examples)} training texts: a classifier needs two"
        )
    test: dict[str, Dataset] = {}
    if data.held_out_test:
        check_shares((data.held_out, data.held_out_test))
        examples, test["test"] = hold_out_labelled(examples, data.held_out_test, seed, least=0)
    if data.held_out:
        share = data.held_out / (1 - data.held_out_test)
        examples, validation = hold_out_labelled(examples, share, seed)
        if not len(validation):
            raise ValueError(
                f"none of the {len(labels)} labels has two training texts, so none can be held out: give more, or a "
                "validation split with data.held_out=0 and data.validation"
            )
        return {"train": examples, "validation": validation, "out_of_scope": validation.select([]), **test, **more}
    validation, strangers = split_out_of_scope(_load(data, "validation", rows), data.out_of_scope or "")
    if not len(validation):
        raise ValueError(f"the validation split has no in-scope text: all have the label {data.out_of_scope!r}")
    check_complete(validation["text"][:], validation["label"][:], "the validation split")
    unknown = sorted(set(validation["label"]) - labels)
    if unknown:
        raise ValueError(f"the validation split has labels without training texts: {', '.join(unknown[:10])}")
    return {"train": examples, "validation": validation, "out_of_scope": strangers, **test, **more}


def _load_unlabelled(data: DataArguments, rows: dict[str, Any] | None) -> dict[str, Dataset]:
    """The split "unlabelled" of a recipe or of rows in memory; empty if there is none."""
    if rows is not None and "unlabelled" in rows:
        return {"unlabelled": rows["unlabelled"]}
    if not data.unlabelled:
        return {}
    texts: Any = load_texts(data.unlabelled, split="train", text_column=data.text_column)
    return {"unlabelled": texts.filter(lambda text: bool(text and text.strip()), input_columns="text")}


def fit_history(
    model: LLEForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    inside: Dataset,
    outside: Dataset,
    size: int,
    keep: float,
    fixed: Collection[str] = (),
) -> dict[str, Any]:
    """Fits the parameters of the bank on held-out texts and, given out-of-scope texts, "none of these".

    Args:
        model: Classifier with a bank.
        tokenizer: Its tokenizer.
        inside: In-scope texts, as made by `encode`.
        outside: Out-of-scope texts; may be empty.
        size: Texts per batch.
        keep: As in `fit_out_of_scope`.
        fixed: As in `calibrate`.

    Returns:
        `calibration`, the result of `calibrate`, and with out-of-scope texts `out_of_scope`, that of
        `fit_out_of_scope`.
    """
    found: dict[str, Any] = {"calibration": model.calibrate(batches(inside, tokenizer, size), fixed=fixed)}
    if len(outside):
        right, wrong = (batches(rows, tokenizer, size) for rows in (inside, outside))
        found["out_of_scope"] = model.fit_out_of_scope(right, wrong, keep)
    return found


class MemberLoss:
    """Mean of the members' losses with label smoothing; in evaluation, the loss of their joint prediction.

    Args:
        smoothing: Share of the target spread evenly over all labels (Szegedy et al. 2016, arXiv:1512.00567,
            section 7).
    """

    def __init__(self, smoothing: float) -> None:
        self.smoother = LabelSmoother(smoothing)

    def __call__(
        self, outputs: LLEClassifierOutput, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Scalar loss of the `outputs` of a batch with labels (B,) int64."""
        each = [outputs.logits] if outputs.member_logits is None else outputs.member_logits
        losses = [self.smoother({"logits": own}, labels, num_items_in_batch=num_items_in_batch) for own in each]
        return torch.stack(losses).mean()


def begin_embeddings(recipe: Recipe, texts: Sequence[str]) -> StaticEmbeddings | None:
    """The pretrained embeddings of a recipe, of the types in these texts with `prune`; None: it has none."""
    if "embeddings" not in recipe.model:
        return None
    if recipe.tokenizer.path or recipe.tokenizer.vocab_size:
        raise ValueError(
            f"model.embeddings brings the tokenizer of {recipe.model['embeddings']}: leave tokenizer.path and "
            "tokenizer.vocab_size out"
        )
    kept = texts if recipe.model.get("prune") else None
    return load_embeddings(recipe.model["embeddings"], recipe.tokenizer.lowercase, kept)


def make_classifier(
    values: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    labels: Sequence[str],
    embeddings: StaticEmbeddings | None = None,
) -> LLEForSequenceClassification:
    """A classifier with the configuration `values`, initialised from the model at their `path` if given.

    With `embeddings` it begins with these; `tokenizer` is theirs.

    A language model reads in one direction; the backward stack of a bidirectional classifier starts with the same
    weights.
    """
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: number for number, name in enumerate(labels)}}
    more = names if embeddings is None else {**names, **embeddings.sizes(values)}
    config, path = make_config(values, tokenizer, **more, problem_type=SINGLE)
    if embeddings is not None:
        model = LLEForSequenceClassification(config)
        embeddings.put_into(model)
        return model
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
        return _begin_with(path, config, begin)
    model, trained = LLEForSequenceClassification(config), LLEModel.from_pretrained(path)
    model.model.embed_tokens.load_state_dict(trained.embed_tokens.state_dict())
    for stack in (model.model.stack, model.model.backward_stack):
        assert stack is not None
        stack.load_state_dict(trained.stack.state_dict())
    return model


def _begin_with(path: str, config: LLEConfig, begin: LLEConfig) -> LLEForSequenceClassification:
    """A classifier with the weights of the model at a path; its output layer is new if that has other labels."""
    if begin.id2label == config.id2label:
        return LLEForSequenceClassification.from_pretrained(path, config=config)
    own = copy.deepcopy(config)
    own.id2label, own.label2id = begin.id2label, begin.label2id
    weights = LLEForSequenceClassification.from_pretrained(path, config=own).state_dict()
    model = LLEForSequenceClassification(config)
    model.load_state_dict(
        {name: weight for name, weight in weights.items() if not name.startswith("classifier.")}, strict=False
    )
    return model


def encode(rows: Dataset, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str] | None = None) -> Dataset:
    """Encodes texts: `input_ids` and `attention_mask`, unpadded, and `labels`, indices into the given labels."""
    numbers = {name: number for number, name in enumerate(labels or ())}

    def columns(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        encoded = dict(tokenizer(batch["text"]))
        return encoded | ({} if labels is None else {"labels": [numbers[label] for label in batch["label"]]})

    return rows.map(columns, batched=True, remove_columns=rows.column_names, keep_in_memory=True, desc="Tokenizing")


def batches(encoded: Dataset, tokenizer: PreTrainedTokenizerBase, size: int) -> Iterator[dict[str, Tensor]]:
    """Yields padded batches of at most `size` texts for `calibrate` and `fit_out_of_scope` of a classifier."""
    for start in range(0, len(encoded), size):
        yield dict(tokenizer.pad(encoded[start : start + size], return_tensors="pt"))


def _accuracy(predicted: EvalPrediction) -> dict[str, float]:
    logits = predicted.predictions
    assert not isinstance(logits, tuple)
    return {"accuracy": float((logits.argmax(-1) == predicted.label_ids).mean())}


def _load(data: DataArguments, split: str, rows: dict[str, Any] | None) -> Dataset:
    if rows is None and not data.source:
        raise ValueError("the recipe has no data.source: set it to a data set on the Hub or a local path")
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
