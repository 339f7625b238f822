"""Methods that sample networks inside a run: what is refused before anything is spent, what they leave behind, and who takes it up."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from segnas import sampled_methods
from segnas.data import open_dataset
from segnas.errors import InputError, UsageError, VerificationError
from segnas.latency import Entry, LatencyTable
from segnas.measuring import Services, require_budget
from segnas.report import Curve
from segnas.runtime.onnxruntime_session import cpu_target
from segnas.sampled_methods import SAMPLED, lowered, require_sampled, search_by_sampling
from segnas.search.cached_search import cached_search
from segnas.search.ranked import Candidate, Ranked, Sought, Surroundings
from segnas.search.settings import METHODS, Constraint, SampledSettings, SearchSettings, TrainSettings, with_method
from segnas.search.spaces import space
from segnas.search_view import view_of
from segnas.steps import derive_network, read_candidates, read_curves, read_notes, search_space
from segnas.streets import write_streets
from segnas.timing import Measured

SMALL = space("dpc-small", 19)
SETTINGS = SearchSettings(**with_method({"method": "dpc", "steps": 2, "sampled": SampledSettings(backbone_steps=1)}))


def table() -> LatencyTable:
    target = cpu_target(64, 128)
    entries = tuple(Entry(o, "block", 0.05 + 2 * int(o.digest, 16) / 16**12, 0.0, 1, "made up", "") for o in SMALL.all_operations(target))
    return LatencyTable(SMALL.name, target, entries)


def silent(done: int, total: int, text: str) -> None: ...


def test_every_sampled_method_has_its_search() -> None:
    assert set(SAMPLED) == {name for name, method in METHODS.items() if method.family == "sampled"}
    assert SAMPLED["dpc"] is cached_search


@pytest.mark.parametrize(
    ("settings", "budget", "has_weights", "message"),
    [
        (SETTINGS, "8ms,9ms", True, "proposes networks within one budget: start a run for each"),
        (replace(SETTINGS, constraints=(Constraint("parameters", 1e6),)), "8ms", True, "knows the budget alone"),
        (replace(SETTINGS, sampled=SampledSettings()), "8ms", False, "frozen at random weights"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused_first(settings: SearchSettings, budget: str, has_weights: bool, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        require_sampled(settings, budget, has_weights=has_weights)
    require_sampled(SETTINGS, "8ms", has_weights=False)


def test_settings_of_a_sampled_search_are_checked() -> None:
    for wrong in ({"trials": 0}, {"crops": 0}, {"rerank": -1}, {"rerank_steps": -1}, {"backbone_steps": -1}):
        with pytest.raises(UsageError, match=r"search\.sampled\.trials .* the first two are 1 or more, the others 0 or more"):
            SampledSettings(**wrong)


def test_candidates_are_written_shown_and_derived_by_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_streets(tmp_path / "streets", counts={"train": 2}, height=64, width=128, seed=0)
    dataset, prices, seen = open_dataset("cityscapes", root, "train"), table(), list[Sought]()
    genotypes = [{name: place % size for name, size in SMALL.decisions.items()} for place in range(3)]
    given = tuple(Candidate(g, 9.0, score, again) for g, (score, again) in zip(genotypes, ((0.2, 0.5), (0.3, 0.4), (0.9, None)), strict=True))

    def found(sought: Sought, around: Surroundings) -> Ranked:
        seen.append(sought)
        return Ranked(given, (Curve("search/score", (1,), (0.5,)),), ("a sentence",), {"agreement": [1, 2]})

    monkeypatch.setitem(SAMPLED, "dpc", found)
    around, out = Surroundings(tmp_path, None, "cpu", 0, silent), tmp_path / "search.json"
    budget = prices.estimate(SMALL.decode(genotypes[0]).architecture).total_ms / 0.99
    search_by_sampling(SMALL, prices, dataset, SETTINGS, TrainSettings(), budget=budget, drift=0.0, out=out, around=around)
    assert seen[0].budget_ms == budget
    assert read_candidates(out) == given
    assert read_notes(out) == ("a sentence",)
    assert read_curves(out)[0].values == (0.5,)
    assert json.loads(out.read_text())["agreement"] == [1, 2]
    assert view_of(out, 19).genotype == genotypes[0]
    services: Any = Services(None, lambda network, prices: Measured(prices.estimate(network).total_ms, 0.001), None)
    met = derive_network(SMALL, out, prices, budget, out=tmp_path / "arch.json", seed=0, services=services, progress=silent)
    assert met.genotype == genotypes[0]
    assert len(met.measurements) == 1
    out.write_text(out.read_text().replace('"score":0.3', '"score":"high"'))
    with pytest.raises(InputError, match=r"candidates\[1\]\.score is 'high'; float is needed"):
        read_candidates(out)


def test_networks_are_proposed_as_far_below_the_budget_as_the_machine_drifts_but_not_below_the_cheapest() -> None:
    prices = table()
    priced = prices.estimate(SMALL.decode(dict.fromkeys(SMALL.decisions, 0)).architecture).total_ms
    low, high = require_budget(SMALL, prices, priced)
    budget = 0.5 * (low + high)
    assert low < 0.9 * budget  # else nothing below tells the two apart
    assert lowered(budget, 0.0, least=low) == budget
    assert lowered(budget, 0.012, least=low) == pytest.approx((1 - 2 * math.hypot(0.005, 0.012)) * budget)
    assert lowered(1.01 * low, 0.012, least=low) == low
    assert lowered(low, 0.012, least=low) == low


def test_a_search_that_scored_nothing_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_streets(tmp_path / "streets", counts={"train": 2}, height=64, width=128, seed=0)
    dataset, prices = open_dataset("cityscapes", root, "train"), table()
    monkeypatch.setitem(sampled_methods.SAMPLED, "dpc", lambda sought, around: Ranked(()))
    budget = prices.estimate(SMALL.decode(dict.fromkeys(SMALL.decisions, 0)).architecture).total_ms * 1.01
    around = Surroundings(tmp_path, None, "cpu", 0, silent)
    with pytest.raises(InputError, match=r"a budget of 999\.000 ms was given; by its latency table"):  # the user's, not the lowered one
        search_by_sampling(SMALL, prices, dataset, SETTINGS, TrainSettings(), budget=999.0, drift=0.012, out=tmp_path / "search.json", around=around)
    with pytest.raises(VerificationError, match="scored no network of 'dpc-small' within"):
        search_by_sampling(SMALL, prices, dataset, SETTINGS, TrainSettings(), budget=budget, drift=0.0, out=tmp_path / "search.json", around=around)
    given: dict[str, Any] = {"budget": budget, "out": tmp_path / "search.json", "device": "cpu", "seed": 0, "progress": silent}
    with pytest.raises(UsageError, match="method 'dpc' samples networks; give `segnas sample dpc-small`"):
        search_space(SMALL, prices, dataset, SETTINGS, **given)
    assert not (tmp_path / "search.json").exists()
