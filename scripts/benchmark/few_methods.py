"""The methods that `few` compares, each fitted to the same examples: TF-IDF, static embeddings, MiniLM, SetFit, LLE.

Notable: a penalty is chosen by cross-validation on the examples themselves, as there is no validation set beside a
few. What a method reads with, such as an encoder, is loaded once for all of its rows. Shapes: Q queries, D width.
"""

import dataclasses
import functools
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from modeling_lle.data import load_labelled
from modeling_lle.export import export
from modeling_lle.training import load_recipe, run

from .classification import Comparison, taught_later
from .classifier import BATCH, LLEClassifier
from .deployed import FLOAT32, INT8, load_runner
from .deployment import TORCH
from .intents import SEED, Classifier, Examples, Intents

SVM, STATIC, MINILM, SETFIT = "TF-IDF, SVM", "wordllama, logistic", "all-MiniLM-L6-v2, logistic", "SetFit"
LLE_STATIC, LLE_DISTILLED = "LLE, static embeddings", "LLE, distilled"
FOLDS = 5
FEW = 50  # examples of an intent up to which penalties are compared in all folds, else in FOLDS_OF_MANY
FOLDS_OF_MANY = 3
MOST_FINE_TUNED = 10  # examples of an intent for SetFit, whose pairs grow with their square
TEACHER = "sentence-transformers/all-MiniLM-L6-v2"
NEW = 20  # intents that are taught after the others, without a gradient; a third of all if these are fewer
TO_DISTIL = 5  # examples of each of two intents, which distillation does not use
Value = TypeVar("Value")
Calls = dict[str, Callable[[str], Any]]  # answer one query, by form


class LeftOutError(Exception):
    """A method is not measured with these examples, for the reason in the message."""


class Cost(NamedTuple):
    """Seconds of one thread.

    Attributes:
        wall: By the clock.
        processor: Of the processor.
    """

    wall: float
    processor: float

    def __add__(self, other: Any) -> "Cost":
        """The cost of both."""
        return Cost(self.wall + other.wall, self.processor + other.processor)


@dataclasses.dataclass
class Fitted:
    """A method after training.

    Attributes:
        classifier: It.
        cost: Of training with the chosen penalty, from texts on.
        search: Of choosing the penalty.
        make_calls: Makes the forms that answer one query.
        numbers: Chosen parameters.
        values: Further values of the row.
    """

    classifier: Classifier
    cost: Cost
    make_calls: Callable[[], Calls]
    search: Cost = dataclasses.field(default_factory=lambda: Cost(0.0, 0.0))
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)
    values: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A data set, and where models of it are kept.

    Attributes:
        source: Data set, as `load_labelled` takes it.
        name: Its name in the results.
        intents: It; `test` is what is reported on.
        validation: Whether that is held-out training queries, which no method may see.
        keep: Share of the rightly labelled validation queries that a threshold must accept.
        folder: Folder of models that are reused.
        scratch: Folder of the others.
    """

    source: str
    name: str
    intents: Intents
    validation: bool
    keep: float
    folder: Path
    scratch: Path

    @property
    def evaluated(self) -> list[str]:
        """All queries that a classifier is asked for its row."""
        own = self.intents
        outside = [*own.validation.texts, *own.outside_validation, *own.outside_test] if own.outside_test else []
        return [*own.test.texts, *outside]


class Draw(NamedTuple):
    """Examples to train with.

    Attributes:
        examples: Queries with their intents.
        number: Examples of an intent; None: all.
        seed: Of the draw, and of training.
    """

    examples: Examples
    number: int | None
    seed: int


Method = Callable[[Setting, Draw], Fitted]


def slug(name: str) -> str:
    """Name for files and metrics: lower case, with underscores."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def costly(call: Callable[[], Value]) -> tuple[Value, Cost]:
    """Result of a call, and its cost."""
    wall, processor = time.perf_counter(), time.process_time()
    value = call()
    return value, Cost(time.perf_counter() - wall, time.process_time() - processor)


def draw(examples: Examples, number: int, seed: int) -> Examples:
    """Takes `number` examples of each intent at random, all of an intent that has fewer."""
    order = np.random.default_rng(seed).permutation(len(examples.labels))
    mask = np.zeros(len(order), dtype=bool)
    for name in np.unique(examples.labels):
        mask[order[examples.labels[order] == name][:number]] = True
    return examples.take(mask)


def choose_penalty(
    fit: Callable[[Examples, float], Classifier], examples: Examples, penalties: Sequence[float]
) -> float:
    """Penalty of the highest accuracy in cross-validation on the examples; the strongest of equal ones."""
    from sklearn.model_selection import StratifiedKFold

    rarest = int(np.unique(examples.labels, return_counts=True)[1].min())
    if rarest < 2:
        raise ValueError("cross-validation needs two examples of each intent: give more --examples")
    folds = StratifiedKFold(min(rarest, FOLDS if rarest <= FEW else FOLDS_OF_MANY), shuffle=True, random_state=SEED)
    masks = [
        np.isin(np.arange(len(examples.labels)), held_out)
        for _, held_out in folds.split(examples.labels, examples.labels)
    ]

    def accuracy(penalty: float) -> float:
        right = 0
        for mask in masks:
            asked = examples.take(mask)
            right += int((fit(examples.take(~mask), penalty).answer(asked.texts).labels == asked.labels).sum())
        return right / len(examples.labels)

    return max(penalties, key=accuracy)


