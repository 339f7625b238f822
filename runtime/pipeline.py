"""Pipeline: reading, inference and counting at the same time, in bounded memory, with one caller of the engine.

OpenCV, numpy and ONNX Runtime let go of the interpreter's lock while they work, so threads are enough. A session is called by this thread alone.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from segnas.errors import InputError

Item = TypeVar("Item")
Read = TypeVar("Read")
Answer = TypeVar("Answer")

Unreadable = list[tuple[Item, InputError]]


def overlapped(
    items: Sequence[Item],
    *,
    read: Callable[[Item], Read],
    infer: Callable[[Sequence[Read]], Sequence[Answer]],
    count: Callable[[Item, Read, Answer], None],
    batch: int = 1,
    workers: int = 1,
) -> Unreadable[Item]:
    """`count(item, what was read, answer)` for every item: `read` and `count` on `workers` threads, `infer` on this one, `batch` items at a time.

    `infer` gets fewer where the items end. At most `workers` + `batch` + 1 items are read ahead, and `workers` + 1 batches wait to be counted,
    however many items there are. Returns the items that `read` refused with an InputError; the others are done all the same. Any other error ends it.
    """
    unreadable: Unreadable[Item] = []
    waiting: deque[Sequence[Future[None]]] = deque()
    pool = ThreadPoolExecutor(workers, "segnas-pipeline")
    try:
        for group in _groups(_ahead(pool, items, read, workers + batch + 1, unreadable), batch):
            answers = infer([found for _, found in group])
            waiting.append([pool.submit(count, item, found, answer) for (item, found), answer in zip(group, answers, strict=True)])
            while len(waiting) > workers + 1:
                _finish(waiting.popleft())
        while waiting:
            _finish(waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)
    return unreadable


def _ahead(
    pool: ThreadPoolExecutor, items: Sequence[Item], read: Callable[[Item], Read], most: int, unreadable: Unreadable[Item]
) -> Iterator[tuple[Item, Read]]:
    """What is read of each item, in order, `most` of them read ahead; what cannot be read goes to `unreadable`."""
    coming: deque[tuple[Item, Future[Read]]] = deque()
    following = iter(items)
    while True:
        while len(coming) < most and (item := next(following, None)) is not None:
            coming.append((item, pool.submit(read, item)))
        if not coming:
            return
        item, future = coming.popleft()
        try:
            found = future.result()
        except InputError as error:
            unreadable.append((item, error))
            continue
        del future
        yield item, found


def _groups(found: Iterator[tuple[Item, Read]], size: int) -> Iterator[list[tuple[Item, Read]]]:
    group: list[tuple[Item, Read]] = []
    for pair in found:
        group.append(pair)
        del pair
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _finish(futures: Sequence[Future[None]]) -> None:
    for future in futures:
        future.result()
