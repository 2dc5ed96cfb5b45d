"""Builds a bank: `lle bank build` as a script, for `accelerate launch` and `torchrun`, whose ranks build it together.

    torchrun --nproc-per-node 2 -m scripts.bank_build runs/mine texts/ bank
    accelerate launch --multi_gpu --num_processes 2 -m scripts.bank_build runs/mine texts/ bank
    python -m scripts.bank_build runs/mine texts/ bank

Interrupted, the same command goes on, with any number of ranks. On CPUs use torchrun: accelerate starts one process.
"""

import typer

from modeling_lle.cli.bank import build


def main() -> None:
    """Runs the command."""
    typer.run(build)


if __name__ == "__main__":
    main()
