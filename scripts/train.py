"""Trains a language model by a recipe: `lle train` as a script, which `accelerate launch -m scripts.train` can start.

    python -m scripts.train configs/lm/smoke.yaml --set training.max_steps=20

Prints the metrics, and writes the model, its tokenizer, recipe.yaml and metrics.json into `training.output_dir`. The
smoke recipe takes ten seconds on 2 cores, and ends at an eval_perplexity of about 40 for its vocabulary of 300.
"""

import typer

from modeling_lle.cli.main import train


def main() -> None:
    """Runs the command."""
    typer.run(train)


if __name__ == "__main__":
    main()
