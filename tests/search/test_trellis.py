"""Trellises: found in spaces, counted, decoded by Viterbi, alone and with a cell under a budget; against listing all paths (reference 2.10)."""

import math
from collections import Counter
from collections.abc import Callable
from functools import cache
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segnas.arch import Operation
from segnas.search.derive import likeliest, mode, score_of, scores_of, under_budget
from segnas.search.draws import cheapest
from segnas.search.expected import ExpectedPrice
from segnas.search.path_decode import PathDecoder
from segnas.search.space import Space
from segnas.search.spaces import SPACES
from segnas.search.spaces.autodeeplab import trellis
from segnas.search.trellis import Trellis, networks, trellis_of


@cache
def made(layers: int, *, free: bool = False, blocks: int = 1) -> Space:
    return trellis("toy-deeplab", 5, layers=layers, filters=8, blocks=blocks, stem=(8, 8, 16), head=8, free=free)


@cache
def paths_of(layers: int, *, free: bool = False) -> Trellis:
    found = trellis_of(made(layers, free=free))
    assert found is not None
    return found


def price(operation: Operation) -> float:
    """0.05 to 2.05 by the operation's digest."""
    return 0.05 + 2 * int(operation.digest, 16) / 16**12


def drawn(states: Trellis, seed: int, spread: float = 1.0) -> dict[str, list[float]]:
    """Log-probabilities of each state's moves."""
    rng = Random(seed)
    found: dict[str, list[float]] = {}
    for state, options in states.moves.items():
        values = [rng.gauss(0, spread) for _ in options]
        total = math.log(math.fsum(map(math.exp, values)))
        found[state] = [value - total for value in values]
    return found


# ---- which spaces have one, and how many paths it holds


@pytest.mark.parametrize("name", [name for name in SPACES if name != "dcnas"])
def test_only_auto_deeplab_is_a_trellis(name: str) -> None:
    space = SPACES[name](5)
    found = trellis_of(space)
    assert (found is not None) == name.startswith("auto-deeplab")
    if found is None:  # where states choose their origins, what no branch goes through is not counted either
        assert networks(space) == space.count() or name.startswith("fasterseg")


def test_a_path_chosen_by_its_targets_is_none_and_one_by_its_sources_is(toy_named: Callable[[str], Space]) -> None:
    assert trellis_of(toy_named("from-trellis")) is None
    found = trellis_of(toy_named("to-trellis"))
    assert found is not None
    assert found.count() == 4  # two free moves, and one back to the only level of the last layer


@pytest.mark.parametrize(
    ("layers", "free", "count"), [(4, False, 13), (6, False, 89), (12, False, 28_657), (12, True, 75_025)], ids=["4", "6", "paper", "code"]
)
def test_path_counts_are_those_known(layers: int, free: bool, count: int) -> None:
    states = paths_of(layers, free=free)
    assert states.count() == count
    if count < 30_000:
        listed = [tuple(sorted(moves.items())) for moves in states.paths()]
        assert len(listed) == len(set(listed)) == count


def test_75025_paths_end_at_the_four_scales_as_counted() -> None:
    """Ways to each state, forwards, as the notes of the reference count them."""
    states = paths_of(12, free=True)
    ways = Counter({states.start: 1})
    for state, followers in states.moves.items():
        for follower in followers:
            if follower is not None:
                ways[follower] += ways[state]
    assert [ways[f"exit.{scale}"] for scale in range(4)] == [14_445, 23_256, 23_112, 14_212]


def test_networks_are_paths_times_cells() -> None:
    """Every path with every cell is another network, and any genotype is one of them."""
    space, states = made(4), paths_of(4)
    assert networks(space) == 13 * 49 < space.count()
    cells = [{"cell.0.0": a, "cell.0.1": b} for a in range(1, 8) for b in range(1, 8)]
    idle = dict.fromkeys(space.decisions, 0)
    found = {space.decode({**idle, **path, **cell}).architecture.digest for path in states.paths() for cell in cells}
    assert len(found) == 13 * 49
    rng = Random(0)
    assert all(space.decode(space.random(rng)).architecture.digest in found for _ in range(50))


# ---- probabilities of paths


def test_moves_that_are_equally_probable_make_paths_by_their_halves_and_thirds() -> None:
    """At 1/4 and at 1/32 two ways on, between them three; and at 1/4 of the first layers, where 1/8 is the only other."""
    space, states = made(6), paths_of(6)
    for state, followers in states.moves.items():
        if state.startswith("move."):
            _, _, scale = state.split(".")
            assert len(followers) == space.decisions[state] == (2 if scale in "03" else 3)
    down = dict.fromkeys(states.moves, 0) | {"move.1.0": 1, "move.2.1": 2, "move.3.2": 2, "move.4.3": 1, "move.5.3": 1}
    chance = math.prod(1 / len(states.moves[state]) for state in states.path(down))
    assert states.path(down) == ("move.1.0", "move.2.1", "move.3.2", "move.4.3", "move.5.3", "exit.3")
    assert chance == pytest.approx(1 / 2 * 1 / 3 * 1 / 3 * 1 / 2 * 1 / 2)
    total = math.fsum(math.prod(1 / len(states.moves[state]) for state in path) for path in states.paths())
    assert total == pytest.approx(1)


