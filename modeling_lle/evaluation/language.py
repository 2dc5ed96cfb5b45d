"""Evaluation of language models in one streaming pass over a text.

Notable: base and history are measured in the same pass, with state and stream carried from segment to segment; every
token is a target once. Shapes: B batch, T time, V vocabulary.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from ..bank.bank import HistoryBank
from ..common.precision import in_precision
from ..common.terminal import counted
from ..common.terminal import progress as progress_bar
from ..data import StreamDataset, TextTokens, collect, load_texts, tokenize
from ..data.sources import Split, describe
from ..data.streams import IGNORED
from ..models.causal import LLEForCausalLM
from ..training.overlap import Seen
from .results import describe_files, this_command, write_results
from .stream import SIDES, StreamEvaluation

SEGMENT_LENGTH = 256


def evaluate_stream(
    model: LLEForCausalLM,
    tokens: TextTokens,
    *,
    rows: int = 1,
    segment_length: int = SEGMENT_LENGTH,
    train_counts: np.ndarray | None = None,
    progress: bool = False,
) -> StreamEvaluation:
    """Reads a text as a stream and measures it with and without history: in one pass, with the update in two.

    Args:
        model: Language model.
        tokens: Text, as returned by `collect`: each token but the first is a target.
        rows: Readers that start at equal distances, each with its own stream; more are faster and remember less.
        segment_length: Tokens per row and step; does not affect the result.
        train_counts: (V,) integers, frequency of each type in the training set, for the breakdown.
        progress: Whether to show a progress bar on a terminal.

    Raises:
        FloatingPointError: A log probability is not finite.
        TypeError: The model cannot score a stream.
        ValueError: The text is too short, or has tokens outside of the vocabulary.
    """
    if not hasattr(model, "score"):
        raise TypeError(f"a {type(model).__name__} cannot be evaluated as a stream: give an LLEForCausalLM")
    tokens.check_vocabulary(model.config.vocab_size)
    stream = StreamDataset(tokens.ids, rows, segment_length, evaluation=True)
    training = model.training
    model.eval()
    begin = time.perf_counter()
    numbers = model.config.overlay
    scope, joined = numbers.scope, {}
    try:
        if scope != "none" and model.config.use_history:  # first without it: the update changes the base
            numbers.scope = "none"
            plain = _read(model, stream, progress)
            numbers.scope = scope
            both = "both" if "bank" in plain or "matches" in plain else "stream"
            joined = {both if name == "history" else name: values for name, values in plain.items()}
            begin = time.perf_counter()
        read = _read(model, stream, progress)
        joined = {**read, **joined, "update": read["base"]} if joined else read
    finally:
        numbers.scope = scope
        model.train(training)
    seconds = time.perf_counter() - begin
    valid = joined["labels"] != IGNORED
    scored = {name: values[valid] for name, values in joined.items()}
    targets = scored["labels"]
    return StreamEvaluation(
        targets=targets,
        position=np.broadcast_to(np.arange(valid.shape[1]), valid.shape)[valid],
        nats={side: -scored[side] for side in SIDES if side in scored},
        shares={name.removesuffix("_share"): values for name, values in scored.items() if name.endswith("_share")},
        counts=_check_counts(train_counts, targets, model.config.vocab_size),
        counted="evaluated text" if train_counts is None else "training set",
        window=model.config.stream.window if model.config.use_history else 0,
        words=tokens.words,
        bytes=tokens.bytes,
        seconds=seconds,
    )


_COLUMNS = {
    "base": "base_log_probs",
    "stream": "stream_log_probs",
    "matches": "matches_log_probs",
    "bank": "bank_log_probs",
    "bank_matches": "bank_matches_log_probs",
    "history": "log_probs",
    "stream_share": "stream_share",
    "matches_share": "matches_share",
    "bank_share": "bank_share",
    "bank_matches_share": "bank_matches_share",
}


def _read(model: LLEForCausalLM, stream: StreamDataset, progress: bool) -> dict[str, np.ndarray]:
    """`labels`, log probabilities of the sides and shares of the sources, (B, T) each."""
    segments: list[dict[str, np.ndarray]] = []
    cache = None
    bar = progress_bar(stream.targets, "Evaluating", "tokens", progress)
    for batch in DataLoader(stream, batch_size=stream.rows):
        output = model.score(
            **{name: tensor.to(model.device) for name, tensor in batch.items()}, past_key_values=cache
        )
        cache = output.past_key_values
        scores = {name: output[key].float() for name, key in _COLUMNS.items() if output.get(key) is not None}
        if not all(bool(values.isfinite().all()) for values in scores.values()):
            raise FloatingPointError(
                f"the log probabilities are not finite after {len(segments) * stream.segment_length} tokens: the "
                "weights hold NaN or infinite values, or autocast overflows; evaluate an earlier checkpoint, or "
                "in float32"
            )
        labels = batch["shift_labels"].numpy()
        bar.update(int((labels != IGNORED).sum()))
        segments.append({"labels": labels, **{name: values.cpu().numpy() for name, values in scores.items()}})
    bar.close()
    return {name: np.concatenate([segment[name] for segment in segments], axis=1) for name in segments[0]}


def _check_counts(train_counts: np.ndarray | None, targets: np.ndarray, vocab_size: int) -> np.ndarray:
    if train_counts is None:
        return np.bincount(targets, minlength=vocab_size)
    if train_counts.shape != (vocab_size,):
        raise ValueError(f"train_counts must have the shape ({vocab_size},), got {train_counts.shape}")
    return train_counts


def evaluate_folder(
    model_path: str | Path,
    source: Any,
    *,
    name: str | None = None,
    split: Split = ("test", "validation"),
    train_split: str | None = None,
    text_column: str = "text",
    sample_by: Literal["line", "document"] = "line",
    rows: int = 1,
    segment_length: int = SEGMENT_LENGTH,
    limit_tokens: int | None = None,
    bank: str | Path | None = None,
    namespaces: Sequence[str] | None = None,
    precision: str = "auto",
    output: str | Path | None = None,
    command: str | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluates a saved language model on a data set, as `lle evaluate` does.

    Args:
        model_path: Folder, or name on the Hub, of a model and its tokenizer.
        source, name, split, text_column, sample_by: Text, as in `load_texts`.
        train_split: Split for counting the frequency of types; None: the evaluated text.
        rows, segment_length: As in `evaluate_stream`.
        limit_tokens: Maximum tokens to read, in whole rows, at least one; None: all.
        bank: Bank to recall from, as in `HistoryBank.from_pretrained`; None: none.
        namespaces: Namespaces to recall from; None: all.
        precision: "auto", "float32" or "bfloat16", as in `resolve_precision`.
        output: Folder for evaluation.json and evaluation.png; None: write nothing.
        command: Command recorded in the JSON; None: the current one.
        progress: As in `evaluate_stream`.

    Returns:
        Content of evaluation.json: `metrics` and `rows`, the breakdown; and `read`, a line on what was read.
    """
    if output is not None:
        from .pictures import draw_evaluation, save_figure  # first: a missing extra fails early
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model: Any = AutoModelForCausalLM.from_pretrained(model_path)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    if bank is not None:
        model.attach_history(HistoryBank.from_pretrained(bank), namespaces)

    def load(part: Split) -> Dataset:
        texts = load_texts(source, name=name, split=part, text_column=text_column, sample_by=sample_by)
        assert isinstance(texts, Dataset)  # not streamed
        return texts

    def encode(texts: Dataset) -> Dataset:
        return tokenize(texts, tokenizer, text_column=text_column)

    texts = load(split)
    tokens = _first(encode(texts), tokenizer, limit_tokens)
    Seen(model_path, model.history, tokenizer).tell(tokens.ids, describe(source))
    counts = _count(encode(load(train_split)), model.config.vocab_size) if train_split else None
    with in_precision(model, precision):
        options: dict[str, Any] = {"rows": rows, "segment_length": segment_length, "train_counts": counts}
        evaluation = evaluate_stream(model, tokens, progress=progress, **options)
    results: dict[str, Any] = {"metrics": evaluation.metrics(), "rows": evaluation.breakdown()}
    if output is not None:
        output = Path(output)
        results = write_results(output / "evaluation.json", command or this_command(), **results)
        save_figure(draw_evaluation(evaluation), output / "evaluation.png")
    return {**results, "read": f"{counted(len(tokens.ids) - 1, 'token')} of {describe_files(texts, source)}."}


