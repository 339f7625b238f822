"""The pipeline: everything once, in bounded numbers, and what happens when a part fails."""

import threading
import time
from collections.abc import Sequence

import pytest

from segnas.errors import InputError
from segnas.runtime.pipeline import overlapped


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("count", [0, 1, 4, 23])
def test_every_item_once_and_in_order_to_the_engine(batch: int, workers: int, count: int) -> None:
    asked, counted, lock = list[int](), list[tuple[int, str, str]](), threading.Lock()

    def infer(group: Sequence[str]) -> Sequence[str]:
        assert threading.current_thread() is threading.main_thread()
        assert 1 <= len(group) <= batch
        asked.extend(map(int, group))
        return [f"<{text}>" for text in group]

    def keep(item: int, read: str, answer: str) -> None:
        with lock:
            counted.append((item, read, answer))

    left = overlapped(range(count), read=str, infer=infer, count=keep, batch=batch, workers=workers)
    assert left == []
    assert asked == list(range(count))
    assert sorted(counted) == [(item, str(item), f"<{item}>") for item in range(count)]
    if workers == 1:
        assert counted == sorted(counted)


def test_what_cannot_be_read_is_returned_and_the_rest_done() -> None:
    def read(item: int) -> int:
        if item % 3 == 1:
            raise InputError(f"no {item}")
        return item

    counted: list[int] = []
    left = overlapped(range(8), read=read, infer=lambda group: group, count=lambda item, *rest: counted.append(item), batch=2)
    assert [(item, str(error)) for item, error in left] == [(1, "no 1"), (4, "no 4"), (7, "no 7")]
    assert counted == [0, 2, 3, 5, 6]


@pytest.mark.parametrize("where", ["read", "infer", "count"])
def test_any_other_error_ends_it(where: str) -> None:
    def failing(name: str, item: int) -> int:
        if name == where and item == 5:
            raise RuntimeError(f"{name} of {item}")
        return item

    done: list[int] = []

    def count(item: int, read: int, answer: int) -> None:
        failing("count", item)
        done.append(item)

    with pytest.raises(RuntimeError, match=f"{where} of 5"):
        overlapped(range(1000), read=lambda item: failing("read", item), infer=lambda group: [failing("infer", item) for item in group], count=count)
    assert len(done) < 20


def test_reading_inference_and_counting_overlap() -> None:
    """Ten items of 20 ms in each of three places take 200 ms and a little, not 600."""

    def slow(item: int, *rest: object) -> int:
        time.sleep(0.02)
        return item

    begun = time.perf_counter()
    overlapped(range(10), read=slow, infer=lambda group: [slow(item) for item in group], count=lambda *given: slow(*given) and None, workers=2)
    assert 0.2 <= time.perf_counter() - begun < 0.55


@pytest.mark.parametrize("slow", ["infer", "count"])
def test_no_part_runs_far_ahead_of_another(slow: str) -> None:
    alive, most, lock = 0, 0, threading.Lock()

    def read(item: int) -> int:
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        return item

    def infer(group: Sequence[int]) -> Sequence[int]:
        time.sleep(0.002 if slow == "infer" else 0)
        return group

    def count(item: int, found: int, answer: int) -> None:
        nonlocal alive
        time.sleep(0.002 if slow == "count" else 0)
        with lock:
            alive -= 1

    overlapped(range(200), read=read, infer=infer, count=count, workers=2)
    assert alive == 0
    assert most <= (2 + 1 + 1) + 1 + (2 + 2)
