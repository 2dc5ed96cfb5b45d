"""A small classifier and a small translator to try the page with, trained on sentences that are made here.

python -m modeling_lle.serving.page_demo FOLDER    trains those that FOLDER lacks (half a minute on one core)
"""

import logging
import shutil
import sys
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..bank.bank import HistoryBank
from ..models.seq2seq import LLEForSeq2SeqLM
from ..saved import load_translator
from ..training import make_recipe, run
from .served import Place

INTENTS, TRANSLATOR = "intents", "en-de"  # names of the models
_QUESTIONS = {
    "lost_card": [
        ("i lost|i can not find|somebody stole|i think i lost", "my card|the card|my bank card|my credit card"),
        ("my card|the card|my bank card|my credit card", "is gone|was stolen|is lost|has been stolen|is missing"),
    ],
    "exchange_rate": [
        ("what is the rate for|how many euros are|what rate do i get for", "dollars|pounds|yen|a hundred dollars"),
        ("what is|how is|where is|when is|why is", "the exchange rate|the exchange rate set|the exchange rate shown"),
    ],
    "top_up": [
        ("how do i top up|can i top up|i want to top up|why can i not top up", "my account|by transfer|with cash|now"),
        ("my|the|why has my", "top up failed|top up not arrived|top up been refused|top up limit"),
    ],
    "change_pin": [
        ("how do i change|i want to change|where can i change", "my pin|the pin|the pin of my card|a pin|it"),
        ("my|the|i think my", "pin does not work|pin is wrong|pin is blocked|pin was refused"),
    ],
    "fees": [
        ("what does|how much does|why does", "it cost|a transfer cost|an account cost|the card cost|a payment cost"),
        ("why was i charged|what is|why is there|i do not understand", "a fee|this fee|the fee for transfers"),
    ],
}
_WHO = {
    **{"the cat": "die Katze", "the cow": "die Kuh", "the duck": "die Ente", "the mouse": "die Maus"},
    **{"the horse": "das Pferd", "the pig": "das Schwein", "the man": "der Mann", "the child": "das Kind"},
}
_DOES = {"sleeps": "schläft", "waits": "wartet", "eats": "isst", "sings": "singt", "plays": "spielt", "runs": "läuft"}
_WHERE = {
    **{"in the house": "im Haus", "in the garden": "im Garten", "at the lake": "am See"},
    **{"in the barn": "im Stall", "on the road": "auf der Straße", "in the snow": "im Schnee"},
}
_GATE = {"at the gate": "am Tor"}
# Words that the translator has not seen, by which it is fitted how much a memory counts.
_NEW = (
    ({"the dog": "der Hund"}, {"barks": "bellt", "waits": "wartet", "sleeps": "schläft"}, _WHERE | _GATE),
    ({"the cow": "die Kuh", "the pig": "das Schwein"}, {"eats": "isst", "sings": "singt"}, _GATE),
)
_TRAINING = {"num_train_epochs": 12, "per_device_train_batch_size": 16, "save_strategy": "no", "disable_tqdm": True}


def make_demo_models(folder: Path, histories: Path, say: Callable[[str], None] = print) -> list[Place]:
    """Trains the models that a folder lacks, and says where each lies.

    Args:
        folder: The folder of the models.
        histories: The folder of the tenants' histories.
        say: Receives lines to print.
    """
    makers = {INTENTS: _train_classifier, TRANSLATOR: _train_translator}
    for name, make in makers.items():
        path, partial = folder / name, folder / f".making-{name}"
        if not path.exists():
            say(f"Training {path} ...")
            shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
            make(partial)
            partial.rename(path)
    classifier, translator = (str(folder / name) for name in (INTENTS, TRANSLATOR))
    return [
        Place(INTENTS, classifier, histories, classifier),  # with the bank of its training texts
        Place(TRANSLATOR, translator, histories, languages=("en", "de")),
    ]


def questions() -> list[dict[str, str]]:
    """Questions to a bank, with the labels of their intents."""
    return [
        {"text": " ".join(words), "label": label}
        for label, parts in _QUESTIONS.items()
        for begin, end in parts
        for words in product(begin.split("|"), end.split("|"))
    ]


def sentences(*parts: Mapping[str, str]) -> list[dict[str, str]]:
    """All combinations of the parts, with their translations."""
    combinations = [zip(*words, strict=True) for words in product(*(part.items() for part in parts))]
    return [{"source": " ".join(source), "target": " ".join(target)} for source, target in combinations]


def _train_classifier(folder: Path) -> None:
    recipe = {
        "task": "text-classification",
        "data": {"held_out": 0.25},
        "tokenizer": {"vocab_size": 400, "lowercase": True},
        "model": {"hidden_size": 32, "num_hidden_layers": 1, "bidirectional": True},
        "training": {**_TRAINING, "output_dir": str(folder), "learning_rate": 0.01},
    }
    run(make_recipe(recipe), {"train": Dataset.from_list(questions())})


def _train_translator(folder: Path) -> None:
    columns = {"source_column": "source", "target_column": "target"}
    recipe = {
        "task": "translation",
        "data": {"source_language": "en", "target_language": "de", **columns},
        "tokenizer": {"vocab_size": 320},
        "model": {"hidden_size": 64, "num_hidden_layers": 1},
        "training": {**_TRAINING, "output_dir": str(folder), "learning_rate": 0.005},
    }
    pairs = sentences(_WHO, _DOES, _WHERE)
    run(make_recipe(recipe), {"train": Dataset.from_list(pairs), "validation": Dataset.from_list(pairs[::19])})
    model, tokenizer = load_translator(str(folder))
    _fit_memory(model, tokenizer, folder)


def _fit_memory(model: LLEForSeq2SeqLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Fits how much a memory counts, and saves that with the model."""
    pairs = [pair for parts in _NEW for pair in sentences(*parts)]
    memory = HistoryBank.build(model, tokenizer, pairs, folder / "fitted", source="fitted")
    model.attach_history(memory, tokenizer=tokenizer)
    model.calibrate()
    model.detach_history()
    shutil.rmtree(folder / "fitted")
    model.save_pretrained(folder)


def _main(arguments: list[str]) -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    folder = Path(arguments[0] if arguments else "runs")
    make_demo_models(folder, folder / "histories")


if __name__ == "__main__":
    _main(sys.argv[1:])
