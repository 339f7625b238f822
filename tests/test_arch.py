"""Architectures: what is refused and in which words, the sizes of the walk against the modules themselves, and what a digest tells apart."""

import hashlib
from math import ceil

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from segnas.arch import DEEPEST_LEVEL, Architecture, Node, Operation, Shape, argmax_operation, size_at
from segnas.errors import InputError
from segnas.kinds import Kind, kind
from segnas.ops import build

IMAGE = Node(kind("image"), (), 3)


def chain(*nodes: tuple[Kind, int, int]) -> Architecture:
    """Image, then one node behind the other: (kind, channels, stride)."""
    return Architecture((IMAGE, *(Node(k, (i,), channels, stride) for i, (k, channels, stride) in enumerate(nodes))))


def refused(*nodes: Node) -> str:
    with pytest.raises(InputError) as caught:
        Architecture(nodes)
    return str(caught.value)


CONV, HALF = Node(kind("conv"), (0,), 8), Node(kind("conv"), (0,), 8, 2)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ((), "an image and at least one operation; 0 nodes were given"),
        ((IMAGE,), "an image and at least one operation; 1 nodes were given"),
        ((CONV, CONV), "node 0 is 'conv'; it must be the image, with no inputs"),
        ((Node(kind("image"), (0,), 3), CONV), "node 0 is 'image'; it must be the image, with no inputs"),
        ((IMAGE, Node(kind("image"), (), 3)), "node 1 (image): this operation cannot stand here"),
        ((IMAGE, Node(kind("none"), (0,), 3)), "node 1 (none): this operation cannot stand here"),
        ((IMAGE, CONV, Node(kind("argmax"), (1,), 1)), "node 2 (argmax): this operation cannot stand here"),
        ((IMAGE, Node(kind("conv"), (1,), 8)), "node 1 (conv): inputs (1,) were given; only earlier nodes, 0 to 0, are allowed"),
        ((IMAGE, CONV, Node(kind("add"), (1, 3), 8), CONV), "node 2 (add): inputs (1, 3) were given; only earlier nodes, 0 to 1, are allowed"),
        ((IMAGE, Node(kind("conv"), (-1,), 8)), "node 1 (conv): inputs (-1,) were given"),
        ((IMAGE, Node(kind("conv"), (), 8)), "node 1 (conv): 0 inputs were given; it takes 1"),
        ((IMAGE, CONV, Node(kind("conv"), (0, 1), 8)), "node 2 (conv): 2 inputs were given; it takes 1"),
        ((IMAGE, CONV, Node(kind("add"), (1,), 8)), "node 2 (add): 1 inputs were given; it takes 2"),
        ((IMAGE, CONV, Node(kind("add"), (1, 1, 1), 8)), "node 2 (add): 3 inputs were given; it takes 2"),
        ((IMAGE, CONV, Node(kind("concat"), (1,), 8)), "node 2 (concat): 1 inputs were given; it takes 2 or more"),
        ((IMAGE, Node(kind("conv"), (0,), 8, 4)), "node 1 (conv): stride 4 was given; allowed: 1, 2"),
        ((IMAGE, Node(kind("stem"), (0,), 8)), "node 1 (stem): stride 1 was given; allowed: 2, 4, 8"),
        (
            (IMAGE, HALF, Node(kind("conv"), (1,), 8, 1, 2)),
            "node 2 (conv): enlargement 2 was given; only a resize of stride 1 enlarges, by a power of two",
        ),
        ((IMAGE, HALF, Node(kind("resize"), (1,), 8, 1, 3)), "node 2 (resize): enlargement 3 was given"),
        ((IMAGE, HALF, Node(kind("resize"), (1,), 8, 2, 2)), "node 2 (resize): enlargement 2 was given"),
        ((IMAGE, Node(kind("conv"), (0,), 0)), "node 1 (conv): 0 channels were given; at least 1 is needed"),
        (
            (IMAGE, CONV, HALF, Node(kind("add"), (1, 2), 8)),
            "node 3 (add): its inputs lie at levels [0, 1]; they must lie at the same level: resize first",
        ),
        ((IMAGE, CONV, Node(kind("concat"), (0, 1), 12)), "node 2 (concat): 12 channels were given; the inputs [3, 8] make 11"),
        ((IMAGE, CONV, Node(kind("add"), (0, 1), 8)), "node 2 (add): 8 channels were given for inputs of [3, 8]; all must be equal"),
        ((IMAGE, Node(kind("max_pool"), (0,), 8)), "node 1 (max_pool): 8 channels were given for inputs of [3]; all must be equal"),
        ((IMAGE, Node(kind("resize"), (0,), 8, 2)), "node 1 (resize): 8 channels were given for inputs of [3]"),
        ((IMAGE, Node(kind("conv", groups=2), (0,), 8)), "node 1 (conv): 2 groups do not divide 3 input and 8 output channels"),
        ((IMAGE, CONV, Node(kind("conv", groups=4), (1,), 6)), "node 2 (conv): 4 groups do not divide 8 input and 6 output channels"),
        ((IMAGE, Node(kind("resize"), (0,), 3, 1, 2)), "node 1 (resize): its feature would be at level -1; levels 0 to 7 are allowed"),
        ((IMAGE, *(Node(kind("skip"), (i,), 3, 2) for i in range(8))), "node 8 (skip): its feature would be at level 8; levels 0 to 7 are allowed"),
        ((IMAGE, CONV, CONV, Node(kind("conv"), (2,), 8)), "node 1 (conv) is read by no other node; remove it or connect it"),
    ],
)
def test_what_is_no_network_is_refused_with_the_node_at_fault(nodes: tuple[Node, ...], message: str) -> None:
    assert message in refused(*nodes)


