"""CAS, Customizable Architecture Search (Zhang et al., CVPR 2019): cells of one type share their architecture and have
weights of their own.

What the paper states (abstract, introduction): stacked cells, edges that are operations, one architecture per cell
type, a cost per operation in the loss. What a third party reports: normal, reduction and multi-scale cells, searched in
the DARTS manner. All else here is our reading or our choice: the candidate lists and the two-input cell are recalled,
unverified; two intermediate nodes, the widths, the stems, the wiring of the multi-scale cell and the fixed heads of the
two fast presets are ours.
"""

from segnas.kinds import kind
from segnas.search.space import Space
from segnas.search.spaces.stacked import Head, MultiScaleHead, stack


def cas(classes: int) -> Space:
    """The paper-like preset: stem to 1/4, eight cells, reductions at 1/3 and 2/3 (DARTS), widths doubling, and the
    searched multi-scale cell over the deepest and the 1/8 feature.

    Depth and widths are our choice; the paper's are unknown to us.
    """
    head = MultiScaleHead(96, 8)
    return stack("cas", classes, cells="NNRNNRNN", widths=(64, 128, 256), stem=kind("stem", width=32), stem_stride=4, head=head, shared=True)


def cas_fast(classes: int) -> Space:
    """The real-time preset: a separable stem to 1/8 (Fast-SCNN's learning to downsample), cells down to 1/32, pyramid
    pooling, a head at 1/8; our choice.
    """
    stem, head = kind("stem", unit="separable", width=32), Head(kind("pyramid_pool"), 64, 8, 1)
    return stack("cas-fast", classes, cells="RNNRNN", widths=(64, 96, 128), stem=stem, stem_stride=8, head=head, shared=True)


def cas_tiny(classes: int) -> Space:
    """The preset of tests and the quickstart: five narrow cells, the first at 1/8, where its choices weigh most; our choice."""
    stem, head = kind("stem", unit="separable", width=16), Head(kind("pyramid_pool"), 48, 8, 1)
    return stack("cas-tiny", classes, cells="NRNRN", widths=(48, 64, 96), stem=stem, stem_stride=8, head=head, shared=True)
