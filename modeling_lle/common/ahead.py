"""Work ahead: a thread makes the next item while the caller uses the one before it."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yields the items; a thread makes the next one while the caller uses the one before it."""
    none = object()
    pool = ThreadPoolExecutor(1, thread_name_prefix="lle-bank")
    try:
        coming: Future[Any] = pool.submit(next, items, none)
        while (item := coming.result()) is not none:
            coming = pool.submit(next, items, none)
            yield item
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
