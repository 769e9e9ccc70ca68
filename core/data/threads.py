"""Work on several threads, its results in order: images that are decoded, batches that are read ahead.

Pillow, zlib and reading from files leave Python's lock while they work, so threads are enough and nothing is copied
between processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

GROUP_ITEMS = 32
Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], *, threads: int, cost: Callable[[Item], int], most: int
) -> Generator[Result]:
    """`work(item)` of each item, in the order of `items`, on `threads` threads.

    `cost(item)`: bytes that an item takes from when it is begun until its result has been handed on; no more than
    `most` are taken at a time, except by one item alone. Small items are done in groups of neighbours, as handing one
    over costs as much as decoding a small image; what `work` raises is raised in place of its group. However this
    generator ends, by an error, by `close` or because nobody wants the rest, what was not begun is dropped and its
    threads have ended.
    """
    group_bytes = most // (4 * threads)

    def work_on(group: list[Item]) -> list[Result]:
        return [work(item) for item in group]

    waiting: deque[tuple[Future[list[Result]], int]] = deque()
    taken = 0
    with ThreadPoolExecutor(threads, thread_name_prefix="billhook-data") as pool:
        try:
            for group, size in _groups(items, cost, group_bytes):
                while waiting and taken + size > most:
                    taken -= waiting[0][1]
                    yield from waiting.popleft()[0].result()
                waiting.append((pool.submit(work_on, group), size))
                taken += size
            while waiting:
                yield from waiting.popleft()[0].result()
        finally:
            for future, _ in waiting:
                future.cancel()


def torch_threads() -> int:
    """As many as torch has: `threads` of the job, else all cores, or OMP_NUM_THREADS."""
    return max(1, torch.get_num_threads())


def _groups(items: Iterable[Item], cost: Callable[[Item], int], most: int) -> Iterator[tuple[list[Item], int]]:
    """Neighbours of at most `most` bytes and `GROUP_ITEMS` items, and how many bytes they take."""
    group: list[Item] = []
    taken = 0
    for item in items:
        size = cost(item)
        if group and (taken + size > most or len(group) == GROUP_ITEMS):
            yield group, taken
            group, taken = [], 0
        group.append(item)
        taken += size
    if group:
        yield group, taken