def _first(tokenized: Dataset, tokenizer: PreTrainedTokenizerBase, limit: int | None) -> TextTokens:
    """Rows of a data set as one text of at most `limit` tokens, with at least one row."""
    if limit is not None:
        if limit < 1:
            raise ValueError(f"limit_tokens must be at least 1, got {limit}")
        lengths = np.cumsum([len(ids) for ids in tokenized["input_ids"]])
        tokenized = tokenized.select(range(max(1, int(np.searchsorted(lengths, limit, side="right")))))
    return collect(tokenized, start=tokenizer.eos_token_id)


def _count(tokenized: Dataset, vocab_size: int) -> np.ndarray:
    """Frequency of each type, (V,) int64."""
    tokens = collect(tokenized)
    tokens.check_vocabulary(vocab_size)
    return np.bincount(tokens.ids, minlength=vocab_size)


def format_table(metrics: dict[str, float]) -> str:
    """Metrics of a `StreamEvaluation` as a table for the terminal."""
    sides = [side for side in SIDES if f"{side}_ppl" in metrics]
    together = "history" if len(sides) == 2 else "all" if "update" in sides else "both"
    names = [together if side == "history" else side for side in sides]
    lines = [f"{'':20}" + "".join(f"{name:>12}" for name in names) + f"{'ratio':>9}"]
    for label, key in (
        ("perplexity / token", "ppl"),
        ("perplexity / word", "word_ppl"),
        ("bits / byte", "bits_per_byte"),
    ):
        values = [metrics[f"{side}_{key}"] for side in sides]
        digits = 2 if key.endswith("ppl") else 4
        cells = [f"{value:,.{digits}f}" if value < 1e6 else f"{value:.3g}" for value in values]
        lines.append(f"{label:20}" + "".join(f"{cell:>12}" for cell in cells) + f"{values[-1] / values[0]:>9.3f}")
    effects = []
    for side, name in zip(sides[1:], names[1:], strict=True):
        prefix = "" if side == "history" else f"{side}_"
        several = name in ("both", "all")
        subject = f"{name.title()} together" if several else f"The {name}{' alone' * (name != 'history')}"
        effects.append(
            f"{subject} help{'s' * (not several)} {metrics[f'{prefix}wins']:.0%} of the tokens, by "
            f"{metrics[f'{prefix}mean_win_nats']:.2f} nats each, and hurt{'s' * (not several)} "
            f"{metrics[f'{prefix}losses']:.0%}, by {metrics[f'{prefix}mean_loss_nats']:.2f}."
        )
    speed = (
        f"{metrics['tokens']:,.0f} tokens in {metrics['seconds']:.1f} s, {metrics['tokens_per_second']:,.0f} tokens/s."
    )
    return "\n".join([*lines, "", *effects, speed])
