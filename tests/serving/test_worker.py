"""Tasks run together where they may, and one that fails takes no other with it."""

import threading
from collections.abc import Iterator, Sequence

import pytest

from modeling_lle.serving.errors import ServingError
from modeling_lle.serving.worker import Task, Worker, call


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker("test", queue=8, batch=4)
    yield made
    assert made.close(20)


class Held:
    """Keeps a worker busy until it is let go."""

    def __init__(self, worker: Worker) -> None:
        self.held, self.free = threading.Event(), threading.Event()
        worker.submit(call(self._wait))
        self.held.wait()

    def _wait(self) -> None:
        self.held.set()
        self.free.wait()


def test_tasks_with_one_key_run_together_up_to_the_limit(worker: Worker) -> None:
    seen: list[list[int]] = []

    def double(items: list[int]) -> list[int]:
        seen.append(items)
        return [2 * item for item in items]

    held = Held(worker)
    tasks = [Task([1, 2], double, "a"), Task([9], double, "b"), Task([3], double, "a"), Task([4, 5], double, "a")]
    worker.submit(*tasks)
    held.free.set()
    assert [task.future.result(20) for task in tasks] == [[2, 4], [18], [6], [8, 10]]
    assert seen == [[1, 2, 3], [9], [4, 5]]


def test_a_bad_task_fails_alone(worker: Worker) -> None:
    def strict(items: list[int]) -> Sequence[int]:
        if 0 in items:
            raise ValueError("zero")
        return items

    held = Held(worker)
    tasks = [Task([1], strict, "a"), Task([0], strict, "a"), Task([2], strict, "a")]
    worker.submit(*tasks)
    held.free.set()
    assert [tasks[0].future.result(20), tasks[2].future.result(20)] == [[1], [2]]
    with pytest.raises(ValueError, match="zero"):
        tasks[1].future.result(20)


def test_what_is_dropped_is_not_run_and_a_full_queue_refuses(worker: Worker) -> None:
    ran: list[int] = []
    held = Held(worker)
    tasks = [call(lambda number=number: ran.append(number)) for number in range(8)]  # type: ignore[misc]
    worker.submit(*tasks)
    with pytest.raises(ServingError, match="too many"):
        worker.submit(call(lambda: None))
    tasks[3].future.cancel()
    held.free.set()
    tasks[7].future.result(20)
    assert ran == [0, 1, 2, 4, 5, 6, 7]


def test_an_error_that_nobody_catches_does_not_end_the_thread() -> None:
    class Broken:
        rows, stopped = 1, 0

        def admit(self, row: object) -> None:
            raise AssertionError

        def turn(self) -> None:
            raise RuntimeError("broken")

        def stop(self, error: Exception) -> None:
            self.rows, self.stopped = 0, self.stopped + 1

    broken = Broken()
    worker = Worker("test", queue=8, batch=4, decoding=broken)
    answered = call(lambda: 3)
    worker.submit(answered)
    assert answered.future.result(20) == [3]
    assert worker.close(20)
    assert broken.stopped >= 1


def test_what_waits_when_the_worker_closes_is_refused() -> None:
    worker = Worker("test", queue=8, batch=4)
    held, waiting = Held(worker), call(lambda: None)
    worker.submit(waiting)
    closing = threading.Thread(target=worker.close, args=(20,))
    closing.start()
    while not worker._closed:
        pass
    held.free.set()
    closing.join()
    with pytest.raises(ServingError, match="shutting down"):
        waiting.future.result(20)
    with pytest.raises(ServingError, match="shutting down"):
        worker.submit(call(lambda: None))
