"""Training of a translator by a recipe."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from torch.utils.data import Sampler
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase, Seq2SeqTrainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from ..data import load_pairs
from ..data.text import encode_sentences
from ..models.seq2seq import LLEForSeq2SeqLM
from .arguments import TranslationArguments
from .checkpoints import find_checkpoint
from .held_out import at_most, hold_out_pairs
from .recipe import DataArguments, Recipe
from .steps import begin_at_frequencies, make_config, make_tokenizer, save, train

NO_REPEATED = 6  # tokens that a translation has at most once, as small translators begin to repeat themselves


class LengthGroups(LengthGroupedSampler):
    """Batches of rows of like length in random order; first the batch with the longest row, last what fills none.

    transformers' sampler yields each 50 batches from the longest to the shortest rows.
    """

    def __iter__(self) -> Iterator[int]:
        rows = list(super().__iter__())
        batches = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        whole = len(rows) // self.batch_size
        middle = 1 + torch.randperm(max(whole - 1, 0), generator=self.generator)
        for place in (0, *middle.tolist(), *range(max(whole, 1), len(batches))):
            yield from batches[place]


class PairTrainer(Seq2SeqTrainer):
    """Seq2SeqTrainer whose `train_sampling_strategy="group_by_length"` groups pairs by their longer side.

    By the source alone, as transformers groups them, short sources with long targets fill a batch with padding.
    """

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int] | None:
        pairs = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not isinstance(pairs, Dataset):
            return super()._get_train_sampler(train_dataset)
        sides = zip(pairs["input_ids"][:], pairs["labels"][:], strict=True)
        return LengthGroups(
            self.args.train_batch_size * self.args.gradient_accumulation_steps,
            lengths=[max(len(source), len(target)) for source, target in sides],
        )


def run_translation(recipe: Recipe, rows: dict[str, Any] | None = None, resume: bool = False) -> dict[str, Any]:
    """Trains a translator with one tokenizer for both languages; see `run`."""
    arguments: TranslationArguments = recipe.training
    pairs = pair_splits(recipe, rows)
    tokenizer = make_tokenizer(recipe, _texts(pairs["train"]), ends_texts=True)
    config, path = make_config(recipe.model, tokenizer, is_encoder_decoder=True)
    model = LLEForSeq2SeqLM(config) if path is None else LLEForSeq2SeqLM.from_pretrained(path, config=config)
    encoded = _encode(pairs, tokenizer, arguments.max_tokens)
    if path is None:
        begin_at_frequencies(model.lm_head.bias, np.concatenate(encoded["train"]["labels"][:]))
        model.generation_config.no_repeat_ngram_size = NO_REPEATED
    trainer = make_trainer(recipe, model, tokenizer, encoded)
    metrics = train(trainer, find_checkpoint(trainer, resume))
    model.config.use_cache = True  # the Trainer switches it off
    if trainer.is_world_process_zero():
        save(recipe, trainer, metrics, read=pairs["train"]["source"])
    return metrics


def make_trainer(
    recipe: Recipe, model: LLEForSeq2SeqLM, tokenizer: PreTrainedTokenizerBase, encoded: dict[str, Dataset]
) -> PairTrainer:
    """Trainer of a translator by a recipe, on "train" and "validation" pairs as made by `encode`."""
    model.label_smoothing = recipe.training.label_smoothing_factor
    trainer = PairTrainer(
        model=model,
        args=recipe.training,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        processing_class=tokenizer,
    )
    trainer.label_smoother = None  # done by the model's loss
    return trainer


def training_pairs(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> dict[str, Dataset]:
    """Splits "train" and "validation" of a recipe, with columns `input_ids` and `labels`."""
    return _encode(pair_splits(recipe), tokenizer, recipe.training.max_tokens)


def _encode(pairs: dict[str, Dataset], tokenizer: PreTrainedTokenizerBase, most: int) -> dict[str, Dataset]:
    encoded = {split: encode(pairs[split], tokenizer) for split in ("train", "validation")}
    return {**encoded, "train": _short(encoded["train"], most)}


def encode(pairs: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Encodes sentence pairs as `input_ids` and `labels`."""

    def batch(sources: list[str], targets: list[str]) -> dict[str, list[list[int]]]:
        return {"input_ids": encode_sentences(sources, tokenizer), "labels": encode_sentences(targets, tokenizer)}

    return pairs.map(
        batch, batched=True, input_columns=["source", "target"], remove_columns=pairs.column_names, desc="Tokenizing"
    )


def _short(encoded: Dataset, most: int) -> Dataset:
    """Pairs with at most `most` tokens on each side; raises a ValueError if there are none."""
    lengths = zip(encoded["input_ids"][:], encoded["labels"][:], strict=True)
    kept = [row for row, (source, target) in enumerate(lengths) if max(len(source), len(target)) <= most]
    if not kept:
        raise ValueError(f"every training pair has more than {most} tokens: raise training.max_tokens")
    return encoded.select(kept)


def _texts(pairs: Dataset) -> Iterator[str]:
    for side in ("source", "target"):
        yield from pairs[side]


def pair_splits(recipe: Recipe, rows: dict[str, Any] | None = None) -> dict[str, Dataset]:
    """Sentence pairs of a recipe, or rows in memory, by split.

    Returns:
        "train" and "validation", and "test" with `data.held_out_test`.

    Raises:
        ValueError: The recipe lacks source or languages, or a split is unusable.
    """
    data, seed = recipe.data, recipe.training.seed
    if not all((data.source_language, data.target_language)):
        raise ValueError("the recipe has no languages: set data.source_language and data.target_language")
    if rows is None and not data.source:
        raise ValueError("the recipe has no data.source: set it to a data set on the Hub or a local path")
    training = at_most(_load(data, "train", rows), data.max_rows, seed)
    if not data.held_out:
        validation = _load(data, "validation", rows)
        test = {}
        if data.held_out_test:
            training, test["test"] = hold_out_pairs(training, (data.held_out_test,), seed)
        return {"train": training, "validation": validation, **test}
    training, validation, tested = hold_out_pairs(training, (data.held_out, data.held_out_test), seed)
    return {"train": training, "validation": validation, **({"test": tested} if data.held_out_test else {})}


def _load(data: DataArguments, split: str, rows: dict[str, Any] | None) -> Dataset:
    return load_pairs(
        data.source if rows is None else DatasetDict(rows),
        name=data.name if rows is None else None,
        split=getattr(data, split) if rows is None else split,
        source_language=str(data.source_language),
        target_language=str(data.target_language),
        source_column=data.source_column,
        target_column=data.target_column,
    )
