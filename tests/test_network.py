"""Networks: the fold over the walk, what it keeps alive, and that a seed decides the weights and nothing else does."""

import weakref

import pytest
import torch
from torch import Tensor, nn

from segnas.arch import Architecture, Node, size_at
from segnas.kinds import kind
from segnas.network import Network, initialised
from segnas.ops import build


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 47)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_every_feature_has_the_shape_of_the_walk(every_op: Architecture, size: tuple[int, int]) -> None:
    network, image = initialised(every_op, 0).eval(), torch.randn(2, 3, *size)
    logits, features = network.features(image, range(len(every_op.nodes)))
    assert logits.shape == (2, 19, *size)
    assert torch.equal(logits, network(image))
    assert features[0] is image
    assert features[len(every_op.nodes) - 1] is logits
    assert [tuple(features[i].shape[1:]) for i in range(len(features))] == [tuple(o.output) for o in every_op.operations(*size)]


@torch.no_grad()
def test_the_fold_is_each_module_on_its_inputs(every_op: Architecture) -> None:
    network, image = initialised(every_op, 1).eval(), torch.randn(1, 3, 64, 96)
    _, features = network.features(image, range(len(every_op.nodes)))
    for index, node in enumerate(every_op.nodes):
        if index:
            module = build(node.kind, tuple(every_op.nodes[s].channels for s in node.inputs), node.channels, node.stride).eval()
            start = f"nodes.{index}."
            module.load_state_dict({name.removeprefix(start): t for name, t in network.state_dict().items() if name.startswith(start)})
            result = module([features[s] for s in node.inputs], size_at(every_op.levels[index], 64, 96))
            assert torch.equal(result, features[index]), node


def test_only_what_is_asked_for_is_kept(every_op: Architecture) -> None:
    _, features = initialised(every_op, 0).eval().features(torch.randn(1, 3, 32, 32), iter((5, 3)))
    assert sorted(features) == [3, 5]


@torch.no_grad()
def test_no_feature_outlives_its_last_reader() -> None:
    """Skip connections of several lengths; an operation may see its own inputs and what later ones read, nothing else."""
    conv = kind("conv")
    nodes = [Node(kind("image"), (), 4)]
    nodes += [Node(conv, (0,), 4), Node(conv, (1,), 4), Node(conv, (2,), 4), Node(kind("add"), (3, 1), 4), Node(conv, (4,), 4)]
    nodes += [Node(kind("concat"), (5, 2), 8), Node(conv, (6,), 4), Node(kind("add"), (7, 5), 4), Node(conv, (8,), 4)]
    architecture = Architecture(tuple(nodes))
    last_reader = {s: max(i for i, n in enumerate(nodes) if s in n.inputs) for s in range(len(nodes) - 1)}
    network = Network(architecture).eval()
    made: dict[int, weakref.ref[Tensor]] = {}
    seen: list[set[int]] = []
    for index in range(1, len(nodes)):

        def before(module: nn.Module, args: object) -> None:
            seen.append({i for i, ref in made.items() if ref() is not None})

        def after(module: nn.Module, args: object, result: Tensor, index: int = index) -> None:
            made[index] = weakref.ref(result)

        network.nodes[str(index)].register_forward_pre_hook(before)
        network.nodes[str(index)].register_forward_hook(after)
    network(torch.randn(1, 4, 8, 8))
    assert seen == [{i for i in range(1, index) if last_reader[i] >= index} for index in range(1, len(nodes))]


def test_a_tap_outlives_its_last_reader() -> None:
    nodes = (Node(kind("image"), (), 3), Node(kind("conv"), (0,), 4), Node(kind("conv"), (1,), 4), Node(kind("conv"), (2,), 4))
    network = Network(Architecture(nodes)).eval()
    image = torch.randn(1, 3, 8, 8)
    _, features = network.features(image, (1,))
    assert torch.equal(features[1], network.nodes["1"]([image], (8, 8)))


def test_the_weights_are_a_function_of_the_seed(every_op: Architecture) -> None:
    torch.manual_seed(1)
    first = tensors_of(initialised(every_op, 7))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = tensors_of(initialised(every_op, 7))
    assert torch.equal(torch.get_rng_state(), before)
    assert same(first, second)
    assert not same(first, tensors_of(initialised(every_op, 8)))


def test_the_initial_values(every_op: Architecture) -> None:
    network = initialised(every_op, 0)
    wide = network.nodes["12"].layers[0][0]
    assert isinstance(wide, nn.Conv2d)
    fan_out = wide.out_channels * wide.kernel_size[0] * wide.kernel_size[1]
    assert wide.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all()
            assert (layer.bias == 0).all()
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            assert (layer.bias == 0).all()
            assert layer.weight.std().item() < 0.02


def test_it_trains_at_batch_2(every_op: Architecture) -> None:
    """A global pool leaves one pixel an image, so two images are the fewest that a normalisation can learn from."""
    network = initialised(every_op, 0).train()
    logits = network(torch.randn(2, 3, 48, 64))
    logits.square().mean().backward()
    assert torch.isfinite(logits).all()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@torch.no_grad()
def test_one_module_serves_every_size(every_op: Architecture) -> None:
    network = initialised(every_op, 0).eval()
    assert [tuple(network(torch.randn(1, 3, *size)).shape[2:]) for size in ((32, 32), (37, 53), (64, 128))] == [(32, 32), (37, 53), (64, 128)]