def svm(setting: Setting, drawn: Draw) -> Fitted:
    """A linear support vector machine on TF-IDF."""
    from .peers.linear_classifier import PENALTIES, LinearClassifier

    penalty, search = costly(lambda: choose_penalty(LinearClassifier.fit, drawn.examples, PENALTIES))
    peer, cost = costly(lambda: LinearClassifier.fit(drawn.examples, penalty))
    return Fitted(peer, cost, lambda: {TORCH: lambda text: peer.answer([text])}, search, {"C": penalty})


@functools.cache
def _remembered(kind: str, asked: tuple[str, ...]) -> Any:
    """An encoder that has read the queries of a data set already, once for all rows."""
    from .peers.encoders import MiniLM, StaticEmbeddings
    from .peers.logistic_regression import Remembered

    return Remembered(MiniLM() if kind == MINILM else StaticEmbeddings(), asked)


def logistic(kind: str, setting: Setting, drawn: Draw) -> Fitted:
    """A logistic regression on embeddings of texts: of wordllama, or of all-MiniLM-L6-v2."""
    from .peers.logistic_regression import PENALTIES, EmbeddingClassifier

    embed = _remembered(kind, tuple(setting.evaluated)).copy()
    fit = functools.partial(EmbeddingClassifier.fit, embed)
    _, reading = costly(lambda: embed.add(drawn.examples.texts))
    penalty, search = costly(lambda: choose_penalty(fit, drawn.examples, PENALTIES))
    peer, fitting = costly(lambda: fit(drawn.examples, penalty))
    encoder = embed.embed

    def make_calls() -> Calls:
        calls: Calls = {TORCH: lambda text: peer.label(encoder.one(text))}
        return calls | (exported_encoder(peer.label) if kind == MINILM else {})

    return Fitted(peer, reading + fitting, make_calls, search, {"C": penalty})


def exported_encoder(label: Callable[[np.ndarray], Any]) -> Calls:
    """all-MiniLM-L6-v2 in onnxruntime, one query at a time, with what makes a label of its embedding."""
    from .peers.exported import ExportedEncoder

    encoders = {name: ExportedEncoder(1, int8) for name, int8 in ((FLOAT32, False), (INT8, True))}
    return {name: functools.partial(_label, encoder, label) for name, encoder in encoders.items()}


def _label(encoder: Callable[[str], np.ndarray], label: Callable[[np.ndarray], Any], text: str) -> Any:
    return label(encoder(text))


def setfit(setting: Setting, drawn: Draw) -> Fitted:
    """all-MiniLM-L6-v2 fine-tuned on pairs by the package setfit; one draw, as it takes minutes."""
    from .peers.fine_tuned import PAIRS, STEPS, fine_tune

    if drawn.number is None or drawn.number > MOST_FINE_TUNED:
        raise LeftOutError(f"more than {MOST_FINE_TUNED} examples a class take too long on one core")
    peer, cost = costly(lambda: fine_tune(drawn.examples, drawn.seed))
    encoder: Any = peer.embed
    numbers = {"steps": STEPS, "pairs of a step": PAIRS}
    return Fitted(peer, cost, lambda: {TORCH: lambda text: peer.label(encoder.one(text))}, numbers=numbers)


def lle_static(setting: Setting, drawn: Draw) -> Fitted:
    """LLE taught with the examples."""
    return _taught(setting, drawn, LLE_STATIC)


def lle_distilled(setting: Setting, drawn: Draw) -> Fitted:
    """LLE taught with the examples, after distillation of all-MiniLM-L6-v2 on the training queries of the data set."""
    folder = setting.folder / f"{setting.name}-distilled{'-validation' if setting.validation else ''}"
    minutes = _distil(setting, folder)
    fitted = _taught(setting, drawn, LLE_DISTILLED, encoder=str(folder))
    fitted.values["minutes_before"] = minutes
    return fitted


def _distil(setting: Setting, folder: Path) -> float:
    """Minutes of the processor for distillation into the folder; it is kept for all examples and draws."""
    file = folder / "minutes.json"
    if not file.is_file():
        from .peers.exported import encoder_folder

        train = setting.intents.train
        examples = draw(train.of(setting.intents.names[:2]), TO_DISTIL, SEED)
        options = {"unlabelled": train.texts, "teacher": str(encoder_folder())}
        pipeline, cost = costly(lambda: _teach(examples, SEED, **options))
        pipeline.model.save_pretrained(folder)
        pipeline.tokenizer.save_pretrained(folder)
        file.write_text(json.dumps(cost.processor / 60), encoding="utf-8")
    return float(json.loads(file.read_text(encoding="utf-8")))


