"""Evaluates a saved language model on a text, with and without history; the same as `lle evaluate`.

    python -m scripts.evaluate runs/ptb data/ptb --train-split train --output runs/ptb/evaluation

It prints the table of perplexities, and writes evaluation.json and evaluation.png. The PTB test set (82,430 tokens)
takes less than a minute on 2 cores.
"""

import sys
from collections.abc import Sequence

from modeling_lle.cli.main import app


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluates and prints the table."""
    app(["evaluate", *(sys.argv[1:] if arguments is None else arguments)], standalone_mode=False)


if __name__ == "__main__":
    main()
