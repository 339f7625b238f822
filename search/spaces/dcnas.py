"""DCNAS, Densely Connected NAS (Zhang et al., CVPR 2021): a grid of cells over four scales, each of which may read any
cell of any earlier layer.

What the paper states (abstract; figure 1): L layers at 1/4 to 1/32, a fixed stem and a fixed upsampling end, weighted
links from all earlier layers through fixed down, keep and up operators that are added, separable 3x3, 5x5 and 7x7
convolutions in the mixture layer. A third party reports of its first version: inverted residuals with squeeze and
excitation as operators, and 1 to k inputs of each cell. L = 14 and widths that double with each scale are recalled,
unverified. The kernels of the links, the pyramid of the stem, k = 3 and the end are our choice.
"""

from collections.abc import Sequence

from segnas.errors import InputError
from segnas.kinds import Kind, kind
from segnas.search.draft import Draft
from segnas.search.slots import Choice, Link
from segnas.search.space import Space

SEPARABLE = tuple(kind("separable", kernel=kernel) for kernel in (3, 5, 7))
"""Figure 1 of the paper."""
INVERTED = tuple(kind("inverted_residual", kernel=kernel, expansion=expansion, squeeze=4) for kernel in (3, 5, 7) for expansion in (3, 6))
"""Of the first version, as reported: kernels 3, 5, 7 and a ratio of 3 or 6, which we read as the expansion."""
SCALES = 4


def dcnas(classes: int) -> Space:
    """The paper's depth, 14 layers and 1680 candidate links, with 32 channels at 1/4 (our choice, for a small machine)."""
    return grid("dcnas", classes, layers=14, width=32, head=kind("conv"), head_width=64)


def dcnas_small(classes: int) -> Space:
    """The preset that a CPU can search: 6 layers, 336 candidate links, 16 channels at 1/4, a separable unit at the end; our choice."""
    return grid("dcnas-small", classes, layers=6, width=16, head=kind("separable"), head_width=32)


def grid(
    name: str,
    classes: int,
    *,
    layers: int,
    width: int,
    head: Kind,
    head_width: int,
    fan_in: int = 3,
    candidates: Sequence[Kind] = SEPARABLE,
) -> Space:
    """The dense grid: cell (layer, scale) reads 1 to `fan_in` of the 4 * layer features before it, each brought to its
    shape, and applies one of `candidates`.

    Widths are `width` * 2^scale. Decisions are `link.LAYER.SCALE.LAYER.SCALE` (target, then source; layer 0 is the
    stem) and `cell.LAYER.SCALE`. InputError for no layers or no inputs.
    """
    if layers < 1 or fan_in < 1:
        raise InputError(f"{layers} layers and at most {fan_in} inputs a cell were given; at least 1 of each is needed")
    draft = Draft(name)
    features = {(0, scale): feature for scale, feature in enumerate(_stem(draft, width))}
    for layer in range(1, layers + 1):
        for scale in range(SCALES):
            sources = [source for source in features if source[0] < layer]
            names = [f"link.{layer}.{scale}.{'.'.join(map(str, source))}" for source in sources]
            links = [Link(_aligned(draft, features[s], s[1], scale, width, link), link) for s, link in zip(sources, names, strict=True)]
            draft.keep(names, 1, min(fan_in, len(names)))
            fused = draft.node("add", *links, label=f"cell{layer}.{scale}.fusion")
            chosen = Choice(f"cell.{layer}.{scale}", tuple(candidates))
            features[layer, scale] = draft.node(chosen, fused, label=f"cell{layer}.{scale}")
    _finish(draft, [features[layers, scale] for scale in range(SCALES)], classes, head, head_width)
    return draft.space()


def _stem(draft: Draft, width: int) -> list[int]:
    """Convolutions of stride 2, 1 and 2 to 1/4, then one of stride 2 to each coarser scale."""
    conv = kind("conv")
    first = draft.node(conv, 0, channels=width // 2, stride=2, label="stem.0")
    second = draft.node(conv, first, label="stem.1")
    features = [draft.node(conv, second, channels=width, stride=2, label="stem.2")]
    for scale in range(1, SCALES):
        features.append(draft.node(conv, features[-1], channels=width * 2**scale, stride=2, label=f"stem.pyramid{scale}"))
    return features


def _aligned(draft: Draft, feature: int, source: int, target: int, width: int, label: str) -> int:
    """The feature of scale `source` at the size and width of scale `target`: 3x3 units of stride 2 down, a 1x1 unit to
    keep, a 1x1 unit and a bilinear resize up; the last unit has no activation.
    """
    plain = kind("conv", kernel=1, activation="none")
    if source < target:
        for scale in range(source + 1, target + 1):
            down = kind("conv", activation="none" if scale == target else "relu")
            feature = draft.node(down, feature, channels=width * 2**scale, stride=2, label=f"{label}.down{scale}")
        return feature
    feature = draft.node(plain, feature, channels=width * 2**target, label=f"{label}.point")
    if source == target:
        return feature
    return draft.node(kind("resize"), feature, up=2 ** (source - target), label=f"{label}.up")


def _finish(draft: Draft, features: Sequence[int], classes: int, head: Kind, width: int) -> None:
    """Narrow each scale (ours), upsample, concatenate, 3x3 unit, classifier, resize (the paper's order, as read from figure 1)."""
    narrow = [draft.node(kind("conv", kernel=1), f, channels=width, label=f"head.narrow{s}") for s, f in enumerate(features)]
    joined = draft.node(kind("concat"), *(draft.resize(f, narrow[0], f"head.up{s}") for s, f in enumerate(narrow)), label="head.concat")
    unit = draft.node(head, joined, channels=width, label="head.unit")
    draft.resize(draft.node(kind("classifier"), unit, channels=classes, label="head.classifier"), 0, "head.output")
