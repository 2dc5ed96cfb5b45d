"""Served: a model with all that the server keeps beside it, and the place where models are looked up."""

import contextlib
import copy
import re
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..bank.bank import HistoryBank
from ..bank.fingerprint import fingerprint
from ..common.precision import in_precision
from ..common.remembered import remembered
from ..models.causal import LLEForCausalLM
from ..models.pretrained import LLEPreTrainedModel
from ..models.streaming import Choice
from ..pipelines.text_classification import LLETextClassificationPipeline
from ..pipelines.translation import LLETranslationPipeline
from ..saved import load_classifier, load_language_model, load_translator, task_in
from ..tasks import CLASSIFICATION, LANGUAGE, TRANSLATION, Task
from .decoding import Decoder
from .errors import ServingError, unknown
from .histories import Histories
from .limits import Limits
from .sessions import Sessions
from .worker import Worker

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
PREPARED = 256  # options with which tokens are chosen, for which the choice is kept
_LOADERS: dict[str, Callable[[str], Any]] = {
    LANGUAGE.name: load_language_model,
    CLASSIFICATION.name: load_classifier,
    TRANSLATION.name: load_translator,
}


@dataclass(frozen=True)
class Place:
    """Where a model and what its tenants recall from lie.

    Attributes:
        name: What the model is called by clients.
        model: Its folder, or name on the Hub.
        histories: The folder that holds one of each tenant.
        bank: A bank that all tenants recall from too; None: none.
        shared: The namespaces of it; None: all.
        languages: Source and target of a translator; None: those that it was trained on.
    """

    name: str
    model: str
    histories: Path
    bank: str | None = None
    shared: tuple[str, ...] | None = None
    languages: tuple[str, str] | None = None


