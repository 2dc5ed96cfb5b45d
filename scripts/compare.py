"""Shows whether a change of the code changes a number: runs the same probe in two checkouts and compares all values.

    python -m scripts.compare BEFORE AFTER            prints what differs, and a line for each part of the probe
    python -m scripts.compare BEFORE AFTER --all      prints every value

BEFORE and AFTER are folders that hold the package, such as two git worktrees; both run with this Python. The losses,
gradients, logits, texts, search results, fitted parameters, metrics and trained weights that `scripts/probe.py` writes
down must be equal to the last bit. Takes a minute on one core, and one more where kernels are compiled first.
After a refactoring it is expected to end with "974 values are identical", and status 0; else the status is 1.
"""

import argparse
import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

PROBE = Path(__file__).resolve().with_name("probe.py")
ABSENT = "-"
# One thread, one device and no network, so that two runs of the same code are equal.
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A value of the probe in both checkouts.

    Attributes:
        name: Its path in the probe, such as "generation/greedy".
        before, after: Digests of type, shape and bytes; "-" where there is no such value.
        difference: The largest absolute difference of two elements; None where these do not match one to one.
    """

    name: str
    before: str
    after: str
    difference: float | None

    @property
    def identical(self) -> bool:
        """Whether both checkouts gave the same bits."""
        return self.before == self.after


def make_parser() -> argparse.ArgumentParser:
    """The arguments of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="a checkout")
    parser.add_argument("after", type=Path, help="the other checkout")
    parser.add_argument("--all", action="store_true", help="print values that are identical too")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the probe in both checkouts, prints the table, and returns the exit status."""
    options = make_parser().parse_args(arguments)
    rows = compare(run_probe(options.before), run_probe(options.after))
    print(format_rows([row for row in rows if options.all or not row.identical]))
    for part in dict.fromkeys(row.name.partition("/")[0] for row in rows):
        own = [row for row in rows if row.name.partition("/")[0] == part]
        wrong = sum(not row.identical for row in own)
        print(f"{part:24} {len(own):6,} values, {f'{wrong:,} differ' if wrong else 'identical'}")
    wrong = sum(not row.identical for row in rows)
    print(f"{wrong:,} of {len(rows):,} values differ" if wrong else f"{len(rows):,} values are identical")
    return 1 if wrong else 0


def run_probe(checkout: Path) -> dict[str, Tensor]:
    """The values of the probe by their names, computed by the package in `checkout`.

    Raises:
        FileNotFoundError: There is no package.
        RuntimeError: The probe failed; the message holds the end of what it printed.
    """
    checkout = checkout.resolve()
    if not (checkout / "modeling_lle" / "__init__.py").is_file():
        raise FileNotFoundError(f"no package at {checkout / 'modeling_lle'}: give a checkout of the repository")
    with tempfile.TemporaryDirectory() as name:
        # Alone in a folder: Python looks first where the script lies, and scripts/evaluate.py would hide a library.
        probe, values = Path(shutil.copy(PROBE, name)), Path(name) / "values.safetensors"
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(checkout)}
        command = [sys.executable, str(probe), str(checkout), str(values)]
        ran = subprocess.run(command, cwd=name, env=environment, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise RuntimeError(f"the probe failed in {checkout}:\n{ran.stderr[-4000:]}")
        return load_file(values)


def compare(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[Row]:
    """A row for each name in either of them, in alphabetical order."""
    rows = []
    for name in sorted({*before, *after}):
        one, other = before.get(name), after.get(name)
        rows.append(Row(name, digest(one), digest(other), largest(one, other)))
    return rows


def digest(value: Tensor | None) -> str:
    """Tells values apart by type, shape and bits; `ABSENT` for None."""
    if value is None:
        return ABSENT
    content = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{value.dtype} {tuple(value.shape)} ".encode() + content).hexdigest()[:12]


def largest(before: Tensor | None, after: Tensor | None) -> float | None:
    """The largest absolute difference of two elements, infinite if one alone is NaN; None for other shapes."""
    if before is None or after is None or before.shape != after.shape:
        return None
    one, other = before.double(), after.double()
    same = (one == other) | (one.isnan() & other.isnan())
    difference = (one - other).abs().nan_to_num(torch.inf, posinf=torch.inf)
    return float(difference.masked_fill(same, 0).max()) if difference.numel() else 0.0


def format_rows(rows: Sequence[Row]) -> str:
    """The rows as a table for the terminal; nothing if there are none."""
    if not rows:
        return ""
    width = max(len(row.name) for row in rows)
    lines = [f"{'name':{width}}  {'before':12}  {'after':12}  largest difference"]
    for row in rows:
        difference = ABSENT if row.difference is None else f"{row.difference:.3g}"
        lines.append(f"{row.name:{width}}  {row.before:12}  {row.after:12}  {difference}")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    raise SystemExit(main())
