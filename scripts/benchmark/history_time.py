"""Time of the history on models of growing size: reading with the stream, alone and with exact matches, over without.

Each of `SIZES` is made as Mamba2, LFM2 and LSTM of as many parameters, and Mamba2 once more as mamba2-130m is. Weights
are random, as time does not depend on their values. The text is real, as the time of matches depends on how often
tokens come back, in tokens of a vocabulary of that size. The rest is as for `time` in backbones.py.
"""

import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from modeling_lle import LLEConfig, LLEForCausalLM
from modeling_lle.evaluation import write_results
from modeling_lle.evaluation.results import this_command
from modeling_lle.training.steps import keep_freed_pages

from .backbones import HISTORIES, REACH, TIMED, WITH_TIME, measure_time
from .families import FAMILIES
from .inputs import Source
from .language_models import load_tokens
from .minutes import Texts
from .peers.language_models import LLE, count, make_model
from .timing import RESULTS, Row, ratio

SIZES = ((4_000, 224), (8_000, 576), (16_000, 960))  # vocabulary, and width of the LSTM: 1.7, 10 and 30 million
PUBLISHED = "mamba2-130m"
CONFIG: dict[str, Any] = {  # of AntonV/mamba2-130m-hf
    "model_type": "mamba2",
    "vocab_size": 50_288,
    "hidden_size": 768,
    "num_hidden_layers": 24,
    "num_heads": 24,
    "head_dim": 64,
    "state_size": 128,
    "n_groups": 1,
    "tie_word_embeddings": True,
}


def history_time(
    source: Source,
    window: Annotated[int, typer.Option(help="Entries of the stream.")] = 2000,
    repeats: Annotated[int, typer.Option(help="Repetitions of each measurement.")] = 7,
    output: Annotated[Path, typer.Option(help="Results file.")] = RESULTS / "history-time.json",
) -> None:
    """Time of reading with the history over that without, on models of 1.7 to 130 million parameters."""
    keep_freed_pages()
    rows = []
    for row in _rows(source, window, repeats):
        typer.echo(row)
        rows.append(row)
    write_results(output, this_command(), {"tokens": TIMED, "window": window, "matches": REACH}, rows)


def _rows(source: str, window: int, repeats: int) -> Iterator[Row]:
    for vocabulary, width in SIZES:
        texts = _texts(source, vocabulary)
        for name, family in FAMILIES.items():
            yield {"model": name, **_measure(_make(family, vocabulary, width), texts, window, repeats)}
    model = LLEForCausalLM(LLEConfig(backbone_config=CONFIG)).eval()
    yield {"model": PUBLISHED, **_measure(model, _texts(source, CONFIG["vocab_size"]), window, repeats)}


def _texts(source: str, vocabulary: int) -> Texts:
    with tempfile.TemporaryDirectory() as folder:
        return load_tokens(source, Path(folder), vocabulary, 1, TIMED)


def _make(family: str, vocabulary: int, width: int) -> LLEForCausalLM:
    """An untrained model of a family with the parameters of an LSTM of a width."""
    if family == LLE:
        return make_model(family, vocabulary, width).eval()
    with torch.device("meta"):
        config = make_model(family, vocabulary, width).config
    return LLEForCausalLM(LLEConfig(backbone_config=config.to_dict())).eval()


def _measure(model: LLEForCausalLM, texts: Texts, window: int, repeats: int) -> Row:
    """Parameters, milliseconds of the base, and the ratio of each history to it."""
    row: Row = {"vocabulary": model.config.vocab_size, "width": model.key_size, "parameters": count(model)}
    base: list[float] = []
    for name in WITH_TIME:
        seconds = measure_time(model, texts.validation, texts.train, HISTORIES[name], window, repeats)
        row["_".join(HISTORIES[name])] = ratio(seconds["stream"], seconds["base"])
        base += seconds["base"]
    return {**row, "base_ms_per_token": 1000 * statistics.median(base) / TIMED}
