"""Tables between two tables: exact where the price is affine in pixels, never outside what was measured, and marked as what they are."""

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segnas.arch import Architecture, Node, Operation, Shape
from segnas.errors import IncompatibleError, InputError
from segnas.kinds import kind
from segnas.latency import Calibration, Entry, LatencyTable, priced_operations
from segnas.latency_tables.compose import PROTOCOL
from segnas.latency_tables.interpolate import BENT, LEAST_SD, _between, counterpart, interpolate, level_of
from segnas.latency_tables.store import content_sha256, load_table, save_table
from segnas.target import Target

NETWORK = Architecture(
    (
        Node(kind("image"), (), 3),
        Node(kind("stem", width=16), (0,), 32, 4),
        Node(kind("separable"), (1,), 32),
        Node(kind("skip"), (2,), 32),
        Node(kind("conv"), (3,), 64, 2),
        Node(kind("pyramid_pool"), (4,), 64),
        Node(kind("resize"), (5,), 64, 1, 2),
        Node(kind("concat"), (6, 1), 96),
        Node(kind("classifier"), (7,), 19),
        Node(kind("resize"), (8,), 19, 1, 4),
    )
)
sizes = st.tuples(st.integers(32, 700), st.integers(32, 700))


def at(height: int, width: int) -> Target:
    return Target("test cpu", "onnxruntime", "1.0", "fp32", height, width)


def operations(target: Target) -> tuple[Operation, ...]:
    return priced_operations(NETWORK, target)


def pixels(operation: Operation) -> int:
    return sum(shape.height * shape.width for shape in (*operation.inputs, operation.output))


def affine_ms(operation: Operation) -> float:
    """Its own constant and its own cost a pixel, from what does not change with the size."""
    place = (len(str(operation.kind)) + operation.output.channels) % 7
    return 0.003 * (1 + place) + 1e-6 * (1 + 2 * place) * pixels(operation)


def hashed(operation: Operation) -> str:
    return operation.digest.rjust(64, "0")


def table(
    height: int, width: int, price: Callable[[Operation], float] = affine_ms, entries: Sequence[Operation] | None = None, **changes
) -> LatencyTable:
    target = at(height, width)
    wanted = dict.fromkeys(o for o in (operations(target) if entries is None else entries) if not o.is_free)
    made = tuple(Entry(o, "block", price(o), 0.02, 90, "series 1,2,4", "a" * 64) for o in wanted)
    return replace(LatencyTable("tiny", target, made), **changes)


def between(first: LatencyTable, second: LatencyTable, height: int, width: int) -> LatencyTable:
    target = replace(first.target, height=height, width=width)
    return interpolate(first, second, operations(target), target, graph_sha256=hashed)


@pytest.mark.parametrize(("height", "width"), [(96, 192), (100, 180), (128, 256), (64, 128), (101, 203), (72, 300)])
def test_what_is_affine_in_pixels_comes_out_exactly(height, width):
    small, large = table(64, 128), table(128, 256)
    for found in (between(small, large, height, width), between(large, small, height, width)):
        assert {e.operation for e in found.entries} == {o for o in operations(at(height, width)) if not o.is_free}
        for entry in found.entries:
            near, far = (counterpart(entry.operation, found.target, t.target) for t in (small, large))
            if pixels(near) <= pixels(entry.operation) <= pixels(far):
                assert entry.median_ms == pytest.approx(affine_ms(entry.operation), rel=1e-8)
            else:  # rounding up at a deep level led outside: the nearer price, not one beyond it
                assert entry.median_ms in (pytest.approx(affine_ms(near), rel=1e-8), pytest.approx(affine_ms(far), rel=1e-8))


@given(sizes, sizes, sizes)
def test_every_price_lies_between_its_parents(one, other, wanted):
    (low, high) = sorted((one, other), key=lambda size: size[0] * size[1])
    height, width = wanted
    first, second = table(*one), table(*other, price=lambda o: 2.5 * affine_ms(o))
    if one == other or not low[0] * low[1] <= height * width <= high[0] * high[1]:
        with pytest.raises(InputError):
            between(first, second, height, width)
        return
    found = between(first, second, height, width)
    for entry in found.entries:
        parents = [t.entry(counterpart(entry.operation, found.target, t.target)).median_ms for t in (first, second)]
        assert min(parents) * (1 - 1e-8) <= entry.median_ms <= max(parents) * (1 + 1e-8)
    assert found.estimate(NETWORK).total_ms > 0


