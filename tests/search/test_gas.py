"""GAS: independent cells, and the module that guides each by the one before it (reference 2.7)."""

import itertools
from random import Random

import pytest
import torch

from segnas.cost import network_cost
from segnas.errors import UsageError
from segnas.kinds import kind
from segnas.network import Network
from segnas.search.derive import mode
from segnas.search.guidance import Guidance, GuidedModule, cells_of
from segnas.search.relaxation import Relaxation
from segnas.search.sampling import gumbel, probabilities_of
from segnas.search.settings import SearchSettings
from segnas.search.slots import Choice
from segnas.search.space import Space
from segnas.search.spaces import space
from segnas.search.spaces.cells import CANDIDATES
from segnas.search.supernet import Supernet


@pytest.fixture(scope="module")
def fast() -> Space:
    return space("gas-fast", 11)


def logits_of(space: Space, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(size, generator=generator, dtype=torch.float64) for name, size in space.decisions.items()}


def awake(guidance: Guidance) -> Guidance:
    """Guidance that has learned something: it begins as nothing."""
    with torch.no_grad():
        for link in guidance.links:
            link.readout.weight.normal_(generator=torch.Generator().manual_seed(1))
    return guidance.double()


@pytest.mark.parametrize(("name", "cells", "reductions"), [("gas", 14, (2, 6)), ("gas-fast", 6, (0, 3))])
def test_every_cell_has_decisions_of_its_own(name: str, cells: int, reductions: tuple[int, ...]) -> None:
    made = space(name, 11)
    assert list(cells_of(made)) == [f"cell{i}" for i in range(cells)]
    assert len(made.decisions) == 5 * cells
    assert set(made.decisions.values()) == {8}
    assert made.count() == ((8**2 - 1) * (8**3 - 1)) ** cells  # any edges but none, for each of the two nodes
    for slot in made.slots:
        if isinstance(slot.kind, Choice):
            cell, _, source = slot.kind.decision.split(".")
            assert slot.stride == (2 if int(cell.removeprefix("cell")) in reductions and source in "01" else 1)
            assert slot.kind.options == CANDIDATES


def test_diversity_is_positive_for_independent_cells_and_zero_for_shared_ones() -> None:
    rng = Random(0)
    independent, shared = space("gas-fast", 11), space("gas-fast-shared", 11)

    def diversity(made: Space) -> float:
        decoded = made.decode(made.random(rng))
        chosen: dict[str, list[str]] = {}
        for slot in made.slots:
            if isinstance(slot.kind, Choice):
                chosen.setdefault(slot.label.split(".")[0], [])
        genotype = {origin: node.kind for node, origin in zip(decoded.architecture.nodes, decoded.origins, strict=True)}
        normal = [name for name in chosen if name not in ("cell0", "cell3")]
        for index, slot in enumerate(made.slots):
            if isinstance(slot.kind, Choice):
                chosen[slot.label.split(".")[0]].append(str(genotype.get(index, kind("none"))))
        pairs = [sum(a != b for a, b in zip(chosen[x], chosen[y], strict=True)) for x, y in itertools.combinations(normal, 2)]
        return sum(pairs) / len(pairs)

    assert all(diversity(independent) > 0 for _ in range(5))
    assert all(diversity(shared) == 0 for _ in range(5))


@pytest.mark.parametrize("chained", [False, True])
def test_a_cell_depends_on_itself_and_the_one_before_it(fast: Space, chained: bool) -> None:
    """Jacobian of the guided logits: cell k reads k and k - 1; chained, every earlier one."""
    guidance = awake(Guidance(fast, chained=chained))
    logits = {name: values.requires_grad_() for name, values in logits_of(fast).items()}
    guided = guidance(logits)
    cells = list(guidance.cells)
    for k, cell in enumerate(cells):
        total = sum(guided[name].pow(2).sum() for name in guidance.cells[cell])
        gradients = torch.autograd.grad(total, list(logits.values()), retain_graph=True, allow_unused=True)
        touched = {name.partition(".")[0] for name, g in zip(logits, gradients, strict=True) if g is not None and g.abs().sum() > 0}
        assert touched == set(cells[: k + 1] if chained else cells[max(0, k - 1) : k + 1])


