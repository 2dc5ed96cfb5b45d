"""Text from the Hub, from files or from memory, as token ids.

Notable: a row is a line or a document and ends with the `<eos>` that `tokenize` appends. Words and bytes are counted
before tokenisation, so perplexity per word and bits per byte compare across tokenizers. Shapes: T tokens of a text.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset, Features, IterableDataset, List, Value
from transformers import PreTrainedTokenizerBase

from .chosen import check_texts
from .rows import check_column
from .sources import Rows, Source, Split, describe, open_rows

_STRINGS = (Value("string"), Value("large_string"))
_ENCODED = Features({"input_ids": List(Value("int32")), "words": Value("int64"), "bytes": Value("int64")})


def load_texts(
    source: Source,
    *,
    name: str | None = None,
    split: Split = None,
    text_column: str = "text",
    sample_by: Literal["line", "document"] = "line",
    streaming: bool = False,
    cache_dir: str | Path | None = None,
) -> Rows:
    """Loads one split of a data set of texts.

    Args:
        source: A name on the Hub; a file, folder or glob, or several; a mapping from splits to such paths; or a data
            set in memory. Any file that is text in UTF-8 is read as text, whatever its ending; .csv, .tsv, .json,
            .jsonl and .parquet files are tables. Other files of a folder, hidden ones and tables without the column
            are left out, which is logged. Files or folders called train, valid, validation, val, dev or test are
            splits if all files belong to one, or if there is a train split and the splits hold most of the text;
            else all files are one text.
        name: Configuration of a data set on the Hub.
        split: "train", "validation" or "test", a slice such as "train[:10%]", or another split of `source`; names in
            order of preference, of which the first is read that there is; None: the only one. A source without
            splits is read as a whole, also as "train".
        text_column: Column that holds the text.
        sample_by: Whether a row of plain text is a line or a whole file.
        streaming: Whether to read while iterating, for data that does not fit on disk or, from .csv, .tsv, .json and
            .jsonl files, in memory.
        cache_dir: Folder where `datasets` keeps a copy of the texts; None: its own cache.

    Returns:
        Rows with all columns; an `IterableDataset` if streamed. Rows of files have the columns `file` and `line`, in
        which they begin, counted from 1; of Parquet `file` and `row_in_file`. A table with such a column keeps it.
        Rows of files of several kinds have no other columns.

    Raises:
        FileNotFoundError: `source` is neither on this machine nor on the Hub.
        ValueError: The split or column is missing (the message lists those available), or there is no text.
    """
    where = describe(source)
    options: dict[str, Any] = {"sample_by": sample_by, "streaming": streaming, "cache_dir": cache_dir}
    rows = open_rows(source, name=name, split=split, text_column=text_column, **options)
    _check_rows(rows, text_column, where)
    return rows


def _check_rows(rows: Rows, text_column: str, where: str) -> None:
    first = next(iter(rows), None)
    if first is None:
        raise ValueError(f"there is no text in {where}: it has no rows")
    check_column(text_column, first, where)
    if isinstance(rows, IterableDataset):
        check_texts([first[text_column]], text_column, where)
    elif rows.features[text_column] not in _STRINGS:
        check_texts(rows.with_format(None)[text_column], text_column, where)


def tokenize(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, *, text_column: str = "text", num_proc: int | None = None
) -> Rows:
    """Encodes texts, replacing a final line break by the tokenizer's `<eos>`.

    Names of special tokens within a text are encoded as plain text.

    Args:
        rows: Rows with a column `text_column`.
        tokenizer: Any tokenizer with an `eos_token`.
        text_column: Column that holds the text.
        num_proc: Number of processes; None: one. Streamed rows are encoded lazily.

    Returns:
        Rows with `input_ids` (int32), `words` (whitespace tokens and line ends) and `bytes` (UTF-8, with line ends).
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer needs an eos_token, as the end of each row")
    options: dict[str, Any] = {} if isinstance(rows, IterableDataset) else {"num_proc": num_proc, "desc": "Tokenizing"}
    return rows.map(
        _encode,
        batched=True,
        with_indices=True,
        input_columns=text_column,
        fn_kwargs={"tokenizer": tokenizer},
        remove_columns=rows.column_names or list(next(iter(rows), {})),
        features=_ENCODED,
        **options,
    )


def _encode(texts: list[str], rows: list[int], tokenizer: PreTrainedTokenizerBase) -> dict[str, list]:
    for row, text in zip(rows, texts, strict=True):
        if not isinstance(text, str):
            what = "no text" if text is None else f"{text!r:.80} instead of a text"
            raise ValueError(f"row {row} has {what}: filter such rows out first")
    input_ids = encode_texts(texts, tokenizer)
    texts = [text.removesuffix("\n") for text in texts]
    return {
        "input_ids": input_ids,
        "words": [len(text.split()) + text.count("\n") + 1 for text in texts],
        "bytes": [len(text.encode()) + 1 for text in texts],
    }


def encode_texts(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each text, final line break replaced by `<eos>`; names of special tokens are plain text."""
    encoded = tokenizer(
        [text.removesuffix("\n") for text in texts],
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        verbose=False,
    )
    return [[*ids, tokenizer.eos_token_id] for ids in encoded["input_ids"]]


def encode_sentences(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of sentences, with the special tokens that the tokenizer adds; their names are plain text."""
    return tokenizer(texts, split_special_tokens=True, return_attention_mask=False, verbose=False)["input_ids"]


@dataclasses.dataclass(frozen=True)
class TextTokens:
    """A tokenised text in memory.

    Args:
        ids: (T,) int32, start token and tokens of all rows in order.
        words: Number of whitespace tokens and line ends.
        bytes: Number of bytes, line ends included.
    """

    ids: np.ndarray
    words: int
    bytes: int

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises a ValueError unless all ids are below the `vocab_size` of a model."""
        largest = int(self.ids.max(initial=-1))
        if largest >= vocab_size:
            raise ValueError(
                f"the text was encoded with a vocabulary of at least {largest + 1} types, the model has {vocab_size}: "
                "use the tokenizer that was saved with the model, or make the model with vocab_size=len(tokenizer)"
            )


def collect(tokenized: Dataset, start: int | None = None) -> TextTokens:
    """Joins the rows of `tokenize`.

    Args:
        tokenized: Rows with `input_ids`, `words` and `bytes`.
        start: Token before the first one, usually `<eos>`, so that each token of the text is a target once.
    """
    if isinstance(tokenized, IterableDataset):
        raise TypeError("streamed rows cannot be collected in memory: read them with StreamIterableDataset")
    if "input_ids" not in tokenized.column_names:
        raise ValueError(f"no column 'input_ids' among {', '.join(tokenized.column_names)}: call tokenize first")
    table = tokenized.with_format("arrow")[:]
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table["input_ids"].chunks]
    first = [] if start is None else [start]
    ids = np.concatenate([np.array(first, dtype=np.int32), *parts], dtype=np.int32)
    return TextTokens(ids, int(table["words"].to_numpy().sum()), int(table["bytes"].to_numpy().sum()))
