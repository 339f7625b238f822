"""The table of systems: what docs/systems.md and `segnas spaces` say is what the code counts."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from segnas.cli import segnas
from segnas.search.references import PUBLISHED, REFERENCES
from segnas.search.settings import METHODS
from segnas.search.spaces import SPACES
from segnas.search.systems import SYSTEMS, sizes, system_of, table

PAGE = Path(__file__).parents[2] / "docs" / "systems.md"


def test_the_page_holds_the_table_as_it_is_computed() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert rows[: len(SYSTEMS) + 2] == table()


def test_every_space_is_of_one_system_and_every_name_exists() -> None:
    assert sorted(name for system in SYSTEMS for name in system.spaces) == sorted(SPACES)
    assert {system.method for system in SYSTEMS} <= set(METHODS)
    assert {name for system in SYSTEMS for name in system.published} <= set(REFERENCES)
    assert set(PUBLISHED) <= set(REFERENCES)
    assert system_of("darts-tiny") is SYSTEMS[3]
    assert system_of("mine.py:ladder") is None


def test_what_a_search_costs_here_and_cost_its_authors() -> None:
    costs = {system.name: system.search_cost for system in SYSTEMS}
    assert costs["DPC"].endswith("s on 2 cores (dpc-quick); published 2600 GPU-days")
    assert costs["CAS"].endswith("(cas-quick); not published")
    assert all(system.search_seconds > 0 for system in SYSTEMS)


def test_known_sizes() -> None:
    counts = sizes()
    assert counts["darts"] == counts["darts-tiny"] == 1_037_664_180**2
    assert counts["auto-deeplab"] == 28_657 * 762_683_172_300
    assert counts["auto-deeplab-small"] == 89 * 7**6 * 1 * 3 * 6
    assert counts["cas-tiny"] == 51_883_209
    assert counts["fast-nas"] == 14_400 * 6400 * 10 * (10**6 + 6 * 10**5)


def test_spaces_prints_the_same_numbers() -> None:
    found = json.loads(CliRunner().invoke(segnas, ["spaces", "--json"]).output)
    counts = sizes()
    assert {name: int(row["networks"]) for name, row in found.items()} == counts
    for system in SYSTEMS:
        assert {found[name]["system"] for name in system.spaces} == {system.name}
        assert {found[name]["search_cost"] for name in system.spaces} == {system.search_cost}
    lines = CliRunner().invoke(segnas, ["spaces"]).output.splitlines()
    row = next(line for line in lines if line.startswith("auto-deeplab "))
    assert len({line.index(" networks; ") for line in lines[: len(SPACES)]}) == 1
    assert lines[len(SPACES) + 1 : len(SPACES) + 3] == ["CAS (Zhang et al., CVPR 2019)", f"  how: {SYSTEMS[0].how}; --method cas"]
    assert [line for line in lines if line.startswith("  search: ")] == [f"  search: {system.search_cost}" for system in SYSTEMS]
    assert f"{counts['auto-deeplab']:.3g} networks; Auto-DeepLab: one cell, and a path through four scales" in row


@pytest.mark.parametrize("name", ["auto-deeplab-s", "fast-scnn", "darts-v2"])
def test_references_are_listed_with_what_was_published(name: str) -> None:
    rows = {row["name"]: row for row in json.loads(CliRunner().invoke(segnas, ["references", "--json"]).output)}
    assert set(rows) == set(REFERENCES)
    assert ("published_macs" in rows[name]) == (name in PUBLISHED)
    if name in PUBLISHED:
        assert rows[name]["published_parameters"] == PUBLISHED[name].parameters
        assert abs(rows[name]["macs"] / PUBLISHED[name].macs - 1) < 0.05