def test_guidance_begins_as_nothing_and_is_nothing_without_strength(fast: Space) -> None:
    logits = logits_of(fast)
    for guidance in (Guidance(fast).double(), awake(Guidance(fast, strength=0.0))):
        assert all(torch.equal(values, logits[name]) for name, values in guidance(logits).items())
    changed = awake(Guidance(fast))(logits)
    assert torch.equal(changed["cell0.0.0"], logits["cell0.0.0"])
    assert all(not torch.equal(values, logits[name]) for name, values in changed.items() if not name.startswith("cell0."))


def test_guidance_is_absent_from_the_derived_network(fast: Space) -> None:
    derived = fast.decode(fast.random(Random(1)))
    names = Network(derived.architecture).state_dict()
    assert not any("guidance" in name or "links" in name for name in names)
    assert len(Supernet(fast).state_dict()) > 0
    assert not any("guidance" in name for name in Supernet(fast).state_dict())


def test_adjacency_is_a_distribution_and_the_read_out_respects_permutations() -> None:
    torch.manual_seed(0)
    link = GuidedModule(8).double()
    link.readout.weight.data.normal_()
    before, own = torch.randn(5, 8, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    adjacency = link.adjacency(before, own)
    assert torch.allclose(adjacency.sum(1), torch.ones(5, dtype=torch.float64))
    assert (adjacency > 0).all()
    shuffle = torch.tensor([3, 0, 4, 1, 2])
    assert torch.allclose(link(before[shuffle], own), link(before, own), atol=1e-12)
    assert torch.allclose(link(before, own[shuffle]), link(before, own)[shuffle], atol=1e-12)


def test_what_is_derived_is_the_mode_of_the_guided_distribution(fast: Space) -> None:
    relaxation = Relaxation(fast, SearchSettings(guidance="adjacent", sampler="gumbel"), 0)
    assert relaxation.guidance is not None
    with torch.no_grad():
        for parameter in relaxation.raw.values():
            parameter.normal_(generator=torch.Generator().manual_seed(len(parameter)))
        for link in relaxation.guidance.links:
            link.readout.weight.normal_()
    guided = probabilities_of(relaxation.logits())
    found = relaxation.mode()
    assert found == mode(fast, guided)
    assert found != mode(fast, probabilities_of(relaxation.raw))  # raw logits would drop the guidance
    for name, option in found.items():
        group = next(rule for rule in fast.rules if name in rule.decisions)
        if sum(found[other] > 0 for other in group.decisions) > 1 or not option:
            assert option == int(guided[name].argmax())


def test_the_guidance_refuses_spaces_without_uniform_cells() -> None:
    for name in ("dcnas-small", "cas"):
        with pytest.raises(UsageError, match="two or more cells"):
            Guidance(space(name, 5))


@pytest.mark.parametrize(("tau", "share"), [(1.0, 0.005), (0.3, 0.25), (0.1, 0.65), (0.03, 0.88)])
def test_a_low_temperature_sharpens(tau: float, share: float) -> None:
    """P(max > 0.99) of eight even options, by simulation in the reference notes."""
    one = space("gas-fast", 3)
    generator, found, even = torch.Generator().manual_seed(0), [], {name: torch.zeros(8) for name in one.decisions}
    for _ in range(170):
        found += [float(values.max()) > 0.99 for values in gumbel(one, even, tau=tau, generator=generator).weights.values()]
    assert sum(found) / len(found) == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("tau", [1.0, 0.03])
def test_the_largest_option_follows_the_softmax_at_any_temperature(tau: float) -> None:
    one = space("gas-fast", 3)
    logits = {name: torch.tensor([0.0, 1.0, -1.0, 0.5, 0.2, 2.0, -0.3, 0.0]) for name in one.decisions}
    generator, counts, draws = torch.Generator().manual_seed(0), torch.zeros(8), 0
    for _ in range(1000):
        for values in gumbel(one, logits, tau=tau, generator=generator).weights.values():
            counts[values.argmax()] += 1
            draws += 1
            assert float(values.sum()) == pytest.approx(1, abs=1e-5)
    p = torch.softmax(logits["cell0.0.0"], 0)
    assert ((counts / draws - p).abs() < 4 * (p * (1 - p) / draws).sqrt()).all()


def test_costs_are_additive_and_independent_cells_cost_what_they_are(fast: Space) -> None:
    genotype = fast.random(Random(5))
    cost = network_cost(fast.decode(genotype).architecture, 256, 512)
    assert cost.macs > 0
    assert cost.parameters == sum(p.numel() for p in Network(fast.decode(genotype).architecture).parameters())
