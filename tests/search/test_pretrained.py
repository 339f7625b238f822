"""Starting weights: the published names and shapes of torchvision and timm, written out here, and a plain MobileNet-v2 to compare with."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from segnas.arch import Architecture, Node
from segnas.errors import IncompatibleError, InputError
from segnas.kinds import kind
from segnas.mobilenet import mobilenet_v2_network
from segnas.network import Network, initialised
from segnas.search.checkpoint import save_tensors
from segnas.search.pretrained import pretrained_weights

# torchvision/models/mobilenetv2.py: features.0 is the stem, features.1 to features.17 the blocks (inputs, hidden, outputs, stride), features.18 the
# last convolution, classifier.1 the classifier. A block's `conv` holds (expansion unit,) depthwise unit, projection, normalisation.
BLOCKS = [
    (32, 32, 16, 1), (16, 96, 24, 2), (24, 144, 24, 1), (24, 144, 32, 2), (32, 192, 32, 1), (32, 192, 32, 1),
    (32, 192, 64, 2), (64, 384, 64, 1), (64, 384, 64, 1), (64, 384, 64, 1), (64, 384, 96, 1), (96, 576, 96, 1), (96, 576, 96, 1),
    (96, 576, 160, 2), (160, 960, 160, 1), (160, 960, 160, 1), (160, 960, 320, 1),
]  # fmt: skip
# timm's mobilenetv2_100: conv_stem, bn1; blocks.STAGE.BLOCK with conv_dw bn1 conv_pw bn2 in the first stage and conv_pw bn1 conv_dw bn2 conv_pwl bn3
# in the others; conv_head, bn2; classifier.
TIMM_STAGES = [1, 2, 3, 4, 3, 3, 1]


def unit(inputs: int, outputs: int, kernel: int, groups: int = 1) -> dict[str, Tensor]:
    """A convolution and its normalisation, drawn so that the signal keeps its size."""
    fan_in = inputs // groups * kernel**2
    return {
        "conv.weight": torch.randn(outputs, inputs // groups, kernel, kernel) * (2 / fan_in) ** 0.5,
        "norm.weight": torch.rand(outputs) + 0.5,
        "norm.bias": torch.randn(outputs) * 0.3,
        "norm.running_mean": torch.randn(outputs) * 0.3,
        "norm.running_var": torch.rand(outputs) + 0.5,
        "norm.num_batches_tracked": torch.tensor(1000),
    }


def units() -> list[list[dict[str, Tensor]]]:
    """Stem, then the units of each of the 17 blocks, then the last convolution."""
    torch.manual_seed(0)
    blocks = [
        [*([unit(inputs, hidden, 1)] if hidden != inputs else []), unit(hidden, hidden, 3, hidden), unit(hidden, outputs, 1)]
        for inputs, hidden, outputs, _ in BLOCKS
    ]
    return [[unit(3, 32, 3)], *blocks, [unit(320, 1280, 1)]]


def named(part: dict[str, Tensor], convolution: str, norm: str) -> dict[str, Tensor]:
    return {name.replace("conv", convolution, 1).replace("norm", norm, 1): tensor for name, tensor in part.items()}


def torchvision_file(parts: list[list[dict[str, Tensor]]]) -> dict[str, Tensor]:
    result = named(parts[0][0], "features.0.0", "features.0.1")
    for number, block in enumerate(parts[1:18], 1):
        start = f"features.{number}.conv"
        for place, part in enumerate(block[:-1]):
            result |= named(part, f"{start}.{place}.0", f"{start}.{place}.1")
        result |= named(block[-1], f"{start}.{len(block) - 1}", f"{start}.{len(block)}")
    result |= named(parts[18][0], "features.18.0", "features.18.1")
    return result | {"classifier.1.weight": torch.zeros(1000, 1280), "classifier.1.bias": torch.zeros(1000)}


def timm_file(parts: list[list[dict[str, Tensor]]]) -> dict[str, Tensor]:
    result, blocks = named(parts[0][0], "conv_stem", "bn1"), iter(parts[1:18])
    for stage, repeats in enumerate(TIMM_STAGES):
        for place in range(repeats):
            names = ("conv_dw", "conv_pw") if stage == 0 else ("conv_pw", "conv_dw", "conv_pwl")
            for number, (name, part) in enumerate(zip(names, next(blocks), strict=True), 1):
                result |= named(part, f"blocks.{stage}.{place}.{name}", f"blocks.{stage}.{place}.bn{number}")
    assert next(blocks, None) is None
    result |= named(parts[18][0], "conv_head", "bn2")
    return result | {"classifier.weight": torch.zeros(1000, 1280), "classifier.bias": torch.zeros(1000)}


def plain_mobilenet(parts: list[list[dict[str, Tensor]]], x: Tensor) -> list[Tensor]:
    """What the stem and each block give."""

    def applied(part: dict[str, Tensor], x: Tensor, *, stride: int = 1, last: bool = False) -> Tensor:
        weight = part["conv.weight"]
        depthwise = weight.shape[1] == 1 and x.shape[1] > 1
        y = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=x.shape[1] if depthwise else 1)
        y = F.batch_norm(y, part["norm.running_mean"], part["norm.running_var"], part["norm.weight"], part["norm.bias"], eps=1e-5)
        return y if last else y.clamp(0, 6)

    features = [applied(parts[0][0], x, stride=2)]
    for block, (inputs, hidden, outputs, stride) in zip(parts[1:18], BLOCKS, strict=True):
        y = features[-1]
        if hidden != inputs:
            y = applied(block[0], y)
        y = applied(block[-1], applied(block[-2], y, stride=stride), last=True)
        features.append(features[-1] + y if stride == 1 and inputs == outputs else y)
    return features


FILES = {"torchvision": torchvision_file, "timm": timm_file}


def test_the_fabricated_files_have_the_published_parameters() -> None:
    for file in FILES.values():
        tensors = file(units())
        assert sum(t.numel() for name, t in tensors.items() if name.endswith((".weight", ".bias"))) == 3_504_872
        assert len(tensors) == 6 * 52 + 2


@torch.no_grad()
@pytest.mark.parametrize("source", FILES)
def test_loaded_weights_compute_what_a_plain_mobilenet_does(tmp_path: Path, source: str) -> None:
    parts, architecture = units(), mobilenet_v2_network(19)
    save_tensors(path := tmp_path / "mobilenet_v2.safetensors", FILES[source](parts))
    found, said = pretrained_weights(architecture, path)
    assert said == f"MobileNet-v2 backbone from mobilenet_v2.safetensors ({source} names, 255 tensors)"  # 51 units of 5 tensors
    network = initialised(architecture, 0).eval()
    left = network.load_state_dict(found, strict=False)
    assert not left.unexpected_keys
    assert {name.split(".")[1] for name in left.missing_keys if not name.endswith("num_batches_tracked")} == {"19", "21", "23", "24"}
    image = torch.randn(1, 3, 65, 96)
    _, features = network.features(image, range(1, 19))
    for place, expected in enumerate(plain_mobilenet(parts, image), 1):
        assert features[place].shape == expected.shape
        assert (features[place] - expected).abs().max() < 1e-3 * expected.abs().max()
        assert expected.std() > 0.05


def test_weights_of_the_same_architecture_are_taken_whole(tmp_path: Path) -> None:
    architecture = mobilenet_v2_network(19)
    weights = initialised(architecture, 4).state_dict()
    save_tensors(path := tmp_path / "mine.safetensors", weights, {"architecture": architecture.digest, "pretraining": "CamVid"})
    found, said = pretrained_weights(architecture, path)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert said == "segnas weights mine.safetensors of the same architecture, themselves pretrained on: CamVid"
    other = mobilenet_v2_network(11)
    with pytest.raises(IncompatibleError, match=rf"holds weights of architecture {architecture.digest}; this one is {other.digest}"):
        pretrained_weights(other, path)


def test_an_architecture_without_the_backbone_is_refused(tmp_path: Path) -> None:
    architecture = Architecture((Node(kind("image"), (), 3), Node(kind("conv"), (0,), 19)))
    save_tensors(path := tmp_path / "x.safetensors", torchvision_file(units()))
    with pytest.raises(IncompatibleError, match=rf"architecture {architecture.digest} has no MobileNet-v2 backbone to put it in"):
        pretrained_weights(architecture, path)


@pytest.mark.parametrize("source", FILES)
def test_a_wrong_shape_or_a_missing_part_is_named(tmp_path: Path, source: str) -> None:
    tensors, path = FILES[source](units()), tmp_path / "x.safetensors"
    stem, norm = {
        "torchvision": ("features.0.0.weight", "features.17.conv.3.running_var"),
        "timm": ("conv_stem.weight", "blocks.6.0.bn3.running_var"),
    }[source]
    save_tensors(path, tensors | {stem: torch.zeros(24, 3, 3, 3)})
    with pytest.raises(InputError) as caught:
        pretrained_weights(mobilenet_v2_network(19), path)
    assert str(caught.value) == f"{path}: {stem} is (24, 3, 3, 3); (32, 3, 3, 3) is needed"
    save_tensors(path, {name: t for name, t in tensors.items() if name != norm})
    with pytest.raises(InputError) as caught:
        pretrained_weights(mobilenet_v2_network(19), path)
    assert str(caught.value) == f"{path}: {norm} is nothing; (320,) is needed"


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"layer1.weight": torch.ones(1), "layer2.weight": torch.ones(1)})
    with pytest.raises(
        InputError, match=r"holds layer1\.weight, layer2\.weight, \.\.\.; known are weights of segnas, and MobileNet-v2 as torchvision or timm"
    ):
        pretrained_weights(mobilenet_v2_network(19), path)
    with pytest.raises(InputError, match="does not exist"):
        pretrained_weights(mobilenet_v2_network(19), tmp_path / "none.safetensors")
    (tmp_path / "weights.pth").write_bytes(b"PK\x03\x04 a pickle in a zip")
    with pytest.raises(InputError, match="is no complete safetensors file"):
        pretrained_weights(mobilenet_v2_network(19), tmp_path / "weights.pth")


def test_what_is_loaded_is_all_of_the_backbone() -> None:
    """51 units of 5 tensors: every tensor of the nodes 1 to 18 that is not a counter."""
    names = [
        name for name in Network(mobilenet_v2_network(19)).state_dict() if int(name.split(".")[1]) <= 18 and not name.endswith("num_batches_tracked")
    ]
    assert len(names) == 255