class Served:
    """A loaded model.

    Args:
        place: Where it comes from.
        model, tokenizer: The model and its tokenizer.
        task: Its task.
        limits: The limits of the server.
        precision: As in `in_precision`.
        shared: The bank of `place`, opened.

    Attributes:
        fingerprint: Fingerprint of the model.
        histories, sessions: What the tenants recall from, and what they go on with.
        worker, teacher: The threads that predict and that teach.
        pipeline: Of classifiers and translators.
    """

    def __init__(
        self,
        place: Place,
        model: LLEPreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        limits: Limits,
        precision: str = "float32",
        shared: HistoryBank | None = None,
    ) -> None:
        if not _NAME.fullmatch(place.name):
            raise ValueError(f"{place.name!r} cannot name a model: write NAME=FOLDER, with letters, digits and '_.-'")
        self.name, self.task, self.tokenizer, self.limits = place.name, task, tokenizer, limits
        self.model = model.float().eval()
        self.fingerprint = fingerprint(model)
        self.languages = _languages(place) if task == TRANSLATION else None
        folder = place.histories / place.name
        self.histories = Histories(model, tokenizer, task, self.fingerprint, folder, shared, place.shared)
        self.sessions = Sessions(limits.sessions, limits.session_seconds)
        self.pipeline: Any = None
        if task == CLASSIFICATION:
            self.pipeline = LLETextClassificationPipeline(model=model, tokenizer=tokenizer)
        elif task == TRANSLATION:
            self.pipeline = LLETranslationPipeline(model=model, tokenizer=tokenizer)
        self._choices: dict[Hashable, tuple[Choice, frozenset[int]]] = {}
        self._own = copy.deepcopy(tokenizer)  # for the threads of requests, one at a time
        self._encoding = threading.Lock()

        def around() -> contextlib.AbstractContextManager[None]:
            return in_precision(self.model, precision)

        decoder = Decoder(self.language_model) if task == LANGUAGE else None
        self.worker = Worker(f"lle-{self.name}", limits.queue, limits.batch, decoder, around)
        self.teacher = Worker(f"lle-{self.name}-teacher", limits.queue, 1, None, around)

    @classmethod
    def load(cls, place: Place, limits: Limits, precision: str = "float32") -> "Served":
        """Loads a model, and opens the bank that all recall from.

        Raises:
            ValueError: The model has a task that is not served, or the bank belongs to another model.
        """
        task = task_in(place.model)
        if task.name not in _LOADERS:
            raise ValueError(f"{place.model} holds {task.noun}, which is not served: use it in Python")
        model, tokenizer = _LOADERS[task.name](place.model)
        shared = None if place.bank is None else HistoryBank.from_pretrained(place.bank)
        return cls(place, model, tokenizer, task, limits, precision, shared)

    @property
    def language_model(self) -> LLEForCausalLM:
        """The model, if it is a language model."""
        assert isinstance(self.model, LLEForCausalLM)
        return self.model

    def choice(
        self, tokens: list[int], number: int, generator: torch.Generator, **options: Any
    ) -> tuple[Choice, frozenset[int]]:
        """How `number` tokens after some are chosen, and which end them, as `LLEForCausalLM.choice` says.

        It is prepared once for the same options, unless it looks at the text.
        """
        key = tuple(sorted(options.items()))
        found = self._choices.get(key)
        if found is None:
            text, model = torch.tensor([tokens]), self.language_model
            choose, ends, _ = model.choice(text, generator, max_new_tokens=number, **options)
            found = choose, ends
            if choose.reads_text:
                return found
            if len(self._choices) >= PREPARED:
                self._choices.clear()
            self._choices[key] = found
        return found[0].again(generator), found[1]

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids of a text, as the pipelines make them."""
        with self._encoding:
            return list(self._own(text, add_special_tokens=special, verbose=False)["input_ids"])

    @contextlib.contextmanager
    def own_tokenizer(self) -> Iterator[PreTrainedTokenizerBase]:
        """The tokenizer for the threads of requests."""
        with self._encoding:
            yield self._own

    def check_length(self, tokens: int, what: str = "the prompt") -> None:
        """Raises a ServingError if something has more tokens than the limit."""
        most = self.limits.prompt_tokens
        if tokens > most:
            message = f"{what} has {tokens:,} tokens, and {most:,} are allowed: shorten it"
            raise ServingError(400, "context_length_exceeded", message)


def _languages(place: Place) -> tuple[str, str]:
    """The languages of a translator; raises a ValueError if they are unknown."""
    trained = {} if place.languages else remembered(place.model)
    found = place.languages or (trained.get("source_language"), trained.get("target_language"))
    if None in found:
        raise ValueError(f"the languages of {place.model} are unknown: give --languages {place.name}=SOURCE-TARGET")
    source, target = map(str, found)
    return source, target


@dataclass
class Models:
    """The models of a server."""

    of: dict[str, Served] = field(default_factory=dict)

    @classmethod
    def load(cls, places: Sequence[Place], limits: Limits, precision: str = "float32") -> "Models":
        """Loads models; raises a ValueError if two have the same name."""
        found: dict[str, Served] = {}
        for place in places:
            if place.name in found:
                raise ValueError(f"two models are called {place.name!r}: write NAME=FOLDER for one of them")
            found[place.name] = Served.load(place, limits, precision)
        return cls(found)

    def get(self, name: str, *tasks: Task) -> Served:
        """The model with a name, of one of the tasks if any are given; raises a ServingError."""
        served = self.of.get(name)
        if served is None:
            known = ", ".join(self.of)
            raise unknown(f"there is no model {name[:100]!r}; there are: {known}", "model_not_found")
        if tasks and served.task not in tasks:
            nouns = " or ".join(task.noun for task in tasks)
            raise ServingError(400, "wrong_task", f"{name} is {served.task.noun}, and {nouns} is needed")
        return served

    def first(self, task: Task, name: str | None = None) -> Served:
        """The model with a name, or the first one of a task; raises a ServingError."""
        if name is not None:
            return self.get(name, task)
        served = next((own for own in self.of.values() if own.task == task), None)
        if served is None:
            raise unknown(f"this server has no model of the task {task.name}", "model_not_found")
        return served

    def translator(self, source: str, target: str) -> Served:
        """The translator from one language to another, "auto" for any; raises a ServingError."""
        for served in self.of.values():
            own = served.languages
            if own is not None and source in ("auto", own[0]) and target == own[1]:
                return served
        raise ServingError(400, "no_translator", f"{source[:20]} to {target[:20]} is not supported: see /languages")

    def close(self, seconds: float) -> bool:
        """Ends all threads; returns whether they ended in time."""
        workers = [worker for served in self.of.values() for worker in (served.worker, served.teacher)]
        for worker in workers:
            worker.stop()
        until = time.monotonic() + seconds
        ended = [worker.close(max(0.0, until - time.monotonic())) for worker in workers]
        return all(ended)
