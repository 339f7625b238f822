"""Operations: the sizes of the walk, what each computes against a plain rewriting of it, and the order inside a convolution unit."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segnas.kinds import Kind, branch_width, kind
from segnas.ops import SqueezeExcitation, Unit, build, pooled_to, resized

SIZES = [(32, 64), (33, 65), (37, 53)]


def built(made: Kind, inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    """The operation in evaluation mode, with weights and statistics that are nowhere trivial."""
    torch.manual_seed(3)
    module = build(made, (inputs,), outputs, stride)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.5)
            layer.running_mean, layer.running_var = torch.randn(layer.num_features) * 0.3, torch.rand(layer.num_features) + 0.5
    return module.eval()


def by_hand(x: Tensor, unit: nn.Module, activation: str = "relu", **options) -> Tensor:
    """Convolution, normalisation and activation from their formulas; `options` are the convolution's."""
    convolution, norm = unit[0], unit[1]
    y = F.conv2d(x, convolution.weight, **options)
    scale = norm.weight / torch.sqrt(norm.running_var + 1e-5)
    y = (y - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
    functions = {
        "relu": lambda v: v.clamp(min=0),
        "relu6": lambda v: v.clamp(0, 6),
        "hardswish": lambda v: v * (v + 3).clamp(0, 6) / 6,
        "none": lambda v: v,
    }
    return functions[activation](y)


def close(result: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_every_operation_gives_the_shape_that_the_walk_says(variant, placed, size: tuple[int, int]) -> None:
    operation = placed(variant).operations(*size)[-1]
    module = build(variant.kind, variant.widths, variant.channels, variant.stride)
    features = [torch.randn(2, *shape) for shape in operation.inputs]
    for training in (True, False):
        result = module.train(training)([feature.clone() for feature in features], operation.output[1:])
        assert result.shape == (2, *operation.output)
        assert torch.isfinite(result).all()


@torch.no_grad()
def test_no_operation_changes_its_inputs(variant, placed) -> None:
    operation = placed(variant).operations(32, 35)[-1]
    features = [torch.randn(2, *shape) for shape in operation.inputs]
    kept = [feature.clone() for feature in features]
    build(variant.kind, variant.widths, variant.channels, variant.stride).train()(features, operation.output[1:])
    assert all(torch.equal(now, before) for now, before in zip(features, kept, strict=True))


def test_gradients_reach_every_weight_and_every_input(variant, placed) -> None:
    torch.manual_seed(0)
    operation = placed(variant).operations(32, 48)[-1]
    module = build(variant.kind, variant.widths, variant.channels, variant.stride).train()
    features = [torch.randn(4, *shape, requires_grad=True) for shape in operation.inputs]
    result = module(features, operation.output[1:])
    (result * torch.randn_like(result)).sum().backward()
    for tensor in (*features, *module.parameters()):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.abs().sum() > 0


def test_units_are_convolution_normalisation_activation(variant) -> None:
    module = build(variant.kind, variant.widths, variant.channels, variant.stride)
    units = [m for m in module.modules() if isinstance(m, Unit)]
    for unit in units:
        convolution, norm, *activation = unit
        assert isinstance(convolution, nn.Conv2d)
        assert convolution.bias is None
        assert isinstance(norm, nn.BatchNorm2d)
        assert len(activation) <= 1
        assert all(isinstance(layer, nn.ReLU | nn.ReLU6 | nn.Hardswish) for layer in activation)
    gates = [m for m in module.modules() if isinstance(m, SqueezeExcitation)]
    inside = {id(layer) for part in (*units, *gates) for layer in part.modules()}
    outside = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d) and id(m) not in inside]
    assert len(outside) == (1 if variant.kind.op == "classifier" else 0)


@torch.no_grad()
@pytest.mark.parametrize("activation", ["relu", "relu6", "hardswish", "none"])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_against_its_formula(activation: str, stride: int) -> None:
    x = 3 * torch.randn(2, 8, 13, 17)
    module = built(kind("conv", kernel=5, dilation=(1, 3), groups=2, activation=activation), 8, 12, stride)
    expected = by_hand(x, module.layers[0], activation, stride=stride, padding=(2, 6), dilation=(1, 3), groups=2)
    close(module([x], (0, 0)), expected)


