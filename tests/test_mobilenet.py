"""MobileNet-v2 against the published counts and strides."""

import torch

from segnas.arch import Architecture
from segnas.cost import network_cost
from segnas.mobilenet import mobilenet_v2_network, mobilenet_v2_nodes
from segnas.network import Network

# torchvision's documentation of mobilenet_v2: 3,504,872 parameters; of these the classifier has 1280 * 1000 + 1000 and the last 1x1 convolution
# 320 * 1280 weights and 2 * 1280 of its normalisation.
BACKBONE = 3_504_872 - 1_281_000 - 412_160
# Table 2 of the paper at 224x224, the column "input" of the row after each stage: (channels, side) of what each stage gives.
TABLE_2 = {0: (32, 112), 1: (16, 112), 3: (24, 56), 6: (32, 28), 10: (64, 14), 13: (96, 14), 16: (160, 7), 17: (320, 7)}


def backbone() -> Architecture:
    return Architecture(tuple(mobilenet_v2_nodes()))


def test_the_backbone_has_the_published_parameters() -> None:
    assert BACKBONE == 1_811_712
    assert network_cost(backbone(), 224, 224).parameters == BACKBONE
    assert sum(p.numel() for p in Network(backbone()).parameters()) == BACKBONE


def test_the_backbone_has_the_published_multiply_accumulates() -> None:
    """The paper's table 4: 300 million at 224x224, of which the last convolution and the classifier take 320*1280*49 and 1280*1000."""
    whole = network_cost(backbone(), 224, 224).macs + 320 * 1280 * 49 + 1280 * 1000
    assert whole == 300_774_272


def test_each_stage_has_the_published_shape() -> None:
    by_label = {node.label: operation.output for node, operation in zip(backbone().nodes, backbone().operations(224, 224), strict=True)}
    assert {label: by_label[f"mobilenetv2.{label}"] for label in TABLE_2} == {label: (c, side, side) for label, (c, side) in TABLE_2.items()}
    assert len(by_label) == 19  # the image and 18 units


def test_the_network_maps_an_image_to_logits_of_its_size() -> None:
    architecture = mobilenet_v2_network(11).require_segmentation()
    assert architecture.classes == 11
    assert max(architecture.levels) == 5
    with torch.no_grad():
        assert Network(architecture).eval()(torch.zeros(1, 3, 65, 97)).shape == (1, 11, 65, 97)
