import itertools
import json
import math
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segnas.errors import InputError
from segnas.kinds import kind
from segnas.latency import priced_operations
from segnas.search.derive import likeliest
from segnas.search.draft import Draft
from segnas.search.sampling import one_hot
from segnas.search.slots import Choice, Keep, Link, Slot, Widths
from segnas.search.space import Space
from segnas.search.spaces import SPACES
from segnas.search.spaces.cells import cell
from segnas.search.trellis import trellis_of
from segnas.target import Target

CONV, SKIP, NONE, IMAGE = kind("conv"), kind("skip"), kind("none"), Slot(kind("image"), (), 3)
IDLE = ("auto-deeplab", "dcnas", "fasterseg", "sparsemask", "toy-dense", "toy-trellis")
"""Spaces whose networks may leave decisions out."""
TARGET = Target("made-up", "onnxruntime", "1.0", "fp32", 96, 128)


def chi_square(counts, expected):
    return sum((counts.get(key, 0) - mean) ** 2 / mean for key, mean in expected.items())


def bound(degrees):
    """Far tail of the chi-square distribution: mean plus five standard deviations."""
    return degrees + 5 * math.sqrt(2 * degrees)


def test_the_darts_cell_has_its_known_count():
    draft = Draft("darts")
    stem = draft.node(kind("stem"), 0, channels=16, stride=4)
    draft.resize(cell(draft, "normal", stem, stem, width=16, nodes=4), 0)
    space = draft.space()
    assert len(space.decisions) == 14
    assert space.count() == 1_037_664_180  # Liu et al., DARTS: 7^8 operations times 1 * 3 * 6 * 10 pairs of inputs


def test_enumeration_equals_count_and_obeys_the_rules(toy):
    listed = [tuple(g.values()) for g in toy.genotypes()]
    assert len(listed) == len(set(listed)) == toy.count()
    everything = itertools.product(*(range(size) for size in toy.decisions.values()))
    names = list(toy.decisions)
    allowed = [g for g in everything if all(r.low <= sum(g[names.index(d)] > 0 for d in r.decisions) <= r.high for r in toy.rules)]
    assert sorted(listed) == sorted(allowed)


def test_known_counts_of_the_toys(toy_named):
    assert toy_named("cells").count() == 48  # two edges of two operations, then three pairs of edges
    assert toy_named("own-cells").count() == 48**2
    assert toy_named("loose-cells").count() == 8 * 18  # 4 + 4 for one node, 3 * 2 + 3 * 4 for the other


def test_uniform_draws_are_uniform(toy_named):
    space, rng = toy_named("loose-cells"), Random(0)
    counts = Counter(tuple(space.random(rng).values()) for _ in range(20_000))
    assert chi_square(counts, {tuple(g.values()): 20_000 / 144 for g in space.genotypes()}) < bound(143)


def test_draws_by_probabilities_are_the_independent_draw_given_the_rules(toy_named):
    space, rng = toy_named("loose-cells"), Random(1)
    probabilities = {name: [(p := rng.uniform(0.1, 0.6)), (1 - p) * 0.3, (1 - p) * 0.7] for name in space.decisions}
    weights = {tuple(g.values()): math.prod(probabilities[d][o] for d, o in g.items()) for g in space.genotypes()}
    total = sum(weights.values())
    counts = Counter(tuple(space.random(rng, probabilities).values()) for _ in range(40_000))
    assert chi_square(counts, {key: 40_000 * weight / total for key, weight in weights.items()}) < bound(143)


def test_draws_survive_probabilities_that_rounded_to_zero(toy_named):
    space = toy_named("cells")
    space.check(space.random(Random(0), {name: [1.0, 0.0, 0.0] for name in space.decisions}))


def test_same_seed_same_draws(toy):
    first, second = ([toy.random(rng) for _ in range(5)] for rng in (Random(7), Random(7)))
    assert first == second


@given(seed=st.integers(0, 10**6))
def test_mutation_redraws_one_group(seed):
    space, rng = SPACES["cas-tiny"](3), Random(seed)
    before = space.random(rng)
    after = space.mutate(before, rng)
    changed = {name for name in before if before[name] != after[name]}
    space.check(after)
    assert changed
    assert sum(bool(changed & set(group.decisions)) for group in space.groups) == 1


