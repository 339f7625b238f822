"""Tables as files: there and back, diffs that read, and no edited digit that goes unseen."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segnas.arch import Operation, Shape
from segnas.errors import IncompatibleError, InputError
from segnas.kinds import kind
from segnas.latency import Calibration, Entry, LatencyTable, Probe
from segnas.latency_tables.check import check_coverage, diff_tables
from segnas.latency_tables.store import load_table, save_table, table_text
from segnas.target import Target

shapes = st.builds(Shape, st.integers(1, 512), st.integers(1, 2048), st.integers(1, 2048))
kinds = st.sampled_from(
    [kind("conv"), kind("conv", kernel=1), kind("separable", dilation=(2, 4)), kind("pyramid_pool"), kind("resize", align_corners=True), kind("add")]
)
operations = st.builds(Operation, kinds, st.sampled_from([1, 2]), st.lists(shapes, min_size=1, max_size=3).map(tuple), shapes)
positive = st.floats(1e-4, 1e4)
texts = st.text(max_size=20)
entries = st.builds(
    Entry,
    operations,
    st.sampled_from(["block", "junction", "fixed"]),
    positive,
    st.floats(0, 5),
    st.integers(1, 10**6),
    texts,
    st.text("0123456789abcdef", min_size=64, max_size=64),
)
targets = st.builds(
    Target,
    texts,
    st.just("onnxruntime"),
    texts,
    st.just("fp32"),
    st.integers(1, 2048),
    st.integers(1, 2048),
    options=st.just((("a", "1"), ("b", "2"))),
)
tables = st.builds(
    LatencyTable,
    texts,
    targets,
    st.lists(entries, max_size=6, unique_by=lambda e: e.operation).map(lambda es: tuple(sorted(es, key=lambda e: e.operation))),
    st.floats(0, 1),
    st.builds(Calibration, positive, positive, st.lists(st.builds(Probe, texts, positive, positive), max_size=3).map(tuple)),
    st.dictionaries(texts, texts, max_size=3).map(lambda d: tuple(sorted(d.items()))),
)


@pytest.fixture
def table(target) -> LatencyTable:
    shape = Shape(32, 64, 128)
    made = [
        Entry(Operation(kind(op), 1, (shape,), shape), "block", ms, 0.01, 90, "series 1,2,4", "a" * 64)
        for op, ms in [("conv", 1.25), ("separable", 0.75)]
    ]
    return LatencyTable("tiny", target, tuple(made), calibration=Calibration(1.02, 0.01, (Probe("abc", 10.0, 10.2),)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables)
def test_there_and_back(tmp_path, table):
    path = tmp_path / "t.json"
    save_table(path, table)
    assert load_table(path) == table
    assert table_text(load_table(path)) == path.read_text()


def test_one_entry_a_line(table):
    lines = table_text(table).splitlines()
    assert sum('"median_ms"' in line for line in lines) == len(table.entries)
    assert json.loads(table_text(table))["entries"][0]["median_ms"] == 1.25


def test_the_order_of_the_entries_is_no_part_of_the_file(table):
    backwards = LatencyTable(table.space, table.target, table.entries[::-1], calibration=table.calibration)
    assert table_text(backwards) == table_text(table)


def test_every_edited_digit_is_refused(tmp_path, table):
    path = tmp_path / "t.json"
    text = table_text(table)
    for place, character in enumerate(text):
        if character.isdigit():
            path.write_text(f"{text[:place]}{(int(character) + 1) % 10}{text[place + 1 :]}")
            with pytest.raises((InputError, IncompatibleError)):
                load_table(path)


def test_every_cut_is_refused(tmp_path, table):
    path = tmp_path / "t.json"
    content = table_text(table).encode()
    for cut in range(len(content) - 2):
        path.write_bytes(content[:cut])
        with pytest.raises(InputError):
            load_table(path)


def test_an_edit_names_what_is_wrong(tmp_path, table):
    path = tmp_path / "t.json"
    path.write_text(table_text(table).replace("1.25", "0.25"))
    with pytest.raises(InputError, match="content does not match its content_sha256") as caught:
        load_table(path)
    assert caught.value.exit_code == 4


def test_no_number_is_no_price(tmp_path, table):
    path = tmp_path / "t.json"
    path.write_text(table_text(table).replace("1.25", "NaN"))
    with pytest.raises(InputError, match=r"NaN|changed after"):
        load_table(path)
    save_table(path, LatencyTable(table.space, table.target, (table.entries[0], table.entries[0])))
    with pytest.raises(InputError, match="twice"):
        load_table(path)


def test_another_schema_version_is_incompatible(tmp_path, table):
    path = tmp_path / "t.json"
    path.write_text(table_text(table).replace("segnas.latency_table/2", "segnas.latency_table/1"))
    with pytest.raises(IncompatibleError, match=r"latency_table/1.*make it anew with `segnas profile`"):
        load_table(path)


def test_coverage_and_difference(table):
    shape = Shape(32, 64, 128)
    other, skip = Operation(kind("max_pool"), 1, (shape,), shape), Operation(kind("skip"), 1, (shape,), shape)
    coverage = check_coverage(table, [table.entries[0].operation, other, skip])
    assert coverage.missing == (other,)
    assert coverage.unreachable == (table.entries[1].operation,)
    assert not coverage.complete
    cheaper = LatencyTable(table.space, table.target, (table.entries[0],))
    difference = diff_tables(table, cheaper)
    assert difference.only_before == (table.entries[1].operation,)
    assert [round(c.relative, 4) for c in difference.changed] == [round(1 / 1.02 - 1, 4)]