@pytest.mark.parametrize("power", [1.0, 1.2, 1.6])
def test_what_outgrows_a_cache_follows_a_power_of_the_pixels(power: float) -> None:
    """Where the larger size costs more a pixel, a line would begin below zero; the power law is exact, and the two meet where neither bends."""
    small, large = (table(*size, price=lambda o: 1e-6 * pixels(o) ** power) for size in ((64, 128), (256, 512)))
    found = between(small, large, 128, 256)
    for entry in found.entries:
        assert entry.median_ms == pytest.approx(1e-6 * pixels(entry.operation) ** power, rel=1e-6)


@given(st.floats(0.05, 20), st.floats(0, 1))
def test_the_law_is_continuous_where_it_changes(price: float, way: float) -> None:
    """Between the line through both points and the price of the smaller's pixels, and never below the smaller's price where the larger is dearer."""
    few, many = 10_000, 40_000
    here = round(few + way * (many - few))
    found = _between((few, 1.0), (many, price), here)
    line, proportional = 1 + (price - 1) * (here - few) / (many - few), here / few
    if price <= many / few:
        assert found == pytest.approx(line)
    else:
        assert proportional * (1 - 1e-9) <= found <= line * (1 + 1e-9)
    near = _between((few, 1.0), (many, many / few * (1 + 1e-9)), here)
    assert near == pytest.approx(proportional, rel=1e-6)


@given(sizes, sizes)
def test_a_counterpart_is_the_operation_in_the_same_place(here, there):
    target, other = at(*here), at(*there)
    for mine, theirs in zip(operations(target), operations(other), strict=True):
        assert counterpart(mine, target, other) == theirs
        assert counterpart(theirs, other, target) == mine


def test_levels_are_told_apart_to_the_last_and_other_sizes_are_kept():
    target = at(128, 256)
    assert [level_of(Shape(1, *size), target) for size in ((128, 256), (64, 128), (2, 4), (1, 2))] == [0, 1, 6, 7]
    assert level_of(Shape(1, 6, 6), target) is None
    assert level_of(Shape(1, 1, 1), at(16, 16)) == 4
    pooled = Operation(kind("conv", kernel=1), 1, (Shape(32, 6, 6),), Shape(32, 6, 6))
    assert counterpart(pooled, target, at(256, 512)) == pooled
    first, second = table(128, 256, lambda _: 1.0, [pooled]), table(256, 512, lambda _: 3.0, [pooled])
    wanted = at(192, 384)  # 1/32 of it is 6 x 12: still no level
    (entry,) = interpolate(first, second, [pooled, pooled], wanted, graph_sha256=hashed).entries
    assert entry.median_ms == 2.0  # as many pixels in both: the mean


def test_entries_and_the_table_say_that_they_are_interpolated(tmp_path):
    kept = (("created", "monday"), ("protocol", PROTOCOL), ("torch", "2.13"))
    first = table(64, 128, provenance=kept, overhead_ms=0.1)
    second = table(128, 256, provenance=(("created", "tuesday"), *kept[1:]), overhead_ms=0.5)
    second = replace(second, entries=tuple(replace(e, spread=0.4, samples=10) for e in second.entries))
    found = between(first, second, 96, 192)
    for entry in found.entries:
        assert (entry.source, entry.method, entry.kind) == ("interpolated", "interpolated 64x128,128x256", "block")
        assert entry.samples == 100
        assert entry.spread > 0.4
        assert entry.graph_sha256 == hashed(entry.operation)
    assert dict(found.provenance) == {
        "protocol": PROTOCOL,
        "torch": "2.13",
        "source": "interpolated",
        "interpolated_from": f"{content_sha256(first)} at 64x128, {content_sha256(second)} at 128x256",
    }
    assert (found.space, found.target) == ("tiny", at(96, 192))
    assert found.overhead_ms == pytest.approx(0.1 + 0.4 * (96 * 192 - 64 * 128) / (128 * 256 - 64 * 128), rel=1e-8)
    save_table(tmp_path / "t.json", found)
    assert load_table(tmp_path / "t.json") == found


def test_the_spread_is_wider_even_of_parents_without_any():
    none = [replace(t, entries=tuple(replace(e, spread=0.0) for e in t.entries)) for t in (table(64, 128), table(128, 256))]
    assert all(entry.spread > 0 for entry in between(none[0], none[1], 96, 192).entries)


