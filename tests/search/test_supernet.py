from random import Random

import pytest
import torch
from torch import nn

from segnas.errors import InputError
from segnas.kinds import kind
from segnas.network import Network, initialise
from segnas.search.sampling import Sample, gumbel, hard, one_hot, softmax, zero_logits
from segnas.search.slots import Choice, Slot, Widths
from segnas.search.space import Space
from segnas.search.spaces import SPACES
from segnas.search.supernet import Supernet, inherit
from segnas.search.trellis import trellis_of


def randomised(module, seed=0):
    """Give each normalisation statistics, scale and shift of its own, so that a wrong copy shows."""
    torch.manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None:
            nn.init.normal_(layer.running_mean, std=0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
    return module


def initialised(supernet):
    """The supernet with the weights that a search begins with, under which signals keep their size."""
    initialise(supernet)
    return supernet


def image(height=64, width=96, batch=1):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_one_hot_supernet_equals_the_inherited_network(any_space):
    supernet, rng = randomised(Supernet(any_space)).eval(), Random(0)
    x = image(67, 98)
    for _ in range(3):
        genotype = any_space.random(rng)
        derived = any_space.decode(genotype)
        network = Network(derived.architecture).eval()
        inherit(network, supernet, derived)
        with torch.no_grad():
            expected = network(x)
            torch.testing.assert_close(supernet(x, one_hot(any_space, genotype)), expected, rtol=1e-5, atol=1e-6)
        assert expected.std() > 0


def test_every_decision_gets_gradient_from_the_loss(any_space):
    supernet, logits = Supernet(any_space).train(), zero_logits(any_space)
    output = supernet(image(batch=2), softmax(any_space, logits))
    (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(2))).mean().backward()
    silent = [name for name, values in logits.items() if values.grad is None or (len(values) > 1 and not values.grad.abs().sum() > 0)]
    assert silent == []


def without_shifts(module):
    """The module without what it makes of zeros: means and shifts of normalisations, biases."""
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None:
                layer.running_mean.zero_()
            if isinstance(layer, nn.BatchNorm2d | nn.Conv2d) and layer.bias is not None:
                layer.bias.zero_()
    return module


def test_what_is_not_active_is_as_if_its_weight_were_zero(any_space):
    """A stage or state that reads nothing gives its normalisations' shifts: they are taken out where there are such. What decides about presence
    where that itself counts stays one-hot: an undecided link reads whatever is computed, and a sum that needs both features takes zeros for one.
    """
    entries = [entry for slot in any_space.slots for entry in slot.inputs if not isinstance(entry, int)]
    undecided = any(entry.decision is None for entry in entries)
    needs_both = any(slot.kinds == (kind("add"),) for slot in any_space.slots)
    held = {entry.decision for entry in entries if undecided or (needs_both and entry.decision.startswith("block."))}
    supernet, rng = randomised(initialised(Supernet(any_space))).eval(), Random(5)
    if undecided or needs_both or any_space.name.startswith("sparsemask") or trellis_of(any_space) is not None:
        without_shifts(supernet)
    sample = one_hot(any_space, any_space.random(rng))
    dense = Sample(sample.weights, {n: sample.active[n] if n in held else tuple(range(size)) for n, size in any_space.decisions.items()})
    assert dense.active != sample.active
    with torch.no_grad():
        alone, beside = supernet(image(), sample), supernet(image(), dense)
    torch.testing.assert_close(beside / alone.std(), alone / alone.std(), rtol=1e-4, atol=1e-5)


def test_a_hard_sample_trains_its_network_only(any_space):
    supernet, logits = Supernet(any_space).train(), zero_logits(any_space)
    sample = hard(any_space, logits, rng=Random(0))
    genotype = {name: active[0] for name, active in sample.active.items()}
    supernet(image(batch=2), sample).square().mean().backward()
    derived = any_space.decode(genotype)
    expected = {
        (origin, node.kind) for node, origin in zip(derived.architecture.nodes, derived.origins, strict=True) if node.op not in {"image", "add"}
    }
    reached = {
        (index, slot.kinds[int(option)])
        for index, slot in enumerate(any_space.slots)
        for option, module in supernet.slots[index].named_children()
        if not list(module.parameters()) or any(p.grad is not None for p in module.parameters())
    }
    network = Network(derived.architecture)
    places = zip(derived.architecture.nodes, derived.origins, strict=True)
    with_weights = {(o, n.kind) for i, (n, o) in enumerate(places) if (o, n.kind) in expected and list(network.nodes[str(i)].parameters())}
    assert {pair for pair in reached if list(supernet.module(*pair).parameters())} == with_weights


def test_the_supernet_builds_the_networks_own_modules():
    space = SPACES["cas-tiny"](5)
    supernet, derived = Supernet(space), space.decode(space.random(Random(0)))
    network = Network(derived.architecture)
    for index, (node, origin) in enumerate(zip(derived.architecture.nodes, derived.origins, strict=True)):
        if index and node.op != "add":
            assert str(supernet.module(origin, node.kind)) == str(network.nodes[str(index)])


def test_features_of_wanted_slots_are_kept():
    space = SPACES["cas-tiny"](5)
    supernet = Supernet(space).eval()
    sample = one_hot(space, space.random(Random(0)))
    stem = next(i for i, slot in enumerate(space.slots) if slot.label == "stem")
    with torch.no_grad():
        logits, kept = supernet.features(image(), sample, (stem,))
    assert logits.shape == (1, 5, 64, 96)
    assert {index: tuple(feature.shape) for index, feature in kept.items()} == {stem: (1, 48, 8, 12)}


def test_a_sample_without_output_is_refused(toy_named):
    space = toy_named("to-trellis")
    supernet, generator = Supernet(space), torch.Generator().manual_seed(0)
    sample = gumbel(space, zero_logits(space), tau=1.0, generator=generator, hard=True)
    assert supernet(image(batch=2), sample).shape == (2, 5, 64, 96)
    cut = Space("cut", (Slot(kind("image"), (), 3), Slot(Choice("e", (kind("none"), kind("conv"))), (0,), 3)))
    with pytest.raises(InputError, match="no way from the image to the output"):
        Supernet(cut)(image(), Sample({"e": torch.tensor([1.0, 0.0])}, {"e": (0,)}))


def test_an_open_width_beside_another_input_is_refused_by_name():
    wide = Slot(kind("conv"), (0,), Widths("width", (8, 16)), label="wide")
    slots = (Slot(kind("image"), (), 3), wide, Slot(Choice("e", (kind("none"), kind("conv"))), (1,), 4), Slot("add", (2, 2), 4))
    with pytest.raises(InputError, match=r"slot 2 .*: a slot of open width, or that reads one, has one input and is never `none`"):
        Supernet(Space("widths", slots))


def test_another_network_does_not_inherit():
    space = SPACES["cas-tiny"](5)
    one, other = (space.decode(space.random(Random(seed))) for seed in (0, 1))
    with pytest.raises(InputError, match="the weights to inherit are those of"):
        inherit(Network(one.architecture), Supernet(space), other)
