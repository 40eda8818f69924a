"""Making the next of something while the one before is put to use."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T]) -> Generator[T]:
    """The same items in the same order, each made in a thread while its predecessor is in use: two exist at a time.

    It pays where both sides let go of the interpreter lock, as numpy, hashing and writing do. What `items` raises is
    raised here, in its turn. One that is being made when this is closed is waited for.
    """
    source, end = iter(items), object()
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as maker:
        coming = maker.submit(next, source, end)
        while (item := coming.result()) is not end:
            coming = maker.submit(next, source, end)
            yield item  # type: ignore[misc]
            del item
