"""What recalling its own output does to the text that a model generates: how much it repeats, and how likely it is.

For each text, two small models are trained, if they are not in the folder yet: one generates, the other, of another
size and seed, judges what was generated, without history. Prompts end at places of the test split that are spread
evenly; they are generated from as one batch. A row is a text, a length of prompts and a way of decoding; its columns
are named after a measure and what is recalled: nothing (`none`), the entries of the prompt alone (`prompt`), those of
own output too, with the weight 0.05, 0.25 or 1 of their kernel (`own_0.05`, `own_0.25`, `own_1`); `text` is the text
that does follow. The measures:

    distinct      share of distinct 3-grams of tokens, over the first 60 tokens; `distinct_200` over all 200
    ppl           perplexity of the first 60 tokens for the judge; `ppl_200` of all 200
    copied        share of the 8-grams of tokens that occur in the prompt, over all 200
"""

import bisect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling_lle import LLEForCausalLM
from modeling_lle.data import collect, load_texts, python_corpus, tokenize
from modeling_lle.data.text import Rows
from modeling_lle.evaluation import write_results
from modeling_lle.evaluation.results import this_command
from modeling_lle.history.prediction import Prediction
from modeling_lle.history.rule import recall_stream
from modeling_lle.history.source import StreamRecalled
from modeling_lle.training import make_recipe, run

from .inputs import SHORT_TRAINING
from .timing import RESULTS, Row

PYTHON = "python"  # the source code of Python's standard library
PROMPTS = {"short": 30, "long": 1500}  # characters
DECODING: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "top-p 0.95": {"do_sample": True, "top_p": 0.95, "top_k": 0},
}
WEIGHTS = (0.05, 0.25, 1.0)  # of the entries of own output
TOKENS = (60, 200)  # measured, and generated
SIZES = {"model": (192, 0), "judge": (256, 1)}  # width and seed
MODEL = {"num_hidden_layers": 2, "input_dropout": 0.1, "hidden_dropout": 0.1, "output_dropout": 0.1}
TOKENIZERS: dict[str, dict[str, Any]] = {"ptb": {"kind": "word"}}
SUBWORDS = {"kind": "bpe", "vocab_size": 2048}
TRAINING = {
    **SHORT_TRAINING,
    "learning_rate": 4e-3,
    "weight_decay": 0.05,
    "per_device_train_batch_size": 16,
    "segment_length": 64,
    "calibration_tokens": 10000,
}


