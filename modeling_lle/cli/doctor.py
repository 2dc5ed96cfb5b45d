"""Command that checks an installation: `lle doctor`. Heavy imports are deferred until the command runs."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from ..common.machine import cores, processor
from ..common.terminal import say

PACKAGES = (
    *("modeling_lle", "torch", "transformers", "datasets", "tokenizers", "accelerate", "evaluate", "safetensors"),
    *("huggingface_hub", "numpy", "numba"),
)
# Modules of each extra, and what it brings.
EXTRAS = {
    "fast": (("numba",), "the kernels for a CPU"),
    "faiss": (("faiss",), "the search index of banks of more than 50,000 entries"),
    "milvus": (("pymilvus", "milvus_lite"), "banks in Milvus"),
    "plots": (("matplotlib",), "the pictures of `lle evaluate` and `lle demo`"),
    "classification": (("sklearn",), "macro F1 in evaluation"),
    "embeddings": (("wordllama",), "pretrained embeddings for classifiers"),
    "translation": (("bm25s", "polib", "rapidfuzz", "sacrebleu"), "translation memories, BLEU and chrF"),
    "export": (("onnx", "onnxruntime"), "`lle export`"),
    "serve": (("fastapi", "uvicorn", "prometheus_client"), "`lle serve`"),
    "eval": (("lm_eval",), "lm-evaluation-harness"),
    "tracking": (("trackio", "tensorboard"), "report_to: trackio and tensorboard"),
    "cuda": (("fla",), "the GPU kernel of the linear recurrence"),
}
# Flags of /proc/cpuinfo, by the names that torch uses.
FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX512",
    "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "amx_tile": "AMX",
    "amx_bf16": "AMX-BF16",
    "asimd": "NEON",
    "sve": "SVE",
    "bf16": "BF16",
}
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Shows versions, processor, precision, extras and caches, and says what to mend."""
    found = examine()
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for name, value in found.items():
        if name not in ("extras", "problems"):
            say(f"{name}")
            for key, inner in value.items():
                shown = "-" if inner is None else ", ".join(inner) or "-" if isinstance(inner, list) else inner
                say(f"  {key:16} {shown}")
    say("extras")
    for extra in found["extras"]:
        state = "present" if not extra["missing"] else f"missing: {', '.join(extra['missing'])}"
        say(f"  {extra['name']:16} {state}; {extra['brings']}")
        if extra["missing"]:
            say(f"  {'':16} {extra['command']}")
    problems = found["problems"]
    say("No problems." if not problems else f"{len(problems)} problem{'s' * (len(problems) != 1)}")
    for problem in problems:
        say(f"  {problem['what']}\n    {problem['remedy']}")


def examine() -> dict[str, Any]:
    """Plain values of all that `lle doctor` shows: sections by their names, `extras` and `problems`."""
    machine, extras, caches = _machine(), _extras(), _caches()
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "machine": machine,
        "precision": _precision(),
        "caches": caches,
        "extras": extras,
        "problems": _problems(machine, extras, caches),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    """The processor, memory and accelerators."""
    import torch

    total, free = _memory()
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        gpus.append("Apple GPU (mps)")
    return {
        "system": platform.platform(terse=True),
        "cpu": processor(),
        "architecture": platform.machine(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "features": _features(),
        "torch kernels": torch.backends.cpu.get_cpu_capability(),
        "memory GiB": total,
        "free GiB": free,
        "gpu": gpus,
    }


def _features() -> list[str]:
    """Instruction sets that matter here, as far as the system tells them."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        match = re.search(r"^(?:flags|Features)\s*: (.*)$", info.read_text(errors="replace"), re.MULTILINE)
        flags = set(match[1].split()) if match else set()
        return [name for flag, name in FEATURES.items() if flag in flags]
    return ["NEON"] if platform.machine().lower() in ("arm64", "aarch64") else []


def _memory() -> tuple[float | None, float | None]:
    """Memory and what is free of it, in GiB; None where the system does not say."""
    info = Path("/proc/meminfo")
    if info.is_file():
        sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB$", info.read_text(), re.MULTILINE))
        total, free = (sizes.get(name) for name in ("MemTotal", "MemAvailable"))
        return _gib(total), _gib(free)
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1), None
    except (AttributeError, OSError, ValueError):
        return None, None


def _gib(kilobytes: str | None) -> float | None:
    return None if kilobytes is None else round(int(kilobytes) / 2**20, 1)


def _precision() -> dict[str, Any]:
    """The precision that `auto` chooses on each device, and why."""
    import torch

    from ..common.precision import lack_of_bfloat16

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    chosen = {}
    for name in devices:
        lack = lack_of_bfloat16(torch.device(name))
        chosen[name] = "bfloat16" if lack is None else f"float32: {lack}"
    return chosen


def _extras() -> list[dict[str, Any]]:
    extras = []
    for name, (modules, brings) in EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        command = f'pip install "modeling_lle[{name}]"'
        extras.append({"name": name, "missing": missing, "brings": brings, "command": command})
    return extras


def _caches() -> dict[str, Any]:
    """Folders that are written to, each with what is wrong with it."""
    from huggingface_hub.constants import HF_HOME, HF_HUB_OFFLINE

    folders = {"Hugging Face": Path(HF_HOME), "temporary": Path(tempfile.gettempdir())}
    if "NUMBA_CACHE_DIR" in os.environ:
        folders["numba"] = Path(os.environ["NUMBA_CACHE_DIR"])
    else:  # numba writes beside the kernels, or where it cannot, into the user's cache
        beside = Path(__file__).resolve().parent.parent / "kernels"
        folders["numba"] = beside if os.access(beside, os.W_OK) else Path.home() / ".cache" / "numba"
    written = {name: f"{path}{'' if _writable(path) else ' (not writable)'}" for name, path in folders.items()}
    return written | {"Hub": "offline (HF_HUB_OFFLINE)" if HF_HUB_OFFLINE else "online"}


def _writable(path: Path) -> bool:
    """Whether a folder, or the nearest one above it that exists, can be written to."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path.is_dir() and os.access(path, os.W_OK)


def _problems(machine: dict[str, Any], extras: list[dict[str, Any]], caches: dict[str, Any]) -> list[dict[str, str]]:
    found = []
    if machine["threads"] > machine["cores"]:
        which = [name for name in _THREADS if name in os.environ]
        remedy = f"set {', '.join(which) or 'OMP_NUM_THREADS'} to {machine['cores']}"
        found.append((f"{machine['threads']} threads on {machine['cores']} cores slow each other down", remedy))
    for extra in extras:
        if extra["name"] == "fast" and extra["missing"]:
            found.append(("numba is missing: the recurrences and searches run in plain torch", extra["command"]))
    remedies = {"Hugging Face": "HF_HOME", "temporary": "TMPDIR", "numba": "NUMBA_CACHE_DIR"}
    for name, variable in remedies.items():
        if "not writable" in caches[name]:
            found.append((f"the folder of {name} files cannot be written: {caches[name]}", f"set {variable}"))
    if caches["Hub"] != "online":
        found.append(("nothing is downloaded from the Hub", "unset HF_HUB_OFFLINE, unless that is meant"))
    if machine["free GiB"] is not None and machine["free GiB"] < 1:
        what = f"only {machine['free GiB']} GiB of memory are free"
        found.append((what, "end other programs, or train smaller models"))
    return [{"what": what, "remedy": remedy} for what, remedy in found]
