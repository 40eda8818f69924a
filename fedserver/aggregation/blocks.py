"""Walking over tensors in cache-sized blocks, by one thread or several.

numpy lets go of the interpreter lock inside its loops, so threads pay. Whatever is computed here per element does not
depend on how the elements were divided.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from fedstream.schema import TensorSpec

BLOCK_ELEMENTS = 64 * 1024
"""Elements handled at once. Measured on float32: 8 Ki is 25% slower (calls), 64 Ki the fastest, all buffers in L2."""

SPAN_BLOCKS = 16
"""Blocks that one thread takes at a time: 4 MiB of float32, so that one large tensor keeps all threads busy. Less work
than this in all is done by the caller: starting threads would cost more than it saves."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Span:
    """Elements `start` (inclusive) to `stop` (exclusive) of the flat tensor at `index` in the schema."""

    index: int
    start: int
    stop: int

    def blocks(self, block_elements: int) -> Iterator[slice]:
        """The span in blocks, in order; the last may be shorter."""
        for start in range(self.start, self.stop, block_elements):
            yield slice(start, min(start + block_elements, self.stop))


def spans(tensors: Iterable[tuple[int, TensorSpec]], block_elements: int = BLOCK_ELEMENTS) -> list[Span]:
    """The given (index in schema, tensor) pairs, cut into spans. A tensor without elements has none."""
    step = block_elements * SPAN_BLOCKS
    return [
        Span(index, start, min(start + step, spec.num_elements))
        for index, spec in tensors
        for start in range(0, spec.num_elements, step)
    ]


def run(
    threads: int,
    tasks: Sequence[Span],
    make_worker: Callable[[], Callable[[Span], Result]],
    block_elements: int = BLOCK_ELEMENTS,
) -> list[Result]:
    """Do every task, on up to `threads` threads, and return the results in the order of `tasks`.

    `make_worker` is called once per thread, here, so that buffers are allocated (or refused) before work starts.
    """
    if threads == 1 or sum(task.stop - task.start for task in tasks) < SPAN_BLOCKS * block_elements:
        worker = make_worker()
        return [worker(task) for task in tasks]
    workers = [make_worker() for _ in range(min(threads, len(tasks)))]
    results: dict[int, Result] = {}

    def work(number: int) -> None:
        for place in range(number, len(tasks), len(workers)):
            results[place] = workers[number](tasks[place])

    with ThreadPoolExecutor(len(workers), thread_name_prefix="aggregation") as pool:
        list(pool.map(work, range(len(workers))))
    return [results[place] for place in range(len(tasks))]


def zeros(lengths: Sequence[int]) -> list[np.ndarray]:
    """int64 zeros, an array `[length]` for each of `lengths`, in pages of their own.

    They go back to the system as soon as all are let go. An allocator keeps what it is given back, in part and for each
    thread that asked: of 200 MiB of sums in arrays of 3 MiB, 140 to 190 stayed resident after the round.
    """
    size = 8 * sum(lengths)
    if not size:
        return [np.zeros(length, np.int64) for length in lengths]
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without large pages; it is faster with them, and the same
            pages.madvise(mmap.MADV_HUGEPAGE)
    return np.split(np.frombuffer(pages, np.int64), np.cumsum(lengths)[:-1])


def flat(array: np.ndarray) -> np.ndarray:
    """All elements in order, `[num_elements]`: a view wherever the array is contiguous."""
    return array.reshape(-1)
