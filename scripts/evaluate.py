"""Evaluates a saved language model on a text, with and without its history.

    python -m scripts.evaluate runs/ptb data/ptb --split test --train-split train --output runs/ptb/evaluation

It prints the table of perplexities, and writes evaluation.json and evaluation.png. The PTB test set (82,430 tokens)
takes about half a minute on 2 cores.
"""

import argparse
from collections.abc import Sequence

from modeling_lle.evaluation import evaluate_folder, format_table
from modeling_lle.evaluation.language import SEGMENT_LENGTH


def make_parser() -> argparse.ArgumentParser:
    """The arguments of this script, which are those of `evaluate_folder`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_path", help="folder, or name on the Hub, of a model and its tokenizer")
    parser.add_argument("source", help="name on the Hub, or file, folder or glob of texts")
    parser.add_argument("--name", help="configuration of a data set on the Hub")
    parser.add_argument("--split", default="test")
    parser.add_argument("--train-split", help="split to count the frequency of types on")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--sample-by", default="line", choices=["line", "document"])
    parser.add_argument("--rows", type=int, default=1, help="readers, each with a stream of its own")
    parser.add_argument("--segment-length", type=int, default=SEGMENT_LENGTH)
    parser.add_argument("--limit-tokens", type=int)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--output", help="folder for evaluation.json and evaluation.png")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluates and prints the table."""
    options = make_parser().parse_args(arguments)
    print(format_table(evaluate_folder(**vars(options))["metrics"]))


if __name__ == "__main__":
    main()
