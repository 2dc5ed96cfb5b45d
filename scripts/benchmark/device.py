"""What runs on an accelerator, in one command of about 12 minutes: numbers as on the CPU, speeds, and a training.

    checks      each recurrence, head and history on the device, in float32 and bfloat16, against the CPU in float32
    search      queries a second of a bank, with queries that lie on the device
    training    tokens a second of training steps, in the precision of the device
    mamba2      a Mamba2 of 30 million parameters trained on the source, then read as in backbones.py

`--device cpu --minutes 0.1` runs the same with a tiny model, to see that it runs. An error is the largest difference
relative to the largest value; a check fails above 1e-3 in float32 (without TF32) and above 0.1 in bfloat16.
"""

import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from modeling_lle import (
    HistoryBank,
    LLEConfig,
    LLEForCausalLM,
    LLEForSeq2SeqLM,
    LLEForSequenceClassification,
    LLEForTokenClassification,
    LLETokenizer,
)
from modeling_lle.common.precision import has_fast_bfloat16
from modeling_lle.evaluation import write_results
from modeling_lle.evaluation.results import this_command
from modeling_lle.kernels.scan import gated_scan

from .backbones import measure
from .families import train_into
from .language_models import load_tokens
from .minutes import Plan, Texts, Training
from .peers.language_models import LLE, count
from .timing import RESULTS, Row, compare

ALLOWED = {torch.float32: 1e-3, torch.bfloat16: 0.1}
VOCABULARY = 8000  # of the models that are trained
LARGE = 1104  # width of an LSTM of 30 million parameters, the size of the Mamba2
HELD_OUT = 4096  # validation tokens of losses
FULL = 12.0  # minutes that the sizes are for
SHARE = 0.6  # of the minutes, for the training
QUERIES, NEIGHBOURS, ENTRIES = 256, 64, 100_000
Values = dict[str, Tensor]
Check = Callable[[torch.device], Values]
SIZES: dict[str, Any] = {"vocab_size": 500, "hidden_size": 64, "num_hidden_layers": 2}


def _scan(device: torch.device) -> Values:
    """The linear recurrence, its final state, and both gradients."""
    generator = torch.Generator().manual_seed(0)
    gates = torch.randn(4, 130, 3 * 64, generator=generator).to(device).requires_grad_()
    state = torch.randn(4, 64, generator=generator).to(device).requires_grad_()
    output, final = gated_scan(gates, state)
    slopes = torch.autograd.grad(output.square().sum() + final.sum(), [gates, state])
    return {"output": output, "final": final, "d_gates": slopes[0], "d_state": slopes[1]}


def _ids(seed: int, length: int = 65) -> Tensor:
    return torch.randint(3, SIZES["vocab_size"], (2, length), generator=torch.Generator().manual_seed(seed))


def _slopes(model: nn.Module, loss: Tensor) -> Tensor:
    return torch.cat([slope.flatten().float() for slope in torch.autograd.grad(loss, list(model.parameters()))])


def _language(device: torch.device, with_bank: bool = False, **values: Any) -> Values:
    """Loss and gradients of a language model, log P with the stream and perhaps a bank, and a greedy continuation."""
    torch.manual_seed(0)
    history = {"stream": {"window": 40}, "bank": {"neighbours": 8}}
    own = {"history": history, **({} if "backbone_config" in values else SIZES), **values}
    model: Any = LLEForCausalLM(LLEConfig(**own))
    model.to(device)
    ids = _ids(1).to(device)
    loss = model.train()(ids, labels=ids).loss
    slopes = _slopes(model, loss)
    model.eval()
    if with_bank:
        model.attach_history(_bank(model, 20))
    scored = model.score(ids[:, :-1], ids[:, 1:])
    new = model.generate(ids[:, :20], max_new_tokens=5, do_sample=False, pad_token_id=0)
    followed = model(new[:, :-1], logits_to_keep=5, use_cache=False).logits.gather(-1, new[:, -5:, None])
    return {"loss": loss, "gradients": slopes, "log P": scored.log_probs, "continuation": followed}


def _bank(model: Any, rows: int) -> HistoryBank:
    """A bank of random rows of words."""
    words = [f"w{number}" for number in range(400)]
    tokenizer = LLETokenizer.train([" ".join(words)], kind="word")
    order = torch.randint(400, (rows, 50), generator=torch.Generator().manual_seed(3)).tolist()
    return HistoryBank.build(model, tokenizer, [{"text": " ".join(words[i] for i in row)} for row in order])


