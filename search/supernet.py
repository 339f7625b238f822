"""Supernet: every network of a search space as one module; and how one of them inherits its weights."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from segnas.arch import size_at
from segnas.errors import InputError
from segnas.kinds import Kind
from segnas.network import Network, initialise
from segnas.ops import build
from segnas.search.sampling import Sample
from segnas.search.slimmable import Slimmable
from segnas.search.slots import Link, Slot, Widths, slot_name, source_of
from segnas.search.space import Derived, Space


class Supernet(nn.Module):
    """The module of a space: image (N, 3, H, W) and a sample to logits (N, classes, H, W); only what the sample makes
    active is computed.

    Each option of each slot has a module of its own, the very one that `Network` builds, normalisation with scale and
    shift included. An option's output, and a switched link's feature, is scaled by its weight behind the normalisation,
    which would erase the scale before it. A slot of open width, or that reads one, has one module for all of its widths
    (`slimmable`); where several widths are active, its output is the sum of what each makes, narrower ones filled up with
    zeros.

    With `parts` above 1 a choice that keeps size and width sees one of so many equal parts of the channels at a time,
    part number `turn` modulo `parts`, and the others pass by it unchanged (DCNAS, figure 1; PC-DARTS): memory falls, but
    the weights fit no decoded network. That the parts take turns is our choice.
    """

    def __init__(self, space: Space, *, parts: int = 1) -> None:
        super().__init__()
        if parts < 1:
            raise InputError(f"{parts} parts of the channels were given; 1 (all channels) or more is needed")
        self.space, self.parts, self.turn = space, parts, 0
        if parts > 1 and not any(_is_partial(space.slots, index, parts) for index in range(len(space.slots))):
            raise InputError(
                f"search.parts {parts} was given for space {space.name!r}, of which no choice can see a part of its channels at a time (each may be "
                "`none`, or changes size or width): give search.parts = 1"
            )
        self.slots = nn.ModuleList(nn.ModuleDict(_modules(space.slots, index, parts)) for index in range(len(space.slots)))

    def forward(self, image: Tensor, sample: Sample) -> Tensor:
        """(N, 3, H, W) -> (N, classes, H, W). InputError where the sample leaves no way from the image to the
        output.
        """
        return self.features(image, sample, ())[0]

    def features(self, image: Tensor, sample: Sample, wanted: Sequence[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """The logits, and the features of the slots that are `wanted` and live (an auxiliary loss, a picture)."""
        space, size = self.space, (int(image.shape[-2]), int(image.shape[-1]))
        live = space.live(sample.active)
        if not live[-1]:
            raise InputError(f"this sample of {space.name!r} leaves no way from the image to the output")
        read = {index: space.readings(index, sample.active, live) for index, lives in enumerate(live) if lives}
        last_reader = {source: index for index, entries in read.items() for source in map(source_of, entries)}
        alive: dict[int, Tensor] = {0: image}
        kept: dict[int, Tensor] = {}
        for index, entries in read.items():
            if index:
                alive[index] = self._slot(index, [_gated(alive[source_of(e)], e, sample) for e in entries], sample, size)
            if index in wanted:
                kept[index] = alive[index]
            for source in {source_of(entry) for entry in entries}:
                if last_reader[source] == index:
                    del alive[source]
        return alive[len(space.slots) - 1], kept

    def module(self, index: int, kind: Kind) -> nn.Module:
        """The module of one option of a slot."""
        modules = cast(nn.ModuleDict, self.slots[index])
        return modules[str(self.space.slots[index].kinds.index(kind))]

    def _slot(self, index: int, features: list[Tensor], sample: Sample, size: tuple[int, int]) -> Tensor:
        slot = self.space.slots[index]
        if slot.join:
            return _sum(features)
        modules = cast(nn.ModuleDict, self.slots[index])
        target = size_at(self.space.levels[index], *size)
        if slot.decision is None:
            return self._slim(index, 0, features[0], sample, target) if isinstance(modules["0"], Slimmable) else modules["0"](features, target)
        weights = sample.weights[slot.decision].to(features[0].device).unbind()
        options = [option for option in sample.active[slot.decision] if str(option) in modules]
        if isinstance(modules[str(options[0])], Slimmable):
            return _sum([self._slim(index, option, features[0], sample, target) * weights[option] for option in options])
        if not _is_partial(self.space.slots, index, self.parts):
            return _sum([modules[str(option)](features, target) * weights[option] for option in options])
        before, part, after = _split(features[0], self.parts, self.turn)
        mixed = _sum([modules[str(option)]([part], target) * weights[option] for option in options])
        return torch.cat([before, mixed, after], 1)

    def _slim(self, index: int, option: int, feature: Tensor, sample: Sample, size: tuple[int, int]) -> Tensor:
        """One option at every active width of the slot, each weighted, the narrower ones filled up with zeros."""
        slot = self.space.slots[index]
        module = cast(Slimmable, cast(nn.ModuleDict, self.slots[index])[str(option)])
        source = self.space.slots[slot.sources[0]].channels
        if isinstance(slot.channels, int):
            return module([feature], size, slot.channels, _width_share(source, slot.channels, sample))
        decision, active = slot.channels.decision, sample.active[slot.channels.decision]
        weights, widest = sample.weights[decision].to(feature.device), max(slot.channels.options[i] for i in active)
        made: list[Tensor] = []
        for i in active:
            width = slot.channels.options[i]
            output = module([feature], size, width, _width_share(source, width, sample)) * weights[i]
            made.append(output if width == widest else nn.functional.pad(output, (0, 0, 0, 0, 0, widest - width)))
        return _sum(made)


def untrained_supernet(space: Space, seed: int, *, parts: int = 1) -> Supernet:
    """The supernet as a search of that seed begins with it, in evaluation mode: what a correlation must beat."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        supernet = Supernet(space, parts=parts)
        initialise(supernet)
    return supernet.eval()


