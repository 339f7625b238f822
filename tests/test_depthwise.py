"""The depthwise convolution's own backward pass against PyTorch's, and against finite differences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from segnas.depthwise import DepthwiseConv2d


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 17),
    st.integers(1, 17),
    st.sampled_from([3, 5]),
    st.sampled_from([1, 2]),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
def test_gradients_are_those_of_pytorch(channels: int, height: int, width: int, kernel: int, stride: int, dilation: tuple[int, int]) -> None:
    convolution = DepthwiseConv2d(channels, kernel, stride=stride, dilation=dilation).double()
    feature = torch.randn(2, channels, height, width, dtype=torch.float64, requires_grad=True)
    ours = convolution(feature)
    theirs = F.conv2d(feature, convolution.weight, None, stride, convolution.padding, dilation, channels)
    assert torch.equal(ours, theirs)
    assert ours.shape[2:] == (-(-height // stride), -(-width // stride))
    direction = torch.randn_like(ours)
    found = torch.autograd.grad((ours * direction).sum(), [feature, convolution.weight])
    wanted = torch.autograd.grad((theirs * direction).sum(), [feature, convolution.weight])
    for mine, reference in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("stride", "dilation"), [(1, (2, 3)), (2, (4, 4))])
def test_gradients_agree_with_finite_differences(stride: int, dilation: tuple[int, int]) -> None:
    convolution = DepthwiseConv2d(2, 3, stride=stride, dilation=dilation).double()
    feature = torch.randn(1, 2, 7, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: _with(convolution, x, w), (feature, convolution.weight))


def test_channels_last_gives_the_same_gradients() -> None:
    convolution = DepthwiseConv2d(8, 3, dilation=(4, 4))
    feature = torch.randn(2, 8, 12, 15)
    gradients = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        convolution.zero_grad()
        (convolution(feature.to(memory_format=memory_format)) ** 2).sum().backward()
        assert convolution.weight.grad is not None
        gradients.append(convolution.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def _with(convolution: DepthwiseConv2d, feature: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.func.functional_call(convolution, {"weight": weight}, (feature,))