def _classifier(device: torch.device, kind: type[Any]) -> Values:
    """Loss, gradients and logits of a classifier."""
    torch.manual_seed(0)
    config = LLEConfig(**SIZES, bidirectional=True, num_labels=3, pad_token_id=1)
    model = kind(config).to(device)
    ids = _ids(2).to(device)
    labels = ids[:, 0] % 3 if kind is LLEForSequenceClassification else ids % 3
    output = model.train()(ids, labels=labels)
    return {"loss": output.loss, "gradients": _slopes(model, output.loss), "logits": model.eval()(ids).logits}


def _translator(device: torch.device) -> Values:
    """Loss and gradients of a translator, and the logits of what it translates greedily."""
    torch.manual_seed(0)
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    model: Any = LLEForSeq2SeqLM(LLEConfig(**SIZES, **ids, translator={"num_attention_heads": 4}))
    model.to(device)
    source, target = _ids(3, 20).to(device), _ids(4, 12).to(device)
    loss = model.train()(source, labels=target).loss
    slopes = _slopes(model, loss)
    logits = model.eval()(source, labels=target).logits
    return {"loss": loss, "gradients": slopes, "logits": logits}


_HYBRID: dict[str, Any] = {"hidden_size": 64, "vocab_size": 500, "num_hidden_layers": 2}
CHECKS: dict[str, Check] = {
    "scan": _scan,
    **{
        f"language model, {recurrence} {stack}": functools.partial(_language, recurrence=recurrence, stack=stack)
        for recurrence in ("lstm", "gru", "qrnn")
        for stack in ("plain", "residual")
    },
    "language model with a bank": functools.partial(_language, with_bank=True),
    "language model, mamba2": functools.partial(
        _language,
        backbone_config={"model_type": "mamba2", **_HYBRID, "num_heads": 8, "head_dim": 16, "state_size": 16},
    ),
    "language model, lfm2": functools.partial(
        _language,
        backbone_config={
            "model_type": "lfm2",
            **_HYBRID,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "layer_types": ["conv", "full_attention"],
        },
    ),
    "classifier of texts": functools.partial(_classifier, kind=LLEForSequenceClassification),
    "classifier of tokens": functools.partial(_classifier, kind=LLEForTokenClassification),
    "translator": _translator,
}


def check(name: str, device: torch.device) -> Row:
    """Largest error of a check in each precision, relative to the CPU in float32, and whether it is allowed."""
    due = CHECKS[name](torch.device("cpu"))
    row: Row = {"part": "checks", "name": name}
    for precision, allowed in ALLOWED.items():
        if precision == torch.bfloat16 and device.type != "cpu" and not has_fast_bfloat16(device):
            continue
        begin = time.perf_counter()
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            found = CHECKS[name](device)
        errors = {key: _error(value, due[key]) for key, value in found.items()}
        worst = max(errors, key=lambda key: errors[key])
        own = {"error": errors[worst], "worst": worst, "passed": errors[worst] < allowed}
        own["seconds"] = time.perf_counter() - begin
        row |= {f"{str(precision).removeprefix('torch.')}_{key}": value for key, value in own.items()}
    return row


def _error(value: Tensor, due: Tensor) -> float:
    value, due = value.detach().float().cpu(), due.detach().float().cpu()
    return float((value - due).abs().max() / due.abs().max().clamp(min=1e-6))


def measure_search(device: torch.device, share: float, repeats: int) -> list[Row]:
    """Queries a second of a bank, by how it is searched."""
    torch.manual_seed(0)
    model: Any = LLEForCausalLM(LLEConfig(**SIZES)).eval()
    model.to(device)
    bank = _bank(model, max(20, int(share * ENTRIES / 50)))
    queries = nn.functional.normalize(torch.randn(QUERIES, model.key_size, device=device), dim=-1)
    state, rows = bank.snapshot(), []
    hows: tuple[Any, ...] = ("exact", "balanced", "fast")
    calls = {how: functools.partial(state.search, queries, NEIGHBOURS, None, how) for how in hows}
    for how, seconds in compare(calls, repeats, warmup=1).items():
        speed = QUERIES / statistics.median(seconds)
        rows.append({"part": "search", "name": how, "entries": len(bank), "queries_per_second": speed})
    return rows


