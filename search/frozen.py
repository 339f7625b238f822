"""Frozen backbones: the fixed part of a space's networks, its weights by label, and what stands behind it as a module of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from segnas.arch import Architecture, Node, size_at
from segnas.data import Dataset
from segnas.errors import InputError, UsageError
from segnas.kinds import Kind, kind
from segnas.mobilenet import LABEL
from segnas.network import Network, weights_digest
from segnas.search.checkpoint import load_tensors, plain_settings, require_identity, save_tensors
from segnas.search.pretrained import pretrained_weights
from segnas.search.ranked import Progress
from segnas.search.settings import TrainSettings
from segnas.search.space import Space
from segnas.search.train import train

BACKBONE_NAME, BACKBONE_CHECKPOINT = "backbone.safetensors", "backbone.checkpoint.safetensors"
"""What the backbone that a search trained first is called in the folder of its run, and the checkpoint of that training."""
CONTEXT = 64
"""Channels of the light head that a backbone is trained with where no pretrained weights are given; our choice."""


@dataclass(frozen=True)
class Backbone:
    """The weights of a space's backbone, each under its block's label (`mobilenetv2.3/layers.0.0.weight`), and one line on where they come from."""

    space: Space
    weights: Mapping[str, Tensor]
    origin: str

    @property
    def digest(self) -> str:
        """Of the weights."""
        return weights_digest(self.weights)[:16]

    @property
    def taps(self) -> tuple[str, ...]:
        """Labels of the features that the rest of the space may read."""
        slots = self.space.slots
        read = {source for slot in slots if not is_backbone(slot.label) for source in slot.sources}
        return tuple(slot.label for index, slot in enumerate(slots) if index in read and is_backbone(slot.label))

    def placed(self, architecture: Architecture) -> dict[str, Tensor]:
        """The weights under an architecture's names."""
        places = _places(architecture)
        split = ((name.partition("/"), tensor) for name, tensor in self.weights.items())
        return {f"nodes.{places[label]}.{rest}": tensor for (label, _, rest), tensor in split if label in places}

    def network(self) -> Network:
        """The backbone with a head that means nothing, in evaluation mode: for its features at `taps`."""
        network = Network(backbone_architecture(self.space))
        network.load_state_dict({**network.state_dict(), **self.placed(network.architecture)})
        return network.eval()

    def features(self, network: Network, images: Tensor) -> dict[str, Tensor]:
        """The taps of normalised images (N, 3, H, W), by label; `network` is `network()`."""
        places = _places(network.architecture)
        with torch.no_grad():
            found = network.features(images, [places[label] for label in self.taps])[1]
        return {label: found[places[label]] for label in self.taps}


class Tail(nn.Module):
    """What stands behind a network's backbone: the taps, by label, to logits. The backbone's parameters are frozen and not among its own.

    InputError where something behind the backbone reads the image itself.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        architecture = network.architecture
        self.levels = network.levels
        self.inputs = [node.inputs for node in architecture.nodes]
        self.taps = {index: label for label, index in _places(architecture).items()}
        outside = [index for index in range(1, len(architecture.nodes)) if index not in self.taps]
        if any(0 in self.inputs[index] for index in outside):
            raise InputError(f"architecture {architecture.digest} reads the image behind its backbone, so the backbone's features do not do")
        self.nodes = nn.ModuleDict({str(index): network.nodes[str(index)] for index in outside})

    def forward(self, features: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor:
        """Taps (N, C, h, w) of images of that (H, W) -> logits (N, classes, H, W)."""
        return self.walk(features, size)[len(self.inputs) - 1]

    def walk(self, features: Mapping[str, Tensor], size: tuple[int, int]) -> dict[int, Tensor]:
        """As `forward`, with every feature on the way, by its node's index."""
        alive = {index: features[label] for index, label in self.taps.items() if label in features}
        for name, node in self.nodes.items():
            index = int(name)
            alive[index] = node([alive[source] for source in self.inputs[index]], size_at(self.levels[index], *size))
        return alive


def is_backbone(label: str) -> bool:
    """Whether a slot or node of that label belongs to a backbone."""
    return label.startswith(f"{LABEL}.")


def backbone_architecture(space: Space) -> Architecture:
    """The space's backbone as a network of its own, with ASPP-lite and a classifier on its last feature (our choice).

    InputError where the space has none.
    """
    nodes = [Node(kind("image"), (), 3)]
    for index, slot in enumerate(space.slots):
        if is_backbone(slot.label) and isinstance(slot.kind, Kind) and isinstance(slot.channels, int) and index == len(nodes):
            nodes.append(Node(slot.kind, slot.sources, slot.channels, slot.stride, slot.up, slot.label))
    if len(nodes) == 1:
        raise InputError(f"space {space.name!r} has no backbone to freeze; spaces with one are dpc and dpc-small")
    last, up = len(nodes) - 1, 2 ** space.levels[len(nodes) - 1]
    nodes += [
        Node(kind("aspp"), (last,), CONTEXT, label="head.aspp"),
        Node(kind("classifier"), (last + 1,), space.classes, label="head.classifier"),
        Node(kind("resize"), (last + 2,), space.classes, up=up, label="head.output"),
    ]
    return Architecture(tuple(nodes))


