"""Starting weights from a safetensors file: segnas's own, of a network or its backbone, or a MobileNet-v2 as torchvision or timm name its parts."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from segnas.arch import Architecture
from segnas.errors import IncompatibleError, InputError
from segnas.mobilenet import LABEL, STAGES
from segnas.network import Network
from segnas.search.checkpoint import load_tensors

NORMALISATION = ("weight", "bias", "running_mean", "running_var")
Pair = tuple[str, str]
Blocks = list[list[Pair]]
"""Of each block, the stem first and the last 1x1 convolution last, the names of its convolutions and normalisations."""


def pretrained_weights(architecture: Architecture, path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors to start from, under this architecture's names, and one line that says what they are, for every report.

    InputError where the file is none of the known kinds, or a shape differs; IncompatibleError where the architecture has no place for them.
    """
    tensors, state = load_tensors(path)
    if "architecture" in state:
        if state["architecture"] != architecture.digest:
            raise IncompatibleError(f"{path} holds weights of architecture {state['architecture']}; this one is {architecture.digest}")
        return tensors, f"segnas weights {path.name} of the same architecture, themselves pretrained on: {state.get('pretraining', 'none')}"
    if "backbone" in state:
        return _placed(tensors, architecture, path), f"segnas backbone {path.name}, {state['backbone']}"
    source, blocks = _convention(tensors, path)
    found = _renamed(tensors, blocks, architecture, path)
    return found, f"MobileNet-v2 backbone from {path.name} ({source} names, {len(found)} tensors)"


def require_known(path: Path) -> None:
    """InputError where the file holds no weights of a known kind: asked before time is spent on finding the architecture that is to take them."""
    tensors, state = load_tensors(path)
    if "architecture" not in state and "backbone" not in state:
        _convention(tensors, path)


def _convention(tensors: Mapping[str, Tensor], path: Path) -> tuple[str, Blocks]:
    """Whose names a MobileNet-v2's tensors carry, and its units under them; InputError where it is none."""
    for source, blocks in (("torchvision", _torchvision_blocks()), ("timm", _timm_blocks())):
        if all(f"{convolution}.weight" in tensors for block in blocks[:-1] for convolution, _ in block):
            return source, blocks
    shown = ", ".join(sorted(tensors)[:3]) or "nothing"
    raise InputError(f"{path} holds {shown}, ...; known are weights of segnas, and MobileNet-v2 as torchvision or timm (mobilenetv2_100) name it")


def _renamed(tensors: Mapping[str, Tensor], blocks: Blocks, architecture: Architecture, path: Path) -> dict[str, Tensor]:
    """The tensors of those blocks that the architecture has, and of no others: a decoder need not read the deepest ones."""
    ours = _our_blocks(architecture)
    if not ours or any(len(pairs) != len(blocks[number]) for number, pairs in ours.items()):
        raise IncompatibleError(f"{path} holds a MobileNet-v2, but architecture {architecture.digest} has no MobileNet-v2 backbone to put it in")
    shapes = {name: tensor.shape for name, tensor in Network(architecture).state_dict().items()}
    result: dict[str, Tensor] = {}
    matched = [pair for number, pairs in ours.items() for pair in zip(blocks[number], pairs, strict=True)]
    for (their_convolution, their_norm), (convolution, norm) in matched:
        names = {f"{convolution}.weight": f"{their_convolution}.weight", **{f"{norm}.{n}": f"{their_norm}.{n}" for n in NORMALISATION}}
        for name, their_name in names.items():
            if their_name not in tensors or tensors[their_name].shape != shapes[name]:
                given = tuple(tensors[their_name].shape) if their_name in tensors else "nothing"
                raise InputError(f"{path}: {their_name} is {given}; {tuple(shapes[name])} is needed")
            result[name] = tensors[their_name]
    return result


def _placed(tensors: Mapping[str, Tensor], architecture: Architecture, path: Path) -> dict[str, Tensor]:
    """The tensors of a backbone that a search trained, which are named by their blocks' labels."""
    shapes = {name: tensor.shape for name, tensor in Network(architecture).state_dict().items()}
    places = {node.label: index for index, node in enumerate(architecture.nodes) if node.label.startswith(f"{LABEL}.")}
    split = [(name.partition("/"), tensor) for name, tensor in tensors.items()]
    found = {f"nodes.{places[label]}.{rest}": tensor for (label, _, rest), tensor in split if label in places}
    if not found:
        raise IncompatibleError(f"{path} holds a MobileNet-v2, but architecture {architecture.digest} has no MobileNet-v2 backbone to put it in")
    for name, tensor in found.items():
        if shapes.get(name) != tensor.shape:
            raise InputError(f"{path}: {name} is {tuple(tensor.shape)}; {tuple(shapes.get(name, ()))} is needed")
    return found


def _our_blocks(architecture: Architecture) -> dict[int, list[Pair]]:
    """(convolution, normalisation) of each unit of each block of the backbone, by the block's number in its label."""
    return {
        int(node.label.removeprefix(f"{LABEL}.")): [
            (f"nodes.{index}.layers.{unit}.0", f"nodes.{index}.layers.{unit}.1")
            for unit in range(1 if node.op == "conv" else 2 if node.kind.integer("expansion") == 1 else 3)
        ]
        for index, node in enumerate(architecture.nodes)
        if node.label.startswith(f"{LABEL}.")
    }


def _torchvision_blocks() -> Blocks:
    blocks: Blocks = [
        [("features.0.0", "features.0.1")],
        [("features.1.conv.0.0", "features.1.conv.0.1"), ("features.1.conv.1", "features.1.conv.2")],
    ]
    for block in range(2, 18):
        start = f"features.{block}.conv"
        blocks.append([(f"{start}.0.0", f"{start}.0.1"), (f"{start}.1.0", f"{start}.1.1"), (f"{start}.2", f"{start}.3")])
    return [*blocks, [("features.18.0", "features.18.1")]]


def _timm_blocks() -> Blocks:
    blocks: Blocks = [[("conv_stem", "bn1")], [("blocks.0.0.conv_dw", "blocks.0.0.bn1"), ("blocks.0.0.conv_pw", "blocks.0.0.bn2")]]
    for stage, (_, _, repeats, _) in enumerate(STAGES[1:], 1):
        for block in range(repeats):
            start = f"blocks.{stage}.{block}"
            blocks.append([(f"{start}.conv_pw", f"{start}.bn1"), (f"{start}.conv_dw", f"{start}.bn2"), (f"{start}.conv_pwl", f"{start}.bn3")])
    return [*blocks, [("conv_head", "bn2")]]