def test_even_moves_make_every_path_equally_probable() -> None:
    states = paths_of(6)
    even = states.even()
    assert all(math.fsum(p) == pytest.approx(1) for p in even.values())
    for path in states.paths():
        assert math.prod(even[state][option] for state, option in path.items()) == pytest.approx(1 / 89)
    space, rng = made(6), Random(0)
    p = {name: even.get(name, (1.0,) * size) for name, size in space.decisions.items()}
    counts = Counter(states.path(space.random(rng, p)) for _ in range(89 * 40))
    assert len(counts) == 89
    assert sum((n - 40) ** 2 / 40 for n in counts.values()) < 88 + 5 * math.sqrt(2 * 88)


# ---- Viterbi


@pytest.mark.parametrize(("layers", "free"), [(12, False), (12, True)], ids=["28657", "75025"])
def test_viterbi_is_the_best_of_all_paths(layers: int, free: bool) -> None:
    """By listing every path; in the log domain; and no path is more than certain."""
    states = paths_of(layers, free=free)
    everything = list(states.paths())
    for seed, spread in ((0, 1.0), (1, 3.0)):
        scores = drawn(states, seed, spread)
        by_hand = max(everything, key=lambda path, scores=scores: math.fsum(scores[state][option] for state, option in path.items()))
        best = math.fsum(scores[state][option] for state, option in by_hand.items())
        assert states.best(scores)[states.start] == pytest.approx(best)
        assert best <= 0
        pushed = states.pushed(scores)
        greedy = {state: max(range(len(options)), key=options.__getitem__) for state, options in pushed.items()}
        assert states.path(greedy) == states.path({**greedy, **by_hand})
        assert {state: greedy[state] for state in by_hand} == by_hand


@given(seed=st.integers(0, 10**6), spread=st.floats(0.1, 5))
def test_the_likeliest_network_is_viterbis_and_not_the_best_move_of_each_state(seed: int, spread: float) -> None:
    space, states = made(6), paths_of(6)
    p = {name: torch.tensor([1.0] * size) / size for name, size in space.decisions.items()}
    scores = drawn(states, seed, spread)
    p |= {name: torch.tensor(values, dtype=torch.float64).exp() for name, values in scores.items()}
    found = likeliest(space, p, "strength", states)
    space.check(found)
    best = max(math.fsum(scores[state][option] for state, option in path.items()) for path in states.paths())
    assert math.fsum(scores[state][found[state]] for state in states.path(found)) == pytest.approx(best, abs=1e-9)


def test_the_best_move_of_each_state_can_be_another_path() -> None:
    space, states = made(4), paths_of(4)
    p = {name: [1 / size] * size for name, size in space.decisions.items()}
    p |= {"move.1.0": [0.51, 0.49], "move.2.0": [0.5, 0.5], "move.3.0": [0.5, 0.5], "move.3.1": [0.0, 0.0, 1.0], "move.2.1": [0.0, 1.0, 0.0]}
    assert states.path(mode(space, p))[:2] == ("move.1.0", "move.2.0")
    assert states.path(likeliest(space, p, trellis=states)) == ("move.1.0", "move.2.1", "move.3.1", "exit.2")


def test_ties_are_decided_the_same_way_each_time() -> None:
    space, states = made(6), paths_of(6)
    even = {name: [1 / size] * size for name, size in space.decisions.items()}
    assert likeliest(space, even, trellis=states) == likeliest(space, dict(reversed(even.items())), trellis=states)


@given(seed=st.integers(0, 10**6))
def test_pushed_scores_rank_paths_as_the_scores_do(seed: int) -> None:
    states = paths_of(6)
    scores = drawn(states, seed)
    pushed = states.pushed(scores)
    shift = {round(math.fsum(pushed[s][o] for s, o in path.items()) - math.fsum(scores[s][o] for s, o in path.items()), 9) for path in states.paths()}
    assert len(shift) == 1
    assert all(max(values) == pytest.approx(0, abs=1e-12) for values in pushed.values())
    again = states.pushed(pushed)
    assert all(again[state] == pytest.approx(values) for state, values in pushed.items())


# ---- path and cell together, under a budget


@pytest.fixture(scope="module")
def expected() -> ExpectedPrice:
    return ExpectedPrice(made(4), 96, 128, price, 1.5)


