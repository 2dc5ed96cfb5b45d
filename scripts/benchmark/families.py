"""Small models of several families, trained from scratch at equal minutes, for the comparison in backbones.py.

Mamba2 and LFM2, a hybrid of short convolutions and attention, are transformers' own classes; the LSTM is LLE's. They
have one tokenizer and about as many parameters, see peers/language_models.py, and are trained as in minutes.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from .language_models import load_tokens
from .minutes import Plan, Training, in_turn, search_rates
from .peers.language_models import LLE

TRAINED = {"mamba2": "Mamba2", "lfm2": "LFM2", "lstm": LLE}  # folders, and names of the families
HELD_OUT = 16_384  # validation tokens of losses; half as many of the search of rates


def train_families(
    source: str,
    folder: Path,
    vocabulary: int,
    width: int,
    minutes: float,
    rate: float | None,
    say: Callable[[str], Any],
) -> list[Path]:
    """Trains the models that are not in the folder yet, a slice each in turn; returns the folders of all.

    Args:
        source: Text with train and validation splits.
        folder: Gets a folder for each model, and what an interrupted training goes on from.
        vocabulary: Types of the tokenizer.
        width: Of the LSTM.
        minutes: Processor time of each training.
        rate: Peak learning rate of all; None: the best one of each, by short trainings.
        say: Is told the progress.
    """
    paths = {name: folder / name for name in TRAINED}
    missing = [name for name, path in paths.items() if not (path / "config.json").is_file()]
    if missing:
        texts = load_tokens(source, folder, vocabulary, HELD_OUT // 2, HELD_OUT)
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        plan = Plan(len(tokenizer), width, minutes, min(20.0, 6 * minutes))
        families = [TRAINED[name] for name in missing]
        rates = dict.fromkeys(families, rate) if rate else search_rates(families, texts, plan, folder, say)
        trainings = [
            Training(TRAINED[name], texts, plan, rates[TRAINED[name]], folder / "training" / name) for name in missing
        ]
        in_turn(trainings, plan.slice, say)
        for name, training in zip(missing, trainings, strict=True):
            training.subject.model.eval().save_pretrained(paths[name])
            tokenizer.save_pretrained(paths[name])
    return list(paths.values())
