"""Lease: one writer at a time among all clients of a bank in Milvus, which has no locks and no compare-and-set.

Notable: Lamport's bakery (1974), on a collection with a row for each client that writes or waits. A client draws a
number above all that it sees, and its turn is when no other has a lower one; it needs no more than reads that see
every finished write. A ticket whose owner has not moved it for twice the time limit of a request, by the clock of who
waits, belongs to a dead client and is passed over; whoever takes over sweeps what that client left. The owner confirms
its ticket before each request that writes.
"""

import contextlib
import threading
import time
import uuid
from collections.abc import Iterator

from ..manifest import BankError
from .engine import Engine

BEATS = 8  # signs of life in the time after which a client without one is dead
WAIT = 60.0  # seconds to wait for one's turn, at least
PAUSES = 0.005, 0.25  # seconds between two looks, the first and the longest
FIELDS = ("id", "number", "beat")


class Lease:
    """The right to write.

    Args:
        engine: The engine.
        collection: Name of the collection of tickets.
        seconds: Seconds without a sign of life after which a client is dead; None: twice the time limit of a request,
            so that none of its requests is under way then.
        wait: Seconds to wait for one's turn; None: twice as many, at least `WAIT`.
    """

    def __init__(
        self, engine: Engine, collection: str, seconds: float | None = None, wait: float | None = None
    ) -> None:
        self.engine, self.collection = engine, collection
        self.seconds = 2 * engine.address.timeout if seconds is None else seconds
        self.wait = max(WAIT, 2 * self.seconds) if wait is None else wait
        self._own, self._number, self._beat, self._is_lost = "", 0, 0, False

    @contextlib.contextmanager
    def held(self) -> Iterator[list[str]]:
        """Waits for one's turn; yields the tickets of dead clients, to `bury` after sweeping.

        Raises:
            TimeoutError: Others have not finished in time.
        """
        self._own, self._beat, self._is_lost = uuid.uuid4().hex, 0, False
        self._write(0)
        stop = threading.Event()
        beating = threading.Thread(target=self._keep, args=(stop,), daemon=True)
        try:
            self._write(1 + max(row["number"] for row in self._tickets()))
            beating.start()
            yield self._turn()
        finally:
            stop.set()
            if beating.ident is not None:
                beating.join()
            with contextlib.suppress(BankError):  # one that cannot be removed is passed over later
                if self._own:
                    self.bury([self._own])

    def abandon(self) -> None:
        """Leaves the ticket behind, so that the next writer sweeps."""
        self._own = ""

    def bury(self, tickets: list[str]) -> None:
        """Removes tickets."""
        self.engine.delete(self.collection, tickets)

    def check(self) -> None:
        """Raises a BankError if this client was taken for dead, so that it must not write."""
        if self._is_lost or not self.engine.get(self.collection, [self._own], FIELDS):
            raise BankError(
                f"{self.engine.address}: this writer gave no sign of life for {self.seconds:g} seconds, and others "
                "may write now: repeat the change; a source that was being added resumes"
            )

    def _write(self, number: int) -> None:
        self._number, self._beat = number, self._beat + 1
        row = {"id": self._own, "number": number, "beat": self._beat, "blank": [0.0, 0.0]}
        self.engine.write(self.collection, [row], 64)

    def _keep(self, stop: threading.Event) -> None:
        last = time.time()  # which goes on while the machine sleeps
        while not stop.wait(self.seconds / BEATS):
            if time.time() - last > self.seconds / 2:  # others may take this client for dead: it must not come back
                self._is_lost = True
                return
            with contextlib.suppress(BankError):
                self.check()
                self._write(self._number)
                last = time.time()

    def _tickets(self) -> list[dict[str, int]]:
        return self.engine.query(self.collection, "number >= 0", FIELDS)

    def _turn(self) -> list[str]:
        """Waits until all with a lower number have finished or are dead; returns the tickets of the dead."""
        seen: dict[str, tuple[tuple[int, int], float]] = {}  # number and beat of the others, and since when
        begin, (pause, longest) = time.monotonic(), PAUSES
        while True:
            now, dead, before = time.monotonic(), [], False
            for row in self._tickets():
                name, mark = str(row["id"]), (row["number"], row["beat"])
                if name == self._own:
                    continue
                if name not in seen or seen[name][0] != mark:
                    seen[name] = mark, now
                if now - seen[name][1] > self.seconds:
                    dead.append(name)
                elif row["number"] == 0 or (row["number"], name) < (self._number, self._own):
                    before = True
            if not before:
                self.check()
                return dead
            if now - begin > self.wait:
                raise TimeoutError(
                    f"other writers of {self.engine.address} have not finished within {self.wait:g} seconds: try again"
                )
            time.sleep(pause)
            pause = min(2 * pause, longest)
