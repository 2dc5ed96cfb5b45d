"""Width of a bank's keys against perplexity, size and speed: states as they are, projected, and a reference.

A bank of the first training tokens of each text is searched exactly; for each kind of keys, the parameters of the rule
are fitted on validation text, and test text is read without the stream. Beside the random axes that banks have, the
first principal components of the bank's states are measured, which change their inner products least.
"""

import dataclasses
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from modeling_lle import Attachment, HistoryBank, LLEForCausalLM
from modeling_lle.bank.manifest import Projected
from modeling_lle.bank.projection import Projection
from modeling_lle.configuration_sections import BankConfig
from modeling_lle.data import collect, load_texts, tokenize
from modeling_lle.evaluation import write_results
from modeling_lle.evaluation.results import this_command
from modeling_lle.history.calibration import Calibration
from modeling_lle.history.prediction import BLOCK

from .inputs import load_model, read_states
from .timing import RESULTS, Row

STATES, PROJECTED, COMPONENTS = "states", "projected", "principal components"
SAMPLE = 20_000  # states that the components are of, at most, spread evenly
ASKED = 2048  # queries that search is timed with
Part = tuple[Tensor, Tensor]  # states (T, D), and the tokens that followed (T,) int64


def bank_keys(
    models: Annotated[list[str], typer.Argument(help="Folders or names on the Hub.")],
    source: Annotated[list[str], typer.Option(help="Text with train, validation and test splits, repeatable.")],
    width: Annotated[
        list[int] | None, typer.Option(help="Width of keys, repeatable; by default 64, 128, 256.")
    ] = None,
    bank_tokens: Annotated[int, typer.Option(help="Training tokens that make the bank.")] = 300_000,
    tokens: Annotated[int, typer.Option(help="Validation tokens that the rule is fitted on.")] = 12_000,
    test_tokens: Annotated[int, typer.Option(help="Test tokens that are read.")] = 12_000,
    output: Annotated[Path, typer.Option(help="Results file.")] = RESULTS / "bank-keys.json",
) -> None:
    """Keys of a bank, whole and projected: perplexity, bytes an entry, and queries a second."""
    metrics = {"bank_tokens": bank_tokens, "test_tokens": test_tokens, "neighbours": BankConfig().neighbours}
    rows: list[Row] = []
    for text, name in itertools.product(source, models):  # what is measured stays if the rest is interrupted
        measured = _rows(name, text, sorted(width or [64, 128, 256]), (bank_tokens, tokens, test_tokens))
        rows += ({"text": Path(text).name, "model": Path(name).name, **row} for row in measured)
        write_results(output, this_command(), metrics, rows)


def _rows(name: str, source: str, widths: list[int], sizes: tuple[int, int, int]) -> Iterator[Row]:
    """The rows of a model and a text, with these numbers of training, validation and test tokens."""
    model, tokenizer = load_model(name)
    train = load_texts(source, split="train")
    bank = HistoryBank.build(model, tokenizer, beginning(train, tokenizer, sizes[0]))
    fit, read = (
        list(read_states(model, token_ids(load_texts(source, split=split), tokenizer, size)))
        for split, size in zip(("validation", "test"), sizes[1:], strict=True)
    )
    base = perplexity_of(model, read, None)
    for kind, width in [(STATES, model.key_size), *itertools.product((PROJECTED, COMPONENTS), widths)]:
        own = bank if kind == STATES else _projected(bank, kind, width)
        model.config.history.bank = BankConfig(search="exact")
        attachment = Attachment(own).pinned()
        fit_rule(model, fit, attachment)
        row = {"keys": kind, "width": width, "base_ppl": base}
        row |= {"bank_ppl": perplexity_of(model, read, attachment), "bytes_per_entry": own.info()["bytes_per_entry"]}
        row["queries_per_second"] = _speed(own, read)
        typer.echo(row)
        yield row


def beginning(texts: Any, tokenizer: Any, tokens: int) -> Any:
    """The first texts, about so many tokens of them."""
    share = tokens / len(token_ids(texts.select(range(min(1000, len(texts)))), tokenizer, None))
    return texts.select(range(min(len(texts), round(share * 1000))))


def token_ids(texts: Any, tokenizer: Any, limit: int | None) -> np.ndarray:
    """The first token ids of texts, one more than the limit."""
    rows = texts if limit is None else texts.select(range(min(len(texts), limit // 4)))
    ids = collect(tokenize(rows, tokenizer), start=tokenizer.eos_token_id).ids
    return ids if limit is None else ids[: limit + 1]


def _projected(bank: HistoryBank, kind: str, width: int) -> HistoryBank:
    """A bank with the entries of one whose keys are states, and projected keys."""
    manifest = bank.manifest
    made = HistoryBank.temporary(manifest.fingerprint, manifest.width, manifest.vocab_size, key_width=width)
    states = torch.cat([segment.keys for _, segment in bank.segments()])
    if kind == COMPONENTS:
        _use(made, _components(states, width))
    for (namespace, segment), added in zip(bank.segments(), itertools.repeat(list(manifest.added)), strict=False):
        made.append([(dataclasses.replace(segment), added)], namespace)
    return made


def _components(states: Tensor, width: int) -> Projection:
    """The first principal components of states (N, D) about zero, which cosines are about."""
    sample = states[:: -(-len(states) // SAMPLE)].float()
    components = torch.linalg.eigh((sample.T @ sample).double()).eigenvectors.flip(1)
    return Projection(components[:, :width].float().contiguous())


def _use(bank: HistoryBank, projection: Projection) -> None:
    """Gives an empty bank another projection."""
    with bank.writing():
        file = bank.folder.write_projection(projection)
        own = Projected(bank.state_width, file)
        bank.folder.write_manifest(dataclasses.replace(bank.manifest, projection=own))
    bank.refresh()


@torch.no_grad()
def fit_rule(model: LLEForCausalLM, parts: list[Part], attachment: Attachment) -> None:
    """Fits the parameters of the bank on a text."""
    calibration = Calibration({"bank": model.config.bank}, max_predictions=6000)
    for states, targets in parts:
        for prediction in model.predictions(states[None], None, None, None, attachment):
            calibration.take(prediction, targets[None])
    calibration.fit(40)


@torch.no_grad()
def perplexity_of(model: LLEForCausalLM, parts: list[Part], attachment: Attachment | None) -> float:
    """Perplexity of a token, of the base or with the bank."""
    nats, count = 0.0, 0
    for states, targets in parts:
        for prediction in model.predictions(states[None], None, None, None, attachment):
            own = targets[None, prediction.positions]
            nats, count = nats - float(prediction.log_probs(own).sum()), count + own.numel()
    return float(np.exp(nats / count))


def _speed(bank: HistoryBank, parts: list[Part]) -> float:
    """Queries a second of processor time, searched exactly in the batches in which a model asks."""
    queries = torch.nn.functional.normalize(torch.cat([states for states, _ in parts])[:ASKED], dim=-1).split(BLOCK)
    neighbours = BankConfig().neighbours
    bank.search(queries[0], neighbours, how="exact")
    begin = time.process_time()
    for part in queries:
        bank.search(part, neighbours, how="exact")
    return sum(map(len, queries)) / (time.process_time() - begin)