@torch.no_grad()
def test_separable_units_against_their_formula() -> None:
    x = torch.randn(2, 6, 15, 11)
    layers = (module := built(kind("separable", dilation=2, repeats=2), 6, 10, 2)).layers
    y = by_hand(x, layers[0], stride=2, padding=2, dilation=2, groups=6)
    y = by_hand(y, layers[1])
    y = by_hand(y, layers[2], padding=2, dilation=2, groups=10)
    close(module([x], (8, 6)), by_hand(y, layers[3]))


@torch.no_grad()
def test_a_skip_is_the_very_feature_or_every_second_pixel() -> None:
    x = torch.randn(2, 8, 9, 7)
    assert built(kind("skip"), 8, 8)([x], (9, 7)) is x
    module = built(kind("skip"), 8, 8, 2)
    close(module([x], (5, 4)), by_hand(x[:, :, ::2, ::2], module.layers[0], "none"))


@torch.no_grad()
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_pools_against_windows_of_pixels(kernel: int, stride: int) -> None:
    x = torch.randn(1, 2, 7, 6)
    most, mean = (build(kind(op, kernel=kernel), (2,), 2, stride)([x], (0, 0)) for op in ("max_pool", "avg_pool"))
    half = kernel // 2
    for row in range(most.shape[2]):
        for column in range(most.shape[3]):
            r, c = row * stride, column * stride
            window = x[0, :, max(0, r - half) : r + half + 1, max(0, c - half) : c + half + 1].flatten(1)  # padding is no pixel
            close(most[0, :, row, column], window.amax(1))
            close(mean[0, :, row, column], window.mean(1))


@torch.no_grad()
@pytest.mark.parametrize("zoom", [2, 4])
@pytest.mark.parametrize(("stride", "size"), [(1, (18, 21)), (2, (9, 11))])
def test_a_zoomed_convolution_against_its_formula(zoom: int, stride: int, size: tuple[int, int]) -> None:
    x = torch.randn(2, 6, 18, 21)
    module = built(kind("zoomed_conv", zoom=zoom, repeats=2), 6, 10, stride)
    small = {2: (9, 11), 4: (5, 6)}[zoom]
    y = F.interpolate(x, size=small, mode="bilinear", align_corners=False)
    y = by_hand(by_hand(y, module.layers[0], padding=1), module.layers[1], padding=1)
    close(module([x], size), y if size == small else F.interpolate(y, size=size, mode="bilinear", align_corners=False))


