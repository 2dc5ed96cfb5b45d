"""Worker: the thread in which a model runs, and the tasks that wait for it.

Notable: waiting tasks of one kind run as one batch; a language model generates token by token between them
(decoding.py). A task that nobody waits for any more is dropped.
"""

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from .errors import ServingError

logger = logging.getLogger(__name__)

STOPPED = ServingError(503, "shutting_down", "the server is shutting down: send the request again", retry=True)

FAILED = ServingError(500, "internal_error", "the server failed: see its log")


@dataclass(eq=False)
class Task:
    """Work for a model.

    Attributes:
        items: What to work on.
        run: Gives a result for each of some items, of one task or of several.
        key: Tasks with the same key may run together, by the `run` of the first; None: it runs alone.
        future: Gets the results of the items.
    """

    items: Sequence[Any]
    run: Callable[[list[Any]], Sequence[Any]]
    key: Hashable = None
    future: "Future[list[Any]]" = field(default_factory=Future)

    @property
    def dropped(self) -> bool:
        """Whether nobody waits for it."""
        return self.future.cancelled()

    def fail(self, error: Exception) -> None:
        """Ends it with an error."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)


class Decoding(Protocol):
    """What generates for a language model: many rows, a token of each at a time."""

    @property
    def rows(self) -> int:
        """Rows that are being generated."""
        ...

    def admit(self, row: Any) -> None:
        """Takes a row in."""
        ...

    def turn(self) -> None:
        """Generates a token of each row."""
        ...

    def stop(self, error: Exception) -> None:
        """Ends all rows with an error."""
        ...


class Worker:
    """A thread that works on tasks in the order in which they came, as far as they do not run together.

    Args:
        name: Name of the thread.
        queue: Tasks and rows that may wait.
        batch: Items that may run together, and rows that may be generated at a time.
        decoding: Generates for a language model; None: no rows are taken.
        around: Makes the context in which the thread works.
    """

    def __init__(
        self,
        name: str,
        queue: int,
        batch: int,
        decoding: Decoding | None = None,
        around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        self.queue, self.batch, self._decoding, self._around = queue, batch, decoding, around
        self._tasks: deque[Task] = deque()
        self._rows: deque[Any] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Tasks and rows that wait."""
        return len(self._tasks) + len(self._rows)

    @property
    def running(self) -> int:
        """Rows that are being generated."""
        return 0 if self._decoding is None else self._decoding.rows

    def submit(self, *tasks: Task) -> None:
        """Adds tasks to the queue; raises a ServingError if there is no room for all of them."""
        self._enqueue(self._tasks, tasks)

    def generate(self, *rows: Any) -> None:
        """Adds rows to generate to the queue; raises a ServingError if there is no room for all of them."""
        self._enqueue(self._rows, rows)

    def _enqueue(self, queue: deque[Any], added: Sequence[Any]) -> None:
        with self._changed:
            if self._closed:
                raise STOPPED
            if self.waiting and self.waiting + len(added) > self.queue:  # one request always finds an empty queue
                raise ServingError(503, "overloaded", "too many requests wait for this model: try later", retry=True)
            queue.extend(added)
            self._changed.notify()

    def stop(self) -> None:
        """Lets everything that waits or is being generated end, and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def close(self, seconds: float) -> bool:
        """As `stop`; returns whether the thread has ended in time."""
        self.stop()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        torch.set_num_threads(torch.get_num_threads())  # OpenMP's number is one of each thread
        with self._around(), torch.no_grad():
            while self._guarded_turn():
                pass
        for task in self._tasks:
            task.fail(STOPPED)
        for row in self._rows:
            row.failed(STOPPED)
        if self._decoding is not None:
            self._decoding.stop(STOPPED)

    def _guarded_turn(self) -> bool:
        """As `_turn`; an error that none of its parts has caught ends what is being generated, and not the thread."""
        try:
            return self._turn()
        except Exception:
            logger.exception("the model failed")
            if self._decoding is not None:
                self._decoding.stop(FAILED)
            return True

    def _turn(self) -> bool:
        """Works on what is due; returns whether the thread goes on."""
        with self._changed:
            while not (self._closed or self.waiting or self.running):
                self._changed.wait()
            if self._closed:
                return False
            batch = self._next()
            while self._rows and self.running < self.batch:
                assert self._decoding is not None
                self._decoding.admit(self._rows.popleft())
        if batch:
            self._execute(batch)
        if self.running and self._decoding is not None:
            self._decoding.turn()
        return True

    def _next(self) -> list[Task]:
        """Takes the first task out of the queue, and others that may run with it."""
        while self._tasks and self._tasks[0].dropped:
            self._tasks.popleft()
        if not self._tasks:
            return []
        first = self._tasks.popleft()
        if first.key is None:
            return [first]
        batch, items = [first], len(first.items)
        for task in list(self._tasks):
            if task.key == first.key and not task.dropped and items + len(task.items) <= self.batch:
                batch.append(task)
                items += len(task.items)
                self._tasks.remove(task)
        return batch

    def _execute(self, batch: list[Task]) -> None:
        try:
            results = iter(list(batch[0].run([item for task in batch for item in task.items])))
            parts = [[next(results) for _ in task.items] for task in batch]
        except Exception as error:
            if len(batch) > 1:  # one of them may be to blame
                for task in batch:
                    self._execute([task])
                return
            batch[0].fail(error)
            return
        for task, part in zip(batch, parts, strict=True):
            with contextlib.suppress(InvalidStateError):
                task.future.set_result(part)


def call(function: Callable[[], Any]) -> Task:
    """A task that runs a function alone; its only result is that of the function."""
    return Task([None], lambda _: [function()])


def chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Yields the items in parts of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