def inherit(network: Network, supernet: Supernet, derived: Derived) -> None:
    """Copy the supernet's weights and running statistics into the network of `derived.architecture`, in place.

    Exact: in eval mode the network computes what the supernet computes under the one-hot sample, up to the order of
    additions. InputError where the network is another one, or where the supernet saw a part of the channels at a time.
    """
    if supernet.parts > 1:
        raise InputError(
            f"this supernet of {supernet.space.name!r} was searched with partial channels (1/{supernet.parts} at a time), so its weights fit no "
            "decoded network; train the network from scratch, or search with search.parts = 1"
        )
    if network.architecture != derived.architecture:
        raise InputError(f"this network is {network.architecture.digest}; the weights to inherit are those of {derived.architecture.digest}")
    with torch.no_grad():
        for index, (node, origin) in enumerate(zip(derived.architecture.nodes, derived.origins, strict=True)):
            if index and supernet.space.slots[origin].join is None:
                module = supernet.module(origin, node.kind)
                if isinstance(module, Slimmable):
                    state = module.tensors(derived.architecture.nodes[node.inputs[0]].channels, node.channels)
                else:
                    state = module.state_dict()
                network.nodes[str(index)].load_state_dict(state)


def _modules(slots: Sequence[Slot], index: int, parts: int) -> Mapping[str, nn.Module]:
    """Modules of a slot's options, by option; none for the image, for a join and for `none`."""
    slot = slots[index]
    widths = [slots[source].channels for source in slot.sources]
    if slot.join is None and any(isinstance(width, Widths) for width in (*widths, slot.channels)):
        return _slimmables(slots, index)
    inputs = tuple(width for width in widths if isinstance(width, int))
    channels = slot.channels if isinstance(slot.channels, int) else 0
    absent = {"image", "none"}
    if _is_partial(slots, index, parts):
        channels //= parts
        inputs = (channels,)
    return {str(i): build(kind, inputs, channels, slot.stride) for i, kind in enumerate(slot.kinds) if kind.op not in absent}


def _slimmables(slots: Sequence[Slot], index: int) -> Mapping[str, nn.Module]:
    """Modules of a slot of open widths, by option. InputError where it reads several features, or may be absent."""
    slot = slots[index]
    if len(slot.inputs) != 1 or slot.may_be_absent:
        raise InputError(f"{slot_name(slots, index)}: a slot of open width, or that reads one, has one input and is never `none`")
    read = slots[slot.sources[0]].channels
    inputs, outputs = ((width,) if isinstance(width, int) else width.options for width in (read, slot.channels))
    return {str(i): Slimmable(kind, inputs, outputs, slot.stride) for i, kind in enumerate(slot.kinds)}


def _width_share(source: int | Widths, width: int, sample: Sample) -> Tensor | None:
    """The weight of that width among those of a feature; None where its width is certain."""
    if isinstance(source, int) or len(sample.active[source.decision]) == 1:
        return None
    if width not in source.options:
        return torch.zeros(())
    return sample.weights[source.decision][source.options.index(width)]


def _is_partial(slots: Sequence[Slot], index: int, parts: int) -> bool:
    """Whether a slot's choice is computed on a part of the channels: InputError where they cannot be parted evenly."""
    slot = slots[index]
    if parts == 1 or slot.decision is None or slot.stride != 1 or slot.may_be_absent or len(slot.inputs) != 1:
        return False
    width = slots[slot.sources[0]].channels
    if width != slot.channels or not isinstance(width, int):
        return False
    if width % parts:
        raise InputError(f"{slot_name(slots, index)}: its {width} channels cannot be split into {parts} equal parts")
    return True


def _split(feature: Tensor, parts: int, turn: int) -> tuple[Tensor, Tensor, Tensor]:
    """The channels before the part whose turn it is, that part, and those after it; each (N, channels, H, W)."""
    width = feature.shape[1] // parts
    start = turn % parts * width
    before, part, after = feature.split([start, width, feature.shape[1] - start - width], 1)
    return before, part, after


def _gated(feature: Tensor, entry: int | Link, sample: Sample) -> Tensor:
    if isinstance(entry, int) or entry.decision is None:
        return feature
    return feature * sample.weights[entry.decision][entry.option].to(feature.device)


def _sum(features: Sequence[Tensor]) -> Tensor:
    total = features[0]
    for feature in features[1:]:
        total = total + feature
    return total