@torch.no_grad()
@pytest.mark.parametrize(
    ("expansion", "squeeze", "outputs", "stride"), [(3, 0, 8, 1), (3, 0, 12, 1), (1, 0, 8, 2), (1, 0, 8, 1), (4, 2, 8, 1), (2, 4, 9, 2)]
)
def test_an_inverted_residual_against_its_formula(expansion: int, squeeze: int, outputs: int, stride: int) -> None:
    x = torch.randn(2, 8, 11, 10)
    module = built(kind("inverted_residual", expansion=expansion, squeeze=squeeze), 8, outputs, stride)
    layers, hidden = list(module.layers), 8 * expansion
    y = by_hand(x, layers.pop(0), "relu6") if expansion > 1 else x
    y = by_hand(y, layers.pop(0), "relu6", stride=stride, padding=1, groups=hidden)
    if squeeze:
        narrow, wide = (layer for layer in layers.pop(0).modules() if isinstance(layer, nn.Conv2d))
        assert narrow.out_channels == max(8, hidden // squeeze)
        means = y.mean(dim=(2, 3))  # (N, C)
        gate = (means @ narrow.weight[:, :, 0, 0].T + narrow.bias).clamp(min=0) @ wide.weight[:, :, 0, 0].T + wide.bias
        y = y * (gate / 6 + 0.5).clamp(0, 1)[:, :, None, None]
    y = by_hand(y, layers.pop(0), "none")
    assert not layers
    close(module([x], (0, 0)), x + y if stride == 1 and outputs == 8 else y)


@torch.no_grad()
def test_a_pyramid_pool_against_its_formula() -> None:
    x = torch.randn(2, 6, 12, 24)
    module = built(kind("pyramid_pool", bins=(1, 2, 3, 6)), 6, 20)
    parts = [x]
    for bins, branch in zip((1, 2, 3, 6), module.branches, strict=True):
        assert branch[0].out_channels == branch_width(20, 4) == 5
        parts.append(F.interpolate(by_hand(F.adaptive_avg_pool2d(x, bins), branch), size=(12, 24), mode="bilinear", align_corners=False))
    close(module([x], (12, 24)), by_hand(torch.cat(parts, 1), module.project))


@torch.no_grad()
def test_aspp_against_its_formula() -> None:
    x = torch.randn(2, 6, 14, 9)
    module = built(kind("aspp", rates=(2, 5)), 6, 64)
    assert module.point[0].out_channels == 16
    parts = [by_hand(x, module.point)]
    for rate, branch in zip((2, 5), module.dilated, strict=True):
        parts.append(by_hand(by_hand(x, branch[0], padding=rate, dilation=rate, groups=6), branch[1]))
    parts.append(by_hand(x.mean(dim=(2, 3), keepdim=True), module.pool).expand(-1, -1, 14, 9))
    close(module([x], (14, 9)), by_hand(torch.cat(parts, 1), module.project))


@torch.no_grad()
@pytest.mark.parametrize("unit", ["conv", "separable"])
def test_a_stem_is_a_chain_of_halvings(unit: str) -> None:
    x = torch.randn(1, 3, 33, 41)
    layers = (module := built(kind("stem", unit=unit, width=8, activation="hardswish"), 3, 40, 8)).layers
    y = by_hand(x, layers[0], "hardswish", stride=2, padding=1)
    widths = [8]
    for place in range(1, len(layers), 2 if unit == "separable" else 1):
        if unit == "separable":
            y = by_hand(y, layers[place], "hardswish", stride=2, padding=1, groups=y.shape[1])
            y = by_hand(y, layers[place + 1], "hardswish")
        else:
            y = by_hand(y, layers[place], "hardswish", stride=2, padding=1)
        widths.append(y.shape[1])
    assert widths == [8, 32, 40]  # halfway between 8 and 40 is 24, in sixteens 32
    close(module([x], (5, 6)), y)


@pytest.mark.parametrize(("height", "width", "bins"), [(12, 24, 3), (12, 24, 6), (30, 30, 5), (7, 7, 1), (6, 6, 6), (13, 29, 1)])
def test_pooling_to_bins_that_divide_is_adaptive_pooling(height: int, width: int, bins: int) -> None:
    x = torch.randn(2, 5, height, width)
    close(pooled_to(x, bins), F.adaptive_avg_pool2d(x, bins))


@pytest.mark.parametrize(("side", "bins", "window", "stride"), [(7, 3, 3, 2), (11, 6, 6, 1), (23, 6, 8, 3), (25, 2, 13, 12), (4, 6, 1, 1)])
def test_other_bins_are_windows_of_one_size_that_reach_both_ends(side: int, bins: int, window: int, stride: int) -> None:
    x = torch.randn(1, 2, side, side)
    grid = pooled_to(x, bins)
    count = min(bins, side)  # a feature smaller than the grid is its own grid
    assert grid.shape == (1, 2, count, count)
    assert (count - 1) * stride + window == side
    for i in range(count):
        for j in range(count):
            close(grid[0, :, i, j], x[0, :, i * stride : i * stride + window, j * stride : j * stride + window].mean(dim=(1, 2)))


@pytest.mark.parametrize(
    ("height", "width", "grid"), [(12, 24, (3, 4)), (7, 9, (1, 1)), (10, 6, (1, 6)), (2, 3, (4, 4)), (7, 9, (2, 4)), (9, 13, (8, 2))]
)
def test_a_grid_pool_is_means_a_unit_and_a_resize(height: int, width: int, grid: tuple[int, int]) -> None:
    x, module = torch.randn(2, 6, height, width), built(kind("grid_pool", grid=grid, activation="relu6"), 6, 4)
    means = F.adaptive_avg_pool2d(x, (min(grid[0], height), min(grid[1], width)))
    close(module([x], (height, width)), F.interpolate(by_hand(means, module.unit, "relu6"), size=(height, width), mode="bilinear"))


@pytest.mark.parametrize("size", [(8, 12), (7, 12), (8, 5), (9, 7), (1, 1), (2, 1)])
def test_a_factorised_reduce_sees_every_pixel_on_the_diagonal_once(size: tuple[int, int]) -> None:
    """DARTS's own formula where both sides are even; elsewhere that of the feature with a zero row or column behind the last."""
    x, module = torch.randn(2, 6, *size), built(kind("factorised_reduce"), 6, 5, 2)
    even = F.pad(x, (0, size[1] % 2, 0, size[0] % 2))
    shifted = even[:, :, 1:, 1:]
    parts = [by_hand(even, module.even, "relu", stride=2), by_hand(shifted, module.odd, "relu", stride=2)]
    assert [part.shape[1] for part in parts] == [3, 2]
    assert {part.shape[-2:] for part in parts} == {(-(-size[0] // 2), -(-size[1] // 2))}
    close(module([x], tuple(parts[0].shape[-2:])), torch.cat(parts, 1))


@pytest.mark.parametrize("size", [(8, 12), (7, 12), (9, 7)])
def test_training_a_factorised_reduce_sees_no_padding(size: tuple[int, int]) -> None:
    """The statistics of its normalisations are those of the shifted feature, without the row and column that the padded convolution adds."""
    x, module = torch.randn(4, 6, *size), built(kind("factorised_reduce", activation="none"), 6, 4, 2).train()
    found = module([x], (-(-size[0] // 2), -(-size[1] // 2)))[:, 2:]
    y = F.conv2d(F.pad(x, (0, size[1] % 2, 0, size[0] % 2))[:, :, 1:, 1:], module.odd[0].weight, stride=2)
    norm = module.odd[1]
    mean, variance = y.mean((0, 2, 3)), y.var((0, 2, 3), unbiased=False)
    normal = (y - mean[:, None, None]) / torch.sqrt(variance[:, None, None] + 1e-5)
    close(found, normal * norm.weight[:, None, None] + norm.bias[:, None, None])


def test_a_resize_is_bilinear_and_does_nothing_at_the_same_size() -> None:
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert resized(x, (2, 3)) is x
    # align_corners: the corners keep their values and the steps between are even
    rows = torch.tensor([[0.0, 0.5, 1.0, 1.5, 2.0], [1.5, 2.0, 2.5, 3.0, 3.5], [3.0, 3.5, 4.0, 4.5, 5.0]])
    close(build(kind("resize", align_corners=True), (1,), 1, 1)([x], (3, 5))[0, 0], rows)
    # otherwise pixel centres are aligned: row 0 of a doubled (0, 1, 2) lies at -0.25 (clamped), 0.25, 0.75, 1.25, 1.75, 2.25 (clamped)
    close(build(kind("resize"), (1,), 1, 1)([x], (2, 6))[0, 0, 0], torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.0]))


def test_joints_are_plain_sums_and_concatenations() -> None:
    a, b, c = (torch.randn(1, width, 4, 5) for width in (3, 3, 2))
    assert torch.equal(build(kind("add"), (3, 3), 3, 1)([a, b], (4, 5)), a + b)
    joined = build(kind("concat"), (3, 3, 2), 8, 1)([a, b, c], (4, 5))
    assert [torch.equal(part, whole) for part, whole in zip(joined.split([3, 3, 2], 1), (a, b, c), strict=True)] == [True] * 3


def test_the_classifier_is_a_convolution_with_a_bias_and_no_more() -> None:
    x = torch.randn(1, 6, 4, 5)
    module = build(kind("classifier"), (6,), 4, 1)
    weight, bias = module.parameters()
    close(module([x], (4, 5)), torch.einsum("nchw,kc->nkhw", x, weight[:, :, 0, 0]) + bias[:, None, None])
