"""Text from the Hub, from files or from memory, as token ids.

Notable: a row of a data set is one line or one document; its end is the `<eos>` that `tokenize` appends. Words and
bytes are counted before tokenisation, so perplexity per word and bits per byte mean the same for every tokenizer.
"""

import dataclasses
import difflib
import glob
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import datasets
import numpy as np
from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict, List, Value
from transformers import PreTrainedTokenizerBase

Rows: TypeAlias = Dataset | IterableDataset
RowsBySplit: TypeAlias = DatasetDict | IterableDatasetDict
Files: TypeAlias = str | Path | Sequence[str | Path]

_BUILDERS = {".txt": "text", ".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_SPLITS = {
    "train": "train",
    "training": "train",
    "valid": "validation",
    "validation": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
_ENCODED = Features({"input_ids": List(Value("int32")), "words": Value("int64"), "bytes": Value("int64")})


def load_texts(
    source: str | Path | Mapping[str, Files] | Rows | RowsBySplit,
    *,
    name: str | None = None,
    split: str | None = None,
    text_column: str = "text",
    sample_by: Literal["line", "document"] = "line",
    streaming: bool = False,
) -> Rows:
    """Loads one split of a data set of texts.

    Args:
        source: A name on the Hub; a file, folder or glob of .txt, .csv, .json, .jsonl and .parquet files; a mapping
            from splits to such paths; or a data set in memory. The words train, valid, validation, val, dev and test
            in the path of a file name its split; files without such a word are left out where others have one, and
            "train" where none has.
        name: Configuration of a data set on the Hub.
        split: "train", "validation" or "test", a slice such as "train[:10%]", or another split that `source` has.
            None takes the only one.
        text_column: Column that holds the text.
        sample_by: Whether a row is a line or a whole file of plain text.
        streaming: Whether to read while iterating, for what does not fit on the disk.

    Returns:
        The rows, with their other columns: an `IterableDataset` if they are streamed.

    Raises:
        FileNotFoundError: `source` is neither on this machine nor on the Hub.
        ValueError: The split or column does not exist (the message lists those that do), or there is no text.
    """
    where = repr(str(source)) if isinstance(source, (str, Path)) else "the data set"
    if isinstance(source, (Dataset, IterableDataset)):
        if split is not None:
            raise ValueError(f"the data set has no splits, so {split!r} cannot be chosen: give a DatasetDict")
        rows: Rows = source
    elif isinstance(source, (DatasetDict, IterableDatasetDict)):
        rows = source[_pick_split(split, source, where)]
    elif (files := _local_files(source)) is not None:
        rows = _load_files(files, split, where, sample_by, streaming)
    else:
        rows = _load_from_hub(str(source), name, split, streaming)
    _check_rows(rows, text_column, where)
    return rows


def _pick_split(split: str | None, available: Iterable[str], where: str) -> str:
    """The split of `available` that is meant by `split`."""
    names = list(available)
    if split is None:
        if len(names) == 1:
            return names[0]
        raise ValueError(f"{where} has several splits, name one of them: {', '.join(names)}")
    for candidate in (split, _SPLITS.get(split)):
        if candidate in names:
            return candidate
    raise ValueError(f"{where} has no split {split!r}; it has: {', '.join(names)}")


def _local_files(source: str | Path | Mapping[str, Files]) -> dict[str, list[Path]] | None:
    """The files of every split; None for what is a name on the Hub."""
    if isinstance(source, Mapping):
        return {
            _SPLITS.get(split, split): [path for pattern in _as_list(given) for path in _expand(pattern)]
            for split, given in source.items()
        }
    path = Path(source).expanduser()
    if not path.exists() and not glob.has_magic(str(source)) and _may_be_on_hub(source):
        return None
    files = _expand(source)
    root = path if path.is_dir() else Path()
    named: dict[str, list[Path]] = {}
    for file in files:
        place = file.relative_to(root).as_posix() if path.is_dir() else file.name
        words = re.split(r"[^a-z]+", place.lower())
        split = next((_SPLITS[word] for word in words if word in _SPLITS), None)
        if split:
            named.setdefault(split, []).append(file)
    return named or {"train": files}


def _as_list(files: Files) -> Sequence[str | Path]:
    return [files] if isinstance(files, (str, Path)) else files


def _may_be_on_hub(source: str | Path) -> bool:
    text = str(source)
    return bool(re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", text)) and Path(text).suffix not in _BUILDERS


def _expand(pattern: str | Path) -> list[Path]:
    """The files that a path, folder or glob stands for, sorted; raises a FileNotFoundError when there are none."""
    path = Path(pattern).expanduser()
    if path.is_file():
        if path.suffix not in _BUILDERS:
            raise ValueError(f"cannot read {str(path)!r}: its name should end with one of {', '.join(_BUILDERS)}")
        return [path]
    pattern = str(path / "**" / "*") if path.is_dir() else str(path)
    candidates = map(Path, glob.iglob(pattern, recursive=True))
    files = sorted(file for file in candidates if file.suffix in _BUILDERS and file.is_file())
    if not files:
        raise FileNotFoundError(_not_found(path))
    return files


def _not_found(path: Path) -> str:
    """What to say about a path without files: where it stops to exist, and the near names there."""
    if path.is_dir() or glob.has_magic(str(path)):
        return f"{str(path)!r} holds no file whose name ends with one of {', '.join(_BUILDERS)}"
    missing = path.absolute()
    while not missing.parent.exists():
        missing = missing.parent
    near = difflib.get_close_matches(missing.name, [entry.name for entry in missing.parent.iterdir()], n=3)
    hint = f"; near names there: {', '.join(near)}" if near else ""
    return f"there is no {str(path)!r}: {str(missing.parent)!r} holds no {missing.name!r}{hint}"


def _load_files(files: dict[str, list[Path]], split: str | None, where: str, sample_by: str, streaming: bool) -> Rows:
    wanted, bracket, rows = (split or "").partition("[")
    picked = _pick_split(wanted or None, files, where)
    builders = {_BUILDERS[file.suffix] for file in files[picked]}
    if len(builders) > 1:
        raise ValueError(
            f"the split {picked!r} of {where} mixes files of the kinds {', '.join(sorted(builders))}: "
            'choose one kind with a glob such as "folder/*.txt"'
        )
    if not any(file.stat().st_size for file in files[picked]):
        raise ValueError(f"there is no text in the split {picked!r} of {where}: its files are empty")
    builder = builders.pop()
    return datasets.load_dataset(
        builder,
        data_files={picked: [str(file) for file in files[picked]]},
        split=picked + bracket + rows,
        streaming=streaming,
        **({"sample_by": sample_by} if builder == "text" else {}),
    )


def _load_from_hub(source: str, name: str | None, split: str | None, streaming: bool) -> Rows:
    try:
        loaded = datasets.load_dataset(source, name, split=split, streaming=streaming)
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(f"{_not_found(Path(source))}; nor can it be had from the Hub: {error}") from error
    if isinstance(loaded, (DatasetDict, IterableDatasetDict)):
        return loaded[_pick_split(None, loaded, repr(source))]
    return loaded


def _check_rows(rows: Rows, text_column: str, where: str) -> None:
    first = next(iter(rows), None)
    if first is None:
        raise ValueError(f"there is no text in {where}: it has no rows")
    if text_column not in first:
        near = difflib.get_close_matches(text_column, first, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"{where} has no column {text_column!r}{hint}; its columns are: {', '.join(first)}")
    if not isinstance(first[text_column], str):
        raise ValueError(f"the column {text_column!r} of {where} holds {type(first[text_column]).__name__}, not text")


def tokenize(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, *, text_column: str = "text", num_proc: int | None = None
) -> Rows:
    """Encodes texts, one row each, and ends each with the tokenizer's `<eos>` in the place of its last line break.

    Names of special tokens that occur in a text are encoded as the text that they are.

    Args:
        rows: Rows with a column `text_column`.
        tokenizer: Any tokenizer with an `eos_token`.
        text_column: Column that holds the text.
        num_proc: Number of processes; None for one. Streamed rows are encoded as they come.

    Returns:
        Rows with `input_ids` (int32), `words` (whitespace tokens and line ends) and `bytes` (of the UTF-8, line ends
        included).
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer needs an eos_token, which ends every row")
    options: dict[str, Any] = {} if isinstance(rows, IterableDataset) else {"num_proc": num_proc, "desc": "Tokenizing"}
    return rows.map(
        _encode,
        batched=True,
        input_columns=text_column,
        fn_kwargs={"tokenizer": tokenizer},
        remove_columns=rows.column_names or list(next(iter(rows), {})),
        features=_ENCODED,
        **options,
    )


def _encode(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> dict[str, list]:
    if None in texts:
        raise ValueError("a row has no text: filter such rows out first")
    input_ids = encode_texts(texts, tokenizer)
    texts = [text.removesuffix("\n") for text in texts]
    return {
        "input_ids": input_ids,
        "words": [len(text.split()) + text.count("\n") + 1 for text in texts],
        "bytes": [len(text.encode()) + 1 for text in texts],
    }


def encode_texts(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each text, a last line break replaced by `<eos>`; names of special tokens are plain text."""
    encoded = tokenizer(
        [text.removesuffix("\n") for text in texts],
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        verbose=False,
    )
    return [[*ids, tokenizer.eos_token_id] for ids in encoded["input_ids"]]


@dataclasses.dataclass(frozen=True)
class TextTokens:
    """A tokenised text in memory.

    Args:
        ids: (N,) int32, the tokens of all rows in their order, after the start token.
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
    """Joins the rows that `tokenize` made.

    Args:
        tokenized: Rows with `input_ids`, `words` and `bytes`.
        start: Token put before the first one, usually `<eos>`, so that each token of the text is a target once.
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