def test_the_calibration_is_the_mean_scale_and_less_sure_than_both():
    first = table(64, 128, calibration=Calibration(scale=1.1, relative_sd=0.04))
    second = table(128, 256, calibration=Calibration(scale=0.9, relative_sd=0.02))
    found = between(first, second, 96, 192).calibration
    assert found.scale == pytest.approx(1.0)
    assert found.relative_sd == pytest.approx(math.hypot(0.06, 4 * BENT))  # four times the pixels
    assert found.probes == ()
    sure = [replace(t, calibration=Calibration(scale=1.0, relative_sd=0.005)) for t in (first, second)]
    assert between(sure[0], sure[1], 96, 192).calibration.relative_sd == pytest.approx(math.hypot(LEAST_SD, 4 * BENT))
    assert between(first, second, 96, 192).entries == between(table(64, 128), table(128, 256), 96, 192).entries  # scales stay out of the prices


def test_prices_of_two_speeds_are_told_at_the_first_ones():
    first, second = (table(*size, provenance=(("sentinel_ms", "2.0"),)) for size in ((64, 128), (128, 256)))
    slower = table(128, 256, lambda o: 1.5 * affine_ms(o), provenance=(("sentinel_ms", "3.0"),))
    one, other = between(first, second, 96, 192), between(first, slower, 96, 192)
    assert [e.median_ms for e in other.entries] == pytest.approx([e.median_ms for e in one.entries], rel=1e-8)
    assert dict(other.provenance)["sentinel_ms"] == "2.0"
    backwards = between(slower, first, 96, 192)
    assert [e.median_ms for e in backwards.entries] == pytest.approx([1.5 * e.median_ms for e in one.entries], rel=1e-8)
    with pytest.raises(IncompatibleError, match="sentinel"):
        between(first, table(128, 256), 96, 192)


@pytest.mark.parametrize(("height", "width"), [(64, 127), (32, 64), (128, 257), (512, 1024)])
def test_nothing_is_extrapolated(height, width):
    with pytest.raises(InputError, match=f"size {height}x{width} was given.*64x128.*128x256.*segnas profile"):
        between(table(64, 128), table(128, 256), height, width)


def test_one_size_is_no_range():
    with pytest.raises(InputError, match="both tables are of 64x128"):
        between(table(64, 128), table(64, 128, lambda _: 1.0), 64, 128)


OTHERS = {
    "device": "another cpu",
    "runtime": "torch",
    "runtime_version": "2.0",
    "precision": "fp16",
    "batch": 2,
    "threads": 4,
    "input_contract": "image",
    "output_contract": "logits",
    "scope": "gpu",
    "options": (("spinning", "off"),),
}


def test_every_other_field_is_tried():
    assert set(OTHERS) == {f.name for f in fields(Target)} - {"height", "width"}


@pytest.mark.parametrize("name", OTHERS)
def test_tables_and_targets_that_differ_in_anything_else_are_refused(name):
    small, large = table(64, 128), table(128, 256)
    stranger = replace(large, target=replace(large.target, **{name: OTHERS[name]}))
    with pytest.raises(IncompatibleError, match=rf"\({name}: "):
        between(small, stranger, 96, 192)
    target = replace(at(96, 192), **{name: OTHERS[name]})
    with pytest.raises(IncompatibleError, match=rf"\({name}: "):
        interpolate(small, large, operations(at(96, 192)), target, graph_sha256=hashed)


def test_tables_of_two_spaces_are_refused():
    with pytest.raises(IncompatibleError, match=r"\(space: 'tiny' and 'other'\)"):
        between(table(64, 128), replace(table(128, 256), space="other"), 96, 192)


@pytest.mark.parametrize("side", [0, 1])
def test_every_missing_counterpart_is_named_before_any_graph_is_hashed(side):
    both = [table(64, 128), table(128, 256)]
    complete = both[side]
    target = at(96, 192)

    def never(operation: Operation) -> str:
        raise AssertionError(f"{operation} was exported")

    for entry in complete.entries:
        both[side] = replace(complete, entries=tuple(e for e in complete.entries if e != entry))
        with pytest.raises(IncompatibleError) as caught:
            interpolate(both[0], both[1], operations(target), target, graph_sha256=never)
        assert f"no entry for 1 operations that are interpolated from, first {entry.operation};" in str(caught.value)
        size = f"{complete.target.height}x{complete.target.width}"
        assert f"`segnas profile tiny --size {size} --threads 1 --out TABLE.json`" in str(caught.value)


def test_a_lookup_never_interpolates():
    small, large = table(64, 128), table(128, 256)
    found = between(small, large, 96, 192)
    for known in (small, large, found):
        with pytest.raises(IncompatibleError, match="no entry"):
            replace(known, target=at(80, 160)).estimate(NETWORK)
