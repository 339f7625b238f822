"""Kinds: what each operation accepts, in which words the rest is refused, and the widths that stems and branches share out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segnas.errors import InputError
from segnas.kinds import SCHEMAS, Kind, branch_width, kind, stem_widths
from segnas.ops import OPS


def test_every_operation_stands_with_its_defaults() -> None:
    for op, schema in SCHEMAS.items():
        made = kind(op)
        assert made.op == str(made) == op
        assert dict(made.attributes) == {name: attribute.default for name, attribute in schema.attributes.items()}
        assert [name for name, _ in made.attributes] == sorted(schema.attributes)


def test_what_can_be_built_is_what_can_stand_in_a_network() -> None:
    assert set(OPS) == set(SCHEMAS) - {"image", "none", "argmax"}


def test_a_kind_is_a_value() -> None:
    assert kind("conv", dilation=2) == kind("conv", dilation=(2, 2)) == kind("conv", activation="relu", dilation=(2, 2), kernel=3)
    assert hash(kind("conv", dilation=2)) == hash(kind("conv", dilation=(2, 2)))
    assert kind("conv") != kind("separable")
    assert sorted([kind("skip"), kind("conv", kernel=5), kind("conv")]) == [kind("conv"), kind("conv", kernel=5), kind("skip")]


@pytest.mark.parametrize(
    ("made", "spelling"),
    [
        (kind("conv"), "conv"),
        (kind("conv", kernel=5), "conv(kernel=5)"),
        (kind("separable", dilation=4, repeats=2), "separable(dilation=4x4,repeats=2)"),
        (kind("pyramid_pool", bins=(1, 2)), "pyramid_pool(bins=1x2)"),
        (kind("resize", align_corners=True), "resize(align_corners=True)"),
    ],
)
def test_a_kind_shows_what_differs_from_the_defaults(made: Kind, spelling: str) -> None:
    assert str(made) == spelling


def test_attributes_are_read_by_type() -> None:
    conv = kind("conv", dilation=(1, 2))
    assert (conv["kernel"], conv.integer("kernel"), conv.integers("dilation"), conv.text("activation")) == (3, 3, (1, 2), "relu")
    for read, name in ((conv.integer, "activation"), (conv.integers, "kernel"), (conv.text, "kernel")):
        with pytest.raises(TypeError, match=rf"conv\.{name}"):
            read(name)
    with pytest.raises(KeyError):
        conv["zoom"]


@pytest.mark.parametrize(
    ("op", "attributes", "message"),
    [
        ("convolution", {}, "unknown operation 'convolution'; known operations: add, argmax, aspp, "),
        ("conv", {"kernal": 3, "zoom": 2}, "operation 'conv' has no attribute kernal, zoom; it takes activation, dilation, groups, kernel"),
        ("add", {"kernel": 3}, "operation 'add' has no attribute kernel; it takes none"),
        ("conv", {"kernel": 4}, "conv.kernel was given 4; allowed: 1, 3, 5, 7"),
        ("conv", {"kernel": "3"}, "conv.kernel was given '3'; a value like 3 is allowed"),
        ("conv", {"kernel": True}, "conv.kernel was given True; a value like 3 is allowed"),
        ("conv", {"groups": True}, "conv.groups was given True; a value like 1 is allowed"),
        ("conv", {"groups": 0}, "conv.groups was given 0; integers from 1 to 65536 are allowed"),
        ("conv", {"activation": "swish"}, "conv.activation was given 'swish'; allowed: relu, relu6, hardswish, none"),
        ("conv", {"dilation": (1, 2, 3)}, "conv.dilation was given (1, 2, 3); integers from 1 to 65536 are allowed"),
        ("conv", {"dilation": (1,)}, "conv.dilation was given (1,)"),
        ("conv", {"dilation": 0}, "conv.dilation was given (0, 0)"),
        ("conv", {"dilation": (1, "2")}, "conv.dilation was given (1, '2')"),
        ("conv", {"dilation": (True, True)}, "conv.dilation was given (True, True)"),
        ("separable", {"repeats": 3}, "separable.repeats was given 3; allowed: 1, 2"),
        ("max_pool", {"kernel": 7}, "max_pool.kernel was given 7; allowed: 3, 5"),
        ("zoomed_conv", {"zoom": 3}, "zoomed_conv.zoom was given 3; allowed: 2, 4"),
        ("inverted_residual", {"expansion": 17}, "inverted_residual.expansion was given 17; integers from 1 to 16 are allowed"),
        ("inverted_residual", {"squeeze": -1}, "inverted_residual.squeeze was given -1; integers from 0 to 64 are allowed"),
        ("pyramid_pool", {"bins": ()}, "pyramid_pool.bins was given (); integers from 1 to 64 are allowed"),
        ("pyramid_pool", {"bins": (1, 65)}, "pyramid_pool.bins was given (1, 65)"),
        ("aspp", {"rates": 6}, "aspp.rates was given 6; a value like (6, 12, 18) is allowed"),
        ("resize", {"align_corners": 1}, "resize.align_corners was given 1; a value like False is allowed"),
        ("stem", {"unit": "dense"}, "stem.unit was given 'dense'; allowed: conv, separable"),
        ("stem", {"width": 4097}, "stem.width was given 4097; integers from 1 to 4096 are allowed"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(op: str, attributes: dict, message: str) -> None:
    with pytest.raises(InputError) as caught:
        kind(op, **attributes)
    assert message in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_kind_from_a_file_lists_every_attribute_in_order() -> None:
    full = (("activation", "relu"), ("dilation", (1, 1)), ("groups", 1), ("kernel", 3))
    assert Kind("conv", full) == kind("conv")
    for attributes in (full[:-1], full[::-1], (*full, ("kernel", 3)), (*full, ("zoom", 2))):
        with pytest.raises(InputError, match=r"was given attributes .*; it takes exactly \['activation', 'dilation', 'groups', 'kernel'\]"):
            Kind("conv", attributes)
    with pytest.raises(InputError, match="unknown operation 'magic'; known operations: add"):
        Kind("magic")


@pytest.mark.parametrize(
    ("outputs", "branches", "width"),
    [
        (128, 4, 32),
        (96, 4, 32),
        (64, 4, 16),
        (65, 4, 32),
        (63, 4, 15),
        (24, 4, 6),
        (128, 5, 32),
        (80, 5, 16),
        (3, 4, 1),
        (1, 1, 1),
        (16, 1, 16),
        (17, 1, 32),
    ],
)
def test_branch_width_by_hand(outputs: int, branches: int, width: int) -> None:
    assert branch_width(outputs, branches) == width


@given(st.integers(1, 2048), st.integers(1, 8))
def test_wide_branches_are_the_next_multiple_of_16(outputs: int, branches: int) -> None:
    width = branch_width(outputs, branches)
    if outputs >= 16 * branches:
        assert width == min(m for m in range(16, 4096, 16) if m * branches >= outputs)
    else:
        assert 1 <= width < 16


@pytest.mark.parametrize(
    ("width", "outputs", "halvings", "widths"),
    [
        (32, 64, 1, (64,)),
        (32, 64, 2, (32, 64)),
        (32, 64, 3, (32, 48, 64)),  # halfway
        (32, 48, 3, (32, 48, 48)),  # halfway is 40, in sixteens 48
        (32, 24, 3, (32, 32, 24)),  # never narrower than the first
        (8, 16, 3, (8, 16, 16)),
    ],
)
def test_stem_widths_by_hand(width: int, outputs: int, halvings: int, widths: tuple[int, ...]) -> None:
    assert stem_widths(width, outputs, halvings) == widths