def frozen_backbone(
    space: Space,
    learning: Dataset,
    settings: TrainSettings,
    *,
    steps: int,
    pretrained: Path | None,
    folder: Path,
    seed: int,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Backbone:
    """The backbone with pretrained weights, or trained on `learning` for so many steps, as `BACKBONE_NAME` in `folder`.

    UsageError for neither: a frozen backbone of random weights says nothing of a decoder.
    """
    architecture = backbone_architecture(space)
    if pretrained is not None:
        found, origin = pretrained_weights(architecture, pretrained)
        return _backbone(space, architecture, found, origin)
    require_steps(steps)
    file, settings = folder / BACKBONE_NAME, replace(settings, steps=steps, warmup=min(settings.warmup, steps // 4))
    origin = f"trained for {steps} steps on {len(learning)} images of {learning.name} {learning.split}"
    identity = {"architecture": architecture.digest, "seed": seed, "origin": origin, "settings": plain_settings(settings)}
    if not file.is_file():
        checkpoint = folder / BACKBONE_CHECKPOINT
        trained = train(architecture, learning, settings, seed=seed, checkpoint=checkpoint, device=device, progress=progress)
        labels = {f"nodes.{index}": node.label for index, node in enumerate(architecture.nodes)}
        named = ((name.split(".", 2), tensor) for name, tensor in trained.weights.items())
        content = {f"{labels[f'{nodes}.{index}']}/{rest}": tensor.detach().cpu().contiguous() for (nodes, index, rest), tensor in named}
        save_tensors(file, content, {"identity": identity, "backbone": origin})
        checkpoint.unlink(missing_ok=True)
    weights, state = load_tensors(file)
    require_identity(file, state, identity, "backbone")
    return Backbone(space, {name: tensor for name, tensor in weights.items() if is_backbone(name)}, origin)


def network_of_backbone(space: Space, folder: Path) -> Network:
    """The network, head included, in which `frozen_backbone` trained the backbone in that folder, in evaluation mode."""
    network = Network(backbone_architecture(space))
    places = {node.label: index for index, node in enumerate(network.architecture.nodes)}
    split = ((name.partition("/"), tensor) for name, tensor in load_tensors(folder / BACKBONE_NAME)[0].items())
    network.load_state_dict({f"nodes.{places[label]}.{rest}": tensor for (label, _, rest), tensor in split})
    return network.eval()


def supernet_start(space: Space, pretrained: Path) -> dict[str, Tensor]:
    """Pretrained weights of a space's backbone, under its supernet's names; none where the space has no backbone."""
    if not any(is_backbone(slot.label) for slot in space.slots):
        return {}
    architecture = backbone_architecture(space)
    weights = _backbone(space, architecture, *pretrained_weights(architecture, pretrained)).weights
    places = {slot.label: index for index, slot in enumerate(space.slots) if is_backbone(slot.label)}
    split = ((name.partition("/"), tensor) for name, tensor in weights.items())
    return {f"slots.{places[label]}.0.{rest}": tensor for (label, _, rest), tensor in split}


def require_steps(steps: int) -> None:
    """UsageError where a backbone without pretrained weights is to be trained for no step."""
    if steps < 1:
        raise UsageError(
            "the backbone would be frozen at random weights, which says nothing of a decoder: give --pretrained FILE, or steps to train it first "
            "(--backbone-steps, search.sampled.backbone_steps)"
        )


def _backbone(space: Space, architecture: Architecture, found: Mapping[str, Tensor], origin: str) -> Backbone:
    """By label. InputError where a block's weights are not there."""
    weights: dict[str, Tensor] = {}
    shapes = Network(architecture).state_dict()
    for label, index in _places(architecture).items():
        for name in shapes:
            if name.startswith(f"nodes.{index}.") and name in found:
                weights[f"{label}/{name.removeprefix(f'nodes.{index}.')}"] = found[name].detach().cpu().contiguous()
        if not any(name.startswith(f"{label}/") for name in weights):
            raise InputError(f"the weights hold nothing for {label} of the backbone of {space.name!r}")
    return Backbone(space, weights, origin)


def _places(architecture: Architecture) -> dict[str, int]:
    """Index of each node of the backbone, by label."""
    return {node.label: index for index, node in enumerate(architecture.nodes) if is_backbone(node.label)}
