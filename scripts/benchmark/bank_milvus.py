"""A bank in Milvus beside the same bank in its folder: neighbours, perplexity and queries a second, in one run.

The bank of a training text is copied from its folder into Milvus with `lle bank copy`, which compares the two. Both
are searched with the same queries, states of validation text, in the batches in which a model asks and one by one.
The parameters of the rule are fitted once, with the folder searched exactly; then test text is read with each.
"""

import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from modeling_lle import Attachment, HistoryBank
from modeling_lle.bank.copying import copy_to
from modeling_lle.bank.protocol import Search
from modeling_lle.configuration_sections import BankConfig
from modeling_lle.data import load_texts
from modeling_lle.evaluation import write_results
from modeling_lle.evaluation.results import this_command
from modeling_lle.history.prediction import BLOCK

from .bank_keys import beginning, fit_rule, perplexity_of, token_ids
from .inputs import Model, Source, load_model, read_states
from .timing import RESULTS, Row

SETTINGS: tuple[Search, ...] = ("exact", "balanced", "fast")
ROUNDING = 1e-5  # of a cosine
SINGLE = 20  # queries that are asked one by one


def bank_milvus(
    model: Model,
    source: Source,
    address: Annotated[
        str | None, typer.Option(help="Of a bank that is made for this run and removed; by default a temporary file.")
    ] = None,
    bank_tokens: Annotated[
        int | None, typer.Option(help="Training tokens that make the bank; by default all.")
    ] = None,
    queries: Annotated[int, typer.Option(help="Queries that are timed and compared.")] = 2000,
    tokens: Annotated[int, typer.Option(help="Validation tokens that the rule is fitted on.")] = 6000,
    test_tokens: Annotated[int, typer.Option(help="Test tokens that are read.")] = 6000,
    output: Annotated[Path, typer.Option(help="Results file.")] = RESULTS / "bank-milvus.json",
) -> None:
    """A bank in Milvus beside its folder: recall, perplexity, and queries a second."""
    loaded, tokenizer = load_model(model)
    train = load_texts(source, split="train")
    train = train if bank_tokens is None else beginning(train, tokenizer, bank_tokens)
    fit, read = (
        list(read_states(loaded, token_ids(load_texts(source, split=split), tokenizer, size)))
        for split, size in (("validation", max(tokens, queries)), ("test", test_tokens))
    )
    asked = torch.nn.functional.normalize(torch.cat([states for states, _ in fit])[:queries], dim=-1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = HistoryBank.build(loaded, tokenizer, train, Path(temporary) / "bank")
        begin = time.perf_counter()
        copied = copy_to(folder, address or f"milvus+file:{temporary}/lite.db")
        seconds = time.perf_counter() - begin
        _wait(copied, asked[:1])
        loaded.config.history.bank = BankConfig(search="exact")
        neighbours = loaded.config.bank.neighbours
        fit_rule(loaded, fit, Attachment(folder).pinned())
        least = folder.search(asked, neighbours, how="exact").similarity[:, -1:]
        for name, bank in (("folder", folder), ("Milvus", copied)):
            for how in SETTINGS:
                loaded.config.bank.search = how
                row = {"bank": name, "search": how, "recall": _recall(bank, asked, neighbours, how, least)}
                row |= _speeds(bank, asked, neighbours, how)
                row["bank_ppl"] = perplexity_of(loaded, read, Attachment(bank).pinned())
                typer.echo(row)
                rows.append(row)
        metrics = _metrics(rows, folder, seconds) | {
            "neighbours": neighbours,
            "base_ppl": perplexity_of(loaded, read, None),
        }
        copied.drop()  # type: ignore[attr-defined]
    write_results(output, this_command(), metrics, rows)


def _metrics(rows: list[Row], folder: HistoryBank, seconds: float) -> dict[str, Any]:
    exact, balanced = rows[0], rows[len(SETTINGS) + 1]
    return {
        "entries": len(folder),
        "width": folder.width,
        "recall": balanced["recall"],
        "ppl_ratio_to_exact": balanced["bank_ppl"] / exact["bank_ppl"],
        "copied_entries_per_second": len(folder) / seconds,
    }


def _wait(bank: HistoryBank, query: Tensor, most: float = 600.0, steady: float = 1.5) -> None:
    """Waits until the engine has indexed what was copied: until a search takes as long as the one before."""
    bank.settle()  # type: ignore[attr-defined]
    end, before = time.monotonic() + most, 0.0
    while time.monotonic() < end:
        begin = time.perf_counter()
        bank.search(query, 1)
        seconds = time.perf_counter() - begin
        if before and before / steady < seconds < before * steady:
            return
        before = seconds
        time.sleep(2)


def _recall(bank: HistoryBank, queries: Tensor, neighbours: int, how: Search, least: Tensor) -> float:
    """Share of the found entries that are as near as the last true neighbour, whose cosine is `least` (Q, 1)."""
    found = torch.cat([bank.search(part, neighbours, how=how).similarity for part in queries.split(BLOCK)])
    return float((found >= least - ROUNDING).float().mean())


def _speeds(bank: HistoryBank, queries: Tensor, neighbours: int, how: Search) -> dict[str, float]:
    begin = time.perf_counter()
    for part in queries.split(BLOCK):
        bank.search(part, neighbours, how=how)
    middle = time.perf_counter()
    for query in queries[:SINGLE].split(1):
        bank.search(query, neighbours, how=how)
    end = time.perf_counter()
    single = min(SINGLE, len(queries))
    return {
        "queries_per_second": len(queries) / (middle - begin),
        "milliseconds_alone": 1000 * (end - middle) / single,
    }
