"""Counting and its sum, whatever the order."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segnas.labels import CITYSCAPES
from segnas.runtime.counting import Counted, Tally, counted, spans_of


@given(st.sets(st.integers(0, 30)))
def test_spans_hold_the_indices_and_nothing_else(indices: set[int]) -> None:
    spans = spans_of(indices)
    assert [index for first, after in spans for index in range(first, after)] == sorted(indices)
    assert all(after < following for (_, after), (following, _) in pairwise(spans))


@given(st.permutations(range(5)))
def test_the_sum_does_not_depend_on_the_order(order: list[int]) -> None:
    rng = np.random.default_rng(0)
    images: list[Counted] = []
    for index in range(5):
        truth, guess = (rng.choice([0, 7, 24, 26], (6, 7)).astype(np.uint8) for _ in range(2))
        instances = np.where(truth >= 24, truth.astype(np.uint16) * 1000 + rng.integers(0, 2, (6, 7)), truth).astype(np.uint16)
        images.append(counted(index, truth, guess, CITYSCAPES, instances))
    tally, straight = (Tally(CITYSCAPES, instances=True) for _ in range(2))
    for index in order:
        tally.add(images[index])
    for image in images:
        straight.add(image)
    assert tally.matrix == straight.matrix
    assert tally.instances == straight.instances
    assert tally.instances is not None
    assert len(tally.instances) > 5
    assert tally.spans == ((0, 5),)
    with pytest.raises(ValueError, match="counted already"):
        tally.add(images[0])


def test_objects_are_counted_only_where_they_were_asked_for() -> None:
    ids = np.full((2, 2), 26, np.uint8)
    assert counted(0, ids, ids, CITYSCAPES).instances is None
    found = counted(3, ids, ids, CITYSCAPES, np.full((2, 2), 26001, np.uint16))
    assert found.instances == ((3, 26, 4, 4, 4),)
    tally = Tally(CITYSCAPES, instances=False)
    tally.add(found)
    assert tally.instances is None
