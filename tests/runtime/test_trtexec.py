"""trtexec's file of single queries."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segnas.runtime.trtexec import Query, computed, records, records_text

FIELDS = ["startEnqMs", "endEnqMs", "startH2dMs", "endH2dMs", "startComputeMs", "endComputeMs", "startD2hMs", "endD2hMs"]
FIELDS += ["h2dMs", "computeMs", "d2hMs", "latencyMs"]


def test_fields_are_spelt_and_ordered_as_trtexec_spells_them():
    (record,) = json.loads(records_text([Query(0.0, 0.1, 0.05, 0.55, 2.55, 2.8)]))
    assert list(record) == FIELDS
    assert (record["h2dMs"], record["computeMs"], record["d2hMs"], record["latencyMs"]) == (0.5, 2.0, 0.25, 2.75)
    assert json.loads(records_text([])) == []


@given(st.lists(st.floats(0, 1e4), min_size=6, max_size=6))
def test_the_latency_is_the_sum_of_its_parts(times):
    ordered = sorted(times)
    (record,) = records([Query(*ordered)])
    assert record["latencyMs"] == pytest.approx(record["h2dMs"] + record["computeMs"] + record["d2hMs"], abs=1e-6)


def test_where_parts_are_not_told_all_is_compute():
    found = records(computed([(0.0, 2.0), (2.0, 3.0)]))
    assert [(r["startEnqMs"], r["computeMs"], r["h2dMs"], r["d2hMs"], r["latencyMs"]) for r in found] == [(0, 2, 0, 0, 2), (2, 3, 0, 0, 3)]