def measure_training(texts: Texts, plan: Plan, steps: int) -> list[Row]:
    """Tokens a second of training steps of LLE's LSTM and of Mamba2."""
    rows = []
    for name in (LLE, "Mamba2"):
        training = Training(name, texts, plan, 1e-4)
        training.slice(1e-9)  # compiles off the clock
        begin = training.progress.steps
        seconds = training.progress.seconds
        for _ in range(steps):
            training.slice(1e-9)
        spent = training.progress.seconds - seconds
        tokens = (training.progress.steps - begin) * plan.scale * 1024
        parameters = count(training.subject.model)
        rows.append({"part": "training", "name": name, "parameters": parameters, "tokens_per_second": tokens / spent})
    return rows


def train_mamba2(source: str, texts: Texts, plan: Plan, folder: Path, say: Callable[[str], Any]) -> list[Row]:
    """Trains a Mamba2, saves it in the folder, and measures it as in backbones.py."""
    (path,) = train_into(folder, {"Mamba2": 1e-3}, texts, plan, say)
    share = min(1.0, plan.minutes / (SHARE * FULL))
    sizes = (max(500, int(20_000 * share)), max(500, int(20_000 * share)), max(1000, int(1_000_000 * share)))
    rows = measure("Mamba2", str(path), source, sizes, 2000, 2048, 5, ["neural cache"], say, plan.device)
    return [{"part": "mamba2", "name": row["method"], **row} for row in rows]


def chosen_device(wanted: str | None) -> torch.device:
    """The device of that name, or the accelerator of this machine.

    Raises:
        typer.BadParameter: There is none.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if wanted is None and found is None:
        raise typer.BadParameter(
            "no accelerator was found, which this command is about: run it where there is one, or give --device cpu "
            "--minutes 0.1 to see that it runs"
        )
    device = torch.device(wanted) if wanted is not None else found
    assert device is not None
    if device.type != "cpu" and (found is None or found.type != device.type):
        raise typer.BadParameter(f"there is no {device.type} device here, or torch was built without it")
    return device


def device(
    source: Annotated[str, typer.Argument(help="Text with train, validation and test splits.")],
    device: Annotated[str | None, typer.Option(help="Device; by default the accelerator of this machine.")] = None,
    minutes: Annotated[float, typer.Option(help="Minutes of the whole, about.")] = FULL,
    folder: Annotated[Path | None, typer.Option(help="Keeps the tokens and the trained model.")] = None,
    output: Annotated[Path, typer.Option(help="Results file.")] = RESULTS / "device.json",
) -> None:
    """Checks and measures an accelerator: kernels, heads, bfloat16, search, training, a Mamba2 of 30M parameters."""
    where = chosen_device(device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    rows: list[Row] = []

    def add(found: list[Row]) -> None:
        rows.extend(found)
        for row in found:
            typer.echo(row)

    for name in CHECKS:
        add([check(name, where)])
    add(measure_search(where, min(1.0, minutes / FULL), repeats=5))
    on_cpu = where.type == "cpu"
    width, scale, steps = (80, 1, 2) if on_cpu else (LARGE, 8, 30)
    plan = Plan(VOCABULARY, width, SHARE * minutes, min(20.0, 30 * minutes), device=str(where), scale=scale)
    with tempfile.TemporaryDirectory() as temporary:
        own = Path(temporary) if folder is None else folder
        texts = load_tokens(source, own, VOCABULARY, HELD_OUT // 4, HELD_OUT)
        add(measure_training(texts, plan, steps))
        add(train_mamba2(source, texts, plan, own, typer.echo))
    failed = [row["name"] for row in rows if any(key.endswith("_passed") and not row[key] for key in row)]
    speeds = {row["name"]: row["tokens_per_second"] for row in rows if row["part"] == "training"}
    metrics = {f"{name.lower()}_tokens_per_second": speed for name, speed in speeds.items()}
    write_results(output, this_command(), {"checks": len(CHECKS), "failed_checks": len(failed), **metrics}, rows)
    if failed:
        raise SystemExit(f"not as on the CPU: {', '.join(failed)}")