def test_the_message_calls_a_node_by_its_label() -> None:
    assert refused(IMAGE, Node(kind("conv"), (0,), 8, 4, label="head.fine")).startswith("node 1 'head.fine' (conv): stride 4")


def test_a_network_of_another_purpose_is_no_segmentation_network(every_op) -> None:
    assert every_op.require_segmentation() is every_op
    assert every_op.classes == 19
    with pytest.raises(InputError, match="last node is at 1/2 of the image's size; the output must be resized"):
        chain((kind("conv"), 8, 2)).require_segmentation()
    probe = Architecture((Node(kind("image"), (), 64), CONV))
    assert probe.operations(7, 5)[1].inputs == (Shape(64, 7, 5),)
    with pytest.raises(InputError, match="64 channels; a segmentation network reads 3"):
        probe.require_segmentation()


# ---- sizes

SIZES = {(360, 480): (45, 60, 12, 15), (769, 769): (97, 97, 25, 25), (1025, 2049): (129, 257, 33, 65), (32, 32): (4, 4, 1, 1)}
"""Of an input: height and width at 1/8 and at 1/32."""


@pytest.mark.parametrize("size", SIZES)
def test_the_sizes_that_papers_use(every_op, size: tuple[int, int]) -> None:
    operations, levels = every_op.operations(*size), every_op.levels
    assert len(operations) == len(levels) == len(every_op.nodes)
    seen = {level: {operation.output[1:] for operation, at in zip(operations, levels, strict=True) if at == level} for level in set(levels)}
    assert seen[0] == {size}
    assert (*seen[3], *seen[5]) == (SIZES[size][:2], SIZES[size][2:])
    assert all(
        operation.inputs == tuple(operations[i].output for i in node.inputs) for operation, node in zip(operations, every_op.nodes, strict=True)
    )
    assert operations[-1].output == Shape(19, *size)


@pytest.mark.parametrize("size", [(31, 64), (64, 31), (1, 1)])
def test_an_image_smaller_than_the_deepest_stride_is_refused(every_op, size: tuple[int, int]) -> None:
    with pytest.raises(InputError) as caught:
        every_op.operations(*size)
    assert str(caught.value) == f"input size {size[0]}x{size[1]} is too small: this network shrinks by 32, so at least 32x32 is needed"


STEPS = st.one_of(
    st.tuples(st.builds(lambda k, d: kind("conv", kernel=k, dilation=d), st.sampled_from([1, 3, 5, 7]), st.integers(1, 4)), st.just(2)),
    st.tuples(st.builds(lambda k, d: kind("separable", kernel=k, dilation=d), st.sampled_from([3, 5]), st.integers(1, 3)), st.just(2)),
    st.tuples(st.sampled_from([kind("max_pool"), kind("max_pool", kernel=5), kind("avg_pool"), kind("skip"), kind("inverted_residual")]), st.just(2)),
    st.tuples(st.sampled_from([kind("stem", width=4), kind("stem", unit="separable", width=4)]), st.sampled_from([2, 4, 8])),
    st.tuples(st.just(kind("resize")), st.sampled_from([2, 4, 8])),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, min_size=1, max_size=4), st.integers(1, 70), st.integers(1, 70))
def test_any_path_to_a_level_gives_the_size_that_the_modules_give(steps, height: int, width: int) -> None:
    level = sum({2: 1, 4: 2, 8: 3}[stride] for _, stride in steps)
    assume(level <= DEEPEST_LEVEL)
    network, least = chain(*((k, 3, stride) for k, stride in steps)), 2**level
    height, width = max(height, least), max(width, least)
    expected = (ceil(height / least), ceil(width / least))
    operations = network.operations(height, width)
    assert network.levels[-1] == level
    assert operations[-1].output[1:] == size_at(level, height, width) == expected
    feature = torch.zeros(1, 3, height, width)
    with torch.no_grad():
        for operation in operations[1:]:
            module = build(operation.kind, (3,), 3, operation.stride).eval()
            feature = module([feature], operation.output[1:])
            assert feature.shape[1:] == operation.output
    assert feature.shape[2:] == expected