def _teach(examples: Examples, seed: int, **options: Any) -> Any:
    from modeling_lle.training.few import teach

    return teach(examples.texts, examples.labels.tolist(), seed=seed, **options)


def _taught(setting: Setting, drawn: Draw, name: str, **options: Any) -> Fitted:
    folder = setting.scratch / slug(f"{setting.name} {name} {len(drawn.examples.texts)} {drawn.seed}")
    cost = _save(drawn.examples, drawn.seed, folder, options)
    fitted = _lle(setting, folder, cost)
    later = Comparison(
        dataclasses.replace(setting.intents, train=drawn.examples), 0.0, min(NEW, len(setting.intents.names) // 3)
    )
    old, _ = later.old_and_new
    others = folder.with_name(f"{folder.name}-old")
    _save(drawn.examples.of(old), drawn.seed, others, options)
    fitted.values |= taught_later(LLEClassifier(others, old), later)
    return fitted


def _save(examples: Examples, seed: int, folder: Path, options: dict[str, Any]) -> Cost:
    """Saves a classifier taught with examples, its bank with it; returns what teaching cost."""
    pipeline, cost = costly(lambda: _teach(examples, seed, **options))
    pipeline.model.save_pretrained(folder, save_history=True)
    pipeline.tokenizer.save_pretrained(folder)
    return cost


def by_recipe(recipe: Path, setting: Setting, drawn: Draw) -> Fitted:
    """LLE trained by a recipe on all examples."""
    if drawn.number is not None:
        raise LeftOutError("a recipe is for all examples")
    suffix = "-validation" if setting.validation else ""
    folder = setting.folder / f"{setting.name}-{recipe.stem}{suffix}-{drawn.seed}"
    file = folder / "cost.json"  # written last: without it, training was interrupted
    if not file.is_file():
        settings = [f"data.source={setting.source}", f"training.seed={drawn.seed}", f"training.output_dir={folder}"]
        loaded = load_recipe(recipe, settings)
        if loaded.training.teacher == TEACHER:  # that of the package, which needs no network
            from .peers.exported import encoder_folder

            loaded.training.teacher = str(encoder_folder())
        splits = ["train"] if loaded.data.held_out else ["train", "validation"]
        _, cost = costly(lambda: run(loaded, {split: _rows(setting, split) for split in splits}))
        file.write_text(json.dumps(cost), encoding="utf-8")
    return _lle(setting, folder, Cost(*json.loads(file.read_text(encoding="utf-8"))))


def _rows(setting: Setting, split: str) -> Any:
    """Rows of a split for training, without those that are reported on in place of the test split."""
    rows = load_labelled(setting.source, split=split)
    if not setting.validation:
        return rows
    reported = {*setting.intents.test.texts, *setting.intents.outside_test}
    return rows.filter(lambda text: text not in reported, input_columns="text")


def _lle(setting: Setting, folder: Path, cost: Cost) -> Fitted:
    """The classifier in a folder, with its own score of "none of these" if the data set has such queries."""
    intents = setting.intents
    peer = LLEClassifier(folder, intents.names)
    if intents.outside_test:
        known, unknown = intents.validation, intents.outside_validation
        inside = _batches(peer, known.texts, known.labels)
        peer.model.fit_out_of_scope(inside, _batches(peer, unknown), setting.keep)

    def make_calls() -> Calls:
        home = setting.scratch / f"{folder.name}-exported"
        export(peer.model, peer.tokenizer, home, int8=True, bank=peer.model.history_bank)
        runners = {name: load_runner(home, int8, 1) for name, int8 in ((FLOAT32, False), (INT8, True))}
        return {TORCH: peer.predict, **{name: functools.partial(_classify, own) for name, own in runners.items()}}

    return Fitted(peer, cost, make_calls, numbers=peer.numbers)


def _batches(peer: LLEClassifier, texts: list[str], labels: np.ndarray | None = None) -> list[dict[str, Any]]:
    """Padded batches of texts, with numbers of their labels."""
    import torch

    places = {name: place for place, name in enumerate(peer.names)}
    batches = []
    for start in range(0, len(texts), BATCH):
        batch = dict(peer.tokenizer(texts[start : start + BATCH], padding=True, return_tensors="pt"))
        if labels is not None:
            batch["labels"] = torch.tensor([places[label] for label in labels[start : start + BATCH].tolist()])
        batches.append(batch)
    return batches


def _classify(runner: Any, text: str) -> str:
    return runner.classify([text])[0]["label"]


METHODS: Mapping[str, Method] = {
    SVM: svm,
    STATIC: functools.partial(logistic, STATIC),
    MINILM: functools.partial(logistic, MINILM),
    SETFIT: setfit,
    LLE_STATIC: lle_static,
    LLE_DISTILLED: lle_distilled,
}
ONCE = (SVM, STATIC, MINILM)  # nothing is drawn but the examples