class WeakRecall(LLEForCausalLM):
    """A language model whose own output makes entries that are recalled with the weight `own_weight` of their kernel.

    It generates from one prompt a row, read at once.
    """

    own_weight = 1.0

    def step(self, *args: Any) -> None:
        """None: every position goes through `predictions`."""

    def predictions(self, states: Tensor, *args: Any, **kwargs: Any) -> Iterator[Prediction]:
        """As in the base class, with weaker entries."""
        for prediction in super().predictions(states, *args, **kwargs):
            for own in prediction.recalled:
                assert isinstance(own, StreamRecalled)
                if states.shape[1] > 1:  # the prompt
                    self.entries_of_prompt = own.block.made[:, -1:]
                else:
                    self._weaken(own)
            yield prediction

    def _weaken(self, own: StreamRecalled) -> None:
        numbers, generated = self.config.stream, own.block.serial >= self.entries_of_prompt
        less = math.log(self.own_weight) / numbers.sharpness * generated[:, None].float()
        own.recall = recall_stream(own.block, numbers.sharpness, numbers.recency, own.block.similarity() + less)


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts and the texts that follow them.

    Attributes:
        ids: (B, T) int64, padded on the left.
        mask: (B, T) int64, 0 at padding.
        following: (B, n) int64.
    """

    ids: Tensor
    mask: Tensor
    following: Tensor


def generation(
    folder: Annotated[Path, typer.Argument(help="Folder of the models, which are trained if they are missing.")],
    sources: Annotated[list[str] | None, typer.Argument(help="Texts with three splits, beside Python's own.")] = None,
    steps: Annotated[int, typer.Option(help="Training steps per model.")] = 600,
    prompts: Annotated[int, typer.Option(help="Prompts of each length.")] = 24,
    output: Annotated[Path, typer.Option(help="Results file.")] = RESULTS / "generation.json",
) -> None:
    """Repetition and perplexity of generated text, by what is recalled while it is generated."""
    rows: list[Row] = []
    for source in (PYTHON, *(sources or [])):
        for role in SIZES:
            train(folder, source, role, steps)
        rows += _measure(folder, source, prompts)
    for row in rows:
        typer.echo(row)
    write_results(output, this_command(), _summary(rows), rows)


def train(folder: Path, source: str, role: str, steps: int) -> Path:
    """Trains the model of a role on a text, if it is not there yet, and returns its folder."""
    name = Path(source).name
    path, (size, seed) = folder / f"{name}-{role}", SIZES[role]
    if not (path / "metrics.json").is_file():
        recipe = {"tokenizer": TOKENIZERS.get(name, SUBWORDS), "model": {**MODEL, "hidden_size": size}}
        training = {**TRAINING, "max_steps": steps, "seed": seed, "output_dir": str(path)}
        run(make_recipe({**recipe, "training": training}), {s: _texts(source, s) for s in ("train", "validation")})
    return path


def _texts(source: str, split: str) -> Rows:
    return python_corpus()[split] if source == PYTHON else load_texts(source, split=split)


def _measure(folder: Path, source: str, number: int) -> list[Row]:
    """The rows of a text."""
    name = Path(source).name
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / f"{name}-model")
    judge = AutoModelForCausalLM.from_pretrained(folder / f"{name}-judge")
    tokens = torch.from_numpy(collect(tokenize(_texts(source, "test"), tokenizer)).ids).long()
    rows: list[Row] = []
    for length, characters in PROMPTS.items():
        prompts = make_prompts(tokens, tokenizer, number, characters)
        for decoding, options in DECODING.items():
            row: Row = {"text": name, "prompt": length, "decoding": decoding}
            for recalled in ("text", "none", "prompt", *(f"own_{weight:g}" for weight in WEIGHTS)):
                new = _generate(folder / f"{name}-model", prompts, recalled, options)
                row |= {f"{key}_{recalled}": value for key, value in _measures(new, prompts, judge).items()}
            rows.append(row)
    return rows


def make_prompts(tokens: Tensor, tokenizer: Any, number: int, characters: int) -> Prompts:
    """Prompts of about so many characters, which end at evenly spread places of the tokens (T,) int64."""
    new = TOKENS[-1]
    ends = torch.linspace(min(4 * characters, len(tokens) // 2), len(tokens) - new, number).long().tolist()
    chosen = []
    for end in ends:
        size = bisect.bisect_left(
            range(1, end), characters, key=lambda n: len(tokenizer.decode(tokens[end - n : end]))
        )
        chosen.append(tokens[end - size - 1 : end])
    longest = max(map(len, chosen))
    ids = torch.stack([torch.nn.functional.pad(own, (longest - len(own), 0)) for own in chosen])
    mask = torch.stack([torch.arange(longest) >= longest - len(own) for own in chosen]).long()
    return Prompts(ids, mask, torch.stack([tokens[end : end + new] for end in ends]))


def _generate(path: Path, prompts: Prompts, recalled: str, options: dict[str, Any]) -> Tensor:
    """The new tokens (B, n) by a model in the folder `path`; `recalled` as in the columns of the results."""
    if recalled == "text":
        return prompts.following
    weight = recalled.partition("own_")[2]
    loader: Any = WeakRecall if weight else AutoModelForCausalLM
    model = loader.from_pretrained(path)
    if weight:
        model.own_weight, model.config.stream.generated = float(weight), True
    model.generation_config.eos_token_id = None  # a text may end in the middle
    torch.manual_seed(0)
    new = TOKENS[-1]
    found = model.generate(
        prompts.ids,
        attention_mask=prompts.mask,
        max_new_tokens=new,
        min_new_tokens=new,
        use_history=recalled != "none",
        pad_token_id=0,
        **options,
    )
    return found[:, -new:]


@torch.no_grad()
def _measures(new: Tensor, prompts: Prompts, judge: Any) -> dict[str, float]:
    """The measures of new tokens (B, n), means over the prompts."""
    start = prompts.ids.shape[1]
    text = torch.cat([prompts.ids, new], dim=1)
    mask = torch.cat([prompts.mask, torch.ones_like(new)], dim=1)
    scored = judge.score(text[:, :-1], text[:, 1:], mask[:, :-1], use_history=False)
    nats = -scored.log_probs[:, start - 1 :]
    rows = range(len(new))
    measured: dict[str, float] = {}
    for tokens, suffix in zip(TOKENS, ("", f"_{TOKENS[-1]}"), strict=True):
        measured[f"distinct{suffix}"] = sum(_distinct(new[row, :tokens]) for row in rows) / len(new)
        measured[f"ppl{suffix}"] = math.exp(float(nats[:, :tokens].mean()))
    given = [prompts.ids[row][prompts.mask[row] > 0] for row in rows]
    measured["copied"] = sum(_copied(new[row], given[row]) for row in rows) / len(new)
    return measured


def _ngrams(tokens: Tensor, size: int) -> list[tuple[int, ...]]:
    values = tokens.tolist()
    return [tuple(values[place : place + size]) for place in range(len(values) - size + 1)]


def _distinct(tokens: Tensor) -> float:
    found = _ngrams(tokens, 3)
    return len(set(found)) / len(found)


def _copied(tokens: Tensor, prompt: Tensor) -> float:
    found, given = _ngrams(tokens, 8), set(_ngrams(prompt, 8))
    return sum(own in given for own in found) / len(found)


def _summary(rows: list[Row]) -> dict[str, float]:
    """Means over all rows of the share of distinct 3-grams, and of the logarithm of the perplexities."""
    names = [key.partition("_")[2] for key in rows[0] if key.startswith("distinct_") and "200" not in key]
    summary: dict[str, float] = {"rows": len(rows)}
    for name in names:
        summary[f"distinct_{name}"] = sum(row[f"distinct_{name}"] for row in rows) / len(rows)
        summary[f"ppl_{name}"] = math.exp(sum(math.log(row[f"ppl_{name}"]) for row in rows) / len(rows))
    return summary
