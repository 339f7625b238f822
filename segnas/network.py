"""Network: an architecture as a module, folded over its nodes."""

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from segnas.arch import Architecture, size_at
from segnas.ops import build


class Network(nn.Module):
    """The module of an architecture: image (N, 3, H, W), normalised, to logits (N, classes, H, W), for any H and W of at least the deepest stride."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.levels = architecture.levels
        channels = [node.channels for node in architecture.nodes]
        self.nodes = nn.ModuleDict(
            {str(i): build(n.kind, tuple(channels[s] for s in n.inputs), n.channels, n.stride) for i, n in enumerate(architecture.nodes) if i}
        )
        last_reader = {source: index for index, node in enumerate(architecture.nodes) for source in node.inputs}
        self._done_after = [[s for s, reader in last_reader.items() if reader == index] for index in range(len(architecture.nodes))]

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, classes, H, W)."""
        return self.features(image, ())[0]

    def features(self, image: Tensor, wanted: Iterable[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """The logits, and the features of the nodes that are `wanted` (an auxiliary head, a picture)."""
        height, width = int(image.shape[-2]), int(image.shape[-1])
        keep, alive = set(wanted), {0: image}
        kept: dict[int, Tensor] = {}
        for index, node in enumerate(self.architecture.nodes):
            if index:
                alive[index] = self.nodes[str(index)]([alive[s] for s in node.inputs], size_at(self.levels[index], height, width))
            if index in keep:
                kept[index] = alive[index]
            for source in self._done_after[index]:
                del alive[source]
        return alive[len(self.architecture.nodes) - 1], kept


def initialised(architecture: Architecture, seed: int) -> Network:
    """A network with Kaiming-initialised convolutions and a quiet classifier, drawn from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(architecture)
        initialise(network)
    return network


def initialise(module: nn.Module) -> None:
    """Kaiming initialisation (fan out) of the convolutions, ones and zeros for the normalisations, N(0, 0.01) for layers with a bias."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            if layer.bias is None:
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            else:
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and values of a state, in order of the names; equal states give equal digests on every device."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