@given(st.integers(1, 4096), st.integers(1, 4096), st.integers(0, DEEPEST_LEVEL))
def test_size_at_is_repeated_halving_rounded_up(height: int, width: int, level: int) -> None:
    sides = [height, width]
    for _ in range(level):
        sides = [side - side // 2 for side in sides]
    assert size_at(level, height, width) == tuple(sides)


# ---- values and digests

KINDS = st.sampled_from([kind("conv"), kind("conv", kernel=5), kind("conv", dilation=(1, 2)), kind("conv", dilation=(2, 1)), kind("separable")])
CHAINS = st.lists(st.tuples(KINDS, st.integers(1, 2), st.sampled_from([1, 2])), min_size=1, max_size=3)


@given(CHAINS, CHAINS)
def test_digests_agree_where_networks_are_equal_and_only_there(first, second) -> None:
    one, two = chain(*first), chain(*second)
    assert (one.digest == two.digest) == (one == two) == (first == second)
    assert chain(*first).digest == one.digest
    assert hash(chain(*first)) == hash(one)
    assert len(one.digest) == 12
    assert int(one.digest, 16) >= 0


@given(st.lists(st.text(max_size=5), min_size=40, max_size=40))
def test_labels_are_no_part_of_the_value(every_op, labels: list[str]) -> None:
    renamed = Architecture(tuple(Node(n.kind, n.inputs, n.channels, n.stride, n.up, label) for n, label in zip(every_op.nodes, labels, strict=False)))
    assert renamed == every_op
    assert renamed.digest == every_op.digest


def test_each_field_of_each_node_changes_the_digest() -> None:
    def made(op: str = "conv", inputs: tuple[int, int] = (1, 2), up: int = 2, image: int = 3, **changes: int) -> Architecture:
        given_ = {"channels": 8, "stride": 2, "width": 4, "kernel": 3} | changes
        return Architecture(
            (
                Node(kind("image"), (), image),
                Node(kind(op, kernel=given_["kernel"]), (0,), 4, given_["stride"]),
                Node(kind("separable"), (0,), given_["width"], given_["stride"]),
                Node(kind("concat"), inputs, 4 + given_["width"]),
                Node(kind("resize"), (3,), 4 + given_["width"], 1, up),
                Node(kind("classifier"), (4,), given_["channels"]),
            )
        )

    changes = ({"op": "separable"}, {"inputs": (2, 1)}, {"up": 1}, {"image": 4}, {"channels": 9}, {"stride": 1, "up": 1}, {"width": 5}, {"kernel": 5})
    variants = [made(), *(made(**change) for change in changes)]
    assert len({v.digest for v in variants}) == len(variants)


def test_digests_stay_what_they_were() -> None:
    """Tables, engines and weights on disk are found by digest: a change of this one makes them all strangers."""
    network = chain((kind("stem", width=16), 32, 4), (kind("separable", dilation=(1, 2)), 32, 1), (kind("classifier"), 19, 1))
    canonical = (
        '[[["image",{}],[],3,1,1],[["stem",{"activation":"relu","unit":"conv","width":16}],[0],32,4,1],'
        '[["separable",{"activation":"relu","dilation":[1,2],"kernel":3,"repeats":1}],[1],32,1,1],[["classifier",{}],[2],19,1,1]]'
    )
    assert network.digest == hashlib.sha256(canonical.encode()).hexdigest()[:12]


def test_operations_are_keys() -> None:
    first, second = (chain((kind("conv"), 8, 2)).operations(*size)[1] for size in ((64, 128), (63, 127)))
    assert first != second
    assert first.output == second.output
    assert first.digest != second.digest
    assert str(first) == "conv/2 3x64x128 -> 8x32x64"
    assert chain((kind("conv"), 8, 2), (kind("conv"), 8, 1)).operations(64, 128)[1] == first
    assert len({first, second, Operation(kind("conv"), 2, (Shape(3, 64, 128),), Shape(8, 32, 64))}) == 2
    assert str(argmax_operation(Shape(19, 4, 6))) == "argmax 19x4x6 -> 1x4x6"


@pytest.mark.parametrize(("node", "free"), [(Node(kind("skip"), (0,), 3), True), (Node(kind("skip"), (0,), 3, 2), False), (CONV, False)])
def test_what_is_nothing_at_run_time(node: Node, free: bool) -> None:
    image, operation = Architecture((IMAGE, node)).operations(8, 8)
    assert image.is_free
    assert operation.is_free is free
