"""Backbones as fixed slots of a draft: MobileNet-v2, for which several systems search a decoder."""

from segnas.errors import InputError
from segnas.kinds import kind
from segnas.mobilenet import LABEL, STAGES, mobilenet_v2_nodes
from segnas.search.draft import Draft

LAST = 1280
"""Channels of MobileNet-v2's last 1x1 convolution (table 2)."""
LAST_LABEL = f"{LABEL}.{1 + sum(repeats for _, _, repeats, _ in STAGES)}"
STRIDES = (8, 16, 32)


def mobilenet_v2(draft: Draft, *, width: float = 1.0, stages: int = len(STAGES), output_stride: int = 32, last: bool = False) -> tuple[int, ...]:
    """Append MobileNet-v2 to a draft that holds the image alone, and return the slots of the stem and of each stage's end, 1 + `stages` of them.

    Whole, these have 32, 16, 24, 32, 64, 96, 160 and 320 channels at 1/2, 1/2, 1/4, 1/8, 1/16, 1/16, 1/32 and 1/32. Labels are those of
    `segnas.mobilenet`, so that `--pretrained` finds the blocks; its weights fit `width` 1 alone. `width` multiplies the channels, rounded to
    multiples of 8 as in the released code (recalled). From `output_stride` on, strides are 1 and the depthwise convolutions of later blocks are
    dilated in their place (DeepLab). `last` appends the 1x1 convolution to 1280 channels without its activation, at the end of the tuple.
    InputError for a number of stages or an output stride that does not exist.
    """
    if not 1 <= stages <= len(STAGES):
        raise InputError(f"{stages} stages of MobileNet-v2 were asked for; 1 to {len(STAGES)} are allowed")
    if output_stride not in STRIDES:
        raise InputError(f"output stride {output_stride} was given; allowed: {', '.join(map(str, STRIDES))}")
    repeats = [1, *(repeats for _, _, repeats, _ in STAGES[:stages])]
    ends = {sum(repeats[: stage + 1]) for stage in range(len(repeats))}
    taps: list[int] = []
    slot, reached, rate = 0, 1, 1
    for number, node in enumerate(mobilenet_v2_nodes()[1 : sum(repeats) + 1], 1):
        stride, made = (1 if reached >= output_stride else node.stride), node.kind
        if rate > 1:
            made = kind("inverted_residual", expansion=made.integer("expansion"), dilation=rate)
        slot = draft.node(made, slot, channels=scaled(node.channels, width), stride=stride, label=node.label)
        reached *= stride
        rate *= node.stride // stride
        if number in ends:
            taps.append(slot)
    if last:
        block = kind("conv", kernel=1, activation="none")
        taps.append(draft.node(block, slot, channels=scaled(LAST, max(1.0, width)), label=LAST_LABEL))
    return tuple(taps)


def scaled(channels: int, width: float) -> int:
    """Channels times the width, to the nearest multiple of 8, at least 8, and never more than a tenth below (the released code, recalled)."""
    if width == 1:
        return channels
    wanted = channels * width
    found = max(8, int(wanted + 4) // 8 * 8)
    return found + 8 if found < 0.9 * wanted else found
