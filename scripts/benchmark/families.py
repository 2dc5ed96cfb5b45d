"""Small models of several families, trained from scratch at equal minutes, for the commands that compare families.

Mamba2 and LFM2, a hybrid of short convolutions and attention, are transformers' own classes; the LSTM is LLE's. They
have one tokenizer and about as many parameters, see peers/language_models.py, and are trained as in minutes.py. A
folder of them holds a model in each of mamba2, lfm2 and lstm, and what an interrupted training goes on from.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers import AutoTokenizer

from .language_models import load_tokens
from .minutes import Plan, Texts, Training, in_turn, search_rates
from .peers.language_models import LLE

FAMILIES = {"Mamba2": "Mamba2", "LFM2": "LFM2", "LSTM": LLE}  # their names here, and in the comparison with peers
HELD_OUT = 16_384  # validation tokens of losses; half as many of the search of rates
VOCABULARY, WIDTH, MINUTES = 4000, 224, 10.0

Minutes = Annotated[float, typer.Option(help="Processor time of each training.")]


def train_families(
    source: str,
    folder: Path,
    say: Callable[[str], Any],
    minutes: float = MINUTES,
    vocabulary: int = VOCABULARY,
    width: int = WIDTH,
    rate: float | None = None,
) -> dict[str, Path]:
    """Trains the models that are not in the folder yet, a slice each in turn.

    Args:
        source: Text with train and validation splits.
        folder: Gets a folder for each model, and what an interrupted training goes on from.
        say: Is told the progress.
        minutes: Processor time of each training.
        vocabulary: Types of the tokenizer.
        width: Of the LSTM.
        rate: Peak learning rate of all; None: the best one of each, by short trainings.

    Returns:
        The folder of each family, trained now or before.
    """
    paths = {name: folder / name.lower() for name in FAMILIES}
    missing = [name for name, path in paths.items() if not (path / "config.json").is_file()]
    if missing:
        texts = load_tokens(source, folder, vocabulary, HELD_OUT // 2, HELD_OUT)
        types = len(AutoTokenizer.from_pretrained(folder / "tokenizer"))
        plan = Plan(types, width, minutes, min(20.0, 6 * minutes))
        subjects = [FAMILIES[name] for name in missing]
        rates = dict.fromkeys(subjects, rate) if rate else search_rates(subjects, texts, plan, folder, say)
        train_into(folder, {name: rates[FAMILIES[name]] for name in missing}, texts, plan, say)
    return paths


def train_into(
    folder: Path, rates: Mapping[str, float], texts: Texts, plan: Plan, say: Callable[[str], Any]
) -> list[Path]:
    """Trains models with the tokens that `load_tokens` made in the folder, and saves each into a folder of its own.

    Args:
        folder: Holds the tokenizer; what an interrupted training goes on from is kept there too.
        rates: Peak learning rate of each of `FAMILIES` that is to be trained.
        texts, plan: As for a `Training`.
        say: Is told the progress.

    Returns:
        The folders of the models.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    trainings = {
        name: Training(FAMILIES[name], texts, plan, rate, folder / "training" / name.lower())
        for name, rate in rates.items()
    }
    in_turn(list(trainings.values()), plan.slice, say)
    for name, training in trainings.items():
        training.subject.model.eval().save_pretrained(folder / name.lower())
        tokenizer.save_pretrained(folder / name.lower())
    return [folder / name.lower() for name in trainings]