@pytest.fixture(scope="module")
def decoder(expected: ExpectedPrice) -> PathDecoder:
    found = PathDecoder.of(made(4), paths_of(4), expected)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def priced(decoder: PathDecoder, expected: ExpectedPrice) -> list[tuple[dict[str, int], float]]:
    """Every network of the toy, as a genotype, with its price."""
    idle = dict.fromkeys(decoder.space.decisions, 0)
    cells = [{"cell.0.0": a, "cell.0.1": b} for a in range(1, 8) for b in range(1, 8)]
    return [(g := {**idle, **path, **cell}, expected.exact(g)) for path in decoder.trellis.paths() for cell in cells]


def of_path(states: Trellis, scores: dict[str, list[float]], genotype: dict[str, int]) -> float:
    """The sum of the scores of a network: of its cell, and of the states on its path."""
    on_path = set(states.path(genotype))
    return math.fsum(scores[name][option] for name, option in genotype.items() if name not in states.moves or name in on_path)


def test_the_price_of_a_path_is_a_sum_over_the_cells_decisions(decoder: PathDecoder, priced) -> None:
    row_of = {tuple(decoder.names[i] for i in row if i >= 0): index for index, row in enumerate(decoder.paths[0])}
    assert len(row_of) == 13
    for genotype, ms in priced:
        form = decoder.forms[row_of[decoder.trellis.path(genotype)]]
        assert form[0] + math.fsum(form[decoder.places[name] + genotype[name]] for name in decoder.others) == pytest.approx(ms, rel=1e-12)


@given(seed=st.integers(0, 10**6), least=st.floats(0, 1), most=st.floats(0, 1))
@settings(deadline=None, max_examples=60)
def test_path_and_cell_between_two_prices_are_brute_forces(
    decoder: PathDecoder, expected: ExpectedPrice, priced, seed: int, least: float, most: float
) -> None:
    states, rng = decoder.trellis, Random(seed)
    scores = {name: [rng.gauss(0, 1) for _ in range(size)] for name, size in decoder.space.decisions.items()}
    low, high = min(ms for _, ms in priced), max(ms for _, ms in priced)
    least, most = (low - 0.1 + share * (high - low + 0.2) for share in sorted((least, most)))
    best = max((of_path(states, scores, g) for g, ms in priced if least <= ms <= most), default=None)
    for given_scores in (scores, {**scores, **states.pushed(scores)}):
        found = decoder.best_between(given_scores, least=least, most=most)
        if best is None:
            assert found is None
            continue
        if found is None:  # two partial choices in one cell of the grid: only where hardly any price lies between the bounds
            assert most - least < 1e-2 * most
            continue
        decoder.space.check(found)
        assert least * (1 - 1e-8) <= expected.exact(found) <= most * (1 + 1e-8)
        assert of_path(states, scores, found) == pytest.approx(best) or most - least < 1e-2 * most


def test_a_space_whose_prices_are_no_such_sums_has_no_decoder(toy_named: Callable[[str], Space]) -> None:
    """A state that adds the one two layers back costs by where the path came from, not only by where it goes."""
    space = toy_named("to-trellis")
    assert PathDecoder.of(space, trellis_of(space), ExpectedPrice(space, 96, 128, price)) is None
    assert PathDecoder.of(space, None, ExpectedPrice(space, 96, 128, price)) is None


def test_the_small_preset_is_decoded_whole_and_never_worse_than_local_search() -> None:
    space = SPACES["auto-deeplab-small"](7)
    states = trellis_of(space)
    assert states is not None
    expected = ExpectedPrice(space, 96, 128, price)
    decoder = PathDecoder.of(space, states, expected)
    assert decoder is not None
    generator, rng = torch.Generator().manual_seed(0), Random(0)
    p = {name: torch.softmax(torch.randn(size, generator=generator), 0) for name, size in space.decisions.items()}
    raw = scores_of(space, p, "strength")
    scores = {**raw, **states.pushed(raw)}
    free = decoder.best_between(scores, least=0.0, most=1e9)
    assert free is not None
    wanted = likeliest(space, p, "strength", states)
    assert {name: free[name] for name in wanted if name.startswith("cell.")} == {n: o for n, o in wanted.items() if n.startswith("cell.")}
    assert states.path(free) == states.path(wanted)
    most = sorted(expected.exact(space.random(rng)) for _ in range(40))[10]
    found = decoder.best_between(scores, least=0.0, most=most)
    assert found is not None
    local = under_budget(space, scores, expected.exact, most, Random(0), evaluations=300, starts=2)
    assert expected.exact(found) <= most * (1 + 1e-8)
    assert score_of(scores, found) >= score_of(scores, local) - 1e-9
    least_ms = expected.exact(cheapest(space, expected.exact))
    assert decoder.best_between(scores, least=0.0, most=0.99 * least_ms) is None