def test_json_round_trip(any_space):
    text = json.dumps(any_space.to_dict())
    assert Space.from_dict(json.loads(text)) == any_space
    assert [s.label for s in Space.from_dict(json.loads(text)).slots] == [s.label for s in any_space.slots]


def test_json_is_strict(toy_named):
    data = toy_named("cells").to_dict()
    with pytest.raises(InputError, match="unknown keys colour"):
        Space.from_dict({**data, "colour": 1})
    with pytest.raises(InputError, match="lacks rules"):
        Space.from_dict({name: value for name, value in data.items() if name != "rules"})
    with pytest.raises(InputError, match="kind"):
        Space.from_dict({**data, "slots": [*data["slots"][:-1], {**data["slots"][-1], "kind": "multiply"}]})


def test_operations_cover_every_decoded_key_and_no_more(toy):
    genotypes = list(toy.genotypes())
    genotypes = Random(0).sample(genotypes, min(400, len(genotypes)))
    needed = {o for g in genotypes for o in priced_operations(toy.decode(g).architecture, TARGET) if not o.is_free}
    assert set(toy.all_operations(TARGET)) == needed


def blocks_at_one_size(space, rng):
    """Draws of Fast-NAS whose blocks read one tap and each other alone: all at the coarsest size is rare."""
    blocks = range(sum(name.startswith("block.") for name in space.decisions) // 2)
    for tap in range(space.decisions.get("block.0.0", 0)):
        same = {f"block.{b}.{side}": tap for b in blocks for side in range(2)}
        for read in itertools.product(*((tap, *range(space.decisions["block.0.0"], space.decisions[f"block.{b}.0"])) for b in blocks)):
            yield {**space.random(rng), **same, **{f"block.{b}.0": entry for b, entry in enumerate(read)}}


@pytest.mark.parametrize("name", SPACES)
def test_operations_of_registered_spaces_cover_every_decoded_key_and_no_more(name):
    space, rng = SPACES[name](7), Random(0)
    drawn = [g for _ in range(3) for g in blocks_at_one_size(space, rng)]
    needed, listed = set(), set(space.all_operations(TARGET))
    for count in range(4000):  # widths make many keys that are rarely drawn
        if count >= 150 and needed == listed:
            break
        genotype = drawn[count] if count < len(drawn) else space.random(rng)
        needed |= {o for o in priced_operations(space.decode(genotype).architecture, TARGET) if not o.is_free}
    assert listed == needed
    logits = Target("made-up", "onnxruntime", "1.0", "fp32", 96, 128, output_contract="logits")
    assert {o.op for o in needed - set(space.all_operations(logits))} == {"argmax"}


def test_decoding_is_deterministic_and_sized_for_segmentation(any_space):
    rng = Random(3)
    for _ in range(5):
        genotype = any_space.random(rng)
        derived = any_space.decode(genotype)
        assert derived == any_space.decode(dict(reversed(genotype.items())))
        assert derived.architecture.require_segmentation().classes == any_space.classes
        assert len(derived.origins) == len(derived.architecture.nodes)
        for node, origin in zip(derived.architecture.nodes, derived.origins, strict=True):
            slot = any_space.slots[origin]
            assert node.label == slot.label
            assert node.op == "add" if slot.join else node.kind in slot.kinds


def met_from_the_output(space, genotype):
    """The decisions of the slots that a walk back from the output comes to, through the inputs that are on."""
    named, met, waiting = set(), set(), [len(space.slots) - 1]
    while waiting:
        index = waiting.pop()
        if index in met:
            continue
        met.add(index)
        named |= {chosen.decision for chosen in (space.slots[index].kind, space.slots[index].channels) if isinstance(chosen, Choice | Widths)}
        for entry in space.slots[index].inputs:
            link = entry if isinstance(entry, Link) else Link(entry, "", 0)
            named |= {link.decision} if link.decision else set()
            if link.decision == "" or (link.decision and genotype[link.decision] == link.option):
                waiting.append(link.source)
    return named


def idle_decisions(space, genotype):
    """Those that a network leaves out: the moves off its path, or the groups that the walk back from its output meets nothing of."""
    states = trellis_of(space)
    if states is not None:
        return set(states.moves) - set(states.path(genotype))
    met = met_from_the_output(space, genotype)
    return {name for group in space.groups if not met & set(group.decisions) for name in group.decisions}


def test_a_canonical_genotype_decodes_to_the_same_network_is_its_own_and_is_derived_again(any_space):
    """Canonical are a genotype's idle decisions where they stand as in one fixed genotype: what they are has no say."""
    rng, seen = Random(11), 0
    fixed = any_space.random(Random(0))
    for _ in range(10):
        genotype, other = any_space.random(rng), any_space.random(rng)
        idle = idle_decisions(any_space, genotype)
        canonical, changed = ({**genotype, **{name: source[name] for name in idle}} for source in (fixed, other))
        assert any_space.decode(canonical) == any_space.decode(changed) == any_space.decode(genotype)
        assert idle_decisions(any_space, canonical) == idle_decisions(any_space, changed) == idle
        assert likeliest(any_space, one_hot(any_space, canonical).weights, trellis=trellis_of(any_space)) == canonical
        seen += len(idle)
    assert (seen > 0) == any_space.name.startswith(IDLE)


def test_networks_are_equal_iff_their_live_parts_are(toy_named):
    space = toy_named("from-trellis")
    through_level_1 = {**dict.fromkeys(space.decisions, 0), "op.2.2": 1}  # a state that the path leaves out
    assert space.decode(through_level_1).architecture == space.decode(dict.fromkeys(space.decisions, 0)).architecture
    changed = {**dict.fromkeys(space.decisions, 0), "op.2.1": 1}
    assert space.decode(changed).architecture.digest != space.decode(through_level_1).architecture.digest


def test_equal_networks_of_different_slot_orders_have_equal_digests():
    def space(order):
        slots = [IMAGE, *(Slot(k, (0,), 3) for k in order), Slot("add", (3, 1, 2), 3)]
        return Space("order", tuple(slots)).decode({}).architecture.digest

    kinds = [CONV, SKIP, kind("max_pool")]
    assert len({space(order) for order in itertools.permutations(kinds)}) == 1


def test_an_addition_decodes_to_binary_ones_and_a_single_input_to_none():
    slots = (IMAGE, *(Slot(Choice(f"e{i}", (NONE, CONV)), (0,), 3) for i in range(4)), Slot("add", (1, 2, 3, 4), 3))
    space = Space("sum", slots, (Keep(tuple(f"e{i}" for i in range(4)), 1, 4),))
    for genotype in space.genotypes():
        operations = [node.op for node in space.decode(genotype).architecture.nodes]
        assert operations.count("add") == sum(genotype.values()) - 1
        assert operations.count("conv") == sum(genotype.values())


def test_an_undecided_link_is_there_iff_its_source_lives_anyway(toy_named):
    space = toy_named("from-trellis")
    base = dict.fromkeys(space.decisions, 0)
    at_level_1 = space.decode({**base, "from.3.1": 0}).architecture
    assert [node.op for node in at_level_1.nodes].count("add") == 2  # layers 2 and 3 each find the state two layers back
    below = space.decode({**base, "from.2.2": 1, "from.3.1": 1}).architecture
    assert [node.op for node in below.nodes].count("add") == 0


def test_a_genotype_without_output_and_a_wrong_genotype_are_refused(toy_named):
    slots = (IMAGE, Slot(Choice("e", (NONE, CONV)), (0,), 3), Slot(SKIP, (1,), 3))
    with pytest.raises(InputError, match="no way from the image"):
        Space("cut", slots).decode({"e": 0})
    space = toy_named("cells")
    with pytest.raises(InputError, match="2 to 2 of"):
        space.decode(dict.fromkeys(space.decisions, 1))
    with pytest.raises(InputError, match="option 3"):
        space.decode({**space.random(Random(0)), "cell.0.0": 3})
    with pytest.raises(InputError, match="missing or unknown"):
        space.decode({})


def test_select_with_two_live_inputs_is_refused_when_decoded():
    slots = (IMAGE, Slot(CONV, (0,), 3), Slot(SKIP, (0,), 3), Slot("select", (Link(1, "a"), Link(2, "b")), 3))
    space = Space("both", slots)
    with pytest.raises(InputError, match=r"slot 3 \(select\): 2 of its inputs live"):
        space.decode({"a": 1, "b": 1})
    assert space.decode({"a": 1, "b": 0}).architecture.nodes[-1].op == "conv"


def test_a_sum_that_needs_both_is_absent_where_one_is_and_a_select_takes_what_lives():
    edge, other = Slot(Choice("e", (NONE, CONV)), (0,), 3), Slot(Choice("f", (NONE, CONV)), (0,), 3)
    without = Slot("select", (Link(0, "e", 0), Link(0, "f", 0)), 3)  # the image where one of the two is absent
    space = Space("both", (IMAGE, edge, other, Slot(kind("add"), (1, 2), 3), without, Slot(SKIP, (4,), 3), Slot("select", (3, 5), 3)))
    ops = {(e, f): [node.op for node in space.decode({"e": e, "f": f}).architecture.nodes] for e, f in ((1, 1), (1, 0), (0, 1))}
    assert ops == {(1, 1): ["image", "conv", "conv", "add"], (1, 0): ["image", "skip"], (0, 1): ["image", "skip"]}
    assert {o.op for o in space.all_operations(TARGET)} == {"conv", "add", "argmax"}


def test_open_widths_decode_and_have_operations():
    widths = Widths("width", (8, 16))
    slots = (IMAGE, Slot(CONV, (0,), widths, 2), Slot(CONV, (1,), 4), Slot(kind("resize"), (2,), 4, up=2))
    space = Space("widths", slots)
    assert [space.decode({"width": i}).architecture.nodes[1].channels for i in (0, 1)] == [8, 16]
    needed = {o for i in (0, 1) for o in priced_operations(space.decode({"width": i}).architecture, TARGET) if not o.is_free}
    assert set(space.all_operations(TARGET)) == needed


def refused(message, *slots, rules=()):
    with pytest.raises(InputError, match=message):
        Space("refused", (IMAGE, *slots), tuple(rules))


def test_refusals():
    edge, other = Slot(Choice("e", (NONE, CONV)), (0,), 3, label="edge"), Slot(Choice("f", (NONE, CONV)), (0,), 3)
    total = Slot("add", (1, 2), 3)
    refused(r"slot 1 'x' \(conv\): the link .* may only be switched where it enters an add", Slot(CONV, (Link(0, "g"),), 3, label="x"))
    refused("overlap", edge, other, total, rules=[Keep(("e", "f"), 1, 2), Keep(("e",), 1, 1)])
    refused("0 <= low <= high <= 2", edge, other, total, rules=[Keep(("e", "f"), 2, 1)])
    refused("no slot mentions decision 'h'", edge, other, total, rules=[Keep(("e", "h"), 1, 1)])
    refused("option 0 must be none", Slot(Choice("e", (SKIP, CONV)), (0,), 3), rules=[Keep(("e",), 1, 1)])
    refused(r"slot 1 'dead' \(conv\): it can never matter", Slot(CONV, (0,), 3, label="dead"), Slot(CONV, (0,), 3))
    refused("2 options here, 3 elsewhere", Slot(Choice("e", (NONE, CONV, SKIP)), (0,), 3), Slot(Choice("e", (NONE, CONV)), (0,), 3), total)
    refused("asks for option 2", edge, other, Slot("add", (Link(1, "e", 2), 2), 3))
    refused(r"slot 3 \(add\): its inputs lie at levels \[0, 1\]", edge, Slot(CONV, (0,), 3, 2), total)
    refused(r"slot 3 \(add\): 3 channels were given for inputs of \[3, 4\]", edge, Slot(CONV, (0,), 4), total)
    refused("4 channels were given for inputs of", Slot(Choice("e", (NONE, SKIP)), (0,), 4))
    refused("the output has their sum", edge, Slot(kind("concat"), (0, 1), 7))
    refused("open widths cannot be concatenated", Slot(CONV, (0,), Widths("w", (1, 2))), Slot(kind("concat"), (0, 1), 5))
    refused("only earlier slots", Slot(CONV, (1,), 3))
    refused("none cannot stand here", Slot(NONE, (0,), 3))
    refused("1 inputs were given; add takes 2", Slot(kind("add"), (0,), 3))
    refused("none must be option 0", Slot(Choice("e", (CONV, NONE)), (0,), 3))
    refused("two options are equal", Slot(Choice("e", (CONV, CONV)), (0,), 3))
    refused("may only enter an add", edge, Slot("select", (Link(1),), 3))
    refused("stride 4 was given; conv allows 1, 2", Slot(CONV, (0,), 3, 4))
    refused("only a resize of stride 1 enlarges", Slot(CONV, (0,), 3, up=2))
    refused("level -1", Slot(kind("resize"), (0,), 3, up=2))
    refused("at least one more slot")
